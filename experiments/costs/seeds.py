"""What many seeds in one program cost against runs of their own: the measurements of ``bench.py --seeds N``."""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

from costs.measuring import in_turns
from ophjax.train import loop


def against_separate(options: argparse.Namespace, start: Callable[..., Any]) -> dict[str, Any]:
    """Times every stage's step for all seeds together, in turns with the step of one seed, and compiles both.

    Args:
      options: of ``bench.py``; ``seeds`` is their number.
      start: ``bench.Bench``.

    Returns:
      ``stages``, and how many times as long ``separate`` runs take as one of all seeds, compiling and the demo's steps
      included: where each compiles anew, and where all but the first find its programs in the cache.
    """
    one, together = start(options), start(options, seeds=options.seeds)
    found: dict[str, Any] = {"method": options.method, "preset": options.preset, "seeds": options.seeds, "stages": []}
    anew = cached = joint = 0.0
    counted = loop.count_steps(one.method, one.data, one.train)
    for alone, wide in zip(counted.stages, together.method.stages, strict=True):
        steps = alone.steps
        one.enter(alone), together.enter(wide)
        taken = in_turns({"one": one.run, "together": together.run}, options.steps)
        ours, theirs = map(statistics.median, taken.values())
        (cold, warm), (cold_together, _) = one.compile(alone), together.compile(wide)
        found["stages"].append(
            {
                "name": alone.name,
                "steps": steps,
                "step_ms": 1000 * ours,
                "step_together_ms": 1000 * theirs,
                "seeds_times_step_over_together": options.seeds * ours / theirs,
                "compile_s": cold,
                "compile_together_s": cold_together,
            }
        )
        anew += options.seeds * (cold + steps * ours)
        cached += cold + (options.seeds - 1) * warm + options.seeds * steps * ours
        joint += cold_together + steps * theirs
    return found | {"separate_over_together": anew / joint, "separate_cached_over_together": cached / joint}


def describe(found: dict[str, Any]) -> None:
    """Prints what was measured."""
    for stage in found["stages"]:
        print(
            f"  {stage['name']:12} a step of one seed {stage['step_ms']:.1f} ms, of {found['seeds']} together "
            f"{stage['step_together_ms']:.1f} ms: {stage['seeds_times_step_over_together']:.2f} times as fast; "
            f"compiled in {stage['compile_s']:.1f} and {stage['compile_together_s']:.1f} s"
        )
    print(
        f"  {found['seeds']} separate runs take {found['separate_over_together']:.2f} times as long as one of all "
        f"seeds, compiling included; {found['separate_cached_over_together']:.2f} times where they share a cache of "
        "programs"
    )
