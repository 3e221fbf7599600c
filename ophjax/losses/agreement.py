"""Losses and weightings where several raters drew the same image (selfcal spec, section (d)).

Missing raters are given by ``present`` [b, r], 1 or 0: they get no weight and add nothing to any loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from ophjax.losses.segmentation import _check

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Float, Int, Num

TINY = 1e-6
"""Probabilities are kept this far from 0 and 1 before a logarithm; also the ratio weights' floor."""


def probs_cross_entropy(probs: Float[Array, "b h w c"], target: Num[Array, "b h w c"]) -> Float[Array, "b c"]:
    """Averages -(t log p + (1 - t) log(1 - p)) over the pixels of each image, in nats.

    For probabilities that are no sigmoid's, as fused labels; else ``segmentation.binary_cross_entropy`` is exact.
    """
    _check("Probabilities", probs, target)
    return _pixel_entropy(probs, target.astype(jnp.float32)).mean((1, 2))


def _pixel_entropy(probs: Array, target: Array) -> Array:
    probs = jnp.clip(probs.astype(jnp.float32), TINY, 1 - TINY)
    return -(target * jnp.log(probs) + (1 - target) * jnp.log1p(-probs))


def ssim(
    probs: Float[Array, "b h w c"], target: Num[Array, "b h w c"], *, window: int = 11, sigma: float = 1.5
) -> Float[Array, "b c"]:
    """Computes the mean structural similarity of each image and channel: 1 where both are equal.

    Gaussian windows with zeros beyond the border, C1 = 0.01^2 and C2 = 0.03^2, as in the released code (which takes it
    of logits; here both sides are probabilities).
    """
    _check("Probabilities", probs, target)
    x, y = probs.astype(jnp.float32), target.astype(jnp.float32)
    down, across = (jnp.asarray(_bands(size, window, sigma)) for size in x.shape[1:3])

    def blur(z: Array) -> Array:
        # In full precision: accelerators would round the factors, and the differences of squares below be anything.
        return jnp.einsum("ih,bhwc,jw->bijc", down, z, across, precision=jax.lax.Precision.HIGHEST)

    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    above = (2 * mean_x * mean_y + 1e-4) * (2 * covariance + 9e-4)
    below = (mean_x**2 + mean_y**2 + 1e-4) * (variance_x + variance_y + 9e-4)
    return (above / below).mean((1, 2))


def _bands(size: int, window: int, sigma: float) -> np.ndarray:
    """A Gaussian window around each position as a matrix [size, size]; its rows sum to less at the border."""
    apart = np.arange(size)[:, None] - np.arange(size)
    kernel = np.exp(-0.5 * (np.arange(window) - window // 2) ** 2 / sigma**2).sum()
    inside = np.abs(apart) <= window // 2
    return (np.where(inside, np.exp(-0.5 * apart**2 / sigma**2), 0) / kernel).astype(np.float32)


def ratio_weights(probs: Float[Array, "b r h w c"], present: Num[Array, "b r"]) -> Float[Array, "b r h w c"]:
    """Computes w_i = (s_i + e) / sum_j (s_j + e) over the raters that are there, e = 1e-6.

    The released formula plus e: where no rater marks a pixel the weights are equal, not 0 / 0. It favours whoever marks
    more: with s equal to the masks, the fused label is their union (spec, section (j), 3).
    """
    parts = (probs + TINY) * _spread(present)
    return parts / jnp.maximum(parts.sum(1, keepdims=True), TINY)


def softmax_weights(logits: Float[Array, "b r h w c"], present: Num[Array, "b r"]) -> Float[Array, "b r h w c"]:
    """Computes w = softmax over the raters that are there, for each pixel and region."""
    hidden = jnp.where(_spread(present) > 0, logits, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(hidden, axis=1) * _spread(present)


def fuse(raters: Num[Array, "b r h w c"], weights: Float[Array, "b r h w c"]) -> Float[Array, "b h w c"]:
    """Computes sum_i w_i y_i, within [0, 1]."""
    return jnp.clip((weights * raters).sum(1), 0, 1)


def uniform_weights(raters: Num[Array, "b r h w c"], present: Num[Array, "b r"]) -> Float[Array, "b r h w c"]:
    """Weighs all raters that are there alike: fused by it, the masks give their mean."""
    share = present / jnp.maximum(present.sum(1, keepdims=True), 1)
    return jnp.broadcast_to(_spread(share), raters.shape)


def shuffle_loss(
    order: Int[Array, " r"],
    probs: Float[Array, "b r h w c"],
    weights: Float[Array, "b r h w c"],
    raters: Num[Array, "b r h w c"],
    present: Num[Array, "b r"],
) -> Float[Array, " b"]:
    """Compares s_k w_i with y_k w_i by cross-entropy, k the rater that ``order`` puts at place i.

    It asks the simulated masks s to be right whatever weight they meet. The target carries no gradient. The mean is
    over pixels, regions and the places where both raters are there.
    """
    target = jax.lax.stop_gradient(raters[:, order] * weights)
    pixels = _pixel_entropy(probs[:, order] * weights, target).mean((2, 3, 4))
    both = present * present[:, order]
    return (pixels * both).sum(1) / jnp.maximum(both.sum(1), 1)


def weight_entropy(weights: Float[Array, "b r h w c"]) -> Float[Array, " b"]:
    """Averages -sum_i w_i log w_i over pixels and regions, in nats: log r where all weigh alike, 0 where one is all."""
    return -(weights * jnp.log(jnp.maximum(weights, TINY))).sum(1).mean((1, 2, 3))


def _spread(present: Array) -> Array:
    return present.astype(jnp.float32)[:, :, None, None, None]
