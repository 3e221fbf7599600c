"""Residual nets and U-Nets in plain PyTorch; attributes have the names of the Flax submodules, so that weights fit."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# depth: (blocks in each stage, output channels per unit of width)
DEPTHS = {10: ((1, 1, 1, 1), 1), 18: ((2, 2, 2, 2), 1), 34: ((3, 4, 6, 3), 1), 50: ((3, 4, 6, 3), 4),
          101: ((3, 4, 23, 3), 4)}  # fmt: skip


def conv(channels: int, features: int, size: int = 3, stride: int = 1, *, bias: bool = True) -> nn.Conv2d:
    """A convolution of PyTorch's usual padding."""
    return nn.Conv2d(channels, features, size, stride, (size - 1) // 2, bias=bias)


def depthwise(channels: int, *, bias: bool = True) -> nn.Conv2d:
    """A depthwise 3x3."""
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=bias)


def make_norm(kind: str, channels: int) -> nn.Module:
    """batch, group (at most 32 groups of at least 4 channels) or none."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(math.gcd(math.gcd(32, channels), max(1, channels // 4)), channels)
    return nn.Identity()


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pads height and width to a multiple by repeating the edge, half on each side."""
    sides = [divmod(-size % multiple, 2) for size in x.shape[2:]]
    if not any(half or odd for half, odd in sides):
        return x
    (top, below), (left, right) = sides
    return F.pad(x, (left, left + right, top, top + below), mode="replicate")


def crop_to(x: Tensor, height: int, width: int) -> Tensor:
    """Takes the middle of maps."""
    top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    return x[:, :, top : top + height, left : left + width]


class ResidualBlock(nn.Module):
    """Two 3x3, or with ``expansion`` 4 a bottleneck; the 3x3 takes the stride."""

    def __init__(self, channels: int, width: int, expansion: int, stride: int, kind: str) -> None:
        super().__init__()
        features, before = width * expansion, channels
        sizes = [(width, 3, stride), (features, 3, 1)]
        if expansion > 1:
            sizes = [(width, 1, 1), (width, 3, stride), (features, 1, 1)]
        self.layers = len(sizes)
        for i, (out, size, step) in enumerate(sizes, 1):
            setattr(self, f"conv{i}", conv(before, out, size, step, bias=False))
            setattr(self, f"norm{i}", make_norm(kind, out))
            before = out
        self.fits = stride == 1 and channels == features
        if not self.fits:
            self.conv_shortcut = conv(channels, features, 1, stride, bias=False)
            self.norm_shortcut = make_norm(kind, features)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.layers + 1):
            y = getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(y))
            y = F.relu(y, inplace=True) if i < self.layers else y
        x = x if self.fits else self.norm_shortcut(self.conv_shortcut(x))
        return F.relu(x + y, inplace=True)


class Stem(nn.Module):
    """The first convolution, norm and ReLU."""

    def __init__(self, channels: int, width: int, kind: str, norm: str) -> None:
        super().__init__()
        self.conv = conv(channels, width, *((7, 2) if kind == "imagenet" else (3, 1)), bias=False)
        self.norm = make_norm(norm, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True)


