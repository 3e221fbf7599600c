"""Attention between feature maps: the SeA-block of SeATrans and its parts (Wu et al., MICCAI 2022).

Nothing of the paper but its abstract could be read. What the abstract fixes is that an encoder embeds the diagnosis
feature based on the segmentation features and a decoder transfers the embedding back, for every low-level diagnosis
feature and several segmentation scales; everything else here is our decision, listed in BUILD_NOTES.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class Tokens(NamedTuple):
    """A feature map as tokens.

    Attributes:
      values: [b, n, width].
      position: learned table [1, n, 1, width / heads], the same for all heads.
      real: [n] bool; False marks padding, to which nothing attends.
    """

    values: Array
    position: Array
    real: Array

    def padded(self, count: int) -> Tokens:
        """Adds padding up to ``count`` tokens."""
        more = count - self.values.shape[1]
        return Tokens(
            jnp.pad(self.values, ((0, 0), (0, more), (0, 0))),
            jnp.pad(self.position, ((0, 0), (0, more), (0, 0), (0, 0))),
            jnp.pad(self.real, (0, more)),
        )


class TokenEmbed(nn.Module):
    """Turns a map into at most ``tokens`` x ``tokens`` tokens: depthwise 3x3, average pool, linear, LayerNorm.

    The token count is fixed by the map's size at initialisation (position table).
    """

    width: int
    heads: int
    tokens: int = 16
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Tokens:
        if self.width % self.heads:
            raise InputError(
                f"A SeA-block got width {self.width} and {self.heads} heads: the heads share the width equally, so "
                "it must be divisible. Choose another number of heads or another width."
            )
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = DepthwiseConv(name="depthwise", **types)(x)
        x = pool_to(x, *token_grid(*x.shape[1:3], tokens=self.tokens))
        x = nn.Dense(self.width, use_bias=False, name="linear", **types)(x.reshape(x.shape[0], -1, x.shape[-1]))
        x = nn.LayerNorm(epsilon=1e-5, name="norm", **types)(x)
        table = (1, x.shape[1], 1, self.width // self.heads)
        position = self.param("position", nn.initializers.normal(0.02), table, self.param_dtype)
        return Tokens(x, position, jnp.ones(x.shape[1], bool))


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

    ratio: float = 3
    epsilon: float = 1e-5
    kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        width, inner = x.shape[-1], max(1, round(self.ratio * x.shape[-1]))
        x = nn.LayerNorm(epsilon=self.epsilon, name="norm", **types)(x)
        x = nn.Dense(inner, kernel_init=self.kernel_init, name="expand", **types)(x)
        return nn.Dense(width, kernel_init=self.kernel_init, name="contract", **types)(nn.gelu(x, approximate=False))


class CrossAttention(nn.Module):
    """Multi-head attention with a LayerNorm on each of query, key and value.

    Positions are added to query and key, head by head, before their LayerNorm. No bias in the three projections, one
    in the last; the keys' LayerNorm has none, since a constant in the keys cancels in the softmax. Scale
    ``(width / heads) ** -0.5``; softmax in float32, over the real tokens of the context. Returns the result and the
    attention [b, heads, n, m].
    """

    heads: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, context: Tokens) -> tuple[Float[Array, "b n d"], Float[Array, "b heads n m"]]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        width = x.values.shape[-1]

        def project(values: Array, name: str, position: Array | None = None) -> Array:
            if position is not None:
                by_head = values.reshape(*values.shape[:2], self.heads, -1)
                values = (by_head + position.astype(values.dtype)).reshape(values.shape)
            values = nn.LayerNorm(epsilon=1e-5, use_bias=name != "key", name=f"{name}_norm", **types)(values)
            values = nn.Dense(width, use_bias=False, name=name, **types)(values)
            return values.reshape(*values.shape[:2], self.heads, -1)

        query = project(x.values, "query", x.position)
        key = project(context.values, "key", context.position)
        value = project(context.values, "value")
        scores = jnp.einsum("bnhe,bmhe->bhnm", query, key, preferred_element_type=jnp.float32)
        scores = jnp.where(context.real[None, None, None], scores, jnp.finfo(jnp.float32).min)
        attention = nn.softmax(scores * (width // self.heads) ** -0.5, axis=-1)
        mixed = jnp.einsum("bhnm,bmhe->bnhe", attention.astype(value.dtype), value)
        return nn.Dense(width, name="out", **types)(mixed.reshape(x.values.shape)), attention


class AttentionLayer(nn.Module):
    """``x' = x + DropPath(MHA(x, context))``, then ``x' + DropPath(FFN(x'))``; returns it and the attention."""

    heads: int
    ratio: float = 3
    drop_path: float = 0.05
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, context: Tokens, *, train: bool) -> tuple[Tokens, Float[Array, "b heads n m"]]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        mixed, attention = CrossAttention(self.heads, name="attention", **types)(x, context)
        y = x.values + DropPath(self.drop_path, name="drop_attention")(mixed, train=train)
        fed = FeedForward(self.ratio, name="feed_forward", **types)(y)
        return x._replace(values=y + DropPath(self.drop_path, name="drop_feed_forward")(fed, train=train)), attention


class TokenExchange(nn.Module):
    """The SeA-block on tokens: embeds the diagnosis feature by segmentation, and brings it back.

    With block "sea", one encoder for each segmentation map gives an embedding; its queries are the segmentation
    tokens (``encoder_query="seg"``) or the diagnosis tokens ("diag"), its keys and values the other ones. The
    decoder, with diagnosis queries, reads all embeddings at once. With block "single" there is no encoder: the
    decoder reads the segmentation tokens as they are.
    """

    heads: int
    block: str = "sea"
    encoder_query: str = "seg"
    ratio: float = 3
    drop_path: float = 0.05
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, diag: Tokens, segs: Sequence[Tokens], *, train: bool) -> tuple[Float[Array, "b n d"], Attention]:
        if self.block not in BLOCKS:
            raise unknown("SeA block", self.block, BLOCKS)
        if self.encoder_query not in QUERIES:
            raise unknown("encoder query", self.encoder_query, QUERIES)

        def layer(name: str) -> AttentionLayer:
            return AttentionLayer(self.heads, self.ratio, self.drop_path, self.dtype, self.param_dtype, name=name)

        embedded, maps = list(segs), []
        if self.block == "sea":
            for i, seg in enumerate(segs):
                asked, told = (seg, diag) if self.encoder_query == "seg" else (diag, seg)
                embedded[i], attention = layer(f"encoder{i + 1}")(asked, told, train=train)
                maps.append(attention)
        context = Tokens(
            jnp.concatenate([one.values for one in embedded], axis=1),
            jnp.concatenate([one.position for one in embedded], axis=1),
            jnp.concatenate([one.real for one in embedded]),
        )
        out, attention = layer("decoder")(diag, context, train=train)
        return out.values, Attention(tuple(maps), attention)


