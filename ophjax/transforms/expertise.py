"""Many raters' masks made into one: the encoding of nested regions, expertness weights, weighted fusion.

Everything here is linear in the masks and works on soft ones, so that gradients reach the weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from ophjax.keys import at

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Num

    from ophjax.types import Batch, Key


def nest(masks: Num[Array, "... h w c"]) -> Float[Array, "... h w c"]:
    """Counts what lies in a later region as part of all earlier ones: a cup outside the disc is disc too."""
    masks = masks.astype(jnp.float32)
    return jax.lax.cummax(masks, axis=masks.ndim - 1, reverse=True)


def encode(masks: Num[Array, "... h w c"]) -> Float[Array, "... h w"]:
    """Encodes nested regions in one channel: background 0, rim 0.5, cup 1 for disc and cup; c regions in steps of 1/c.

    For masks of 0 and 1 this is the published ``clip(0.5 disc + cup, 0, 1)``. It is the mean over the regions, hence
    linear: a weighted mean of encoded masks is the encoding of the weighted mean (diff spec, sections (b), (d)).
    """
    return nest(masks).mean(-1)


def expertness(
    raw: Float[Array, "... h w r"], present: Num[Array, "... r"], *, temperature: float = 1.0
) -> Float[Array, "... h w r"]:
    """Turns free numbers into weights that add up to 1 at each pixel: softmax over raters of t sigmoid(raw).

    As the sigmoid lies in [0, 1], no weight is more than exp(t) times another: with n raters each lies in
    [1 / (1 + (n - 1) exp(t)), exp(t) / (exp(t) + n - 1)] (diff spec, section (c)2).

    Args:
      raw: free numbers; equal ones give equal weights.
      present: 0 for a rater that is missing, who gets no weight; where all are, all weights are 0.
      temperature: t.
    """
    here = jnp.broadcast_to(present[..., None, None, :] > 0, raw.shape)
    return jax.nn.softmax(temperature * jax.nn.sigmoid(raw), axis=-1, where=here)


def fuse(weights: Float[Array, "... h w r"], masks: Float[Array, "... r h w c"]) -> Float[Array, "... h w c"]:
    """Averages the raters' masks with weights of each pixel, the same for all regions."""
    return jnp.einsum("...hwr,...rhwc->...hwc", weights, masks, precision=jax.lax.Precision.HIGHEST)


def read_raters(batch: Batch) -> tuple[Float[Array, "b r h w c"], Float[Array, "b r"]]:
    """Reads the raters' nested masks, and who of them was there; without raters the data set's mask is the one, where
    an image has it."""
    if "raters" not in batch:
        known = batch["mask_weight"] if "mask_weight" in batch else jnp.ones(len(batch["mask"]))
        return nest(batch["mask"])[:, None], known[:, None]
    masks = nest(batch["raters"])
    return masks, batch["rater_weight"] if "rater_weight" in batch else jnp.ones(masks.shape[:2])


def drawn(present: Num[Array, "b r"]) -> Float[Array, " b"]:
    """Tells images that somebody drew (1) from those without any mask (0)."""
    return (present.max(1) > 0).astype(jnp.float32)


def mix_raters(
    key: Key, index: Int[Array, " b"], masks: Float[Array, "b r h w c"], present: Num[Array, "b r"]
) -> Float[Array, "b h w c"]:
    """Averages the masks of half of the images with random shares, uniform over all convex combinations (Dirichlet),
    and those of the others equally. Drawn from the key and ``index`` alone, not from the row. An image without any
    rater gives zeros."""

    def draw(i: Array, there: Array) -> Array:
        equal = jax.random.bernoulli(at(key, "equal", i))
        return there * jnp.where(equal, 1.0, jax.random.exponential(at(key, "shares", i), there.shape))

    shares = jax.vmap(draw)(index, present)
    shares = shares / jnp.maximum(shares.sum(1, keepdims=True), 1e-9)
    return jnp.einsum("br,brhwc->bhwc", shares, masks, precision=jax.lax.Precision.HIGHEST)
