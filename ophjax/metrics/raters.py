"""Scores of methods that learn from several raters: against their mean and the truth, by round and by rater."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from ophjax.metrics import ranking
from ophjax.metrics.rating import spearman
from ophjax.metrics.streaming import pair, region_metrics, soft_dice, soft_iou

if TYPE_CHECKING:
    from jax import Array

    from ophjax.types import Batch, Outputs, Pairs


def rater_metrics(
    outputs: Outputs, batch: Batch, regions: Sequence[str], raters: Sequence[str], rounds: Sequence[int]
) -> Pairs:
    """Computes the metrics of one batch as pairs, ready for ``Method.metrics``.

    Args:
      outputs: ``mask_probs`` [b, h, w, c]; where there are several rounds ``round_probs`` [b, k, h, w, c], where raters
        are weighed ``rater_maps`` [b, r, h, w, c].
      batch: ``mask`` and ``raters`` with their weights.
      regions: names of the c regions.
      raters: names of the r raters.
      rounds: the k rounds.

    Returns:
      Against the truth ``dice_R``, ``iou_R``, ``soft_dice_R``, ``soft_iou_R`` of each region, ``soft_dice`` their mean
      and ``soft_dice_roundT``; against the mean of the raters (a tie at a threshold counts as marked)
      ``soft_dice_raters`` and ``soft_iou_raters``. ``skill_NAME`` is a rater's Dice with the truth, ``weight_NAME`` the
      mean weight where the raters who drew the image disagree. ``soft_dice_fused`` and ``soft_dice_mean`` compare the
      labels made by the weights and by equal weights with the truth; ``disagreement_before`` and
      ``disagreement_after`` are sum y (1 - y) over the area of y, y being the label by equal weights and by the
      weights: half the chance that two raters, drawn by them, differ.
    """
    probs, mask = outputs["mask_probs"], batch["mask"].astype(jnp.float32)
    masks, present = batch["raters"].astype(jnp.float32), batch["rater_weight"]
    known, drawn = batch["weight"] * batch["mask_weight"], batch["weight"] * (present.max(1) > 0)
    spread = present[:, :, None, None, None]
    equal = spread / jnp.maximum(spread.sum(1, keepdims=True), 1)
    label = (masks * equal).sum(1)

    def against(one: Array, other: Array, weight: Array) -> tuple[Array, Array]:
        return pair(soft_dice(one, other).mean(-1), weight)

    found = region_metrics(probs, mask, regions, weight=known)
    found["soft_dice"] = against(probs, mask, known)
    found["soft_dice_raters"] = pair(soft_dice(probs, label, inclusive=True).mean(-1), drawn)
    found["soft_iou_raters"] = pair(soft_iou(probs, label, inclusive=True).mean(-1), drawn)
    found["soft_dice_mean"] = against(label, mask, known * drawn)
    found["disagreement_before"] = pair(_disagreement(label), drawn)
    for k, number in enumerate(rounds if "round_probs" in outputs else ()):
        found[f"soft_dice_round{number}"] = against(outputs["round_probs"][:, k], mask, known)
    for r, name in enumerate(raters):
        overlap = 2 * (masks[:, r] * mask).sum((1, 2))
        sizes = (masks[:, r] + mask).sum((1, 2))
        dice = jnp.where(sizes > 0, overlap / jnp.maximum(sizes, 1), 1.0)
        found[f"skill_{name}"] = pair(dice.mean(-1), known * present[:, r])
    if "rater_maps" in outputs:
        weights = outputs["rater_maps"] * spread
        weights = weights / jnp.maximum(weights.sum(1, keepdims=True), 1e-9)
        fused = (weights * masks).sum(1)
        found["soft_dice_fused"] = against(fused, mask, known * drawn)
        found["disagreement_after"] = pair(_disagreement(fused), drawn)
        split = ((label > 0) & (label < 1)).astype(jnp.float32)[:, None]
        area = split.sum((1, 2, 3, 4))
        for r, name in enumerate(raters):
            average = (weights[:, r : r + 1] * split).sum((1, 2, 3, 4)) / jnp.maximum(area, 1)
            found[f"weight_{name}"] = pair(average, drawn * (area > 0) * present[:, r])
    return found


def _disagreement(label: Array) -> Array:
    return ((label * (1 - label)).sum((1, 2)) / jnp.maximum(label.sum((1, 2)), 1)).mean(-1)


def rater_scores(gathered: Mapping[str, np.ndarray], raters: Sequence[str]) -> dict[str, float]:
    """Averages ``rater_metrics`` over a split, with intervals for the overlaps.

    Adds ``round_changeT``, the mean change of the probabilities from round T - 1 to T, and ``weight_skill``, Spearman's
    correlation of the raters' mean weights and skills, where there are at least three raters.
    """
    overlaps = {name: v for name, v in gathered.items() if name.split("_")[0] in ("dice", "iou", "soft")}
    others = {
        n: v for n, v in gathered.items() if n.split("_")[0] in ("skill", "weight", "disagreement") and n != "weight"
    }
    found = ranking.mean_scores(overlaps, clusters=ranking.patients(gathered))
    found |= {name: float(np.nanmean(v)) for name, v in others.items() if np.isfinite(v).any()}
    change = gathered.get("round_change", np.zeros((1, 0)))
    found |= {f"round_change{t + 2}": float(v) for t, v in enumerate(change.mean(0))}
    pairs = [(found.get(f"weight_{name}"), found.get(f"skill_{name}")) for name in raters]
    known = np.array([one for one in pairs if None not in one], np.float64).reshape(-1, 2)
    correlation = spearman(*known.T)
    return found | ({"weight_skill": correlation} if np.isfinite(correlation) else {})