class ResNet(nn.Module):
    """A residual network, usable by parts; ``classes`` 0 builds no head, ``channels`` 0 no stem."""

    def __init__(self, classes: int, depth: int, width: int, kind: str = "imagenet", norm: str = "batch",
                 channels: int = 3, levels: int = 4) -> None:  # fmt: skip
        super().__init__()
        blocks, expansion = DEPTHS[depth]
        self.kind, self.levels = kind, levels
        self.channels = (width, *(width * expansion * 2**i for i in range(levels)))
        self.strides = (2, 4, 8, 16, 32) if kind == "imagenet" else (1, 1, 2, 4, 8)
        if channels:
            self.first = Stem(channels, width, kind, norm)
        for level in range(1, levels + 1):
            stage = nn.Sequential()
            for i in range(blocks[level - 1]):
                before = self.channels[level] if i else self.channels[level - 1]
                stride = 2 if level > 1 and not i else 1
                block = ResidualBlock(before, width * 2 ** (level - 1), expansion, stride, norm)
                stage.add_module(f"block{i + 1}", block)
            setattr(self, f"stage{level}", stage)
        if classes:
            self.linear = nn.Linear(self.channels[-1], classes)

    def stage(self, level: int, x: Tensor) -> Tensor:
        if level == 1 and self.kind == "imagenet":
            x = F.max_pool2d(x, 3, 2, 1)
        return getattr(self, f"stage{level}")(x)

    def taps(self, x: Tensor, last: int = 4) -> list[Tensor]:
        """The outputs of the stem and of the stages up to ``last``."""
        found = [self.first(x)]
        for level in range(1, last + 1):
            found.append(self.stage(level, found[-1]))
        return found

    def pooled(self, x: Tensor) -> Tensor:
        """Features averaged over positions."""
        return self.taps(x, self.levels)[-1].mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.pooled(x))


