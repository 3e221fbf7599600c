"""Ratios of nested regions: cup to disc."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def region_ratios(probs: Float[Array, "b h w c"]) -> dict[str, Float[Array, " b"]]:
    """Computes area and height of the last region over those of the first, in [0, 1]: the cup-to-disc ratios.

    Counts are soft: the area is the sum of the probabilities, the height the sum over rows of the greatest. A single
    region is put over the whole image.

    Returns:
      ``cdr`` (areas) and ``vertical_cdr`` (heights).
    """
    inner = probs[..., -1]
    outer = probs[..., 0] if probs.shape[-1] > 1 else jnp.ones_like(inner)

    def ratio(above: Array, below: Array) -> Array:
        return jnp.clip(above / jnp.maximum(below, 1e-6), 0, 1)

    return {
        "cdr": ratio(inner.sum((1, 2)), outer.sum((1, 2))),
        "vertical_cdr": ratio(inner.max(2).sum(1), outer.max(2).sum(1)),
    }
