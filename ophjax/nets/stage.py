"""The attention stage of ConM, DivM and DiFF's Take and Give: one map asks another, at full resolution.

It follows the released code of Wu et al. (selfcal spec, section (c); diff spec, section (c)), itself a cut-down ViP
block. Differences: tokens are capped, and the LayerNorm of the keys has no bias, as in ``nets/transformer.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ophjax.errors import InputError
from ophjax.nets.conv import DepthwiseConv
from ophjax.nets.transformer import CrossAttention, DropPath, FeedForward, Tokens, pool_to, token_grid

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class AttentionStage(nn.Module):
    """Updates a query map by global attention to a context map, or to itself where none is given.

    Each stream: depthwise 3x3, linear without bias, a LayerNorm that both share. Then ``y = q + DropPath(MHA(q, c))``
    and ``y + DropPath(FFN(y))`` with learned positions on query and key, the same for all heads.

    All h * w positions are tokens where that is at most ``tokens`` x ``tokens``; this is the exact form. Larger maps
    are averaged to that grid for the attention alone and its result is resized bilinearly, while residual and
    feed-forward keep the full resolution (selfcal spec, section (j), 7): with 32 x 32 tokens the scores of four images
    and eight heads take 134 MB. Position tables fix the map's size at initialisation.

    Attributes:
      heads: they share the width equally.
      width: channels of the result; None takes the query map's.
      tokens: most tokens down and across; None is exact whatever it costs.
      ratio: width of the feed-forward over that of the stage (0.5 in ConM and DivM, 3 in DiFF).
      drop_path: probability of leaving a residual branch out, per example (random stream ``drop_path``).
    """

    heads: int
    width: int | None = None
    tokens: int | None = 32
    ratio: float = 3
    drop_path: float = 0.05
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], context: Float[Array, "b i j s"] | None = None, *, train: bool
    ) -> Float[Array, "b h w width"]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        width = self.width or x.shape[-1]
        if width % self.heads:
            raise InputError(
                f"An attention stage got width {width} and {self.heads} heads: the heads share the width equally, so "
                "it must be divisible. Choose another number of heads or another width."
            )
        norm = nn.LayerNorm(epsilon=1e-5, name="norm", **types)

        def embed(stream: Array, name: str) -> Array:
            stream = DepthwiseConv(name=f"{name}_depthwise", **types)(stream)
            return norm(nn.Dense(width, use_bias=False, name=f"{name}_linear", **types)(stream))

        def tokenise(stream: Array, name: str) -> Tokens:
            grid = token_grid(*stream.shape[1:3], tokens=self.tokens or max(stream.shape[1:3]))
            values = pool_to(stream, *grid).reshape(len(stream), -1, width)
            table = (1, values.shape[1], 1, width // self.heads)
            position = self.param(f"{name}_position", nn.initializers.normal(0.02), table, self.param_dtype)
            return Tokens(values, position, jnp.ones(values.shape[1], bool))

        asked = embed(x, "query")
        told = asked if context is None else embed(context, "context")
        query, key = tokenise(asked, "query"), tokenise(told, "key")
        mixed, _ = CrossAttention(self.heads, name="attention", **types)(query, key)
        batch, height, columns, _ = asked.shape
        grid = token_grid(height, columns, tokens=self.tokens or max(height, columns))
        update = jax.image.resize(mixed.reshape(batch, *grid, width), asked.shape, "bilinear")
        y, update = (one.reshape(batch, -1, width) for one in (asked, update.astype(asked.dtype)))
        y = y + DropPath(self.drop_path, name="drop_attention")(update, train=train)
        fed = FeedForward(self.ratio, name="feed_forward", **types)(y)
        y = y + DropPath(self.drop_path, name="drop_feed_forward")(fed, train=train)
        return y.reshape(asked.shape)
