"""Images mixed with others at the energy of the original (GIN, ADS), and images with a hole (CutOut)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Float

    from ophjax.types import Key

# Energies below this count as this: a synthesizer may return a constant.
_TINY = 1e-6


def energy(image: Float[Array, "b h w c"]) -> Float[Array, "b 1 1 1"]:
    """Computes the Frobenius norm of each image over its pixels and channels, in float32."""
    return jnp.sqrt(jnp.square(image.astype(jnp.float32)).sum((1, 2, 3), keepdims=True))


def match_energy(image: Float[Array, "b h w c"], original: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Scales each image to the energy of its original; the factor passes no gradient.

    A synthesizer thus cannot win by making its images brighter (ADS spec, section (c.2)).
    """
    fixed = jax.lax.stop_gradient(image)
    return image * (energy(jax.lax.stop_gradient(original)) / jnp.maximum(energy(fixed), _TINY))


def mix(
    image: Float[Array, "b h w c"], other: Float[Array, "b h w c"], share: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """Computes ``share * other + (1 - share) * image`` for each example, at the energy of ``image``.

    A share of 0 gives ``image`` back, bit for bit.

    >>> import jax.numpy as jnp
    >>> image, other = jnp.full((1, 1, 1, 2), 3.0), jnp.array([[[[0.0, 8.0]]]])
    >>> [round(float(x), 3) for x in mix(image, other, jnp.array([0.5])).ravel()]  # (1.5, 5.5) at the energy of (3, 3)
    [1.116, 4.093]
    """
    share = share[:, None, None, None]
    return match_energy(share * other + (1 - share) * image, image)


def mix_randomly(key: Key, image: Float[Array, "b h w c"], other: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Mixes each image with its other by a share of its own, uniform between 0 and 1 (see ``mix``)."""
    return mix(image, other, jax.random.uniform(key, (len(image),)))


def cut_out(key: Key, image: Float[Array, "b h w c"], *, side: float) -> Float[Array, "b h w c"]:
    """Sets a square of each image to 0, its middle anywhere in the image (DeVries & Taylor, 2017).

    Args:
      key: one key for the batch.
      image: of mean 0, so that 0 says nothing.
      side: of the square, as a share of the image's shorter side.
    """
    rows, height, width, _ = image.shape
    half = 0.5 * side * min(height, width)
    middle = jax.random.uniform(key, (rows, 1, 2)) * jnp.array([[[height, width]]], jnp.float32)
    down = jnp.abs(jnp.arange(height)[None] + 0.5 - middle[..., 0]) < half
    across = jnp.abs(jnp.arange(width)[None] + 0.5 - middle[..., 1]) < half
    return jnp.where((down[:, :, None] & across[:, None, :])[..., None], 0.0, image)
