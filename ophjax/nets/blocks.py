"""Pieces that several networks share: normalisation, double convolutions, padding to a multiple."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from ophjax.errors import unknown
from ophjax.nets.conv import Conv

if TYPE_CHECKING:
    from jaxtyping import Array, Float

NORMS = ("batch", "group", "none")


class Identity(nn.Module):
    """Returns its input."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return x


def make_norm(
    kind: str, channels: int, *, train: bool, name: str, dtype: Any = jnp.float32, param_dtype: Any = jnp.float32
) -> nn.Module:
    """Builds the normalisation of one layer; statistics are computed in float32.

    ``"batch"`` averages over the batch when ``train`` and updates its running statistics with PyTorch's momentum
    of 0.1 (their variance is the biased one); otherwise it applies the stored statistics and changes nothing.
    ``"group"`` has no statistics and treats each example alone: at most 32 groups of at least 4 channels.
    ``"none"`` returns its input.
    """
    if kind == "batch":
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=dtype,
            param_dtype=param_dtype,
            name=name,
        )
    if kind == "group":
        groups = math.gcd(math.gcd(32, channels), max(1, channels // 4))
        return nn.GroupNorm(num_groups=groups, epsilon=1e-5, dtype=dtype, param_dtype=param_dtype, name=name)
    if kind == "none":
        return Identity(name=name)
    raise unknown("norm", kind, NORMS)


def pad_to_multiple(x: Float[Array, "b h w c"], multiple: int) -> Float[Array, "b i j c"]:
    """Pads height and width up to the next multiple by repeating the edge, half on each side."""
    sides = [divmod(-size % multiple, 2) for size in x.shape[1:3]]
    if not any(half or odd for half, odd in sides):
        return x
    rows, columns = ((half, half + odd) for half, odd in sides)
    return jnp.pad(x, ((0, 0), rows, columns, (0, 0)), mode="edge")


def crop_to(x: Float[Array, "b i j c"], height: int, width: int) -> Float[Array, "b h w c"]:
    """Takes the middle of an image: undoes ``pad_to_multiple`` for an image that had this height and width."""
    top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
    return x[:, top : top + height, left : left + width]


class DoubleConv(nn.Module):
    """Twice 3x3 convolution, norm, ReLU: the unit of a plain U-Net."""

    features: int
    norm: str = "batch"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w d"]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for i in (1, 2):
            x = Conv(self.features, use_bias=False, name=f"conv{i}", **types)(x)
            x = nn.relu(make_norm(self.norm, self.features, train=train, name=f"norm{i}", **types)(x))
        return x
