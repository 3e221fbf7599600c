"""What the peers' training steps share: pictures as numbers, losses, optimisers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batch = dict[str, Any]


def unit(image: Tensor) -> Tensor:
    """Bytes as numbers in [0, 1]."""
    return image.float() / 255


def centred(image: Tensor) -> Tensor:
    """[0, 1] at about zero mean and unit spread."""
    return (image - 0.5) / 0.25


def all_of(params: dict[str, list[nn.Parameter]]) -> list[nn.Parameter]:
    """The parameters of several networks."""
    return [leaf for leaves in params.values() for leaf in leaves]


def adam(lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> Callable[..., Any]:
    """Makes Adam, in its fused form."""

    def make(params: dict[str, list[nn.Parameter]]) -> torch.optim.Optimizer:
        return torch.optim.Adam(all_of(params), lr, betas, eps, fused=True)

    return make


def adamw(lr: float, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.0) -> Callable[..., Any]:
    """Makes AdamW, in its fused form."""

    def make(params: dict[str, list[nn.Parameter]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(all_of(params), lr, betas, weight_decay=weight_decay, fused=True)

    return make


def classes_of(mask: Tensor) -> Tensor:
    """The class of each pixel of masks [b, c, h, w], 0 for the background, later regions over earlier."""
    numbers = torch.arange(1, mask.shape[1] + 1, device=mask.device).reshape(1, -1, 1, 1)
    return torch.where(mask > 0, numbers, 0).amax(1)


def one_hot(classes: Tensor, count: int) -> Tensor:
    """[b, h, w] as [b, count, h, w]."""
    return F.one_hot(classes, count).permute(0, 3, 1, 2).float()


def soft_dice_loss(probs: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - (2 sum(p t) + s) / (sum(p) + sum(t) + s) of each image and region, [b, c]."""
    overlap = (probs * target).sum((2, 3))
    return 1 - (2 * overlap + smooth) / (probs.sum((2, 3)) + target.sum((2, 3)) + smooth)


def layer_loss(logits: Tensor, mask: Tensor, dice_weight: float, *, first: int) -> Tensor:
    """Cross-entropy of exclusive classes, with soft Dice of those from ``first`` on; of each image, [b]."""
    classes = classes_of(mask)
    each = F.cross_entropy(logits, classes, reduction="none").mean((1, 2))
    if dice_weight:
        truth = one_hot(classes, logits.shape[1])[:, first:]
        each = each + dice_weight * soft_dice_loss(logits.softmax(1)[:, first:], truth).mean(1)
    return each


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Averages over the examples that count."""
    return (values * weights).sum() / weights.sum().clamp(min=1)


def normalise(x: Tensor) -> Tensor:
    """Vectors at length 1."""
    return F.normalize(x, dim=-1, eps=1e-6)
