"""Losses of boundaries: one value for each example."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


def boundary_loss(
    logits: Float[Array, "b h w k"],
    expected: Float[Array, "b w k"],
    edges: Float[Array, "b w k"],
    known: Bool[Array, "b w k"],
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Computes how wrong each boundary is: the cross-entropy of its row, in nats, and the distance in rows.

    Args:
      logits: of the row of each boundary.
      expected: rows as predicted.
      edges: true rows.
      known: where there is a true row; means are taken over these.

    Returns:
      Both [b], means over columns and boundaries.
    """
    height = logits.shape[1]
    rows = jnp.clip(edges, 0, height - 1).astype(jnp.int32)
    logs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=1)
    paid = -jnp.take_along_axis(logs, rows[:, None], axis=1)[:, 0]
    count = jnp.maximum(known.sum((1, 2)), 1)
    return (paid * known).sum((1, 2)) / count, (jnp.abs(expected - edges) * known).sum((1, 2)) / count
