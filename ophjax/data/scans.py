"""Slices of scans on the device: normalised, deformed at random together with their masks, masks as classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from ophjax.keys import at

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Num

    from ophjax.types import Key

# Greatest distance, in pixels, of the points at which an elastic displacement is drawn.
_SPACING = 16


def z_score(image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Shifts and scales each image to mean 0 and deviation 1 over its pixels and channels."""
    centred = image - image.mean((1, 2, 3), keepdims=True)
    return centred / jnp.maximum(centred.std((1, 2, 3), keepdims=True), 1e-6)


def exclusive(mask: Num[Array, "b h w c"]) -> Float[Array, "b h w k"]:
    """Turns regions into 1 + c classes of which each pixel has one: background first, later regions over earlier."""
    regions = mask.shape[-1]
    numbered = jnp.where(mask > 0, jnp.arange(1, regions + 1).reshape(1, 1, 1, -1), 0)
    return jax.nn.one_hot(numbered.max(-1), 1 + regions)


def warp(
    key: Key,
    image: Float[Array, "b h w c"],
    mask: Num[Array, "b h w r"],
    index: Int[Array, " b"],
    *,
    zoom: float = 0.0,
    rotate: float = 0.0,
    shear: float = 0.0,
    elastic: float = 0.0,
) -> tuple[Float[Array, "b h w c"], Num[Array, "b h w r"]]:
    """Zooms, rotates, shears and bends each image and its mask about the image's middle.

    The factor of the zoom is uniform in 1 +- ``zoom``, the angle in +-``rotate`` radians, the shear of rows and of
    columns in 0 to ``shear``. Half of the images are bent too, by displacements uniform in +-``elastic`` pixels at
    points at most 16 pixels apart, with a smooth (cubic) course between that may go a little beyond. Images are read
    linearly, masks at the nearest pixel, both repeated beyond their border. Drawn from the key and ``index`` alone, not
    from the row.
    """
    size = image.shape[1:3]
    points = tuple(-(-n // _SPACING) + 1 for n in size)
    grid = jnp.stack(jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in size), indexing="ij"))
    middle = (jnp.array(size, jnp.float32) - 1)[:, None, None] / 2

    def one(key: Key, image: Array, mask: Array) -> tuple[Array, Array]:
        factor, angle, down, across, bent = jax.random.uniform(at(key, "affine"), (5,))
        angle = rotate * (2 * angle - 1)
        turned = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
        sheared = jnp.array([[1.0, shear * down], [shear * across, 1.0]])
        matrix = turned @ sheared / (1 + zoom * (2 * factor - 1))
        bend = jax.random.uniform(at(key, "elastic"), (2, *points), minval=-elastic, maxval=elastic) * (bent < 0.5)
        places = jnp.einsum("ij,jhw->ihw", matrix, grid - middle) + middle
        places = places + jax.image.resize(bend, (2, *size), "cubic")

        def read(x: Array, order: int) -> Array:
            channels = [map_coordinates(x[..., i], list(places), order, mode="nearest") for i in range(x.shape[-1])]
            return jnp.stack(channels, -1)

        return read(image, 1), read(mask, 0)

    keys = jax.vmap(lambda i: at(key, "warp", i))(index)
    return jax.vmap(one)(keys, image, mask)
