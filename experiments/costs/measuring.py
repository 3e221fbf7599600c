"""Time in turns, and memory of a process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# PyTorch's OpenMP threads spin for a moment after their work; seconds between two turns.
PAUSE = 0.01


def in_turns(runs: Mapping[str, Callable[[], float]], times: int) -> dict[str, list[float]]:
    """Seconds of each, one after the other ``times`` times, each time another one first."""
    names, taken = list(runs), {name: [] for name in runs}
    for turn in range(times):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(PAUSE)
            taken[name].append(runs[name]())
    return taken


def timed(function: Callable[..., Any], *given: Any) -> Callable[[], float]:
    """Compiles a function of JAX arrays; what is returned calls it and gives the seconds."""
    import jax

    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*given))

    def seconds() -> float:
        begun = time.perf_counter()
        jax.block_until_ready(compiled(*given))
        return time.perf_counter() - begun

    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": middle, "low": low, "high": high}


def resident(entry: str) -> float:
    """MiB of this process: ``VmRSS`` now, ``VmHWM`` at most since the last ``forget``."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {entry}")


def forget() -> None:
    """Sets the greatest resident memory to the present one."""
    Path("/proc/self/clear_refs").write_text("5")