class PooledResNet(nn.Module):
    """ResNet, average, linear layers without activations between them."""

    def __init__(self, outputs: int, hidden: tuple[int, ...], depth: int, width: int, kind: str, norm: str,
                 channels: int = 3) -> None:  # fmt: skip
        super().__init__()
        self.trunk, self.hidden = ResNet(0, depth, width, kind, norm, channels), len(hidden)
        before = self.trunk.channels[-1]
        for i, features in enumerate(hidden, 1):
            setattr(self, f"hidden{i}", nn.Linear(before, features))
            before = features
        self.head = nn.Linear(before, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk.pooled(x)
        for i in range(1, self.hidden + 1):
            x = getattr(self, f"hidden{i}")(x)
        return self.head(x)


class PlainTrunk(nn.Module):
    """3x3 convolutions of stride 2, each with a ReLU."""

    def __init__(self, width: int, levels: int = 3) -> None:
        super().__init__()
        self.levels, self.channels = levels, (width * 2 ** (levels - 1),)
        for i in range(levels):
            setattr(self, f"conv{i + 1}", conv(width * 2 ** (i - 1) if i else 3, width * 2**i, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(1, self.levels + 1):
            x = F.relu(getattr(self, f"conv{i}")(x), inplace=True)
        return x


class DoubleConv(nn.Module):
    """Twice 3x3, norm, ReLU."""

    def __init__(self, channels: int, features: int, norm: str) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(channels, features, bias=False), make_norm(norm, features)
        self.conv2, self.norm2 = conv(features, features, bias=False), make_norm(norm, features)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(x)), inplace=True)


class UNet(nn.Module):
    """The plain U-Net."""

    def __init__(self, regions: int, width: int, depth: int, norm: str = "batch") -> None:
        super().__init__()
        self.depth = depth
        for i in range(depth + 1):
            setattr(self, f"down{i}", DoubleConv(width * 2 ** (i - 1) if i else 3, width * 2**i, norm))
        for i in range(depth):
            setattr(self, f"up{i}", nn.ConvTranspose2d(width * 2 ** (i + 1), width * 2**i, 2, 2))
            setattr(self, f"merge{i}", DoubleConv(width * 2 ** (i + 1), width * 2**i, norm))
        self.head = conv(width, regions, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        y, skips = pad_to_multiple(x, 2**self.depth), []
        for i in range(self.depth):
            skips.append(getattr(self, f"down{i}")(y))
            y = F.max_pool2d(skips[-1], 2)
        y = getattr(self, f"down{self.depth}")(y)
        for i in reversed(range(self.depth)):
            y = torch.cat([skips[i], getattr(self, f"up{i}")(y)], 1)
            y = getattr(self, f"merge{i}")(y)
        return crop_to(self.head(y), height, width)


class DecoderBlock(nn.Module):
    """Transposed convolution beside a 1x1 of the skip; ReLU; norm."""

    def __init__(self, channels: int, skip: int, features: int, norm: str) -> None:
        super().__init__()
        self.up, self.skip = nn.ConvTranspose2d(channels, features, 2, 2), conv(skip, features, 1)
        self.norm = make_norm(norm, 2 * features)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.norm(F.relu(torch.cat([self.up(x), self.skip(skip)], 1), inplace=True))


def skips_of(encoder: ResNet) -> list[int]:
    """Which taps the decoder reads, coarse to fine: the small stem stands at the resolution of stage 1."""
    return [3, 2, 1, 0] if encoder.kind == "imagenet" else [3, 2, 1]


def last_layer(encoder: ResNet, features: int, regions: int) -> nn.Module:
    """From the finest decoder block to the logits."""
    if encoder.kind == "imagenet":
        return nn.ConvTranspose2d(2 * features, regions, 2, 2)
    return conv(2 * features, regions, 1)


class ResUNet(nn.Module):
    """A U-Net on a residual encoder: logits, and the bottleneck with the first three decoder outputs."""

    def __init__(self, regions: int, depth: int, width: int, decoder: int, kind: str, norm: str) -> None:
        super().__init__()
        self.encoder = ResNet(0, depth, width, kind, norm)
        self.skips, before = skips_of(self.encoder), self.encoder.channels[4]
        for i, tap in enumerate(self.skips, 1):
            setattr(self, f"decoder{i}", DecoderBlock(before, self.encoder.channels[tap], decoder, norm))
            before = 2 * decoder
        self.head = last_layer(self.encoder, decoder, regions)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        height, width = x.shape[2:]
        features = self.encoder.taps(pad_to_multiple(x, self.encoder.strides[4]))
        taps = [features[4]]
        for i, tap in enumerate(self.skips, 1):
            taps.append(getattr(self, f"decoder{i}")(taps[-1], features[tap]))
        return crop_to(self.head(taps[-1]), height, width), taps[:4]


class ShrinkBlock(nn.Module):
    """Twice ReLU, separable 3x3, norm; max-pool; beside a 1x1 of stride 2."""

    def __init__(self, channels: int, features: int, norm: str) -> None:
        super().__init__()
        for i, before in ((1, channels), (2, features)):
            setattr(self, f"depthwise{i}", depthwise(before, bias=False))
            setattr(self, f"pointwise{i}", conv(before, features, 1))
            setattr(self, f"norm{i}", make_norm(norm, features))
        self.shortcut = conv(channels, features, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.pointwise1(self.depthwise1(F.relu(x))))
        y = self.norm2(self.pointwise2(self.depthwise2(F.relu(y))))
        return F.max_pool2d(y, 3, 2, 1) + self.shortcut(x)


class GrowBlock(nn.Module):
    """Twice ReLU, 3x3, norm, beside a 1x1; doubled."""

    def __init__(self, channels: int, features: int, norm: str) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(channels, features), make_norm(norm, features)
        self.conv2, self.norm2 = conv(features, features), make_norm(norm, features)
        self.shortcut = conv(channels, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(F.relu(x)))
        y = self.norm2(self.conv2(F.relu(y))) + self.shortcut(x)
        return F.interpolate(y, scale_factor=2, mode="nearest")


class UShape(nn.Module):
    """The challenges' baseline: separable encoder, decoder without long skips."""

    def __init__(self, classes: int, width: int, norm: str) -> None:
        super().__init__()
        shrink, grow = (1, 2, 4, 8), (8, 8, 4, 2, 1)
        self.stem, self.norm = nn.Conv2d(3, width, 3, 2), make_norm(norm, width)
        self.encoder = nn.ModuleList(ShrinkBlock(width * a, width * b, norm) for a, b in itertools.pairwise(shrink))
        self.decoder = nn.ModuleList(GrowBlock(width * a, width * b, norm) for a, b in itertools.pairwise(grow))
        self.head = conv(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        y = F.relu(self.norm(self.stem(F.pad(pad_to_multiple(x, 16), (0, 1, 0, 1)))), inplace=True)
        for block in (*self.encoder, *self.decoder):
            y = block(y)
        return crop_to(self.head(y), height, width)
