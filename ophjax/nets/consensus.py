"""ConM and DivM: a segmenter that is told whom to trust, and a net that finds out (selfcal spec, section (c)).

Widths and order follow the released code of Wu et al. (MICCAI 2022); what differs is named at each net.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ophjax.errors import InputError, unknown
from ophjax.nets.blocks import crop_to, pad_to_multiple
from ophjax.nets.conv import Conv, ConvTranspose2x2, conv2d
from ophjax.nets.resnet import ResNet
from ophjax.nets.stage import AttentionStage
from ophjax.nets.transformer import pool_to
from ophjax.nets.unet import DecoderBlock

if TYPE_CHECKING:
    from jaxtyping import Array, Float

CONDITIONS = ("attention", "concat", "vector")


class ExpertiseEmbed(nn.Module):
    """Brings an expertise map to a decoder's resolution: 1x1, then 3x3 of the wanted stride in groups of two channels.

    Both are linear, so they are computed as one convolution of the map and a channel of ones, which carries the first
    one's bias; nothing is ever as wide as ``features`` at the map's resolution.
    """

    features: int
    stride: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, expertise: Float[Array, "b h w e"]) -> Float[Array, "b i j features"]:
        channels, pairs = expertise.shape[-1], self.features // 2
        init = nn.initializers.lecun_normal()
        embed = self.param("embed", init, (channels, self.features), self.param_dtype)
        shift = self.param("shift", nn.initializers.zeros, (1, self.features), self.param_dtype)
        place = self.param("place", init, (3, 3, 2, self.features), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        first = jnp.concatenate([embed, shift]).reshape(channels + 1, pairs, 2)
        kernel = jnp.einsum("egp,xypgq->xyegq", first, place.reshape(3, 3, 2, pairs, 2))
        kernel = kernel.reshape(3, 3, channels + 1, self.features).astype(self.dtype)
        ones = jnp.ones((*expertise.shape[:3], 1), expertise.dtype)
        told = jnp.concatenate([expertise, ones], -1).astype(self.dtype)
        return conv2d(told, kernel, stride=self.stride) + bias.astype(self.dtype).reshape(1, 1, 1, -1)


class ConM(nn.Module):
    """Segments an image given an expertise map: ResNet encoder, and a decoder that asks with the map.

    After each decoder block an ``AttentionStage`` has the embedded map as its query (and residual) stream and the
    decoder's features as keys and values, so that what goes on is the map, filled in from the image; large maps are
    attended to in windows. Images of any size
    are padded to a multiple of the coarsest stride by repeating their edge.

    Attributes:
      regions: number of output channels.
      depth, width, stem_kind, norm: of the encoder, see ``ResNet``.
      decoder: channels of each half of a decoder block; the stages have twice as many.
      heads: of the four stages, coarse to fine.
      condition: "attention" as above; "concat" puts the pooled map beside the decoder's features and mixes both by a
        1x1 convolution; "vector" takes the map's average over the image and gates the bottleneck with it, as MRNet (Ji
        et al., CVPR 2021) conditions its net on a vector of expertise (its ConvLSTM is one gated convolution here).
      tokens, ratio, drop_path: of the stages, see ``AttentionStage``.
      keep_features: whether the decoder's features join the stages' residual stream (not in the released code).
    """

    regions: int
    depth: int = 34
    width: int = 64
    decoder: int = 128
    stem_kind: str = "imagenet"
    norm: str = "batch"
    heads: tuple[int, ...] = (8, 4, 2, 1)
    condition: str = "attention"
    tokens: int | None = 32
    ratio: float = 0.5
    drop_path: float = 0.05
    keep_features: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], expertise: Float[Array, "b h w e"], *, train: bool
    ) -> tuple[Float[Array, "b h w regions"], Float[Array, "b i j d"]]:
        """Returns float32 logits, and the features after the second decoder block."""
        if self.condition not in CONDITIONS:
            raise unknown("condition", self.condition, CONDITIONS)
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        encoder = ResNet(1, self.depth, self.width, self.stem_kind, self.norm, name="encoder", **types)
        height, width = x.shape[1:3]
        x, expertise = (pad_to_multiple(one, encoder.strides[4]) for one in (x, expertise))
        features = [encoder.stem(x, train=train)]
        for level in (1, 2, 3, 4):
            features.append(encoder.stage(level, features[-1], train=train))
        y = features[4]
        if self.condition == "vector":
            y = self._gate(y, expertise.mean((1, 2)))
        # The small stem stands at the same resolution as stage 1, which is the last skip then.
        skips = features[3::-1] if self.stem_kind == "imagenet" else features[3:0:-1]
        middle = y
        for i, skip in enumerate(skips):
            y = DecoderBlock(self.decoder, self.norm, name=f"decoder{i + 1}", **types)(y, skip, train=train)
            y = self._tell(y, expertise, i, train=train)
            middle = y if i == 1 else middle
        if self.stem_kind == "imagenet":
            y = ConvTranspose2x2(self.regions, name="head", **types)(y)
        else:
            y = Conv(self.regions, 1, name="head", **types)(y)
        return crop_to(y.astype(jnp.float32), height, width), middle

    def _tell(self, y: Array, expertise: Array, i: int, *, train: bool) -> Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        channels = y.shape[-1]
        if self.condition == "attention":
            stride = expertise.shape[1] // y.shape[1]
            asked = ExpertiseEmbed(channels, stride, name=f"embed{i + 1}", **types)(expertise)
            # Before the first round the map says nothing, so that all that is fine must pass through the attention.
            settings = (None, self.tokens, self.ratio, self.drop_path, "window", self.keep_features)
            return AttentionStage(self.heads[i], *settings, name=f"stage{i + 1}", **types)(asked, y, train=train)
        if self.condition == "concat":
            beside = pool_to(expertise, *y.shape[1:3]).astype(y.dtype)
            return nn.relu(Conv(channels, 1, name=f"mix{i + 1}", **types)(jnp.concatenate([y, beside], -1)))
        return y

    def _gate(self, y: Array, vector: Array) -> Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        told = nn.Dense(y.shape[-1], name="vector", **types)(vector)[:, None, None]
        both = jnp.concatenate([y, jnp.broadcast_to(told, y.shape)], -1)
        gate = nn.sigmoid(Conv(y.shape[-1], name="gate", **types)(both))
        return y + gate * jnp.tanh(Conv(y.shape[-1], name="candidate", **types)(both))


class DivM(nn.Module):
    """Simulates every rater from the image and ConM's logits: attention stages at a quarter of the resolution.

    Returns float32 maps [b, raters, h, w, regions]: the logits of each rater's mask, and, where ``separate``, those of
    its expertness as well, which without it are the same.

    Differs from the released code: all stages have weights of their own (it applies the second one twice), and there is
    a last 1x1 that begins at zero, so that all raters begin alike (spec, section (j), 4 and 6).

    Attributes:
      raters, regions: numbers of them.
      width, heads: of the inner stages.
      depth: number of stages, the last of which has one head for each rater.
      stride: pixels of the image for each position.
      separate: whether expertness has logits of its own.
      tokens, ratio, drop_path: of the stages, see ``AttentionStage``.
    """

    raters: int
    regions: int
    width: int = 16
    heads: int = 4
    depth: int = 4
    stride: int = 4
    separate: bool = True
    tokens: int | None = 32
    ratio: float = 0.5
    drop_path: float = 0.05
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], logits: Float[Array, "b h w regions"], *, train: bool
    ) -> tuple[Float[Array, "b raters h w regions"], Float[Array, "b raters h w regions"]]:
        if min(x.shape[1:3]) < self.stride:
            raise InputError(
                f"Images of {x.shape[1]} x {x.shape[2]} pixels are smaller than DivM's stride of {self.stride}. Use "
                "larger images or a smaller stride."
            )
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        kinds = 2 if self.separate else 1
        channels = self.raters * kinds * self.regions
        both = jnp.concatenate([x, logits], -1).astype(self.dtype)
        y = nn.avg_pool(both, (3, 3), (self.stride, self.stride), padding=((1, 1), (1, 1)))
        settings = (self.tokens, self.ratio, self.drop_path)
        for i in range(self.depth - 1):
            y = AttentionStage(self.heads, self.width, *settings, name=f"stage{i + 1}", **types)(y, train=train)
        y = AttentionStage(self.raters, channels, *settings, name=f"stage{self.depth}", **types)(y, train=train)
        y = nn.Dense(channels, kernel_init=nn.initializers.zeros, name="head", **types)(y).astype(jnp.float32)
        batch, height, width, _ = x.shape
        y = jax.image.resize(y, (batch, height, width, channels), "bilinear")
        y = y.reshape(batch, height, width, self.raters, kinds, self.regions).transpose(4, 0, 3, 1, 2, 5)
        return y[0], y[-1]
