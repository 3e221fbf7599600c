"""Losses of segmentation, one value for each example and region."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import optax

from ophjax.errors import InputError

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Float, Num


def _check(name: str, given: Array, target: Array) -> None:
    if given.ndim != 4 or given.shape != target.shape:
        raise InputError(
            f"{name} have shape {given.shape} and the target {target.shape}; both must be [b, h, w, c] and"
            " equal, with one channel for each region. Give a single region as a last axis of length 1."
        )


def binary_cross_entropy(logits: Float[Array, "b h w c"], target: Num[Array, "b h w c"]) -> Float[Array, "b c"]:
    """Averages the cross-entropy of each pixel against its region over the image.

    Regions are independent (one sigmoid each), so they may be nested, as the cup in the disc.

    Args:
      logits: before the sigmoid; any float dtype, computed in float32.
      target: 0/1 masks of any dtype, or probabilities.

    Returns:
      float32 [b, c], in nats for a pixel.

    Raises:
      InputError: the shapes differ or are not [b, h, w, c].
    """
    _check("Logits", logits, target)
    # A narrow float would lose the sum over tens of thousands of pixels.
    pixels = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), target.astype(jnp.float32))
    return pixels.mean((1, 2))


def soft_dice_loss(
    probs: Float[Array, "b h w c"], target: Num[Array, "b h w c"], *, smooth: float = 1.0
) -> Float[Array, "b c"]:
    """Computes 1 - (2 sum(p t) + s) / (sum(p) + sum(t) + s), the sums over the pixels of one image.

    Args:
      probs: after the sigmoid or softmax; any float dtype, computed in float32.
      target: 0/1 masks of any dtype, or probabilities.
      smooth: s, in pixels. With s > 0 an empty region that is predicted as empty costs 0.

    Returns:
      float32 [b, c] in [0, 1].

    Raises:
      InputError: the shapes differ or are not [b, h, w, c].
    """
    _check("Probabilities", probs, target)
    probs, target = probs.astype(jnp.float32), target.astype(jnp.float32)
    overlap = (probs * target).sum((1, 2))
    sizes = probs.sum((1, 2)) + target.sum((1, 2))
    return 1.0 - (2.0 * overlap + smooth) / (sizes + smooth)
