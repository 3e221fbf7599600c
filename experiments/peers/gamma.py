"""GAMMA in PyTorch: grading from picture and OCT volume, disc and cup (GAMMA spec, sections (c) and (d))."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peers import Move, Peer
from peers.blocks import ResNet, UNet, UShape, make_norm
from peers.common import adam, centred, layer_loss, unit, weighted_mean

# Settings of ours that the peer does not have.
WITHOUT: dict[str, Any] = dict(flip=False, flip_vertical=False, rotate=0.0)


class WideStem(nn.Conv2d):
    """A 7x7 of stride 2 over a volume whose slices are channels, norm, ReLU."""

    def __init__(self, slices: int, width: int, norm: str) -> None:
        super().__init__(slices, width, 7, 2, 3, bias=False)
        self.norm = make_norm(norm, width)

    def forward(self, volume: Tensor) -> Tensor:
        return F.relu(self.norm(super().forward(unit(volume))), inplace=True)


class SliceNet(nn.Module):
    """A ResNet on that stem."""

    def __init__(self, slices: int, depth: int, width: int, norm: str) -> None:
        super().__init__()
        self.stem, self.trunk = WideStem(slices, width, norm), ResNet(0, depth, width, norm=norm, channels=0)

    def forward(self, volume: Tensor) -> Tensor:
        x = self.stem(volume)
        for level in (1, 2, 3, 4):
            x = self.trunk.stage(level, x)
        return x.mean((2, 3))


class Grader(nn.Module):
    """Two branches, joined by one linear layer or by a product and a hidden layer."""

    def __init__(self, config: Any, slices: int) -> None:
        super().__init__()
        self.names = tuple(name for name in ("fundus", "oct") if config.modality in ("both", name))
        if "fundus" in self.names:
            self.fundus = ResNet(0, config.depth, config.width, config.stem, config.norm)
        if "oct" in self.names:
            self.oct = SliceNet(slices, config.depth, config.width, config.norm)
        width = (self.fundus if "fundus" in self.names else self.oct.trunk).channels[4]
        features = width * len(self.names)
        self.interacts = config.fusion == "interaction" and len(self.names) == 2
        if self.interacts:
            for name in self.names:
                setattr(self, f"to_{name}", nn.Linear(width, config.hidden))
            self.joint, features = nn.Linear(3 * config.hidden, config.hidden), config.hidden
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(features, len(config.classes))

    def forward(self, image: Tensor, volume: Tensor) -> Tensor:
        found = {}
        if "fundus" in self.names:
            found["fundus"] = self.fundus.pooled(image)
        if "oct" in self.names:
            found["oct"] = self.oct(volume)
        joined = torch.cat(list(found.values()), 1)
        if self.interacts:
            one, other = (F.relu(getattr(self, f"to_{name}")(x)) for name, x in found.items())
            joined = F.relu(self.joint(torch.cat([one, other, one * other], 1)))
        return self.head(self.dropout(joined))


def make(config: Any, shapes: dict[str, tuple[int, ...]]) -> Peer:
    """Builds grading by one head over slices as channels, and segmentation, as far as the task asks for them."""
    nets: dict[str, Any] = {}
    stages: dict[str, tuple[Move, ...]] = {}
    if config.task in ("grading", "all"):
        nets["grader"] = grader = Grader(config, config.oct_slices or shapes["volume"][3])

        def grade(batch: Any, _: Any) -> tuple[Tensor, None]:
            logits = grader(centred(unit(batch["image"])), batch["volume"])
            paid = F.cross_entropy(logits, batch["label"].clamp(min=0), reduction="none")
            return weighted_mean(paid, batch["label"] >= 0), None

        stages["grading"] = (Move(grade, ("grader",), adam(config.lr)),)
    if config.task in ("segmentation", "all"):
        if config.segmenter == "ushape":
            segmenter: Any = UShape(3, config.segmenter_width, config.norm)
        else:
            segmenter = UNet(3, config.segmenter_width, config.levels, config.norm)
        nets["segmenter"] = segmenter

        def segment(batch: Any, _: Any) -> tuple[Tensor, None]:
            each = layer_loss(segmenter(unit(batch["image"])), batch["mask"], config.dice_weight, first=0)
            return weighted_mean(each, batch["mask_weight"]), None

        stages["segmentation"] = (Move(segment, ("segmenter",), adam(config.segmenter_lr)),)
    return Peer(nets, stages)
