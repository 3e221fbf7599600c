"""The attention stage of ConM, DivM and DiFF's Take and Give: one map asks another, at full resolution.

It follows the released code of Wu et al. (selfcal spec, section (c); diff spec, section (c)), itself a cut-down ViP
block. Differences: attention is bounded on large maps, and the LayerNorm of the keys has no bias, as in
``nets/transformer.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ophjax.errors import InputError, unknown
from ophjax.nets.conv import DepthwiseConv
from ophjax.nets.transformer import CrossAttention, DropPath, FeedForward, Tokens, pool_to, token_grid

if TYPE_CHECKING:
    from jaxtyping import Array, Float


BOUNDS = ("pool", "window")


def largest_divisor(number: int, *, most: int) -> int:
    """Finds the largest divisor that is at most ``most``."""
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)


def to_windows(x: Float[Array, "b h w c"], side: tuple[int, int]) -> Float[Array, "b*n s c"]:
    """Cuts maps into windows of so many rows and columns, each a row of tokens of its own."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // side[0], side[0], width // side[1], side[1], channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side[0] * side[1], channels)


def from_windows(x: Float[Array, "b*n s c"], shape: tuple[int, ...], side: tuple[int, int]) -> Float[Array, "b h w c"]:
    """Undoes ``to_windows`` for maps of this shape."""
    batch, height, width, _ = shape
    x = x.reshape(batch, height // side[0], width // side[1], side[0], side[1], x.shape[-1])
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, width, x.shape[-1])


class AttentionStage(nn.Module):
    """Updates a query map by global attention to a context map, or to itself where none is given.

    Each stream: depthwise 3x3, linear without bias, a LayerNorm that both share. Then ``y = q + DropPath(MHA(q, c))``
    and ``y + DropPath(FFN(y))`` with learned positions on query and key, the same for all heads.

    All h * w positions are tokens where that is at most ``tokens`` x ``tokens``; this is the exact form. On larger maps
    (selfcal spec, section (j), 7) ``bound="pool"`` averages them to that grid for the attention alone and resizes its
    result bilinearly, while residual and feed-forward keep the full resolution: with 32 x 32 tokens the scores of four
    images and eight heads take 134 MB. ``bound="window"`` attends within windows of at most that size, whose sides
    divide the map's: nothing is blurred, which matters where the query map knows nothing of the image, but nothing is
    seen beyond the window. Position tables fix the map's size at initialisation.

    Attributes:
      heads: they share the width equally.
      width: channels of the result; None takes the query map's.
      tokens: most tokens down and across; None is exact whatever it costs.
      bound: "pool" or "window", what becomes of larger maps.
      ratio: width of the feed-forward over that of the stage (0.5 in ConM and DivM, 3 in DiFF).
      drop_path: probability of leaving a residual branch out, per example (random stream ``drop_path``).
      keep_context: adds the embedded context map, of the query's size, to the residual stream as well. What attention
        passes on must be learned first; this way the context is there from the start (not in the released code).
    """

    heads: int
    width: int | None = None
    tokens: int | None = 32
    ratio: float = 3
    drop_path: float = 0.05
    bound: str = "pool"
    keep_context: bool = False
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
        if self.bound not in BOUNDS:
            raise unknown("bound of attention", self.bound, BOUNDS)
        windowed = self.bound == "window"
        if (windowed or self.keep_context) and context is not None and context.shape[:3] != x.shape[:3]:
            raise InputError(
                f"An attention stage with windows, or one that keeps its context, got maps of {x.shape[1]} x "
                f"{x.shape[2]} and {context.shape[1]} x {context.shape[2]} positions; they must be equal. Resize one."
            )
        norm = nn.LayerNorm(epsilon=1e-5, name="norm", **types)

        def embed(stream: Array, name: str) -> Array:
            stream = DepthwiseConv(name=f"{name}_depthwise", **types)(stream)
            return norm(nn.Dense(width, use_bias=False, name=f"{name}_linear", **types)(stream))

        def grid_of(stream: Array) -> tuple[int, int]:
            height, columns = stream.shape[1:3]
            most = self.tokens or max(height, columns)
            if windowed:
                return largest_divisor(height, most=most), largest_divisor(columns, most=most)
            return token_grid(height, columns, tokens=most)

        def tokenise(stream: Array, name: str) -> Tokens:
            grid = grid_of(stream)
            rows = stream.shape[0]
            values = to_windows(stream, grid) if windowed else pool_to(stream, *grid).reshape(rows, -1, width)
            count = stream.shape[1] * stream.shape[2] if windowed else values.shape[1]
            table = (1, count, 1, width // self.heads)
            position = self.param(f"{name}_position", nn.initializers.normal(0.02), table, self.param_dtype)
            if windowed:
                places = to_windows(position.reshape(1, *stream.shape[1:3], -1), grid)
                position = jnp.tile(places, (rows, 1, 1))[:, :, None]
            return Tokens(values, position, jnp.ones(values.shape[1], bool))

        asked = embed(x, "query")
        told = asked if context is None else embed(context, "context")
        query, key = tokenise(asked, "query"), tokenise(told, "key")
        mixed, _ = CrossAttention(self.heads, name="attention", **types)(query, key)
        batch = asked.shape[0]
        if windowed:
            update = from_windows(mixed, asked.shape, grid_of(asked))
        else:
            update = mixed.reshape(batch, *grid_of(asked), width)
            update = jax.image.resize(update, asked.shape, "bilinear")
        stream = asked + told if self.keep_context and context is not None else asked
        y, update = (one.reshape(batch, -1, width) for one in (stream, update.astype(asked.dtype)))
        y = y + DropPath(self.drop_path, name="drop_attention")(update, train=train)
        fed = FeedForward(self.ratio, name="feed_forward", **types)(y)
        y = y + DropPath(self.drop_path, name="drop_feed_forward")(fed, train=train)
        return y.reshape(asked.shape)
