"""The U-Net on EfficientNet-B2 in plain PyTorch (ADS spec, section (c.3))."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peers.blocks import DoubleConv, conv, crop_to, make_norm, pad_to_multiple

# Expansion, kernel, stride, features, blocks of each stage.
B2 = ((1, 3, 1, 16, 2), (6, 3, 2, 24, 3), (6, 5, 2, 48, 3), (6, 3, 2, 88, 4), (6, 5, 1, 120, 4), (6, 5, 2, 208, 5),
      (6, 3, 1, 352, 2))  # fmt: skip
STEM, HEAD = 32, 1408


class InvertedBottleneck(nn.Module):
    """1x1, depthwise, squeeze-and-excitation, 1x1; the input is added where the shapes agree."""

    def __init__(self, channels: int, expand: int, size: int, stride: int, features: int, norm: str) -> None:
        super().__init__()
        inner, self.expands, self.adds = channels * expand, expand != 1, stride == 1 and channels == features
        if self.expands:
            self.expand, self.expand_norm = conv(channels, inner, 1, bias=False), make_norm(norm, inner)
        self.depthwise = nn.Conv2d(inner, inner, size, stride, (size - 1) // 2, groups=inner, bias=False)
        self.depthwise_norm = make_norm(norm, inner)
        narrow = max(channels // 4, 1)
        self.squeeze, self.excite = conv(inner, narrow, 1), conv(narrow, inner, 1)
        self.project, self.project_norm = conv(inner, features, 1, bias=False), make_norm(norm, features)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.expand_norm(self.expand(x)), inplace=True) if self.expands else x
        y = F.silu(self.depthwise_norm(self.depthwise(y)), inplace=True)
        gate = F.silu(self.squeeze(y.mean((2, 3), keepdim=True)))
        y = self.project_norm(self.project(y * self.excite(gate).sigmoid()))
        return x + y if self.adds else y


class EfficientNet(nn.Module):
    """The maps after each stage and after the last convolution."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.stem, self.stem_norm = conv(3, STEM, 3, 2, bias=False), make_norm(norm, STEM)
        channels = STEM
        for number, (expand, size, stride, features, blocks) in enumerate(B2, 1):
            first = InvertedBottleneck(channels, expand, size, stride, features, norm)
            rest = (InvertedBottleneck(features, expand, size, 1, features, norm) for _ in range(blocks - 1))
            setattr(self, f"stage{number}_first", first)
            setattr(self, f"stage{number}_rest", nn.Sequential(*rest))
            channels = features
        self.head, self.head_norm = conv(channels, HEAD, 1, bias=False), make_norm(norm, HEAD)

    def forward(self, x: Tensor) -> list[Tensor]:
        x, maps = F.silu(self.stem_norm(self.stem(x)), inplace=True), []
        for number in range(1, len(B2) + 1):
            x = getattr(self, f"stage{number}_rest")(getattr(self, f"stage{number}_first")(x))
            maps.append(x)
        return [*maps, F.silu(self.head_norm(self.head(x)), inplace=True)]


class EfficientUNet(nn.Module):
    """Five times up beside the outputs of stages 4, 3, 2, 1 and the image."""

    def __init__(self, classes: int, norm: str) -> None:
        super().__init__()
        self.encoder, before = EfficientNet(norm), HEAD
        for i, skip in enumerate((88, 48, 24, 16, 3), 1):
            features = 512 // 2 ** (i - 1)
            setattr(self, f"up{i}", nn.ConvTranspose2d(before, features, 2, 2))
            setattr(self, f"merge{i}", DoubleConv(features + skip, features, norm))
            before = features
        self.logits = conv(before, classes, 1)

    def forward(self, x: Tensor) -> Any:
        height, width = x.shape[2:]
        x = pad_to_multiple(x, 32)
        maps = self.encoder(x)
        y = maps[-1]
        for i, skip in enumerate((*maps[3::-1], x), 1):
            y = getattr(self, f"merge{i}")(torch.cat([getattr(self, f"up{i}")(y), skip], 1))
        return crop_to(self.logits(y), height, width)
