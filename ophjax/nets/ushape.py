"""The official segmentation baseline of GAMMA and GOALS: a U-shape of separable convolutions without long skips."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from ophjax.nets.blocks import crop_to, make_norm, pad_to_multiple
from ophjax.nets.conv import Conv, DepthwiseConv, double, max_pool

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class ShrinkBlock(nn.Module):
    """Twice ReLU, separable 3x3, norm; then 3x3 max-pool of stride 2; beside a 1x1 of stride 2 of the input."""

    features: int
    norm: str
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b i j d"]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = x
        for i in (1, 2):
            y = DepthwiseConv(use_bias=False, name=f"depthwise{i}", **types)(nn.relu(y))
            y = Conv(self.features, 1, name=f"pointwise{i}", **types)(y)
            y = make_norm(self.norm, self.features, train=train, name=f"norm{i}", **types)(y)
        y = max_pool(y, size=3, stride=2, padding=1)
        return y + Conv(self.features, 1, 2, name="shortcut", **types)(x)


class GrowBlock(nn.Module):
    """Twice ReLU, 3x3, norm, beside a 1x1; the sum is doubled in size by what comes after.

    The original doubles at the end of a block. Here it is left to the next layer (``doubled``), which need not repeat
    a pixel: the same net. The original's transposed 3x3 of stride 1 is a convolution with the kernel turned round: the
    same parameters.
    """

    features: int
    doubled: bool
    norm: str
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b i j d"]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = x
        for i in (1, 2):
            y = Conv(self.features, doubled=self.doubled and i == 1, name=f"conv{i}", **types)(nn.relu(y))
            y = make_norm(self.norm, self.features, train=train, name=f"norm{i}", **types)(y)
        # A 1x1 gives the same before as after the doubling, at a quarter of the work.
        shortcut = Conv(self.features, 1, name="shortcut", **types)(x)
        return y + (double(shortcut) if self.doubled else shortcut)


class UShape(nn.Module):
    """Stem of stride 2, three blocks that halve the size, four that double it, 3x3 to the logits.

    GAMMA spec, section (c) C3; GOALS spec, section (c) C1. The decoder sees the bottleneck alone: there are no skips
    from encoder to decoder. With 32 channels and three classes it has 2,055,203 parameters, with four 2,055,492.
    Returns float32 logits [b, h, w, classes]. Images of any size are padded to a multiple of 16 by repeating their
    edge, and the logits cropped.

    Attributes:
      classes: number of logits.
      width: channels of the stem; the blocks have 2, 4, 8 and 8, 4, 2, 1 times that.
    """

    classes: int
    width: int = 32
    norm: str = "batch"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.stem = Conv(self.width, stride=2, padding=0, **types)
        shrink, grow = (2, 4, 8), (8, 4, 2, 1)
        self.encoder = [ShrinkBlock(self.width * k, self.norm, **types) for k in shrink]
        self.decoder = [GrowBlock(self.width * k, i > 0, self.norm, **types) for i, k in enumerate(grow)]
        self.head = Conv(self.classes, doubled=True, **types)

    @nn.compact
    def encode(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b i j d"]:
        """Computes the bottleneck, at a sixteenth of the (padded) size."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        # The original's padding "same" at stride 2: nothing above and left, one row below and one column right.
        x = self.stem(jnp.pad(pad_to_multiple(x, 16), ((0, 0), (0, 1), (0, 1), (0, 0))))
        x = nn.relu(make_norm(self.norm, self.width, train=train, name="norm", **types)(x))
        for block in self.encoder:
            x = block(x, train=train)
        return x

    def decode(self, x: Float[Array, "b i j d"], *, train: bool) -> Float[Array, "b 16*i 16*j classes"]:
        """Computes logits from the bottleneck."""
        for block in self.decoder:
            x = block(x, train=train)
        return self.head(x).astype(jnp.float32)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w classes"]:
        return crop_to(self.decode(self.encode(x, train=train), train=train), x.shape[1], x.shape[2])
