"""Random crops on the device, scaled back to the size of the image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from ophjax.keys import at

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

    from ophjax.types import Key


def resized_crop(
    key: Key,
    image: Float[Array, "b h w c"],
    index: Int[Array, " b"],
    *,
    least: float = 0.7,
    aspect: float = 4 / 3,
) -> Float[Array, "b h w c"]:
    """Cuts a random rectangle out of each image and scales it to the full size (linear, antialiased).

    The rectangle's share of the area is uniform in ``least`` to 1 and the logarithm of its relative width over height
    uniform in +-log(aspect); a side that would be longer than the image's is cut to it. Drawn from the key and
    ``index`` alone, not from the row.

    Args:
      key: one key for the batch.
      image: float.
      index: position of each example in its source.
      least: least share of the area, above 0 and at most 1.
      aspect: greatest distortion, at least 1.
    """
    height, width, _ = image.shape[1:]

    def one(key: Key, image: Array) -> Array:
        share = jax.random.uniform(at(key, "share"), minval=least, maxval=1.0)
        log_ratio = jax.random.uniform(at(key, "ratio"), minval=-1.0, maxval=1.0) * math.log(aspect)
        stretch = jnp.exp(0.5 * log_ratio)
        kept = jnp.minimum(jnp.sqrt(share) * jnp.stack([1.0 / stretch, stretch]), 1.0)
        corner = jax.random.uniform(at(key, "corner"), (2,)) * (1.0 - kept) * jnp.array([height, width], jnp.float32)
        return jax.image.scale_and_translate(image, image.shape, (0, 1), 1.0 / kept, -corner / kept, "linear")

    keys = jax.vmap(lambda i: at(key, "crop", i))(index)
    return jax.vmap(one)(keys, image)
