"""Ours against PyTorch, step by step in turns: the measurements of ``bench.py --peer torch``."""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import peers
from costs.measuring import in_turns, spread
from ophjax.errors import InputError

MODES = ("eager", "channels-last", "compiled", "compiled-channels-last")


def cores() -> int:
    """Cores that this process may use, all of which XLA takes; fewer by ``taskset``."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Theirs:
    """A peer in one of the modes, whose stages can be stepped one at a time."""

    def __init__(self, peer: peers.Peer, mode: str) -> None:
        import torch

        torch.set_num_threads(cores())
        self.peer, self.compiled, self.last = peer, mode.startswith("compiled"), mode.endswith("channels-last")
        if self.last:
            for net in peer.nets.values():
                net.to(memory_format=torch.channels_last)

    def enter(self, stage: str, batch: Mapping[str, np.ndarray]) -> float:
        """Goes to a stage: lays the batch out, compiles and runs its first step; returns the seconds of that step."""
        import torch

        moves = self.peer.stages[stage]
        trained = {name for move in moves for name in move.trains}
        for name, net in self.peer.nets.items():
            net.train(name in trained)
        self.batch = {name: self._tensor(value) for name, value in batch.items()}
        ready: dict[int, tuple[Any, Any, list[Any]]] = {}
        for move in moves:
            if id(move) not in ready:
                params = {name: list(self.peer.nets[name].parameters()) for name in move.trains}
                loss = torch.compile(move.loss) if self.compiled else move.loss
                leaves = [leaf for some in params.values() for leaf in some]
                ready[id(move)] = (loss, move.optimiser(params), leaves)
        self.moves = [(move, *ready[id(move)]) for move in moves]
        return self.run()

    def _tensor(self, value: np.ndarray) -> Any:
        """An array with the channels first, in the order in memory that the mode asks for."""
        import torch

        if value.ndim < 4:
            made = torch.from_numpy(np.array(value))
            return made.long() if made.dtype == torch.int32 else made
        made = torch.from_numpy(np.moveaxis(value, -1, -3).copy())
        return made.to(memory_format=torch.channels_last) if self.last and made.ndim == 4 else made

    def _choose(self, trained: tuple[str, ...]) -> None:
        """Only networks that are trained get a gradient."""
        for name, net in self.peer.nets.items():
            if next(net.parameters()).requires_grad != (name in trained):
                net.requires_grad_(name in trained)

    def run(self) -> float:
        """Seconds of one step."""
        import torch

        start, left = time.perf_counter(), None
        for move, loss, optimiser, leaves in self.moves:
            self._choose(move.trains)
            optimiser.zero_grad(set_to_none=True)
            value, left = loss(self.batch, left)
            value.backward()
            if move.clip:
                torch.nn.utils.clip_grad_value_(leaves, move.clip)
            optimiser.step()
            self.loss = value.item()
        return time.perf_counter() - start


def against_torch(options: Namespace, start: Callable[..., Any]) -> dict[str, Any]:
    """Times each stage of a method that the peer has, in every mode asked for, in turns with ours.

    Args:
      options: ``method``, ``preset``, ``steps`` (repetitions of each), ``modes``.
      start: starts ours: ``bench.Bench``.

    Returns:
      A JSON object. Ratios are ours over PyTorch's, each of two steps in the same turn.

    Raises:
      InputError: the method has no peer, PyTorch is not installed, or JAX does not run on the CPU.
    """
    written = peers.load(options.method)
    import jax
    import torch

    from peers import alone

    if jax.default_backend() != "cpu":
        raise InputError(
            f"--peer torch compares on CPUs, but JAX runs on {jax.default_backend()} here. Set JAX_PLATFORMS=cpu."
        )
    torch.manual_seed(0)
    bench = start(options, changes=written.WITHOUT)
    shapes, batches = {name: spec.shape for name, spec in bench.spec.items()}, {}
    made = {}
    for mode in options.modes:
        made[mode] = Theirs(written.make(bench.config, shapes), mode)
    found: dict[str, Any] = {
        "method": options.method, "preset": options.preset, "threads": torch.get_num_threads(),
        "batch_size": bench.train.batch_size, "image": list(shapes["image"][1:]), "torch": torch.__version__,
        "jax": jax.__version__, "without": dict(written.WITHOUT), "stages": [], "left_out": [],
    }  # fmt: skip
    for stage in bench.method.stages:
        if stage.name not in next(iter(made.values())).peer.stages:
            found["left_out"].append(stage.name)
            continue
        first = {"ours": bench.enter(stage)}
        batches[stage.name] = {name: np.asarray(value) for name, value in bench.batch.items()}
        runs, failed = {"ours": bench.run}, {}
        for mode, theirs in made.items():
            try:
                first[mode] = theirs.enter(stage.name, batches[stage.name])
                theirs.run()
                runs[mode] = theirs.run
            except Exception as error:  # whatever the compiler's own parts raise
                if not theirs.compiled:
                    raise
                failed[mode] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
        bench.run()
        taken = in_turns(runs, options.steps)
        ratios = {
            mode: spread([a / b for a, b in zip(taken["ours"], taken[mode], strict=True)])
            for mode in runs
            if mode != "ours"
        }
        found["stages"].append(
            {
                "name": stage.name,
                "first_step_s": first,
                "step_ms": {name: spread([1000 * value for value in values]) for name, values in taken.items()},
                "ours_over_torch": ratios,
                "best": min(ratios, key=lambda mode: statistics.median(taken[mode])) if ratios else None,
                "failed": failed,
            }
        )
    best = [stage["ours_over_torch"][stage["best"]]["median"] for stage in found["stages"] if stage["best"]]
    found["ours_over_best"] = _geometric_mean(best)
    settings = (options.method, dataclasses.asdict(bench.config), shapes, batches, max(3, options.steps))
    worked = [mode for mode in made if all(mode in stage["ours_over_torch"] for stage in found["stages"])]
    found["alone"] = alone.of_each(settings, ["ours", *worked])
    found["alone_over_best"] = over_best({name: held.get("step_ms", {}) for name, held in found["alone"].items()})
    return found


def over_best(taken: Mapping[str, Mapping[str, float]]) -> float | None:
    """The geometric mean over stages of our time over the shortest of the others'; None where there is none.

    Args:
      taken: milliseconds of each stage, of ``ours`` and of the others (empty: it did not run).
    """
    others = [one for name, one in taken.items() if name != "ours" and one]
    return _geometric_mean(
        [mine / min(one[stage] for one in others) for stage, mine in taken["ours"].items() if others]
    )


def _geometric_mean(values: list[float]) -> float | None:
    return math.exp(statistics.fmean(map(math.log, values))) if values else None


def describe(found: dict[str, Any]) -> None:
    """Prints what was measured."""
    size = " x ".join(map(str, found["image"]))
    print(
        f"{found['method']}, preset {found['preset']}, {found['batch_size']} images of {size}, float32, on the CPU "
        f"with {found['threads']} threads for each: jax {found['jax']} against torch {found['torch']}"
    )
    without = ", ".join(f"{name} {value}" for name, value in found["without"].items())
    print(f"  pictures reach both nets as they are: {without}")
    for stage in found["stages"]:
        ours = stage["step_ms"]["ours"]
        print(
            f"  {stage['name']}: ours {ours['median']:.1f} ms ({ours['low']:.1f} to {ours['high']:.1f}), first step "
            f"{stage['first_step_s']['ours']:.1f} s"
        )
        for mode, ratio in stage["ours_over_torch"].items():
            theirs = stage["step_ms"][mode]
            print(
                f"    {mode:22} {theirs['median']:8.1f} ms ({theirs['low']:.1f} to {theirs['high']:.1f}), first step "
                f"{stage['first_step_s'][mode]:.1f} s; ours/torch {ratio['median']:.2f} "
                f"({ratio['low']:.2f} to {ratio['high']:.2f}){' best' if mode == stage['best'] else ''}"
            )
        for mode, why in stage["failed"].items():
            print(f"    {mode:22} does not work here: {why}")
    if found["left_out"]:
        print(f"  not written in PyTorch: {', '.join(found['left_out'])}")
    if found["ours_over_best"]:
        print(f"  ours over PyTorch's best mode, geometric mean over stages: {found['ours_over_best']:.2f}")
    print("  each alone in a process, step after step:")
    for name, held in found["alone"].items():
        print(
            f"    {name:22} {', '.join(f'{stage} {taken:.1f} ms' for stage, taken in held['step_ms'].items())}; "
            f"{held['steps_mib'] - held['imports_mib']:.0f} MiB at most while stepping, above the "
            f"{held['imports_mib']:.0f} that its imports take (whole process at most {held['peak_mib']:.0f})"
            if "step_ms" in held
            else f"    {name:22} not measured: {held['error']}"
        )
    if found["alone_over_best"]:
        print(f"  ours over the fastest of these, geometric mean over stages: {found['alone_over_best']:.2f}")
