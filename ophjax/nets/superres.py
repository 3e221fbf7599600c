"""DRN, the dual regression super-resolution network, dense or compact (dualsr spec, (c) and (l)).

Guo et al., CVPR 2020 and TPAMI 2024. Widths, order of operations, PixelShuffle and bicubic enlargement are those of the
released PyTorch program, so that its weights give the same images (see ``superres_weights``).

The residual blocks of a stage are one compiled body. Their parameters lie side by side in a few leaves, the inner
channels of all blocks along one axis, so that blocks of different widths need no padding in memory: a compact net has
exactly as many numbers as its channels need. While it runs, every block is padded with zeros to the widest of its
stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ophjax.errors import InputError
from ophjax.nets import recompute
from ophjax.nets.conv import conv2d
from ophjax.transforms.pruning import Site, Unit
from ophjax.transforms.resizing import resize, torch_matrix

if TYPE_CHECKING:
    from jaxtyping import Array, Float

MEAN = (0.4488 * 255, 0.4371 * 255, 0.4040 * 255)
"""Mean colour of DIV2K in 0..255, subtracted from what enters and added to what leaves."""


class Restored(NamedTuple):
    """What the network gives.

    Attributes:
      images: n + 1 images, coarse to fine: [b, h, w, 3], [b, 2h, 2w, 3], ..., in 0..255, neither clipped nor rounded.
      last: [b, sh, sw, c], what enters the last convolution.
      features: what the probed unit's consumer gives: one array for each place of equal shapes, zero where the unit is
        elsewhere. Empty where nothing was probed.
    """

    images: tuple[Any, ...]
    last: Any
    features: tuple[Any, ...]


def uniform(fan_in: Any) -> Callable[..., Any]:
    """PyTorch's initialisation of a convolution: uniform within 1 / sqrt(fan-in), kernel and bias alike.

    Args:
      fan_in: a number, or an array that broadcasts to the parameter.
    """

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0) / np.sqrt(fan_in).astype(np.float32)

    return init


def pixel_shuffle(x: Float[Array, "b h w 4*c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Doubles the size; channel 4 c + 2 i + j goes to channel c at offset (i, j), PyTorch's order."""
    batch, height, width, channels = x.shape
    y = x.reshape(batch, height, width, channels // 4, 2, 2)
    return y.transpose(0, 1, 4, 2, 5, 3).reshape(batch, 2 * height, 2 * width, channels // 4)


class PlainConv(nn.Module):
    """A convolution with PyTorch's padding and initialisation."""

    features: int
    size: int = 3
    stride: int = 1
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        init = uniform(self.size**2 * x.shape[-1])
        kernel = self.param("kernel", init, (self.size, self.size, x.shape[-1], self.features))
        y = conv2d(x.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride)
        if self.use_bias:
            y = y + self.param("bias", init, (self.features,)).astype(self.dtype).reshape(1, 1, 1, -1)
        return y


class Halving(nn.Module):
    """Convolution of stride 2, LeakyReLU(0.2), convolution; no biases. A down block, and the dual network."""

    inner: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        y = PlainConv(self.inner, stride=2, use_bias=False, dtype=self.dtype, name="conv1")(x)
        return PlainConv(self.features, use_bias=False, dtype=self.dtype, name="conv2")(nn.leaky_relu(y, 0.2))


class Dual(nn.Module):
    """The dual network: maps an image of 0..255 to half its size. ``width`` is that of the primal network."""

    width: int = 16
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b h/2 w/2 3"]:
        return Halving(self.width, 3, self.dtype, name="halving")(image).astype(jnp.float32)


class AttentionBlocks(nn.Module):
    """Residual channel attention blocks (RCAB) one after the other, compiled once.

    Each: y = conv(relu(conv(x))); g = sigmoid(dense(relu(dense(mean y)))) of hidden width w // 16; x + y g.

    Attributes:
      inner: channels between each block's convolutions.
    """

    inner: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], probe: Float[Array, " r"] | None) -> tuple[Any, Any]:
        width, blocks, total = x.shape[-1], len(self.inner), sum(self.inner)
        hidden = max(1, width // 16)
        fan = 9 * np.array(self.inner)
        leaves = {
            "conv1_kernel": ((3, 3, width, total), 9 * width),
            "conv1_bias": ((total,), 9 * width),
            "conv2_kernel": ((3, 3, total, width), np.repeat(fan, self.inner).reshape(1, 1, -1, 1)),
            "conv2_bias": ((blocks, width), fan.reshape(-1, 1)),
            "squeeze_kernel": ((blocks, width, hidden), width),
            "squeeze_bias": ((blocks, hidden), width),
            "excite_kernel": ((blocks, hidden, width), hidden),
            "excite_bias": ((blocks, width), hidden),
        }
        p = {name: self.param(name, uniform(fan), shape) for name, (shape, fan) in leaves.items()}
        p = {name: value.astype(self.dtype) for name, value in p.items()}
        p["conv1_kernel"] = self._apart(p["conv1_kernel"], 3)
        p["conv1_bias"] = self._apart(p["conv1_bias"], 0)
        p["conv2_kernel"] = self._apart(p["conv2_kernel"], 2)
        if probe is not None:
            p["probe"] = probe.astype(self.dtype)

        def block(carry: Any, p: dict[str, jax.Array]) -> tuple[Any, None]:
            x, feature = carry
            y = nn.relu(conv2d(x, p["conv1_kernel"]) + p["conv1_bias"].reshape(1, 1, 1, -1))
            y = conv2d(y, p["conv2_kernel"]) + p["conv2_bias"].reshape(1, 1, 1, -1)
            if feature is not None:
                feature = feature + p["probe"] * y
            mean = y.mean((1, 2), dtype=jnp.float32).astype(self.dtype)
            gate = nn.relu(mean @ p["squeeze_kernel"] + p["squeeze_bias"].reshape(1, -1))
            gate = nn.sigmoid(gate @ p["excite_kernel"] + p["excite_bias"].reshape(1, -1))
            return (x + y * gate[:, None, None], feature), None

        start = (x, None if probe is None else jnp.zeros_like(x))
        return lax.scan(recompute.body(block), start, p)[0]

    def _apart(self, leaf: jax.Array, axis: int) -> jax.Array:
        """Cuts the axis of all inner channels into one row for each block, in front, padded to the widest."""
        blocks, widest = len(self.inner), max(self.inner)
        if min(self.inner) < widest:
            column, inner = np.arange(widest)[None], np.array(self.inner)[:, None]
            place = np.where(column < inner, np.cumsum(inner, 0) - inner + column, sum(self.inner))
            leaf = jnp.take(leaf, place.ravel(), axis=axis, mode="fill", fill_value=0)
        leaf = leaf.reshape(*leaf.shape[:axis], blocks, widest, *leaf.shape[axis + 1 :])
        return jnp.moveaxis(leaf, axis, 0)


class DRN(nn.Module):
    """The primal network.

    Attributes:
      scale: 2, 4 or 8.
      blocks: residual blocks in each of the log2(scale) stages.
      width: base width F; the widest features have scale * F channels.
      inner: channels of every prunable unit, in the order of ``units``; by default those of the dense network.
      learned_mean_shift: makes the subtraction and addition of the mean two learned 1x1 convolutions, as in the
        released program (24 parameters).
      dtype: of the activations; images come in and go out as float32.
    """

    scale: int = 4
    blocks: int = 30
    width: int = 16
    inner: tuple[int, ...] | None = None
    learned_mean_shift: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], probe: Float[Array, " l"] | None = None) -> Restored:
        """Restores images of 0..255, float.

        Args:
          probe: one-hot over the units; the features of that one's consumer are returned beside the images.
        """
        phases, inner, firsts = phases_of(self.scale), inner_of(self), stage_starts(self)
        centre, decentre = self._shifts()
        features: list[jax.Array] = []

        def note(value: jax.Array, unit: int) -> None:
            if probe is not None:
                features.append(probe[unit].astype(self.dtype) * value)

        def tail(x: jax.Array, number: int) -> jax.Array:
            return decentre(PlainConv(3, dtype=self.dtype, name=f"tail{number}")(x).astype(jnp.float32))

        x = resize(image, torch_matrix(image.shape[1], self.scale), torch_matrix(image.shape[2], self.scale))
        x = PlainConv(self.width, dtype=self.dtype, name="head")(centre(x))
        copies = []
        for p in range(phases):
            copies.append(x)
            x = Halving(inner[p], 2 ** (p + 1) * self.width, self.dtype, name=f"down{p}")(x)
            note(x, p)
        images = [tail(x, 0)]
        for i, first in enumerate(firsts):
            last = first + self.blocks
            part = None if probe is None else probe[first:last]
            x, feature = AttentionBlocks(inner[first:last], self.dtype, name=f"stage{i}")(x, part)
            if feature is not None:
                features.append(feature)
            x = pixel_shuffle(PlainConv(4 * inner[last], dtype=self.dtype, name=f"up{i}")(x))
            x = PlainConv(2 ** (phases - 1 - i) * self.width, size=1, dtype=self.dtype, name=f"project{i}")(x)
            note(x, last)
            x = jnp.concatenate([x, copies[phases - 1 - i]], -1)
            images.append(tail(x, i + 1))
        return Restored(tuple(images), x, tuple(features))

    def _shifts(self) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
        mean = np.array(MEAN, np.float32)
        if self.learned_mean_shift:
            return MeanShift(tuple(-mean), name="sub_mean"), MeanShift(tuple(mean), name="add_mean")
        return lambda x: x - mean.reshape(1, 1, 1, 3), lambda x: x + mean.reshape(1, 1, 1, 3)


