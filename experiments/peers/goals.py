"""GOALS in PyTorch: the segmenter of the layers, and the classifier (GOALS spec, sections (c) and (d))."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from peers import Move, Peer
from peers.blocks import PooledResNet, UNet, UShape
from peers.common import adam, centred, layer_loss, unit, weighted_mean

# Settings of ours that the peer does not have.
WITHOUT: dict[str, Any] = dict(flip=False)


def make(config: Any, shapes: dict[str, tuple[int, ...]]) -> Peer:
    """Builds the nets and both stages; the segmenter is a U-shape or a U-Net, and the classifier sees the image."""
    del shapes
    count, norm = 1 + len(config.regions), config.segmenter_norm
    if config.segmenter == "ushape":
        segmenter: Any = UShape(count, config.segmenter_width, norm)
    else:
        segmenter = UNet(count, config.segmenter_width, config.levels, norm)
    classifier = PooledResNet(len(config.classes), (config.hidden,) if config.hidden else (), config.classifier_depth,
                              config.classifier_width, config.stem, config.classifier_norm)  # fmt: skip

    def learn_layers(batch: Any, _: Any) -> tuple[torch.Tensor, None]:
        each = layer_loss(segmenter(unit(batch["image"])), batch["mask"], config.dice_weight, first=1)
        return weighted_mean(each, batch["mask_weight"]), None

    def learn_labels(batch: Any, _: Any) -> tuple[torch.Tensor, None]:
        known = batch["label"] >= 0
        paid = F.cross_entropy(classifier(centred(unit(batch["image"]))), batch["label"].clamp(min=0), reduction="none")
        return weighted_mean(paid, known), None

    stages = {
        "segmenter": (Move(learn_layers, ("segmenter",), adam(config.segmenter_lr)),),
        "classifier": (Move(learn_labels, ("classifier",), adam(config.lr)),),
    }
    return Peer({"segmenter": segmenter, "classifier": classifier}, stages)
