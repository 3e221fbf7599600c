"""Residual networks over volumes (Hara et al., 2018; as MedicalNet has them): basic blocks with 3x3x3 convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from ophjax.errors import InputError
from ophjax.nets.blocks import make_norm
from ophjax.nets.resnet import DEPTHS

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_kaiming = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Block3D(nn.Module):
    """Two 3x3x3 convolutions beside the input, which a 1x1x1 convolution fits where shapes differ."""

    width: int
    stride: int
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b d h w c"], *, train: bool) -> Float[Array, "b i j k f"]:
        def layer(x: Array, size: int, stride: int, name: str) -> Array:
            x = convolve(x, self.width, size, stride, f"conv{name}", self.dtype)
            return make_norm(self.norm, self.width, train=train, name=f"norm{name}", dtype=self.dtype)(x)

        y = layer(nn.relu(layer(x, 3, self.stride, "1")), 3, 1, "2")
        if self.stride != 1 or x.shape[-1] != self.width:
            x = layer(x, 1, self.stride, "_shortcut")
        return nn.relu(x + y)


def convolve(x: Array, features: int, size: int, stride: int, name: str, dtype: Any) -> Array:
    """A convolution of a cube with PyTorch's padding and no bias, as a submodule of the caller."""
    pad = [((size - 1) // 2,) * 2] * 3
    return nn.Conv(
        features, (size,) * 3, (stride,) * 3, pad, use_bias=False, kernel_init=_kaiming, dtype=dtype, name=name
    )(x)


class ResNet3D(nn.Module):
    """Features of a volume averaged over all positions: float32 [b, 8 width].

    Attributes:
      depth: 10, 18 or 34.
      width: channels of the first stage; the others have 2, 4 and 8 times that.
      stem_kind: ``"imagenet"``: 7x7x7 of stride 2 and a 3x3x3 max-pool of stride 2; ``"small"``: 3x3x3 of stride 1.
      norm: see ``make_norm``.
    """

    depth: int = 34
    width: int = 64
    stem_kind: str = "imagenet"
    norm: str = "batch"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b d h w c"], *, train: bool) -> Float[Array, "b f"]:
        if self.depth not in (10, 18, 34):
            raise InputError(
                f"Unknown depth {self.depth} of a ResNet over volumes. Known: 10, 18, 34. Choose one of these."
            )
        size, stride = (7, 2) if self.stem_kind == "imagenet" else (3, 1)
        x = convolve(x, self.width, size, stride, "conv", self.dtype)
        x = nn.relu(make_norm(self.norm, self.width, train=train, name="norm", dtype=self.dtype)(x))
        if self.stem_kind == "imagenet":
            x = nn.max_pool(x, (3, 3, 3), (2, 2, 2), ((1, 1),) * 3)
        for level, blocks in enumerate(DEPTHS[self.depth][0]):
            for i in range(blocks):
                stride = 2 if level and not i else 1
                name = f"stage{level + 1}_block{i + 1}"
                x = Block3D(self.width * 2**level, stride, self.norm, self.dtype, name=name)(x, train=train)
        return x.astype(jnp.float32).mean((1, 2, 3))
