"""Grading from a fundus picture and an OCT volume: the dual-branch baseline of GAMMA, stronger branches and heads."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ophjax.nets.blocks import make_norm
from ophjax.nets.conv import conv2d
from ophjax.nets.pooledresnet import pooled
from ophjax.nets.resnet import ResNet
from ophjax.nets.resnet3d import ResNet3D

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Num

_kaiming = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
OCT_MEAN, OCT_STD = 0.284, 0.087
SLICES = 32
"""Slices that are turned to numbers at a time."""


class WideStem(nn.Module):
    """The 7x7 stem of stride 2 over a volume whose slices are channels, with norm and ReLU.

    The volume comes as bytes and is turned to numbers some slices at a time, whose sums add up, and again in the
    backward pass: a batch of four volumes of 512 x 512 x 256 would be a gigabyte as float32, and copies of it for the
    gradient.
    """

    width: int
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, volume: Num[Array, "b h w d"], *, train: bool) -> Float[Array, "b i j c"]:
        kernel = self.param("kernel", _kaiming, (7, 7, volume.shape[-1], self.width), jnp.float32)

        depth = volume.shape[-1]
        parts = 1 if depth <= SLICES else depth // math.gcd(depth, SLICES)

        @jax.checkpoint
        def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
            slices, taps = part
            # Bytes become numbers from 0 to 1 by the kernel, which is smaller than the volume.
            return total + conv2d(slices.astype(self.dtype), taps.astype(self.dtype) / 255, stride=2), None

        # Examples stay together, so that a batch over several devices stays where it is.
        slices = jnp.moveaxis(volume.reshape(*volume.shape[:3], parts, -1), 3, 0)
        taps = jnp.moveaxis(kernel.reshape(7, 7, parts, -1, self.width), 2, 0)
        sides = [(side - 1) // 2 + 1 for side in volume.shape[1:3]]
        x, _ = lax.scan(add, jnp.zeros((volume.shape[0], *sides, self.width), self.dtype), (slices, taps))
        return nn.relu(make_norm(self.norm, self.width, train=train, name="norm", dtype=self.dtype)(x))


class SliceNet(nn.Module):
    """A 2-D ResNet over a volume whose slices are the channels of its stem; features [b, f]."""

    depth: int = 34
    width: int = 64
    norm: str = "batch"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, volume: Num[Array, "b h w d"], *, train: bool) -> Float[Array, "b f"]:
        x = WideStem(self.width, self.norm, self.dtype, name="stem")(volume, train=train)
        net = ResNet(depth=self.depth, width=self.width, norm=self.norm, dtype=self.dtype, name="trunk")
        for level in (1, 2, 3, 4):
            x = net.stage(level, x, train=train)
        return x.astype(jnp.float32).mean((1, 2))


class Grader(nn.Module):
    """Logits of a grade, float32 [b, outputs]: ``fused`` and, with ``auxiliary``, ``fundus`` and ``oct`` alone.

    GAMMA spec, section (c) C1: with the defaults two ResNet-34, concatenation and one linear layer, 43,365,827
    parameters. Its logits are then f(fundus) + g(OCT) + b and cannot show what only both together tell. Where one
    modality alone is asked for, ``fused`` is its own head; the fundus needs no volume.

    Attributes:
      outputs: logits of each head.
      modality: ``"both"``, ``"fundus"`` or ``"oct"``.
      oct_branch: ``"slices"``: a 2-D net, slices as channels; ``"volume"``: a 3-D net over the slices it is given.
      fusion: ``"linear"``, or ``"interaction"``: features of both brought to ``hidden`` and multiplied, beside both,
        then a hidden layer.
      hidden: width of the interaction.
      auxiliary: heads for each modality alone.
      dropout: before the fused head, from the stream "dropout" when ``train``.
      depth, width, stem_kind, norm: of both branches (the slices' stem is always 7x7 of stride 2).
    """

    outputs: int = 3
    modality: str = "both"
    oct_branch: str = "slices"
    fusion: str = "linear"
    hidden: int = 128
    auxiliary: bool = False
    dropout: float = 0.0
    depth: int = 34
    width: int = 64
    stem_kind: str = "imagenet"
    norm: str = "batch"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], volume: Num[Array, "b i j d"] | None = None, *, train: bool
    ) -> dict[str, Float[Array, "b outputs"]]:
        found: dict[str, Array] = {}
        if self.modality != "oct":
            net = ResNet(
                depth=self.depth, width=self.width, stem_kind=self.stem_kind, norm=self.norm, dtype=self.dtype,
                name="fundus",
            )  # fmt: skip
            found["fundus"] = pooled(net, image, train=train)
        if self.modality != "fundus":
            assert volume is not None
            if self.oct_branch == "slices":
                branch: Any = SliceNet(self.depth, self.width, self.norm, self.dtype, name="oct")
                found["oct"] = branch(volume, train=train)
            else:
                # Slices first, one channel, normalised by the mean and deviation of the set.
                x = (jnp.moveaxis(volume, -1, 1)[..., None].astype(jnp.float32) / 255 - OCT_MEAN) / OCT_STD
                branch = ResNet3D(self.depth, self.width, self.stem_kind, self.norm, self.dtype, name="oct")
                found["oct"] = branch(x, train=train)
        joined = jnp.concatenate(list(found.values()), -1)
        if self.fusion == "interaction" and len(found) == 2:
            sides = [nn.relu(nn.Dense(self.hidden, name=f"to_{name}")(x)) for name, x in found.items()]
            joined = nn.relu(nn.Dense(self.hidden, name="joint")(jnp.concatenate([*sides, sides[0] * sides[1]], -1)))
        if self.dropout:
            joined = nn.Dropout(self.dropout, deterministic=not train)(joined)
        logits = {"fused": nn.Dense(self.outputs, name="head")(joined)}
        if self.auxiliary and len(found) == 2:
            logits |= {name: nn.Dense(self.outputs, name=f"head_{name}")(x) for name, x in found.items()}
        return logits
