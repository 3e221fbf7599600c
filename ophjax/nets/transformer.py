"""Attention between feature maps: the SeA-block of SeATrans and its parts (SeATrans spec, section (c)).

Nothing of the paper but its abstract could be read. What the abstract fixes is that an encoder embeds the diagnosis
feature based on the segmentation features and a decoder transfers the embedding back, for every low-level diagnosis
feature and several segmentation scales; everything else here is our decision, named in the spec.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ophjax.errors import InputError, unknown
from ophjax.nets.conv import DepthwiseConv

if TYPE_CHECKING:
    from jaxtyping import Array, Float

BLOCKS = ("sea", "single")
QUERIES = ("seg", "diag")
FUSIONS = ("sequential", "concat")


class Attention(NamedTuple):
    """The attention of one SeA-block; every row sums to 1 and all are float32.

    Attributes:
      encoder: one array [b, heads, queries, keys] for each segmentation map read (none with block "single"). With
        segmentation queries they are M x N: from the M segmentation tokens to the N diagnosis tokens.
      decoder: [b, heads, N, keys]: from the diagnosis tokens to all embedded tokens, map after map.
    """

    encoder: tuple[Array, ...]
    decoder: Array


def token_grid(height: int, width: int, *, tokens: int) -> tuple[int, int]:
    """Says how many tokens, down and across, a map of this size is embedded into; rows come first in the order."""
    return min(height, tokens), min(width, tokens)


def pool_to(x: Float[Array, "b h w c"], height: int, width: int) -> Float[Array, "b height width c"]:
    """Averages a map over windows that tile it as evenly as whole positions allow (PyTorch's adaptive pooling)."""
    batch, rows, columns, channels = x.shape
    if rows % height == 0 and columns % width == 0:
        windows = x.reshape(batch, height, rows // height, width, columns // width, channels)
        return windows.mean((2, 4))
    down, across = _windows(rows, height), _windows(columns, width)
    return jnp.einsum("ih,bhwc,jw->bijc", down.astype(x.dtype), x, across.astype(x.dtype))


def _windows(size: int, count: int) -> jax.Array:
    starts = np.arange(count) * size // count
    stops = -(-(np.arange(count) + 1) * size // count)
    inside = (np.arange(size) >= starts[:, None]) & (np.arange(size) < stops[:, None])
    return jnp.asarray(inside / (stops - starts)[:, None], jnp.float32)


class TokenEmbed(nn.Module):
    """Turns a map into at most ``tokens`` x ``tokens`` tokens: depthwise 3x3, average pool, linear, LayerNorm."""

    width: int
    tokens: int = 16
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = DepthwiseConv(name="depthwise", **types)(x)
        x = pool_to(x, *token_grid(*x.shape[1:3], tokens=self.tokens))
        x = nn.Dense(self.width, use_bias=False, name="linear", **types)(x.reshape(x.shape[0], -1, x.shape[-1]))
        return nn.LayerNorm(epsilon=1e-5, name="norm", **types)(x)


class DropPath(nn.Module):
    """Drops a residual branch for whole examples and rescales the others (random stream ``drop_path``)."""

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool) -> Float[Array, "b n d"]:
        if not train or self.rate == 0:
            return x
        kept = jax.random.bernoulli(self.make_rng("drop_path"), 1 - self.rate, (x.shape[0], 1, 1))
        return jnp.where(kept, x / (1 - self.rate), jnp.zeros((), x.dtype))


class FeedForward(nn.Module):
    """LayerNorm, linear to ``ratio`` times the width, GELU, linear back."""

    ratio: int = 3
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        width = x.shape[-1]
        x = nn.LayerNorm(epsilon=1e-5, name="norm", **types)(x)
        x = nn.gelu(nn.Dense(self.ratio * width, name="expand", **types)(x), approximate=False)
        return nn.Dense(width, name="contract", **types)(x)


class CrossAttention(nn.Module):
    """Multi-head attention with a LayerNorm on each of query, key and value.

    The position tables [1, n, 1, width / heads], the same for all heads, are added to query and key before their
    LayerNorm. No bias in the three projections, one in the last; scale ``(width / heads) ** -0.5``; softmax in
    float32. Returns the result and the attention [b, heads, n, m].
    """

    heads: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "b n d"],
        key: Float[Array, "b m d"],
        value: Float[Array, "b m d"],
        *,
        query_position: Float[Array, "1 n 1 e"],
        key_position: Float[Array, "1 m 1 e"],
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b heads n m"]]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        width = query.shape[-1]

        def project(x: Array, name: str, position: Array | None = None) -> Array:
            if position is not None:
                by_head = x.reshape(*x.shape[:2], self.heads, -1)
                x = (by_head + position.astype(x.dtype)).reshape(x.shape)
            x = nn.LayerNorm(epsilon=1e-5, name=f"{name}_norm", **types)(x)
            x = nn.Dense(width, use_bias=False, name=name, **types)(x)
            return x.reshape(*x.shape[:2], self.heads, -1)

        q = project(query, "query", query_position)
        k = project(key, "key", key_position)
        v = project(value, "value")
        scores = jnp.einsum("bnhe,bmhe->bhnm", q, k, preferred_element_type=jnp.float32)
        attention = nn.softmax(scores * (width // self.heads) ** -0.5, axis=-1)
        mixed = jnp.einsum("bhnm,bmhe->bnhe", attention.astype(v.dtype), v)
        return nn.Dense(width, name="out", **types)(mixed.reshape(query.shape)), attention


class AttentionLayer(nn.Module):
    """``x' = x + DropPath(MHA(x, context))``, then ``x' + DropPath(FFN(x'))``; returns it and the attention."""

    heads: int
    drop_path: float = 0.05
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "b m d"],
        *,
        position: Float[Array, "1 n 1 e"],
        context_position: Float[Array, "1 m 1 e"],
        train: bool,
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b heads n m"]]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        mixed, attention = CrossAttention(self.heads, name="attention", **types)(
            x, context, context, query_position=position, key_position=context_position
        )
        x = x + DropPath(self.drop_path, name="drop_attention")(mixed, train=train)
        y = FeedForward(name="feed_forward", **types)(x)
        return x + DropPath(self.drop_path, name="drop_feed_forward")(y, train=train), attention


class TokenExchange(nn.Module):
    """The SeA-block on tokens: embeds the diagnosis feature by segmentation, and brings it back.

    With block "sea", one encoder for each segmentation map gives an embedding; its queries are the segmentation
    tokens (``encoder_query="seg"``) or the diagnosis tokens ("diag"), its keys and values the other ones. The
    decoder, with diagnosis queries, reads all embeddings at once. With block "single" there is no encoder: the
    decoder reads the segmentation tokens as they are. Position tables belong to a stream and serve both passes.
    """

    heads: int
    block: str = "sea"
    encoder_query: str = "seg"
    drop_path: float = 0.05
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, diag: Float[Array, "b n d"], segs: Sequence[Float[Array, "b m d"]], *, train: bool
    ) -> tuple[Float[Array, "b n d"], Attention]:
        if self.block not in BLOCKS:
            raise unknown("SeA block", self.block, BLOCKS)
        if self.encoder_query not in QUERIES:
            raise unknown("encoder query", self.encoder_query, QUERIES)
        width = diag.shape[-1]
        if width % self.heads:
            raise InputError(
                f"A SeA-block got width {width} and {self.heads} heads: the heads share the width equally, so it "
                "must be divisible. Choose another number of heads or another width."
            )

        def position(name: str, tokens: Array) -> Array:
            shape = (1, tokens.shape[1], 1, width // self.heads)
            return self.param(f"position_{name}", nn.initializers.normal(0.02), shape, self.param_dtype)

        def layer(name: str) -> AttentionLayer:
            return AttentionLayer(self.heads, self.drop_path, self.dtype, self.param_dtype, name=name)

        diag_position = position("diag", diag)
        embedded, positions, maps = [], [], []
        for i, seg in enumerate(segs):
            seg_position = position(f"seg{i + 1}", seg)
            asked, told = (seg, seg_position), (diag, diag_position)
            if self.encoder_query == "diag":
                asked, told = told, asked
            if self.block == "sea":
                embedding, attention = layer(f"encoder{i + 1}")(
                    asked[0], told[0], position=asked[1], context_position=told[1], train=train
                )
                maps.append(attention)
            else:
                embedding, asked = seg, (seg, seg_position)
            embedded.append(embedding)
            positions.append(asked[1])
        out, attention = layer("decoder")(
            diag,
            jnp.concatenate(embedded, axis=1),
            position=diag_position,
            context_position=jnp.concatenate(positions, axis=1),
            train=train,
        )
        return out, Attention(tuple(maps), attention)


class SeABlock(nn.Module):
    """Updates a diagnosis map from a segmentation map (or from several, read by one decoder pass).

    ``D + Up(W0 (O - T))``: T are the diagnosis tokens, O what ``TokenExchange`` makes of them, W0 a 1x1 projection
    without bias that begins at zero, Up the bilinear resize to the map's size. At initialisation the map is
    returned unchanged, exactly. Token counts are fixed by the sizes at initialisation (position tables).

    Attributes:
      heads: of every attention.
      width: channels of the tokens; None takes the diagnosis map's.
      tokens: most tokens down and across; larger maps are averaged.
      block, encoder_query, drop_path: see ``TokenExchange``.
    """

    heads: int
    width: int | None = None
    tokens: int = 16
    block: str = "sea"
    encoder_query: str = "seg"
    drop_path: float = 0.05
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, diag: Float[Array, "b h w c"], *segs: Float[Array, "b i j s"], train: bool
    ) -> tuple[Float[Array, "b h w c"], Attention]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        batch, height, width, channels = diag.shape
        size = self.width or channels
        tokens = TokenEmbed(size, self.tokens, name="embed_diag", **types)(diag)
        seg_tokens = [
            TokenEmbed(size, self.tokens, name=f"embed_seg{i + 1}", **types)(seg) for i, seg in enumerate(segs)
        ]
        exchange = TokenExchange(
            self.heads, self.block, self.encoder_query, self.drop_path, name="exchange", **types
        )
        out, attention = exchange(tokens, seg_tokens, train=train)
        write = nn.Dense(
            channels, use_bias=False, kernel_init=nn.initializers.zeros, name="write", **types
        )
        grid = token_grid(height, width, tokens=self.tokens)
        update = write(out - tokens).reshape(batch, *grid, channels)
        update = jax.image.resize(update, diag.shape, "bilinear")
        return diag + update.astype(diag.dtype), attention


