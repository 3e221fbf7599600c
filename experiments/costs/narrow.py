"""What a compact super-resolution net costs beside the dense one: the measurements of ``bench.py --compact RATIO``."""

import dataclasses
import statistics
from typing import Any

from costs.measuring import in_turns, spread, timed
from ophjax.errors import InputError

SCALE, BATCH, SIDES = 4, 4, (24, 48)
"""DRN-S at 4x, on so many inputs of these sides."""


def against_dense(ratio: float, times: int) -> dict[str, Any]:
    """Times the prediction and the training step of DRN-S at 4x in turns with those of a compact net, which lacks the
    share ``ratio`` of every layer's channels.

    Returns:
      ``multiply_adds``, compact over dense, and for each side ``prediction`` and ``step``: the ratio's median and
      quartiles over ``times`` pairs.

    Raises:
      InputError: the ratio is no share.
    """
    import jax
    import jax.numpy as jnp

    from ophjax.data.pairs import name_of, steps
    from ophjax.methods import dualsr
    from ophjax.nets.superres import count_madds
    from ophjax.types import Batch

    if not 0 < ratio < 1:
        raise InputError(f"--compact {ratio}: expected the share of the channels to leave out, above 0 and below 1.")
    configs = {name: dualsr.Config(scale=SCALE, narrow=n) for name, n in (("compact", ratio), ("dense", 0.0))}
    sums = [count_madds(dualsr.build(config)) for config in configs.values()]
    found: dict[str, Any] = {"ratio": ratio, "multiply_adds": sums[0] / sums[1], "sides": {}}

    def batch(side: int) -> Batch:
        shapes = {name_of(size, SCALE): (BATCH, size * side, size * side, 3) for size in steps(SCALE)}
        images = {
            name: jax.random.randint(jax.random.key(i), shape, 0, 256, jnp.uint8)
            for i, (name, shape) in enumerate(shapes.items())
        }
        return images | {"target_weight": jnp.ones(BATCH), "weight": jnp.ones(BATCH), "index": jnp.arange(BATCH)}

    for side in SIDES:
        images, key, runs = batch(side), jax.random.key(0), {}
        for name, config in configs.items():
            method = dualsr.make(dataclasses.replace(config, patch=SCALE * side))
            state = jax.jit(method.init)(key, images)
            for what, function in (("prediction", method.predict), ("step", method.stages[-1].step)):
                runs[f"{what} {name}"] = timed(function, key, state, images)
        taken = in_turns(runs, times)
        found["sides"][side] = {}
        for what in ("prediction", "step"):
            ours, theirs = (taken[f"{what} {name}"] for name in configs)
            over = spread([a / b for a, b in zip(ours, theirs, strict=True)])
            found["sides"][side][what] = over | {"dense_ms": 1000 * statistics.median(theirs)}
    return found


def describe(found: dict[str, Any]) -> None:
    """Prints what was measured."""
    print(f"DRN-S at {SCALE}x without {found['ratio']:.0%} of its channels over the dense net, batch {BATCH}:")
    print(f"  multiply-adds    {found['multiply_adds']:.2f}")
    for side, both in found["sides"].items():
        for what, over in both.items():
            spent = f"{over['median']:.2f} (quartiles {over['low']:.2f} to {over['high']:.2f}"
            print(f"  {what:10} {side:3} x {side:<3} {spent}; the dense net takes {over['dense_ms']:.0f} ms)")
