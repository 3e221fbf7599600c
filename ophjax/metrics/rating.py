"""What weights say about raters, and what truth says about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

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
