"""Small networks of many shapes, drawn at random: the pool on which a hypernetwork is trained.

An ``Architecture`` is a value; ``build`` makes its module. Families: plain, residual and dense convolutional nets,
inverted bottlenecks with squeeze-and-excitation, small vision transformers, and U-Nets. Which architectures the
hyper-initializer's paper draws is not known: the families and ranges are our decision (spec of hyperinit, (j) 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ophjax.errors import InputError, unknown
from ophjax.nets.blocks import DoubleConv, crop_to, make_norm, pad_to_multiple
from ophjax.nets.conv import Conv, ConvTranspose2x2, DepthwiseConv, max_pool
from ophjax.nets.resnet import ResNet
from ophjax.nets.unet import UNet

if TYPE_CHECKING:
    from jaxtyping import Array, Float

CLASSIFIERS = ("plain", "residual", "dense", "inverted", "vit")
FAMILIES = (*CLASSIFIERS, "unet")
NORMS = ("batch", "group", "none")
TRIES = 1000
"""Draws after which a family is taken to have nothing new."""


class Architecture(NamedTuple):
    """What a child looks like.

    Attributes:
      family: one of ``FAMILIES``.
      widths: channels of each level; the map halves between two levels. A ViT has one.
      blocks: blocks of each level (layers of a ViT).
      size: side of the kernels (of a ViT's patches).
      norm: ``batch``, ``group`` or ``none``.
      down: how maps are halved: ``max``, ``average``, or ``stride`` of the next convolution.
      up: how a U-Net doubles maps: ``transpose`` or ``resize``.
      hidden: width of a linear layer before the head; 0 for none.
    """

    family: str
    widths: tuple[int, ...]
    blocks: int = 1
    size: int = 3
    norm: str = "batch"
    down: str = "max"
    up: str = "transpose"
    hidden: int = 0

    @property
    def dense(self) -> bool:
        """Whether it answers for each pixel."""
        return self.family == "unet"


def draw_architecture(
    rng: np.random.Generator, family: str, *, norms: Sequence[str] = NORMS, widest: int = 64
) -> Architecture:
    """Draws one architecture of a family; first widths are 8, 16 or 24, later ones at most ``widest``."""
    if family not in FAMILIES:
        raise unknown("family", family, FAMILIES)

    def pick(*choices: Any) -> Any:
        return choices[int(rng.integers(len(choices)))]

    first = pick(8, 16, 24)
    if family == "vit":
        return Architecture("vit", (min(2 * first, widest),), pick(2, 3), 4, "none", "stride", hidden=0)
    levels = pick(2, 3) if family == "unet" else pick(2, 3, 4)
    growth = pick(1.0, 1.5, 2.0)
    widths = tuple(min(widest, 8 * round(first * growth**i / 8)) for i in range(levels))
    return Architecture(
        family,
        widths,
        blocks=1 if family == "unet" else pick(1, 2),
        size=pick(3, 3, 5),
        norm=pick(*norms),
        down=pick("max", "average", "stride"),
        up=pick("transpose", "resize"),
        hidden=0 if family == "unet" else pick(0, 0, 32),
    )


def draw_pool(
    seed: int, number: int, families: Sequence[str] = FAMILIES, *, norms: Sequence[str] = NORMS, widest: int = 64
) -> tuple[Architecture, ...]:
    """Draws different architectures, the families taking turns; a seed's pool is always the same.

    A family that gave nothing new in ``TRIES`` draws is left out from then on (there are six different ViTs, say).

    Raises:
      InputError: there are not so many different ones.
    """
    rng = np.random.default_rng([seed, 7])
    pool: list[Architecture] = []
    spent: set[str] = set()
    while len(pool) < number:
        turn = len(pool) % len(families)
        family = next((name for name in (*families[turn:], *families[:turn]) if name not in spent), None)
        if family is None:
            raise InputError(
                f"A pool of {number} architectures was asked for; {', '.join(families)} with norms {', '.join(norms)} "
                f"and at most {widest} channels have only {len(pool)} different ones. Give a smaller --method.pool, or "
                "more --method.families."
            )
        for _ in range(TRIES):
            found = draw_architecture(rng, family, norms=norms, widest=widest)
            if found not in pool:
                pool.append(found)
                break
        else:
            spent.add(family)
    return tuple(pool)


def halve(x: Float[Array, "b h w c"], how: str) -> Float[Array, "b i j c"]:
    """Halves a map's sides; ``stride`` leaves that to the next convolution."""
    if how == "max":
        return max_pool(x, size=2, stride=2)
    return nn.avg_pool(x, (2, 2), (2, 2)) if how == "average" else x


class Trunk(nn.Module):
    """Everything of a convolutional classifier before its average over positions."""

    arch: Architecture

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b i j d"]:
        arch = self.arch

        def layer(x: Array, features: int, name: str, *, size: int = arch.size, stride: int = 1) -> Array:
            bare = arch.norm == "none"
            x = Conv(features, size, stride, use_bias=bare, name=f"{name}_conv")(x)
            return make_norm(arch.norm, features, train=train, name=f"{name}_norm")(x)

        x = nn.relu(layer(x, arch.widths[0], "stem"))
        for i, width in enumerate(arch.widths):
            for j in range(arch.blocks):
                name, first = f"level{i + 1}_{j + 1}", j == 0
                stride = 1
                if first and i:
                    x, stride = halve(x, arch.down), 2 if arch.down == "stride" else 1
                if arch.family == "plain":
                    x = nn.relu(layer(x, width, name, stride=stride))
                elif arch.family == "residual":
                    y = nn.relu(layer(x, width, f"{name}a", stride=stride))
                    y = layer(y, width, f"{name}b")
                    same = x.shape == y.shape
                    x = nn.relu(y + (x if same else layer(x, width, f"{name}s", size=1, stride=stride)))
                elif arch.family == "dense":
                    x = x[:, ::stride, ::stride]
                    x = jnp.concatenate([x, nn.relu(layer(x, max(8, width // 2), name))], -1)
                elif arch.family == "inverted":
                    x = self._bottleneck(x, width, name, stride, train)
                else:
                    raise unknown("family", arch.family, CLASSIFIERS)
        return x

    def _bottleneck(self, x: Array, width: int, name: str, stride: int, train: bool) -> Array:
        """1x1 to twice the channels, depthwise, squeeze-and-excitation, 1x1 back; the input is added where it fits."""
        inner = 2 * x.shape[-1]
        norm = self.arch.norm

        def normed(y: Array, part: str) -> Array:
            return make_norm(norm, y.shape[-1], train=train, name=f"{name}_{part}_norm")(y)

        y = nn.relu(normed(Conv(inner, 1, use_bias=False, name=f"{name}_expand")(x), "expand"))
        y = DepthwiseConv(self.arch.size, use_bias=False, name=f"{name}_depthwise")(y)[:, ::stride, ::stride]
        y = nn.relu(normed(y, "depthwise"))
        gate = nn.relu(Conv(max(8, inner // 4), 1, name=f"{name}_squeeze")(y.mean((1, 2), keepdims=True)))
        y = y * nn.sigmoid(Conv(inner, 1, name=f"{name}_excite")(gate))
        y = normed(Conv(width, 1, use_bias=False, name=f"{name}_project")(y), "project")
        return x + y if x.shape == y.shape else y


class PatchTrunk(nn.Module):
    """A small pre-norm vision transformer: patches, learned positions, attention of four heads."""

    arch: Architecture

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b i j d"]:
        del train
        (width,), heads = self.arch.widths, 4
        x = Conv(width, self.arch.size, self.arch.size, padding=0, name="patches")(x)
        shape = x.shape
        x = x.reshape(shape[0], -1, width)
        x = x + self.param("position", nn.initializers.normal(0.02), (1, x.shape[1], width))
        for i in range(self.arch.blocks):
            y = nn.LayerNorm(name=f"norm{i + 1}a")(x)
            qkv = nn.Dense(3 * width, use_bias=False, name=f"qkv{i + 1}")(y)
            q, k, v = jnp.split(qkv.reshape(*y.shape[:2], heads, -1), 3, -1)
            scores = jnp.einsum("bnhe,bmhe->bhnm", q, k) * (width // heads) ** -0.5
            y = jnp.einsum("bhnm,bmhe->bnhe", nn.softmax(scores), v).reshape(x.shape)
            x = x + nn.Dense(width, name=f"out{i + 1}")(y)
            y = nn.LayerNorm(name=f"norm{i + 1}b")(x)
            x = x + nn.Dense(width, name=f"contract{i + 1}")(nn.gelu(nn.Dense(2 * width, name=f"expand{i + 1}")(y)))
        return nn.LayerNorm(name="norm")(x).reshape(shape)


class ChildClassifier(nn.Module):
    """A trunk, the average over positions, perhaps a hidden layer, and a linear head. ``features`` stops before it."""

    arch: Architecture
    classes: int

    def setup(self) -> None:
        self.trunk = (PatchTrunk if self.arch.family == "vit" else Trunk)(self.arch)
        if self.arch.hidden:
            self.hidden = nn.Dense(self.arch.hidden)
        self.head = nn.Dense(self.classes)

    def features(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b d"]:
        """What the head reads."""
        x = self.trunk(x, train=train).mean((1, 2))
        return nn.relu(self.hidden(x)) if self.arch.hidden else x

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b classes"]:
        return self.head(self.features(x, train=train))


class ChildUNet(nn.Module):
    """A U-Net with ``outputs`` numbers for each pixel; images of any size are padded and the result cropped."""

    arch: Architecture
    outputs: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w outputs"]:
        arch = self.arch
        height, width = x.shape[1:3]
        x, skips = pad_to_multiple(x, 2 ** (len(arch.widths) - 1)), []
        for i, features in enumerate(arch.widths):
            x = halve(x, "average" if arch.down == "stride" else arch.down) if i else x
            x = DoubleConv(features, arch.norm, name=f"down{i + 1}")(x, train=train)
            skips.append(x)
        for i in reversed(range(len(skips) - 1)):
            features = arch.widths[i]
            if arch.up == "transpose":
                x = ConvTranspose2x2(features, name=f"up{i + 1}")(x)
            else:
                doubled = (x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3])
                x = Conv(features, 3, name=f"up{i + 1}")(jax.image.resize(x, doubled, "nearest"))
            x = DoubleConv(features, arch.norm, name=f"merge{i + 1}")(jnp.concatenate([skips[i], x], -1), train=train)
        return crop_to(Conv(self.outputs, 1, name="head")(x), height, width)


def build(arch: Architecture, *, classes: int, regions: int) -> nn.Module:
    """Makes an architecture's module: logits for classes, or for a U-Net for the regions of each pixel."""
    return ChildUNet(arch, max(1, regions)) if arch.dense else ChildClassifier(arch, classes)


# Networks to try a hypernetwork on, made for classes and regions. No pool holds them: its nets have at most two blocks
# in a level.
UNSEEN: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet": lambda classes, _: ResNet(classes, depth=10, width=16, stem_kind="small"),
    "densenet": lambda classes, _: ChildClassifier(Architecture("dense", (16, 24, 32), 3, down="average"), classes),
    "mobile": lambda classes, _: ChildClassifier(Architecture("inverted", (16, 24, 40), 3), classes),
    "unet": lambda _, regions: UNet(regions, width=12, depth=2),
}
