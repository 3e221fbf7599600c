"""Layers of a scan as boundaries: one row for each column, in an order that cannot be broken.

The boundaries of r layers are their upper and lower edges from above to below, 2 r in all. An edge at row i lies above
the pixels of row i. Expected rows instead of the most probable one are differentiable (soft-argmax); He et al., "Fully
convolutional boundary regression for retina OCT segmentation", MICCAI 2019, order boundaries alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Num


def expected_edges(logits: Float[Array, "b h w k"]) -> Float[Array, "b w k"]:
    """Computes the expected row of each of k boundaries in each column; none lies above the one before it."""
    rows = jnp.arange(logits.shape[1], dtype=jnp.float32)
    probs = jax.nn.softmax(logits.astype(jnp.float32), axis=1)
    # Not a product of matrices, whose factors accelerators round: a row is to be known to a hundredth of a pixel.
    return jax.lax.cummax((probs * rows[None, :, None, None]).sum(1), axis=2)


def bands(edges: Float[Array, "b w k"], height: int, *, softness: float = 0.3) -> Float[Array, "b h w r"]:
    """Computes how far each pixel lies between a layer's two edges, 0 to 1; over all layers it sums to at most 1.

    Args:
      edges: upper and lower edges in turn, in order.
      height: rows of the image.
      softness: rows over which an edge rises, as the scale of a logistic function.
    """
    centres = jnp.arange(height, dtype=jnp.float32) + 0.5
    below = jax.nn.sigmoid((centres[None, :, None, None] - edges[:, None]) / softness)
    return below[..., ::2] - below[..., 1::2]


def edges_of(mask: Num[Array, "b h w r"]) -> tuple[Float[Array, "b w k"], Bool[Array, "b w k"]]:
    """Finds the edges of the layers of a mask, and in which columns there are any.

    The upper edge is the first row of the layer in its column, the lower one the row after its last.
    """
    there, height = mask > 0, mask.shape[1]
    top = there.argmax(1)
    bottom = height - there[:, ::-1].argmax(1)
    edges = jnp.stack([top, bottom], -1).astype(jnp.float32)
    known = jnp.broadcast_to(there.any(1)[..., None], edges.shape)
    return edges.reshape(*edges.shape[:2], -1), known.reshape(*known.shape[:2], -1)


def thickness(mask: Num[Array, "b h w r"]) -> Float[Array, "b w r"]:
    """Counts the rows of each layer in each column."""
    return (mask > 0).sum(1).astype(jnp.float32)


def order_kept(mask: Num[Array, "b h w r"]) -> Float[Array, " b"]:
    """Computes the share of columns in which the layers that are there lie below one another, by their mean rows."""
    there = (mask > 0).astype(jnp.float32)
    rows = jnp.arange(mask.shape[1], dtype=jnp.float32)
    size = there.sum(1)
    middle = (there * rows[None, :, None, None]).sum(1) / jnp.maximum(size, 1)
    # A layer that is not there takes the place of the one before it.
    placed = jax.lax.cummax(jnp.where(size > 0, middle, -1.0), axis=2)
    return jnp.where(size > 0, middle >= placed, True).all(2).mean(1)
