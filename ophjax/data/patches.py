"""Random patches of pairs on the device: the same place of every scale, turned alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from ophjax.data.pairs import name_of, steps
from ophjax.errors import InputError
from ophjax.keys import at

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from ophjax.types import Batch, Key


def random_patches(key: Key, batch: Batch, *, scale: int, size: int, augment: bool) -> list[Float[Array, "b h w 3"]]:
    """Cuts the same random square out of every scale of each example, and mirrors and transposes it.

    Horizontal mirroring, vertical mirroring and transposition each happen with probability 0.5, alike at every scale.
    Places are multiples of the scale. All depends on the key and the example's ``index`` alone.

    Args:
      key: one key for the batch.
      batch: pairs, see ``pairs``.
      size: side in high resolution, a multiple of the scale.
      augment: mirror and transpose.

    Returns:
      float32 in 0..255, coarse to fine.

    Raises:
      InputError: the images are smaller than the patch.
    """
    images = [batch[name_of(times, scale)] for times in steps(scale)]
    side = size // scale
    room = [n - side for n in images[0].shape[1:3]]
    if min(room) < 0 or size % scale:
        raise InputError(
            f"Patches of {size} pixels were asked for; the images have {images[-1].shape[2]} x "
            f"{images[-1].shape[1]} at {scale}x. Give --method.patch (and --method.compress-patch) a multiple of the "
            "scale, at most --data.size."
        )

    def one(key: Key, *images: Array) -> list[Array]:
        y, x = (jax.random.randint(at(key, name), (), 0, most + 1) for name, most in zip("yx", room, strict=True))
        turns = jax.random.bernoulli(at(key, "turns"), shape=(3,)) if augment else jnp.zeros(3, bool)
        found = []
        for times, image in zip(steps(scale), images, strict=True):
            patch = lax.dynamic_slice(image, (times * y, times * x, 0), (times * side, times * side, 3))
            patch = jnp.where(turns[0], patch[:, ::-1], patch)
            patch = jnp.where(turns[1], patch[::-1], patch)
            found.append(jnp.where(turns[2], patch.transpose(1, 0, 2), patch).astype(jnp.float32))
        return found

    return jax.vmap(one)(jax.vmap(lambda i: at(key, "patch", i))(batch["index"]), *images)
