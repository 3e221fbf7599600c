"""FCCL in PyTorch: a classifier whose features are contrasted with moving class centroids (FCCL spec, (c) and (d))."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ophjax.errors import InputError
from peers import Move, Peer
from peers.blocks import PlainTrunk, ResNet
from peers.common import adamw, centred, normalise, unit

# Settings of ours that the peer does not have; without the ramp the contrast counts from the first step on.
WITHOUT: dict[str, Any] = dict(flip=False, crop=1.0, jitter=0.0, ramp=0.0)


class PooledClassifier(nn.Module):
    """A trunk, the average over positions, one linear layer; logits and feature."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        classes = len(config.classes)
        if config.trunk == "plain":
            self.backbone: Any = PlainTrunk(config.width)
            self.linear = nn.Linear(self.backbone.channels[-1], classes)
        else:
            self.backbone = ResNet(classes, config.depth, config.width, config.stem, config.norm)
        self.plain, self.width = config.trunk == "plain", self.backbone.channels[-1]
        self.projection = None
        if config.projection is not None:
            self.projection, self.width = nn.Linear(self.width, config.projection), config.projection

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        feature = self.backbone(x).mean((2, 3)) if self.plain else self.backbone.pooled(x)
        logits = (self.linear if self.plain else self.backbone.linear)(feature)
        return logits, feature if self.projection is None else self.projection(feature)


def make(config: Any, shapes: dict[str, tuple[int, ...]]) -> Peer:
    """Builds FCCL with moving averages as centroids, or, with baseline erm, the cross-entropy alone.

    Raises:
      InputError: the trunk is not written here.
    """
    del shapes
    if config.trunk == "vit":
        raise InputError(
            "--peer torch was asked for with --method.trunk vit, whose peer is not written. Choose another."
        )
    net, classes = PooledClassifier(config), len(config.classes)
    mean, seen = torch.zeros(classes, net.width), torch.zeros(classes, dtype=torch.bool)

    def contrast(feature: Tensor, labels: Tensor) -> Tensor:
        """The contrast with the centroids of the step before, which then move."""
        z = normalise(feature)
        logits = z @ normalise(mean).T / config.temperature
        counted = seen[labels]
        own = logits.gather(1, labels[:, None])[:, 0]
        each = torch.logsumexp(logits.masked_fill(~seen, -1e30), 1) - own
        value = torch.where(counted, each, 0.0).sum() / counted.sum().clamp(min=1)
        with torch.no_grad():
            member = F.one_hot(labels, classes).float()
            number = member.sum(0)
            fresh = member.T @ z / number.clamp(min=1)[:, None]
            keep = torch.where(seen, config.momentum, 0.0)[:, None]
            mean.copy_(torch.where(number[:, None] > 0, keep * mean + (1 - keep) * fresh, mean))
            seen.logical_or_(number > 0)
        return value

    def loss(batch: Any, _: Any) -> tuple[Tensor, None]:
        logits, feature = net(centred(unit(batch["image"])))
        value = F.cross_entropy(logits, batch["label"])
        if config.baseline == "none":
            value = value + config.weight * contrast(feature, batch["label"])
        return value, None

    optimiser = adamw(config.lr, config.betas, config.weight_decay)
    return Peer({"classifier": net}, {"classifier": (Move(loss, ("classifier",), optimiser),)})