class SeABlock(nn.Module):
    """Updates a diagnosis map from the tokens of a segmentation map (or of several, read by one decoder pass).

    ``D + Up(W0 (O - T))``: T are the diagnosis tokens, O what ``TokenExchange`` makes of them, W0 a 1x1 projection
    without bias that begins at zero, Up the bilinear resize to the map's size. At initialisation the map is
    returned unchanged, exactly.

    Attributes:
      heads: of every attention.
      width: channels of the tokens; None takes the diagnosis map's.
      tokens: most tokens down and across; larger maps are averaged.
      block, encoder_query: see ``TokenExchange``.
      ratio, drop_path: of the feed-forward and residual branches, see ``FeedForward`` and ``DropPath``.
    """

    heads: int
    width: int | None = None
    tokens: int = 16
    block: str = "sea"
    encoder_query: str = "seg"
    ratio: float = 3
    drop_path: float = 0.05
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, diag: Float[Array, "b h w c"], segs: Sequence[Tokens], *, train: bool
    ) -> tuple[Float[Array, "b h w c"], Attention]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        batch, height, width, channels = diag.shape
        tokens = TokenEmbed(self.width or channels, self.heads, self.tokens, name="embed", **types)(diag)
        settings = (self.heads, self.block, self.encoder_query, self.ratio, self.drop_path)
        out, attention = TokenExchange(*settings, name="exchange", **types)(tokens, segs, train=train)
        write = nn.Dense(channels, use_bias=False, kernel_init=nn.initializers.zeros, name="write", **types)
        grid = token_grid(height, width, tokens=self.tokens)
        update = write(out - tokens.values).reshape(batch, *grid, channels)
        update = jax.image.resize(update, diag.shape, "bilinear")
        return diag + update.astype(diag.dtype), attention


class SeAFusion(nn.Module):
    """Lets one diagnosis map read all segmentation scales, given coarse to fine.

    ``scale_fusion="sequential"``: one SeA-block for each scale, each fed the map that the one before updated. The
    blocks have their own parameters but one compiled body (``nn.scan``), for which the tokens of coarse scales are
    padded to the count of the finest. ``"concat"``: one encoder for each scale and a single decoder pass over all
    embeddings, so that the order of the scales does not matter. Returns the new map and one ``Attention`` for each
    decoder pass.

    Attributes: as ``SeABlock``, and
      scale_fusion: "sequential" or "concat".
    """

    heads: int
    width: int | None = None
    tokens: int = 16
    scale_fusion: str = "sequential"
    block: str = "sea"
    encoder_query: str = "seg"
    ratio: float = 3
    drop_path: float = 0.05
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, diag: Float[Array, "b h w c"], segs: Sequence[Float[Array, "b i j s"]], *, train: bool
    ) -> tuple[Float[Array, "b h w c"], tuple[Attention, ...]]:
        if self.scale_fusion not in FUSIONS:
            raise unknown("scale fusion", self.scale_fusion, FUSIONS)
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        width = self.width or diag.shape[-1]
        streams = [
            TokenEmbed(width, self.heads, self.tokens, name=f"embed{i + 1}", **types)(seg) for i, seg in enumerate(segs)
        ]
        settings = (self.heads, width, self.tokens, self.block, self.encoder_query, self.ratio, self.drop_path)
        block = SeABlock(*settings, name="blocks", **types)
        if self.scale_fusion == "concat":
            diag, attention = block(diag, streams, train=train)
            return diag, (attention,)

        def one_scale(block: SeABlock, diag: Array, seg: Tokens) -> tuple[Array, Attention]:
            return block(diag, [seg], train=train)

        counts = [seg.real.size for seg in streams]
        padded = [seg.padded(max(counts)) for seg in streams]
        scan = nn.scan(one_scale, variable_axes={"params": 0}, split_rngs={"params": True, "drop_path": True})
        diag, stacked = scan(block, diag, jax.tree.map(lambda *leaves: jnp.stack(leaves), *padded))
        seen = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(len(segs))]
        return diag, tuple(self._without_padding(one, count) for one, count in zip(seen, counts, strict=True))

    def _without_padding(self, attention: Attention, count: int) -> Attention:
        """Segmentation tokens are the encoder's queries or keys, and the decoder's keys unless "diag" asked."""
        if self.encoder_query == "seg":
            encoder = tuple(found[:, :, :count] for found in attention.encoder)
        else:
            encoder = tuple(found[..., :count] for found in attention.encoder)
        embedded_on_diag = self.block == "sea" and self.encoder_query == "diag"
        return Attention(encoder, attention.decoder if embedded_on_diag else attention.decoder[..., :count])
