"""What a run would take, found by compiling its steps and running none: the dry run."""

from __future__ import annotations

from typing import Any

import jax

from ophjax import trees
from ophjax.data.sources import Dataset
from ophjax.nets.recompute import recomputed
from ophjax.train import loop
from ophjax.train import mesh as meshes
from ophjax.train.flops import count_flops
from ophjax.train.seeds import spec_abreast
from ophjax.transforms.stepping import in_slices
from ophjax.types import Method


def estimate(method: Method, data: Dataset, config: loop.Config) -> dict[str, Any]:
    """Compiles every stage's step for the present devices and reads XLA's own account of it.

    Bytes per device are those of the step's program as the loop compiles it (arguments, outputs and temporaries, less
    what outputs take over from arguments) and of the next batch, which waits beside it. On GPUs and TPUs that is what
    the step takes of the device's memory. On CPUs convolutions take scratch of their own at run time that is in no
    account of XLA's: there the process grows by more (BUILD_NOTES, "Memory of a step"). Evaluation, whose program is
    smaller, and what the host reads ahead are left out.

    Returns:
      A JSON object: ``mesh``, ``networks`` (parameters of each), ``state_bytes``, ``shardings`` (leaves that are
      split, by path), ``stages`` (name, steps, FLOPs per step over all devices, bytes per device), and
      the dearest stage's ``flops_per_step`` and ``bytes_per_device``. XLA counts the body of a loop once; what
      its further rounds take is added from the traced program.
    """
    mesh = meshes.make_mesh(model=config.model_parallel)
    batch = loop.batch_spec(data, config, mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(method.init, key, batch)
    shardings = meshes.state_shardings(state, mesh)
    image, batch = list(batch["image"].shape[1:]), spec_abreast(batch, config.seeds)
    waiting = trees.nbytes(batch) // mesh.shape["data"]
    split = {
        name: str(where.spec)
        for name, where in trees.named_leaves(shardings).items()
        if name.startswith("params") and any(where.spec)
    }
    stages: list[dict[str, Any]] = []
    for stage in loop.count_steps(method, data, config).stages:
        step = loop.compile_step(stage, mesh, shardings, slices=config.accumulate, remat=config.remat)
        step = step.lower(key, state, batch).compile()
        cost, memory = step.cost_analysis(), step.memory_analysis()
        with in_slices((config.accumulate, mesh.shape["data"])), recomputed(config.remat):
            traced = jax.make_jaxpr(stage.step)(key, state, batch)
        rounds = count_flops(traced) - count_flops(traced, loops=False)
        taken = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        stages.append(
            {
                "name": stage.name,
                "steps": stage.steps,
                "flops_per_step": int(cost.get("flops", 0)) * mesh.size + rounds,
                "bytes_per_device": int(taken - memory.alias_size_in_bytes) + waiting,
            }
        )
    return {
        "devices": mesh.size,
        "platform": mesh.devices.flat[0].platform,
        "mesh": dict(mesh.shape),
        "batch_size": config.batch_size,
        "image": image,
        "networks": {name: trees.count(tree) for name, tree in state.params.items()},
        "state_bytes": trees.nbytes(state),
        "shardings": split,
        "stages": stages,
        "flops_per_step": max(stage["flops_per_step"] for stage in stages),
        "bytes_per_device": max(stage["bytes_per_device"] for stage in stages),
    }


def describe(plan: dict[str, Any]) -> str:
    """Says an estimate in words."""
    lines = [
        f"{plan['method']} on {plan['data']}, preset {plan['preset']}: nothing was trained.",
        f"mesh       data {plan['mesh']['data']} x model {plan['mesh']['model']}",
        f"devices    {plan['devices']} x {plan['platform']}",
        f"batch      {plan['batch_size']} images of {' x '.join(map(str, plan['image']))}",
    ]
    for name, parameters in plan["networks"].items():
        mine = {path: spec for path, spec in plan["shardings"].items() if path.split("/")[1] == name}
        where = f"{len(mine)} leaves split over model" if mine else "replicated"
        lines.append(f"network    {name}: {parameters:,} parameters, {where}")
        lines += [f"             {path}  {spec}" for path, spec in mine.items()]
    lines.append(f"state      {plan['state_bytes'] / 2**20:,.0f} MiB with optimiser states")
    for stage in plan["stages"]:
        lines.append(
            f"stage      {stage['name']}: {stage['steps']} steps, {stage['flops_per_step'] / 1e9:,.2f} GFLOP per step, "
            f"about {stage['bytes_per_device'] / 2**20:,.0f} MiB per device"
        )
    return "\n".join(lines)
