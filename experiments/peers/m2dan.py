"""M2DAN in PyTorch: a multi-scale net, a label head, and domain critics behind gradient reversal (spec, (c), (d))."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peers import Move, Peer
from peers.blocks import PlainTrunk, ResNet, conv, make_norm
from peers.common import adamw, all_of, centred, unit

# Settings of ours that the peer does not have.
WITHOUT: dict[str, Any] = dict(flip=False, jitter=False)

# Gradient reversal grows over training; its size does not change what a step costs.
STRENGTH = 0.5


class MultiScale(nn.Module):
    """Parallel branches of several kernel sizes beside one another, and a 1x1 that fuses them."""

    def __init__(self, channels: int, kernels: tuple[int, ...], width: int, features: int, norm: str) -> None:
        super().__init__()
        self.count = len(kernels)
        for i, size in enumerate(kernels, 1):
            self._layer(f"reduce{i}", channels, width, 1, norm)
            self._layer(f"branch{i}", width, width, size, norm)
        self._layer("fuse", self.count * width, features, 1, norm)

    def _layer(self, name: str, channels: int, features: int, size: int, norm: str) -> None:
        setattr(self, name, conv(channels, features, size, bias=norm == "none"))
        setattr(self, f"{name}_norm", make_norm(norm, features))

    def apply_layer(self, name: str, x: Tensor) -> Tensor:
        return F.relu(getattr(self, f"{name}_norm")(getattr(self, name)(x)), inplace=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        numbers = range(1, self.count + 1)
        branches = [self.apply_layer(f"branch{i}", self.apply_layer(f"reduce{i}", x)) for i in numbers]
        return [self.apply_layer("fuse", torch.cat(branches, 1)), *branches]


class Extractor(nn.Module):
    """A trunk under a multi-scale module: the fused vector and that of each branch."""

    def __init__(self, config: Any, kernels: tuple[int, ...], branch_width: int) -> None:
        super().__init__()
        self.plain, self.normalised = config.trunk == "plain", config.layer_norm
        if self.plain:
            self.trunk: Any = PlainTrunk(config.width, config.levels)
        else:
            self.trunk = ResNet(0, config.depth, config.width, config.stem, config.norm, levels=config.levels)
        channels = self.trunk.channels[-1]
        self.scales = MultiScale(channels, kernels, branch_width, config.features, config.norm)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.trunk(x) if self.plain else self.trunk.taps(x, self.trunk.levels)[-1]
        vectors = [one.mean((2, 3)) for one in self.scales(x)]
        return [F.layer_norm(one, one.shape[1:], eps=1e-6) for one in vectors] if self.normalised else vectors


class LabelHead(nn.Module):
    """One linear layer."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Critic(nn.Module):
    """Two hidden layers."""

    def __init__(self, features: int, width: int, outputs: int) -> None:
        super().__init__()
        self.hidden1, self.hidden2 = nn.Linear(features, width), nn.Linear(width, width)
        self.logits = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(F.relu(self.hidden2(F.relu(self.hidden1(x)))))


class Critics(nn.Module):
    """A critic on the fused vector, and one on each branch."""

    def __init__(self, config: Any, seen: int, branches: int, branch_width: int) -> None:
        super().__init__()
        outputs = len(config.domains)
        if config.align in ("fused", "both"):
            self.fused = Critic(seen, config.critic_width, outputs)
        if config.align in ("branches", "both"):
            self.branches = nn.ModuleList(Critic(branch_width, config.critic_width, outputs) for _ in range(branches))
        self.align = config.align

    def forward(self, fused: Tensor, branches: list[Tensor]) -> list[Tensor]:
        found = [self.fused(fused)] if self.align != "branches" else []
        if self.align != "fused":
            found += [critic(one) for critic, one in zip(self.branches, branches, strict=True)]
        return found


def reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """Returns x, whose gradient is turned round and scaled."""
    return (1 + strength) * x.detach() - strength * x


def make(config: Any, shapes: dict[str, tuple[int, ...]]) -> Peer:
    """Builds M2DAN with multiclass critics and joined branches, or, with baseline source-only, no critics."""
    del shapes
    kernels, width = config.kernels, config.branch_width
    if config.single_scale:
        kernels, width = kernels[:1], width * len(kernels)
    classes, adapts = len(config.classes), config.baseline == "none"
    extractor, head = Extractor(config, kernels, width), LabelHead(config.features, classes)
    nets: dict[str, Any] = {"extractor": extractor, "head": head}
    seen = config.features * classes if config.conditional else config.features
    if adapts:
        nets["critics"] = critics = Critics(config, seen, len(kernels), width)

    def loss(batch: Any, _: Any) -> tuple[Tensor, None]:
        image, domain, labels = batch["image"], batch["domain"], batch["label"]
        if not adapts:
            rows = max(len(image) // len(config.domains), 1)
            image, labels = image[:rows], labels[:rows]
        features, *branches = extractor(centred(unit(image)))
        logits = head(features)
        source = domain == 0 if adapts else torch.ones_like(labels, dtype=torch.bool)
        each = F.cross_entropy(logits, torch.where(source, labels, 0), reduction="none")
        value = (each * source).sum() / source.sum().clamp(min=1)
        if adapts:
            if config.conditional:
                features = (features[:, :, None] * logits.softmax(1).detach()[:, None]).flatten(1)
            turned = [reverse_gradient(one, STRENGTH) for one in (features, *branches)]
            guesses = critics(turned[0], turned[1:])
            fooled = torch.stack([F.cross_entropy(one, domain) for one in guesses]).mean()
            value = value + config.domain_weight * fooled
        return value, None

    if config.optimiser == "adam":
        optimiser = adamw(config.lr, weight_decay=config.weight_decay)
    else:

        def optimiser(params: Any) -> torch.optim.Optimizer:
            settings = dict(momentum=0.9, weight_decay=config.weight_decay, nesterov=True, fused=True)
            return torch.optim.SGD(all_of(params), config.lr, **settings)

    stage = "adaptation" if adapts else "plain"
    return Peer(nets, {stage: (Move(loss, tuple(nets), optimiser),)})