class SeAFusion(nn.Module):
    """Lets one diagnosis map read all segmentation scales, given coarse to fine.

    ``scale_fusion="sequential"``: one SeA-block for each scale, each fed the map that the one before updated.
    ``"concat"``: one encoder for each scale and a single decoder pass over all embeddings, so that the order of
    the scales does not matter. Returns the new map and one ``Attention`` for each decoder pass.

    Attributes: as ``SeABlock``, and
      scale_fusion: "sequential" or "concat".
    """

    heads: int
    width: int | None = None
    tokens: int = 16
    scale_fusion: str = "sequential"
    block: str = "sea"
    encoder_query: str = "seg"
    drop_path: float = 0.05
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, diag: Float[Array, "b h w c"], segs: Sequence[Float[Array, "b i j s"]], *, train: bool
    ) -> tuple[Float[Array, "b h w c"], tuple[Attention, ...]]:
        if self.scale_fusion not in FUSIONS:
            raise unknown("scale fusion", self.scale_fusion, FUSIONS)
        groups = [tuple(segs)] if self.scale_fusion == "concat" else [(seg,) for seg in segs]
        attention = []
        for i, group in enumerate(groups):
            diag, seen = SeABlock(
                self.heads,
                self.width,
                self.tokens,
                self.block,
                self.encoder_query,
                self.drop_path,
                self.dtype,
                self.param_dtype,
                name="scales" if self.scale_fusion == "concat" else f"scale{i + 1}",
            )(diag, *group, train=train)
            attention.append(seen)
        return diag, tuple(attention)
