"""What weights say about raters, what truth says about them, and how well drawn masks serve a diagnosis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from ophjax.metrics import ranking
from ophjax.metrics.streaming import dice

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Num


def disputed_weights(
    weights: Float[Array, "b h w r"], masks: Float[Array, "b r h w c"], present: Num[Array, "b r"]
) -> Float[Array, "b r"]:
    """Averages each rater's weight over the pixels on which those present differ; equal shares where they do not."""
    there = (present > 0)[:, :, None, None, None]
    highest, lowest = jnp.where(there, masks, 0).max(1), jnp.where(there, masks, 1).min(1)
    disputed = (highest > lowest).any(-1).astype(jnp.float32)
    area = disputed.sum((1, 2))[:, None]
    equal = (present > 0) / jnp.maximum((present > 0).sum(-1, keepdims=True), 1)
    return jnp.where(area > 0, (weights * disputed[..., None]).sum((1, 2)) / jnp.maximum(area, 1), equal)


def rater_skill(masks: Float[Array, "b r h w c"], truth: Num[Array, "b h w c"]) -> Float[Array, "b r"]:
    """Computes the Dice of each rater's last region (the cup) with the truth's."""
    return jax.vmap(lambda one: dice(one[..., -1:], truth[..., -1:])[:, 0], in_axes=1, out_axes=1)(masks)


def nothing_found(images: int, raters: int) -> dict[str, Array]:
    """What a search has noted of ``images`` before it began (see ``search_means``)."""
    found = {name: jnp.zeros(images) for name in ("gain", "gain_unseen", "roughness")}
    return found | {name: jnp.full((images, raters), -1.0, jnp.float32) for name in ("weights", "skill")}


def search_means(found: Mapping[str, Array]) -> dict[str, Array]:
    """Averages what a search noted of the training images.

    Args:
      found: ``weights`` and ``skill`` [n, r], below 0 for an image that the rater did not draw, or not reached yet, or
        without a truth; others [n].

    Returns:
      ``train_NAME``: of each rater over the images where it is known, -1 where there are none; of others over those
      that anybody drew, 0 where there are none.
    """
    means = {}
    for name, value in found.items():
        here = value >= 0 if value.ndim == 2 else (found["weights"] >= 0).any(1)
        mean = jnp.where(here, value, 0).sum(0) / jnp.maximum(here.sum(0), 1)
        means[f"train_{name}"] = jnp.where(here.any(0), mean, -1) if value.ndim == 2 else mean
    return means


def spearman(one: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"]) -> float:
    """Computes Spearman's correlation, ties at their average rank; NaN for less than three or where all of one tie."""
    if len(one) < 3 or min(np.ptp(one), np.ptp(other)) == 0:
        return float("nan")
    # How many more are below than above: twice the average rank, but for a constant.
    ranks = [np.sign(np.subtract.outer(values, values)).sum(1) for values in (one, other)]
    return float(np.corrcoef(ranks)[0, 1])


def serving_scores(gathered: Mapping[str, np.ndarray], raters: Sequence[str]) -> dict[str, float]:
    """Scores masks by the diagnoses made from them, on the host.

    Args:
      gathered: ``probs`` [n, 2] and the scalars ``cdr``, ``vertical_cdr``, ``image_and_mask`` [n], each ranked against
        ``label`` (-1: not known, left out); overlaps; ``train_NAME``, the same in all rows: what a search has done on
        the training images (see ``search_means``).
      raters: names of those whose ``train_weights`` and ``train_skill`` [n, r] are given.

    Returns:
      ``cdr_auc``, ``vertical_cdr_auc``, ``image_and_mask_auc``, the scores of ``probs`` and the mean overlaps, all with
      intervals; once a search began the means of ``train_NAME``, for each rater ``weight_RATER`` and ``skill_RATER``,
      and of three or more ``weight_skill``, Spearman's correlation of the two, where it is defined.
    """
    found: dict[str, float] = {}
    known = gathered["label"] >= 0
    if known.any():
        labels, clusters = gathered["label"][known], ranking.patients(gathered, known)
        for name in ("cdr", "vertical_cdr", "image_and_mask"):
            ranked = ranking.classification_scores(gathered[name][known], labels, clusters=clusters)
            found |= {f"{name}_{score}": value for score, value in ranked.items() if score.startswith("auc")}
        found |= ranking.classification_scores(gathered["probs"][known], labels, clusters=clusters)
    overlaps = {k: v for k, v in gathered.items() if k.startswith(("dice_", "iou_", "soft_"))}
    found |= ranking.mean_scores(overlaps, clusters=ranking.patients(gathered))
    if "train_weights" in gathered and (gathered["train_weights"] >= 0).any():
        found |= {k: float(v.mean()) for k, v in gathered.items() if k.startswith("train_") and v.ndim == 1}
        means = np.stack([gathered[f"train_{name}"].mean(0) for name in ("weights", "skill")])
        for kind, values in zip(("weight", "skill"), means, strict=True):
            rated = zip(raters, values.tolist(), strict=False)
            found |= {f"{kind}_{rater}": value for rater, value in rated if value >= 0}
        correlation = spearman(*means[:, (means >= 0).all(0)])
        found |= {"weight_skill": correlation} if np.isfinite(correlation) else {}
    return found
