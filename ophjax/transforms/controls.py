"""Negative controls: what an image is given in place of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from ophjax.types import Key

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Bool, Int


def others(key: Key, among: Bool[Array, " b"]) -> Int[Array, " b"]:
    """Gives each row the number of another one, so that ``labels[others(key, labels >= 0)]`` are never an image's own.

    (A plain permutation leaves each its own with probability 1 / b, from which a net learns, if slowly. Where a batch
    has a fixed number of each class it is the other way round: then others are of another class more often than not.)

    Args:
      key: draws how many rows further on each looks, the same for all.
      among: the rows that change places; the others, and a single one, stay where they are.

    Returns:
      int32 [b], a permutation.

    >>> import jax, jax.numpy as jnp
    >>> others(jax.random.key(0), jnp.array([True, False, True, False])).tolist()
    [2, 1, 0, 3]
    """
    rows = jnp.argsort(~among, stable=True)
    number = jnp.maximum(among.sum(), 1)
    turn = jax.random.randint(key, (), 1, jnp.maximum(number, 2))
    return jnp.where(among, rows[(jnp.cumsum(among) - 1 + turn) % number], jnp.arange(len(among)))