class MeanShift(nn.Module):
    """A learned 1x1 convolution between colours that begins as the addition of a constant."""

    shift: tuple[float, ...]

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        kernel = self.param("kernel", lambda key: jnp.eye(3)[None, None])
        bias = self.param("bias", lambda key: jnp.array(self.shift, jnp.float32))
        return conv2d(image, kernel) + bias.reshape(1, 1, 1, 3)


def phases_of(scale: int) -> int:
    """The number of doublings.

    Raises:
      InputError: the scale is none of 2, 4, 8.
    """
    if scale not in (2, 4, 8):
        raise InputError(f"The scale is {scale}; DRN enlarges 2, 4 or 8 times. Give --data.scale one of these.")
    return int(math.log2(scale))


def stage_widths(net: DRN) -> list[int]:
    """Channels of the residual blocks of each stage."""
    phases = phases_of(net.scale)
    return [2 ** (phases - max(i - 1, 0)) * net.width for i in range(phases)]


def stage_starts(net: DRN) -> list[int]:
    """Place of each stage's first unit: all down blocks come before, and after each stage's blocks its upsampler."""
    phases = phases_of(net.scale)
    return [phases + i * (net.blocks + 1) for i in range(phases)]


def dense_widths(net: DRN) -> tuple[int, ...]:
    """Channels of every unit of the dense network, in the order of ``units``."""
    downs = [2**p * net.width for p in range(phases_of(net.scale))]
    return (*downs, *(width for width in stage_widths(net) for _ in range(net.blocks + 1)))


