"""U-shaped segmentation networks: with a residual encoder, and the plain one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from ophjax.nets.blocks import DoubleConv, crop_to, make_norm, pad_to_multiple
from ophjax.nets.conv import Conv, ConvTranspose2x2, max_pool
from ophjax.nets.resnet import ResNet

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class DecoderBlock(nn.Module):
    """Doubles the size: transposed convolution beside a 1x1 of the skip, each to ``features``; ReLU; norm."""

    features: int
    norm: str
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], skip: Float[Array, "b 2*h 2*w s"], *, train: bool
    ) -> Float[Array, "b 2*h 2*w d"]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        up = ConvTranspose2x2(self.features, name="up", **types)(x)
        side = Conv(self.features, 1, name="skip", **types)(skip)
        y = nn.relu(jnp.concatenate([up, side], axis=-1))
        return make_norm(self.norm, 2 * self.features, train=train, name="norm", **types)(y)


class ResUNet(nn.Module):
    """A U-Net on a residual encoder (widths: BUILD_NOTES.md, SeATrans).

    Returns ``(logits, taps)``: float32 logits [b, h, w, regions], and the features that SeATrans reads, coarse to
    fine: the bottleneck and the outputs of the first three decoder blocks (``2 * decoder`` channels each). With
    the "imagenet" stem these lie at strides 32, 16, 8, 4; a fourth block (stride 2) and a last transposed
    convolution lead to the logits. With the "small" stem they lie at strides 8, 4, 2, 1 and a 1x1 convolution
    leads to the logits (our decision).

    Images of any size are padded to a multiple of the coarsest stride by repeating their edge, and the logits
    cropped; the taps keep the padded size.

    Attributes:
      regions: number of output channels.
      decoder: channels of each half of a decoder block.
      depth, width, stem_kind, norm: of the encoder, see ``ResNet``.
    """

    regions: int
    depth: int = 34
    width: int = 64
    decoder: int = 128
    stem_kind: str = "imagenet"
    norm: str = "batch"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> tuple[Float[Array, "b h w regions"], tuple[Float[Array, "b i j d"], ...]]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        encoder = ResNet(
            depth=self.depth,
            width=self.width,
            stem_kind=self.stem_kind,
            norm=self.norm,
            name="encoder",
            **types,
        )
        height, width = x.shape[1:3]
        features = [encoder.stem(pad_to_multiple(x, encoder.strides[4]), train=train)]
        for level in (1, 2, 3, 4):
            features.append(encoder.stage(level, features[-1], train=train))

        y = features[4]
        # The small stem stands at the same resolution as stage 1, which is the last skip then.
        skips = features[3::-1] if self.stem_kind == "imagenet" else features[3:0:-1]
        taps = [y]
        for i, skip in enumerate(skips):
            y = DecoderBlock(self.decoder, self.norm, name=f"decoder{i + 1}", **types)(y, skip, train=train)
            taps.append(y)
        if self.stem_kind == "imagenet":
            y = ConvTranspose2x2(self.regions, name="head", **types)(y)
        else:
            y = Conv(self.regions, 1, name="head", **types)(y)
        return crop_to(y.astype(jnp.float32), height, width), tuple(taps[:4])


class UNet(nn.Module):
    """The plain U-Net (Ronneberger et al., 2015), with norms and same-size convolutions.

    Returns float32 logits [b, h, w, regions]. Images of any size are padded to a multiple of ``2**depth`` by
    repeating their edge, and the logits cropped.

    Attributes:
      regions: number of output channels.
      width: channels at full resolution, doubled at each of the ``depth`` halvings.
    """

    regions: int
    width: int = 64
    depth: int = 4
    norm: str = "batch"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w regions"]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        height, width = x.shape[1:3]
        y = pad_to_multiple(x, 2**self.depth)
        skips = []
        for i in range(self.depth):
            y = DoubleConv(self.width * 2**i, self.norm, name=f"down{i}", **types)(y, train=train)
            skips.append(y)
            y = max_pool(y, size=2, stride=2)
        y = DoubleConv(self.width * 2**self.depth, self.norm, name=f"down{self.depth}", **types)(y, train=train)
        for i in reversed(range(self.depth)):
            up = ConvTranspose2x2(self.width * 2**i, name=f"up{i}", **types)(y)
            y = jnp.concatenate([skips[i], up], axis=-1)
            y = DoubleConv(self.width * 2**i, self.norm, name=f"merge{i}", **types)(y, train=train)
        y = Conv(self.regions, 1, name="head", **types)(y)
        return crop_to(y.astype(jnp.float32), height, width)
