"""EfficientNet-B2 (Tan & Le, 2019) with torchvision's structure, padding and parameter counts, and a U-Net on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from ophjax.nets.blocks import DoubleConv, crop_to, make_norm, pad_to_multiple
from ophjax.nets.conv import Conv, ConvTranspose2x2, depthwise2d

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class Stage(NamedTuple):
    """Blocks of one width; the first takes the stride."""

    expand: int
    size: int
    stride: int
    features: int
    blocks: int


# Widths and depths of B0 times 1.1 and 1.2, rounded to multiples of 8 and up.
B2 = (
    Stage(1, 3, 1, 16, 2),
    Stage(6, 3, 2, 24, 3),
    Stage(6, 5, 2, 48, 3),
    Stage(6, 3, 2, 88, 4),
    Stage(6, 5, 1, 120, 4),
    Stage(6, 5, 2, 208, 5),
    Stage(6, 3, 1, 352, 2),
)
STEM, HEAD = 32, 1408

_kaiming = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class InvertedBottleneck(nn.Module):
    """MBConv: 1x1 to ``expand`` times the channels, depthwise, squeeze-and-excitation, 1x1 to ``features``.

    Norms follow the convolutions, SiLU all but the last. The input is added where the shapes agree. Without stochastic
    depth: both views of ADS must meet the same network (our decision).
    """

    expand: int
    size: int
    stride: int
    features: int
    norm: str
    train: bool
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], _: None = None) -> tuple[Float[Array, "b i j d"], None]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        channels, inner = x.shape[-1], x.shape[-1] * self.expand

        def normed(y: Array, name: str) -> Array:
            return make_norm(self.norm, y.shape[-1], train=self.train, name=name, **types)(y)

        def point(y: Array, features: int, name: str, *, use_bias: bool = False) -> Array:
            return Conv(features, 1, use_bias=use_bias, kernel_init=_kaiming, name=name, **types)(y)

        y = x
        if self.expand != 1:
            y = nn.silu(normed(point(y, inner, "expand"), "expand_norm"))
        kernel = self.param("depthwise", _kaiming, (self.size, self.size, 1, inner), self.param_dtype)
        y = depthwise2d(y.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride)
        y = nn.silu(normed(y, "depthwise_norm"))
        gate = nn.silu(point(y.mean((1, 2), keepdims=True), max(channels // 4, 1), "squeeze", use_bias=True))
        y = y * nn.sigmoid(point(gate, inner, "excite", use_bias=True))
        y = normed(point(y, self.features, "project"), "project_norm")
        return (x + y if x.shape == y.shape else y), None


class EfficientNet(nn.Module):
    """EfficientNet-B2: ``net(x, train=...)`` gives the maps after each stage and after the last convolution.

    Eight maps: those of the seven stages (strides 2, 4, 8, 16, 16, 32, 32) and that of the head (1408 channels, stride
    32). The blocks of a stage after its first are equal and compiled once (``nn.scan``), their parameters stacked.
    """

    norm: str = "batch"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> list[Float[Array, "b i j d"]]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def layer(x: Array, features: int, size: int, stride: int, name: str) -> Array:
            x = Conv(features, size, stride, use_bias=False, kernel_init=_kaiming, name=name, **types)(x)
            return nn.silu(make_norm(self.norm, features, train=train, name=f"{name}_norm", **types)(x))

        x, maps = layer(x, STEM, 3, 2, "stem"), []
        axes: Any = {"params": 0, "batch_stats": 0}
        for number, (expand, size, stride, features, blocks) in enumerate(B2, 1):
            same = (features, self.norm, train, self.dtype, self.param_dtype)
            x, _ = InvertedBottleneck(expand, size, stride, *same, name=f"stage{number}_first")(x)
            repeated = nn.scan(InvertedBottleneck, variable_axes=axes, split_rngs={"params": True}, length=blocks - 1)
            x, _ = repeated(expand, size, 1, *same, name=f"stage{number}_rest")(x, None)
            maps.append(x)
        return [*maps, layer(x, HEAD, 1, 1, "head")]


class EfficientUNet(nn.Module):
    """The U-Net on EfficientNet-B2 that ADS segments with (ADS spec, section (c.3)).

    From the encoder's last map five times up by a 2x2 transposed convolution to 512, 256, 128, 64, 32 channels, beside
    the outputs of stages 4, 3, 2, 1 (88, 48, 24, 16 channels) and the image itself, with a ``DoubleConv`` after each.
    Returns float32 logits [b, h, w, classes]. Images of any size are padded to a multiple of 32 by repeating their
    edge, and the logits cropped. Not pretrained.
    """

    classes: int
    norm: str = "batch"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w classes"]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        height, width = x.shape[1:3]
        x = pad_to_multiple(x, 32).astype(self.dtype)
        maps = EfficientNet(self.norm, name="encoder", **types)(x, train=train)
        y = maps[-1]
        for i, skip in enumerate((*maps[3::-1], x)):
            features = 512 // 2**i
            y = ConvTranspose2x2(features, name=f"up{i + 1}", **types)(y)
            y = jnp.concatenate([y, skip], -1)
            y = DoubleConv(features, self.norm, name=f"merge{i + 1}", **types)(y, train=train)
        y = Conv(self.classes, 1, name="logits", **types)(y)
        return crop_to(y.astype(jnp.float32), height, width)