def inner_of(net: DRN) -> tuple[int, ...]:
    """Channels of every unit of this network.

    Raises:
      InputError: there is not one number for each unit, or one is out of range.
    """
    full = dense_widths(net)
    if net.inner is None:
        return full
    if len(net.inner) != len(full) or any(not 1 <= c <= most for c, most in zip(net.inner, full, strict=False)):
        raise InputError(
            f"The compact network was given {len(net.inner)} channel numbers ({', '.join(map(str, net.inner[:6]))}, "
            f"...); {len(net.inner) and 'this size has'} {len(full)} units, with at most "
            f"{', '.join(map(str, full[:6]))}, ... channels. Give one number for each unit: the downs, then the blocks "
            "and the upsampler of each stage."
        )
    return net.inner


def units(net: DRN) -> tuple[Unit, ...]:
    """Lists what can be pruned: n downs, then for each stage its blocks and its upsampler (dualsr spec, (e.0)).

    Only inner widths can: no trunk, skip, head, tail or attention width changes.
    """
    inner, phases = inner_of(net), phases_of(net.scale)
    found = [
        Unit(f"down{p}", inner[p], (Site(f"down{p}/conv1/kernel", 3),), Site(f"down{p}/conv2/kernel", 2))
        for p in range(phases)
    ]
    for i, first in enumerate(stage_starts(net)):
        start = 0
        for r in range(net.blocks):
            producer = (Site(f"stage{i}/conv1_kernel", 3, start), Site(f"stage{i}/conv1_bias", 0, start))
            consumer, bias = Site(f"stage{i}/conv2_kernel", 2, start), Site(f"stage{i}/conv2_bias", 0, r)
            found.append(Unit(f"stage{i}/{r}", inner[first + r], producer, consumer, bias))
            start += inner[first + r]
        producer = (Site(f"up{i}/kernel", 3, 0, 4), Site(f"up{i}/bias", 0, 0, 4))
        bias = Site(f"project{i}/bias", 0, 0, 2 ** (phases - 1 - i) * net.width)
        found.append(Unit(f"up{i}", inner[first + net.blocks], producer, Site(f"project{i}/kernel", 2), bias))
    return tuple(found)


def count_madds(net: DRN, height: int = 96, width: int = 96) -> int:
    """Counts the multiply-adds of all convolutions for one input image, biases as one each (dualsr spec, (c)).

    At 96 x 96 these are the published numbers at 4x, and at 8x within 0.04 % (197.94 and 366.38 G; published: 198.0
    and 366.5). The pre-enlargement is not counted.
    """
    phases, inner, size = phases_of(net.scale), inner_of(net), net.width

    def conv(k: int, c_in: int, c_out: int, scale: float, bias: bool = True) -> int:
        return (k * k * c_in + bias) * c_out * int(height * scale) * int(width * scale)

    full = net.scale
    total = conv(1, 3, 3, full) + conv(3, 3, size, full)
    for p in range(phases):
        at = full / 2 ** (p + 1)
        c, wide = inner[p], 2**p * size
        total += conv(3, wide, c, at, False) + conv(3, c, 2 * wide, at, False)
    total += conv(3, 2**phases * size, 3, 1) + conv(1, 3, 3, 1)
    for i, (first, wide) in enumerate(zip(stage_starts(net), stage_widths(net), strict=True)):
        hidden, at, out = max(1, wide // 16), 2**i, 2 ** (phases - 1 - i) * size
        for c in inner[first : first + net.blocks]:
            total += conv(3, wide, c, at) + conv(3, c, wide, at)
            total += (wide + 1) * hidden + (hidden + 1) * wide
        c = inner[first + net.blocks]
        total += conv(3, wide, 4 * c, at) + conv(1, c, out, 2 * at)
        total += conv(3, 2 * out, 3, 2 * at) + conv(1, 3, 3, 2 * at)
    return total
