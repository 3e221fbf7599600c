"""Distance of edges on the device, equal to ``overlap.edge_distance`` on the host."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Num

# Farther than anything in an image, and exact when squared in float32.
_FAR = 16_384.0


def edge(region: Bool[Array, "b h w c"]) -> Bool[Array, "b h w c"]:
    """Marks the pixels with one of four neighbours outside; what lies beyond the image counts as inside.

    A region that fills the image has no such pixel and gets the image's border.
    """

    def inner(beyond: bool) -> Array:
        x = jnp.pad(region, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=beyond)
        return x[:, :-2, 1:-1] & x[:, 2:, 1:-1] & x[:, 1:-1, :-2] & x[:, 1:-1, 2:]

    found = region & ~inner(True)
    return jnp.where(found.any((1, 2), keepdims=True), found, region & ~inner(False))


def edge_distance(found: Num[Array, "b h w c"], truth: Num[Array, "b h w c"]) -> Float[Array, "b c"]:
    """Computes the mean distance of the edge of ``found`` to the nearest edge pixel of ``truth``, in pixels.

    Both empty gives 0, one empty the image's diagonal (GOALS spec, section (h)). Exact: the distance transform is taken
    along columns and then along rows, the second part row by row, so that memory grows with the square of the width.
    """
    found, truth = found > 0, truth > 0
    ours, theirs = edge(found), edge(truth)
    height, width = found.shape[1:3]
    rows = jnp.arange(height, dtype=jnp.float32).reshape(1, -1, 1, 1)
    above = jax.lax.cummax(jnp.where(theirs, rows, -_FAR), axis=1)
    below = jax.lax.cummin(jnp.where(theirs, rows, _FAR), axis=1, reverse=True)
    down = jnp.minimum(rows - above, below - rows)
    columns = jnp.arange(width, dtype=jnp.float32)
    across = jnp.square(columns[:, None] - columns[None])

    def nearest(row: Float[Array, "b w c"]) -> Float[Array, "b w c"]:
        return (across[None, :, :, None] + jnp.square(row)[:, None]).min(2)

    squares = jnp.moveaxis(jax.lax.map(nearest, jnp.moveaxis(down, 1, 0)), 0, 1)
    total, count = (jnp.sqrt(squares) * ours).sum((1, 2)), ours.sum((1, 2))
    there = found.any((1, 2)), truth.any((1, 2))
    apart = jnp.where(there[0] == there[1], 0.0, math.hypot(height, width))
    return jnp.where(there[0] & there[1], total / jnp.maximum(count, 1), apart)
