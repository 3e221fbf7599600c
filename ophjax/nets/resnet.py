"""Residual networks (He et al., 2016) with torchvision's structure, padding and parameter counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from ophjax.errors import InputError, unknown
from ophjax.nets.blocks import make_norm
from ophjax.nets.conv import Conv, max_pool

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# depth: (blocks in each stage, output channels per unit of width)
DEPTHS: dict[int, tuple[tuple[int, int, int, int], int]] = {
    10: ((1, 1, 1, 1), 1),
    18: ((2, 2, 2, 2), 1),
    34: ((3, 4, 6, 3), 1),
    50: ((3, 4, 6, 3), 4),
    101: ((3, 4, 23, 3), 4),
}
STEMS = ("imagenet", "small")

_kaiming = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# Uniform in +-1/sqrt(inputs), PyTorch's default for linear layers.
_linear = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class ResidualBlock(nn.Module):
    """A basic (two 3x3) or, with ``expansion`` 4, bottleneck (1x1, 3x3, 1x1) block; the 3x3 takes the stride."""

    width: int
    expansion: int
    stride: int
    norm: str
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b i j d"]:
        def layer(x: Array, features: int, size: int, stride: int, name: str) -> Array:
            types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
            conv = Conv(features, size, stride, use_bias=False, kernel_init=_kaiming, name=f"conv{name}", **types)
            return make_norm(self.norm, features, train=train, name=f"norm{name}", **types)(conv(x))

        features = self.width * self.expansion
        if self.expansion == 1:
            y = nn.relu(layer(x, self.width, 3, self.stride, "1"))
            y = layer(y, features, 3, 1, "2")
        else:
            y = nn.relu(layer(x, self.width, 1, 1, "1"))
            y = nn.relu(layer(y, self.width, 3, self.stride, "2"))
            y = layer(y, features, 1, 1, "3")
        if self.stride != 1 or x.shape[-1] != features:
            x = layer(x, features, 1, self.stride, "_shortcut")
        return nn.relu(x.astype(y.dtype) + y)


class ResidualStage(nn.Module):
    """The blocks that work at one resolution; the first takes the stride."""

    blocks: int
    width: int
    expansion: int
    stride: int
    norm: str
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b i j d"]:
        for i in range(self.blocks):
            x = ResidualBlock(
                self.width,
                self.expansion,
                self.stride if i == 0 else 1,
                self.norm,
                self.dtype,
                self.param_dtype,
                name=f"block{i + 1}",
            )(x, train=train)
        return x


class Stem(nn.Module):
    """The first convolution, norm and ReLU."""

    width: int
    kind: str
    norm: str
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b i j d"]:
        size, stride = (7, 2) if self.kind == "imagenet" else (3, 1)
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = Conv(self.width, size, stride, use_bias=False, kernel_init=_kaiming, name="conv", **types)(x)
        return nn.relu(make_norm(self.norm, self.width, train=train, name="norm", **types)(x))


class ResNet(nn.Module):
    """A residual network, usable whole or stage by stage.

    Whole: ``net(x, train=...)`` gives logits. By parts, so that other blocks can stand between them::

        x = net.stem(images, train=train)
        for level in (1, 2, 3, 4):
            x = net.stage(level, x, train=train)
        logits = net.head(x)

    With ``train=False`` batch norms use and keep their stored statistics. Parameters exist for the parts that
    were called at initialisation. Initial values as in torchvision, except that the head's bias is zero.

    Attributes:
      classes: number of logits.
      depth: 18, 34, 50 or 101; 10 is a basic-block net with one block in each stage, for tests and small data.
      width: channels of the stem; stage l has ``width * 2**(l - 1)``, four times that from depth 50 on.
      stem_kind: ``"imagenet"``: 7x7 stride 2, and stage 1 begins with a 3x3 max-pool of stride 2 (strides of the
        stages 4, 8, 16, 32); ``"small"``: 3x3 stride 1, no pool (strides 1, 2, 4, 8).
      norm: ``"batch"`` or ``"group"``.
    """

    classes: int = 1000
    depth: int = 34
    width: int = 64
    stem_kind: str = "imagenet"
    norm: str = "batch"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        if self.depth not in DEPTHS:
            known = ", ".join(str(depth) for depth in DEPTHS)
            raise InputError(f"Unknown ResNet depth {self.depth}. Known: {known}. Choose one of these.")
        if self.stem_kind not in STEMS:
            raise unknown("ResNet stem", self.stem_kind, STEMS)
        blocks, expansion = DEPTHS[self.depth]
        shared = (self.norm, self.dtype, self.param_dtype)
        self.first = Stem(self.width, self.stem_kind, *shared)
        self.stage1 = ResidualStage(blocks[0], self.width, expansion, 1, *shared)
        self.stage2 = ResidualStage(blocks[1], self.width * 2, expansion, 2, *shared)
        self.stage3 = ResidualStage(blocks[2], self.width * 4, expansion, 2, *shared)
        self.stage4 = ResidualStage(blocks[3], self.width * 8, expansion, 2, *shared)
        self.linear = nn.Dense(self.classes, kernel_init=_linear, dtype=jnp.float32, param_dtype=self.param_dtype)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels after the stem and after each stage."""
        expansion = DEPTHS[self.depth][1]
        return (self.width, *(self.width * expansion * 2**i for i in range(4)))

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of the image per position after the stem and after each stage."""
        return (2, 4, 8, 16, 32) if self.stem_kind == "imagenet" else (1, 1, 2, 4, 8)

    def stem(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b i j d"]:
        """Computes the features before the first stage (and before the max-pool)."""
        return self.first(x, train=train)

    def stage(self, level: int, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b i j d"]:
        """Applies stage ``level`` (1 to 4); stage 1 begins with the max-pool, where the stem has one."""
        if level == 1 and self.stem_kind == "imagenet":
            x = max_pool(x, size=3, stride=2, padding=1)
        return (self.stage1, self.stage2, self.stage3, self.stage4)[level - 1](x, train=train)

    def head(self, x: Float[Array, "b h w c"]) -> Float[Array, "b classes"]:
        """Averages over positions and maps to logits, in float32."""
        return self.linear(x.astype(jnp.float32).mean((1, 2)))

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b classes"]:
        x = self.stem(x, train=train)
        for level in (1, 2, 3, 4):
            x = self.stage(level, x, train=train)
        return self.head(x)
