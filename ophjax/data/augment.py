"""Augmentation on the device: pure functions of a key and a batch that do not depend on the rows' order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from ophjax.keys import at

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, UInt8

    from ophjax.types import Batch, Key


def unit(image: UInt8[Array, ...]) -> Float[Array, ...]:
    """Converts bytes to float32 in [0, 1]."""
    return image.astype(jnp.float32) / 255


def centred(image: Float[Array, ...]) -> Float[Array, ...]:
    """Brings [0, 1] to about zero mean and unit spread, the same for every image and channel."""
    return (image - 0.5) / 0.25


def flip(key: Key, batch: Batch) -> dict[str, Array]:
    """Mirrors half of the examples left to right: ``image``, ``mask`` and ``raters`` together.

    Whether an example is mirrored depends on the key and its ``index`` alone, not on its row.
    """
    mirrored = jax.vmap(jax.random.bernoulli)(_keys(key, "flip", batch["index"]))
    flipped = dict(batch)
    for name in ("image", "mask", "raters"):
        if name in batch:
            array = batch[name]
            # Width is the last axis but one: [b, h, w, c] and [b, r, h, w, c].
            flag = mirrored.reshape((-1,) + (1,) * (array.ndim - 1))
            flipped[name] = jnp.where(flag, jnp.flip(array, -2), array)
    return flipped


def jitter(
    key: Key,
    image: Float[Array, "b h w c"],
    index: Int[Array, " b"],
    *,
    brightness: float = 0.1,
    contrast: float = 0.2,
    gamma: float = 0.2,
) -> Float[Array, "b h w c"]:
    """Varies the photometry of each channel of each example: gamma, then contrast, then brightness.

    ``x ** exp(g)``, then ``(x - mean) * (1 + k) + mean + s`` with the mean of the channel over the image,
    clipped to [0, 1]; g, k, s are uniform in +-gamma, +-contrast, +-brightness. Drawn for each channel, which
    varies colour as cameras do. The draw depends on the key and ``index`` alone, not on the row.

    Args:
      key: one key for the batch.
      image: in [0, 1].
      index: position of each example in its source.
      brightness: greatest shift.
      contrast: greatest relative change of contrast, below 1.
      gamma: greatest change of the logarithm of gamma.
    """
    channels = image.shape[-1]

    def draw(one: Key) -> Float[Array, "3 c"]:
        return jax.random.uniform(one, (3, channels), minval=-1.0, maxval=1.0)

    draws = jax.vmap(draw)(_keys(key, "jitter", index))[:, :, None, None, :]
    g, k, s = gamma * draws[:, 0], contrast * draws[:, 1], brightness * draws[:, 2]
    image = image ** jnp.exp(g)
    mean = image.mean((1, 2), keepdims=True)
    return jnp.clip((image - mean) * (1 + k) + mean + s, 0, 1)


def _keys(key: Key, name: str, index: Int[Array, " b"]) -> Key:
    return jax.vmap(lambda one: at(key, name, one))(index)
