"""Vision transformers (Dosovitskiy et al., 2021) with timm's structure and parameter counts, such as ViT-S/16."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ophjax.errors import InputError
from ophjax.nets.conv import Conv
from ophjax.nets.transformer import FeedForward

if TYPE_CHECKING:
    from jaxtyping import Array, Float

EPSILON = 1e-6

_normal = nn.initializers.normal(0.02)
# Uniform in +-1/sqrt(inputs), PyTorch's default for convolutions.
_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class SelfAttentionBlock(nn.Module):
    """``x + attention(norm(x))``, and on that ``x + feed_forward(norm(x))``, the norms LayerNorms.

    One linear layer gives queries, keys and values, in this order, each head by head. Softmax in float32.
    """

    heads: int
    ratio: float
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], _: None = None) -> tuple[Float[Array, "b n d"], None]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        batch, count, width = x.shape
        y = nn.LayerNorm(epsilon=EPSILON, name="norm", **types)(x)
        y = nn.Dense(3 * width, kernel_init=_normal, name="qkv", **types)(y)
        query, key, value = jnp.moveaxis(y.reshape(batch, count, 3, self.heads, width // self.heads), 2, 0)
        y = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        x = x + nn.Dense(width, kernel_init=_normal, name="out", **types)(y)
        return x + FeedForward(self.ratio, EPSILON, _normal, name="feed_forward", **types)(x), None


class VisionTransformer(nn.Module):
    """Patches, learned positions, a class token, ``depth`` equal blocks, a LayerNorm: the class token's feature [b, d].

    As it stands it is timm's ``vit_small_patch16_224``: 21,665,664 parameters without a head on 224 x 224 pixels,
    22,050,664 with one of 1000 classes. The blocks are compiled once (``nn.scan``), their parameters stacked. The
    positions lie on the grid of the patches, [rows, columns, width]; the class token's own stands beside them.
    Without dropout and stochastic depth, as timm's default is. Initial values as there too, the positions' and the
    linear layers' N(0, 0.02**2).

    Attributes:
      classes: number of logits, float32; None: the feature is given out and there is no head.
      patch: side of a patch in pixels; the image's sides must be multiples of it.
      width: numbers of a token.
      depth: blocks.
      heads: of the attention; they share the width equally.
      ratio: the feed-forward's inner width by ``width``.

    Raises:
      InputError: the image does not divide into patches, or the width into heads.
    """

    classes: int | None = None
    patch: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    ratio: float = 4
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        batch, height, width = x.shape[:3]
        if height % self.patch or width % self.patch:
            raise InputError(
                f"A vision transformer got images of {height} x {width} pixels and patches of {self.patch}: expected "
                "sides that are whole numbers of patches. Choose the patch (--method.vit-patch) or the images' size "
                "(--data.size) so."
            )
        if self.width % self.heads:
            raise InputError(
                f"A vision transformer got width {self.width} and {self.heads} heads: the heads share the width "
                "equally, so it must be divisible. Choose another width or another number of heads."
            )
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def table(name: str, *shape: int, deviation: float = 0.02) -> Array:
            values = self.param(name, nn.initializers.normal(deviation), (*shape, self.width), self.param_dtype)
            return jnp.asarray(values, self.dtype)

        x = Conv(self.width, self.patch, self.patch, padding=0, kernel_init=_uniform, name="patches", **types)(x)
        x = x + table("position", *x.shape[1:3])[None]
        token = table("token", deviation=1e-6) + table("token_position")
        token = jnp.broadcast_to(token[None, None], (batch, 1, self.width))
        x = jnp.concatenate([token, x.reshape(batch, -1, self.width)], 1)
        blocks = nn.scan(
            SelfAttentionBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth
        )
        x, _ = blocks(self.heads, self.ratio, **types, name="blocks")(x, None)
        feature = nn.LayerNorm(epsilon=EPSILON, name="norm", **types)(x[:, 0])
        if self.classes is None:
            return feature
        head = nn.Dense(self.classes, kernel_init=_normal, dtype=jnp.float32, param_dtype=self.param_dtype, name="head")
        return head(feature)
