"""How rough a map is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def high_frequency_share(maps: Float[Array, "b h w r"], *, cut: float = 0.15) -> Float[Array, " b"]:
    """Computes the share of the maps' energy at spatial frequencies above ``cut`` cycles per pixel, their means left
    out; 0 for constant maps."""
    height, width = maps.shape[1:3]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    varying = maps - maps.mean((1, 2), keepdims=True)
    energy = jnp.square(jnp.abs(jnp.fft.fft2(varying, axes=(1, 2)))).sum(-1)
    high = (energy * jnp.asarray(frequency > cut)[None]).sum((1, 2))
    total = energy.sum((1, 2))
    return jnp.where(total > 1e-12, high / jnp.maximum(total, 1e-12), 0.0)
