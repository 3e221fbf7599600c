"""Losses of dual regression, one value for each example; images in 0..255 (dualsr spec, (d))."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def mean_absolute(one: Float[Array, "b h w c"], other: Float[Array, "b h w c"]) -> Float[Array, " b"]:
    """The L1 distance of each example, averaged over pixels and channels."""
    return jnp.abs(one - other).mean((1, 2, 3))


def primal_loss(
    restored: Sequence[Any], truth: Sequence[Any], weights: Sequence[float] | None = None
) -> Float[Array, " b"]:
    """Sums the distances of the restored images from the truth over all scales, the input's own included.

    Args:
      restored: n + 1 images [b, h, w, 3], coarse to fine.
      truth: likewise; the first is the input.
      weights: of the scales; by default 1 each, as released.
    """
    weights = [1.0] * len(truth) if weights is None else weights
    terms = [w * mean_absolute(a, b) for w, a, b in zip(weights, restored, truth, strict=True)]
    return sum(terms, start=jnp.zeros(()))


def dual_loss(
    restored: Sequence[Any], truth: Sequence[Any], duals: Sequence[Callable[[Any], Any]]
) -> Float[Array, " b"]:
    """Sums the distances of what the dual networks make of each restored image from the truth one scale below.

    Args:
      restored, truth: as for ``primal_loss``.
      duals: n functions that halve an image, coarse to fine.
    """
    terms = [mean_absolute(d(a), b) for d, a, b in zip(duals, restored[1:], truth[:-1], strict=True)]
    return sum(terms, start=jnp.zeros(()))
