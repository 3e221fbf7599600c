"""A method's steps in a process of its own: their time, one after the other, and their memory.

``bench.py --peer torch`` starts it for each: python experiments/peers/alone.py SETTINGS (ours | MODE). Linux keeps each
process's greatest resident memory and sets it back when asked, so that the steps can be told apart from the compiling
before them.
"""

from __future__ import annotations

import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from costs.measuring import forget, resident


def of_each(settings: tuple[Any, ...], names: list[str]) -> dict[str, dict[str, Any]]:
    """Starts a process for each of ours and the modes, and reads what it measured.

    Args:
      settings: method, its configuration as a dictionary, shapes of a batch, a batch of each stage, number of steps.
      names: ``ours`` or modes.
    """
    found: dict[str, dict[str, Any]] = {}
    here = Path(__file__).resolve()
    path = [str(here.parents[2]), str(here.parents[1]), os.environ.get("PYTHONPATH", "")]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "settings.pickle"
        file.write_bytes(pickle.dumps(settings))
        for name in names:
            done = subprocess.run(
                [sys.executable, here, file, name], capture_output=True, text=True, check=False,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
            )  # fmt: skip
            lines = (done.stderr if done.returncode else done.stdout).strip().splitlines() or ["no output"]
            found[name] = {"error": lines[-1][:200]} if done.returncode else json.loads(lines[-1])
    return found


def ours(method: str, config: dict[str, Any], batches: dict[str, Any]) -> Any:
    """Yields each stage's name and a function that makes one step, after its first step."""
    import jax

    from ophjax import methods
    from ophjax.train import host, loop, mesh

    module = methods.load(method)
    made = module.make(module.Config(**config))
    devices = mesh.make_mesh(model=1)
    first = next(iter(batches.values()))
    spec = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in first.items()}
    shardings = mesh.state_shardings(jax.eval_shape(made.init, jax.random.key(0), spec), devices)
    state = loop.compile_init(made, spec, shardings)(jax.random.key(0))
    for stage in made.stages:
        if stage.name in batches:
            step, batch = loop.compile_step(stage, devices, shardings), mesh.place(batches[stage.name], devices)

            def run(step: Any = step, batch: Any = batch) -> None:
                nonlocal state
                state, _ = jax.block_until_ready(step(jax.random.key(0), state, batch))

            run()
            host.release_memory()  # as the loop does
            yield stage.name, run


def theirs(mode: str, method: str, config: dict[str, Any], shapes: Any, batches: dict[str, Any]) -> Any:
    """Likewise for a peer; the configuration needs no JAX."""
    import peers
    from peers.timing import Theirs

    made = Theirs(peers.load(method).make(SimpleNamespace(**config), shapes), mode)
    for name, batch in batches.items():
        made.enter(name, batch)
        yield name, made.run


def main() -> None:
    """Measures one of them and prints it as JSON."""
    file, name = sys.argv[1:]
    # The one is started by this very program's caller, from whom the file comes.
    method, config, shapes, batches, steps = pickle.loads(Path(file).read_bytes())
    if name == "ours":
        import jax

        from ophjax import methods
        from ophjax.train import host, loop  # noqa: F401

        host.prepare_compiler()
        host.keep_memory()
        methods.load(method)
        jax.devices()
    else:
        import torch  # noqa: F401

        import peers

        peers.load(method)
    held: dict[str, Any] = {"imports_mib": resident("VmRSS"), "steps_mib": 0.0, "peak_mib": 0.0, "step_ms": {}}
    made = ours(method, config, batches) if name == "ours" else theirs(name, method, config, shapes, batches)
    for stage, run in made:
        held["peak_mib"] = max(held["peak_mib"], resident("VmHWM"))
        forget()
        taken = []
        for _ in range(steps):
            begun = time.perf_counter()
            run()
            taken.append(1000 * (time.perf_counter() - begun))
        held["steps_mib"] = max(held["steps_mib"], resident("VmHWM"))
        held["step_ms"][stage] = statistics.median(taken)
    held["peak_mib"] = max(held["peak_mib"], held["steps_mib"])
    print(json.dumps(held))


if __name__ == "__main__":
    main()
