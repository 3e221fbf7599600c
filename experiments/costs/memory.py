"""What the dry run says of memory, against what a process takes: the measurements of ``bench.py --memory BATCH``."""

import argparse
import dataclasses
import gc
import time
from typing import Any

import presets
from costs.measuring import forget, resident
from ophjax import data as datasets
from ophjax import methods
from ophjax.errors import InputError
from ophjax.train import host

# XLA lets go of a step's temporaries a moment after its results are there; seconds.
PAUSE = 0.5


def against_estimate(options: argparse.Namespace) -> dict[str, Any]:
    """Takes every stage's step on zeros, on one CPU device, and compares what the process grew by with the dry run.

    What compiling leaves behind (the program itself among it) is left out: it is there once, however large a batch is.
    On CPUs convolutions take scratch that XLA's account does not know.

    Args:
      options: of ``bench.py``; ``memory`` is the batch size.

    Returns:
      A JSON object: for each stage ``said_mib``, ``taken_mib`` and ``taken_over_said``.

    Raises:
      InputError: not on a CPU under Linux, which keeps a process's greatest resident memory.
    """
    import jax
    import numpy as np

    from ophjax.train import estimate, loop, mesh

    try:
        forget()
    except OSError as error:
        raise InputError(f"--memory needs Linux, which tells a process's greatest memory ({error}).") from error
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        raise InputError("--memory measures a process with one CPU device. Set JAX_PLATFORMS=cpu.")
    module = methods.load(options.method)
    config, data_config, train = presets.preset(options.preset, options.method)
    data = datasets.load(module.DATA).make(data_config)
    method = module.make(methods.fit_to(config, data))
    train = dataclasses.replace(train, batch_size=options.memory)
    said = {
        stage["name"]: stage["bytes_per_device"] / 2**20 for stage in estimate.estimate(method, data, train)["stages"]
    }
    devices, key = mesh.make_mesh(model=1), jax.random.key(0)
    spec = loop.batch_spec(data, train, devices)
    shapes = jax.eval_shape(method.init, key, spec)
    shardings = mesh.state_shardings(shapes, devices)
    found: dict[str, Any] = {"method": options.method, "preset": options.preset, "batch_size": options.memory}
    found["stages"] = []

    def zeros(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)

    def now() -> float:
        gc.collect()
        time.sleep(PAUSE)
        host.release_memory()
        return resident("VmRSS")

    for stage in method.stages:
        empty = now()
        state = jax.device_put(zeros(shapes), shardings)
        batch, following = (mesh.place(zeros(spec), devices) for _ in range(2))  # the next one waits beside it
        held = now()
        step = loop.compile_step(stage, devices, shardings)
        state, _ = jax.block_until_ready(step(key, state, batch))
        compiled = now() - held
        forget()
        state, _ = jax.block_until_ready(step(key, state, batch))
        taken = resident("VmHWM") - empty - compiled
        found["stages"].append(
            {
                "name": stage.name,
                "said_mib": said[stage.name],
                "taken_mib": taken,
                "taken_over_said": taken / said[stage.name],
            }
        )
        del state, batch, following, step
    return found


def describe(found: dict[str, Any]) -> None:
    """Prints what was measured."""
    print(f"{found['method']}, preset {found['preset']}, {found['batch_size']} images a step:")
    for stage in found["stages"]:
        print(
            f"  {stage['name']:12} the dry run says {stage['said_mib']:.0f} MiB; the process grew by "
            f"{stage['taken_mib']:.0f}: {stage['taken_over_said']:.2f} times that"
        )
