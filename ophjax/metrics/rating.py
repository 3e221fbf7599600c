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
    return jnp.where(area > 0, jnp.einsum("bhwr,bhw->br", weights, disputed) / jnp.maximum(area, 1), equal)


def rater_skill(masks: Float[Array, "b r h w c"], truth: Num[Array, "b h w c"]) -> Float[Array, "b r"]:
    """Computes the Dice of each rater's last region (the cup) with the truth's."""
    return jax.vmap(lambda one: dice(one[..., -1:], truth[..., -1:])[:, 0], in_axes=1, out_axes=1)(masks)


def serving_scores(gathered: Mapping[str, np.ndarray], raters: Sequence[str]) -> dict[str, float]:
    """Scores masks by the diagnoses made from them, on the host.

    Args:
      gathered: ``probs`` [n, 2] and the scalars ``cdr``, ``vertical_cdr``, ``image_and_mask`` [n], each ranked against
        ``label``; overlaps; ``train_NAME``, the same in all rows: what a search has done on the training images.
      raters: names of those whose ``train_weights`` and ``train_skill`` [n, r] are given.

    Returns:
      ``cdr_auc``, ``vertical_cdr_auc``, ``image_and_mask_auc``, the scores of ``probs`` and the mean overlaps, all with
      intervals; the means of ``train_NAME``; for each rater ``weight_RATER`` and ``skill_RATER``, and of three or more
      ``weight_skill``, Spearman's correlation of the two.
    """
    found: dict[str, float] = {}
    for name in ("cdr", "vertical_cdr", "image_and_mask"):
        ranked = ranking.classification_scores(gathered[name], gathered["label"])
        found |= {f"{name}_{score}": value for score, value in ranked.items() if score.startswith("auc")}
    found |= ranking.classification_scores(gathered["probs"], gathered["label"])
    found |= ranking.mean_scores({k: v for k, v in gathered.items() if k.startswith(("dice_", "iou_", "soft_"))})
    found |= {k: float(v.mean()) for k, v in gathered.items() if k.startswith("train_") and v.ndim == 1}
    if "train_weights" in gathered:
        means = {kind: gathered[f"train_{name}"].mean(0) for kind, name in (("weight", "weights"), ("skill", "skill"))}
        for kind, values in means.items():
            found |= {f"{kind}_{rater}": float(value) for rater, value in zip(raters, values, strict=False)}
        if len(raters) > 2:
            ranks = [values.argsort().argsort() for values in means.values()]
            found["weight_skill"] = float(np.corrcoef(ranks)[0, 1])
    return found
