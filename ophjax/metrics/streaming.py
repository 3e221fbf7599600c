"""Metrics on the device, as (value, count) pairs for each example.

A mean over a split is sum(value) / sum(count). An example that does not count (a padding row, an image
without a mask) has value 0 and count 0, so pairs of batches, devices and processes simply add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp

from ophjax.errors import InputError

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Bool, Float, Num

    from ophjax.types import Pairs

THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Thresholds of the threshold-averaged scores (Ji et al., CVPR 2021)."""


def pair(values: Float[Array, " b"], weight: Float[Array, " b"] | None = None) -> tuple[Array, Array]:
    """Pairs values with their counts; where the weight is 0 the value is 0 too, even if it was NaN."""
    values = values.astype(jnp.float32)
    weight = jnp.ones_like(values) if weight is None else weight.astype(jnp.float32)
    return jnp.where(weight > 0, values * weight, 0.0), weight


def _ratio(above: Array, below: Array) -> Array:
    # Nothing to find and nothing found is a perfect answer: 1, not 0 / 0.
    return jnp.where(below > 0, above / jnp.maximum(below, 1.0), 1.0)


def _sizes(
    probs: Array, target: Array, threshold: float, inclusive: bool
) -> tuple[Float[Array, "b c"], Float[Array, "b c"], Float[Array, "b c"]]:
    # A share of raters such as 3 / 10 is rounded: what lies that close to the threshold lies on it.
    least = threshold - 1e-6 if inclusive else threshold
    found: Bool[Array, "b h w c"] = probs.astype(jnp.float32) > least
    truth: Bool[Array, "b h w c"] = target.astype(jnp.float32) > least
    # Pixels are counted as integers, which is exact.
    overlap, found_size, truth_size = (
        mask.sum((1, 2), dtype=jnp.int32).astype(jnp.float32) for mask in (found & truth, found, truth)
    )
    return overlap, found_size, truth_size


def dice(
    probs: Float[Array, "b h w c"], target: Num[Array, "b h w c"], *, threshold: float = 0.5, inclusive: bool = False
) -> Float[Array, "b c"]:
    """Computes 2 |A and B| / (|A| + |B|) of each example and region, A the prediction, B the truth.

    Both are cut at the threshold (strictly above it belongs to the region, with ``inclusive`` the threshold itself
    too), which leaves a 0/1 truth as it is. Both empty gives 1; one of the two empty gives 0.
    """
    overlap, found, truth = _sizes(probs, target, threshold, inclusive)
    return _ratio(2.0 * overlap, found + truth)


def iou(
    probs: Float[Array, "b h w c"], target: Num[Array, "b h w c"], *, threshold: float = 0.5, inclusive: bool = False
) -> Float[Array, "b c"]:
    """Computes |A and B| / |A or B|, the Jaccard index; cut and empty regions as in ``dice``."""
    overlap, found, truth = _sizes(probs, target, threshold, inclusive)
    return _ratio(overlap, found + truth - overlap)


def soft_dice(
    probs: Float[Array, "b h w c"], target: Num[Array, "b h w c"], *, inclusive: bool = False
) -> Float[Array, "b c"]:
    """Averages ``dice`` over the cuts 0.1, 0.3, 0.5, 0.7 and 0.9: the 'soft' Dice of multi-rater work.

    A target that is a mean over raters is cut at the same thresholds; with an even number of raters 0.5 is a tie, which
    ``inclusive`` counts as marked (MRNet's code does, MrPrism's does not). The published code adds 1e-4 to
    both sides of the fraction; here an empty region is handled exactly instead (as in ``dice``), which
    changes a score by less than 1e-4.
    """
    return jnp.stack([dice(probs, target, threshold=cut, inclusive=inclusive) for cut in THRESHOLDS]).mean(0)


def soft_iou(
    probs: Float[Array, "b h w c"], target: Num[Array, "b h w c"], *, inclusive: bool = False
) -> Float[Array, "b c"]:
    """Averages ``iou`` over the cuts 0.1, 0.3, 0.5, 0.7 and 0.9, as ``soft_dice`` does."""
    return jnp.stack([iou(probs, target, threshold=cut, inclusive=inclusive) for cut in THRESHOLDS]).mean(0)


def region_metrics(
    probs: Float[Array, "b h w c"],
    target: Num[Array, "b h w c"],
    regions: Sequence[str],
    *,
    weight: Float[Array, " b"] | None = None,
) -> Pairs:
    """Computes all segmentation metrics as pairs, ready for ``Method.metrics``.

    Args:
      probs: probabilities of the regions.
      target: 0/1 masks, or means over raters.
      regions: names of the c regions.
      weight: what each example counts, normally ``batch["weight"]``; times ``batch["mask_weight"]`` where
        some examples have no mask. By default 1.

    Returns:
      ``{"dice_disc": (value [b], count [b]), "iou_disc": ..., "soft_dice_disc": ..., "soft_iou_disc": ...}``
      for each region.

    Raises:
      InputError: the shapes differ, or do not fit the names of the regions.
    """
    if probs.shape != target.shape or probs.ndim != 4 or probs.shape[-1] != len(regions):
        raise InputError(
            f"Probabilities have shape {probs.shape}, the target {target.shape}, and the regions are"
            f" {list(regions)}; expected two arrays [b, h, w, {len(regions)}]. Name each channel."
        )
    table = {"dice": dice, "iou": iou, "soft_dice": soft_dice, "soft_iou": soft_iou}
    values = {name: metric(probs, target) for name, metric in table.items()}
    return {
        f"{name}_{region}": pair(value[:, c], weight)
        for c, region in enumerate(regions)
        for name, value in values.items()
    }
