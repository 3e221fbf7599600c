"""Self-calibration in PyTorch: ConM and DivM in recurrence (selfcal spec, sections (c) and (d))."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peers import Move, Peer
from peers.attention import AttentionStage
from peers.blocks import DecoderBlock, ResNet, crop_to, last_layer, pad_to_multiple, skips_of
from peers.common import adam, unit

# Settings of ours that the peer does not have.
WITHOUT: dict[str, Any] = dict(flip=False)

TINY = 1e-6


class ExpertiseEmbed(nn.Module):
    """Brings the map to a decoder's resolution: 1x1, then a 3x3 of the wanted stride in groups of two channels.

    Written as the two convolutions that they are; ours computes them as one.
    """

    def __init__(self, channels: int, features: int, stride: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, features, 1)
        self.place = nn.Conv2d(features, features, 3, stride, 1, groups=features // 2)

    def take(self, tree: dict[str, Any]) -> None:
        """Takes our parameters."""
        given = {
            self.embed.weight: tree["embed"].T[:, :, None, None],
            self.embed.bias: tree["shift"][0],
            self.place.weight: tree["place"].transpose(3, 2, 0, 1),
            self.place.bias: tree["bias"],
        }
        for leaf, value in given.items():
            leaf.copy_(torch.from_numpy(value.copy()))

    def forward(self, x: Tensor) -> Tensor:
        return self.place(self.embed(x))


class ConM(nn.Module):
    """A residual U-Net whose decoder asks with the embedded map."""

    def __init__(self, config: Any, size: tuple[int, int], told: int) -> None:
        super().__init__()
        self.encoder = ResNet(0, config.depth, config.width, config.stem, config.norm)
        self.skips, before = skips_of(self.encoder), self.encoder.channels[4]
        coarsest, features = self.encoder.strides[4], 2 * config.decoder
        for i, tap in enumerate(self.skips):
            stride = self.encoder.strides[tap]
            maps = tuple(-(-side // coarsest) * coarsest // stride for side in size)
            block = DecoderBlock(before, self.encoder.channels[tap], config.decoder, config.norm)
            stage = AttentionStage(
                features, maps, config.heads[i], context=(features, *maps), tokens=config.tokens,
                ratio=config.feed_forward_ratio, drop_path=config.drop_path, windows=True,
                keep_context=config.keep_features,
            )  # fmt: skip
            setattr(self, f"decoder{i + 1}", block)
            setattr(self, f"embed{i + 1}", ExpertiseEmbed(told, features, stride))
            setattr(self, f"stage{i + 1}", stage)
            before = features
        self.head = last_layer(self.encoder, config.decoder, len(config.regions))

    def forward(self, x: Tensor, expertise: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x, expertise = (pad_to_multiple(one, self.encoder.strides[4]) for one in (x, expertise))
        features = self.encoder.taps(x)
        y = features[4]
        for i, tap in enumerate(self.skips, 1):
            y = getattr(self, f"decoder{i}")(y, features[tap])
            y = getattr(self, f"stage{i}")(getattr(self, f"embed{i}")(expertise), y)
        return crop_to(self.head(y), height, width)


class DivM(nn.Module):
    """Simulates every rater: masks and expertness, logits [b, raters, regions, h, w] each."""

    def __init__(self, config: Any, size: tuple[int, int]) -> None:
        super().__init__()
        self.raters, self.regions, self.stride = len(config.raters), len(config.regions), config.stride
        self.kinds, self.depth = 2 if config.weighting == "softmax" else 1, config.divm_depth
        maps = tuple((side - 1) // self.stride + 1 for side in size)
        channels, before = self.raters * self.kinds * self.regions, 3 + self.regions
        for i in range(1, self.depth + 1):
            last = i == self.depth
            width, heads = (channels, self.raters) if last else (config.divm_width, config.divm_heads)
            stage = AttentionStage(before, maps, heads, width=width, tokens=config.tokens,
                                   ratio=config.feed_forward_ratio, drop_path=config.drop_path)  # fmt: skip
            setattr(self, f"stage{i}", stage)
            before = width
        self.head = nn.Linear(channels, channels)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        y = F.avg_pool2d(torch.cat([x, logits], 1), 3, self.stride, 1)
        for i in range(1, self.depth + 1):
            y = getattr(self, f"stage{i}")(y)
        y = self.head(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = F.interpolate(y, x.shape[2:], mode="bilinear")
        y = y.unflatten(1, (self.raters, self.kinds, self.regions))
        return y[:, :, 0], y[:, :, -1]


def pixel_entropy(probs: Tensor, target: Tensor) -> Tensor:
    """The cross-entropy of each pixel."""
    probs = probs.clamp(TINY, 1 - TINY)
    return -(target * probs.log() + (1 - target) * torch.log1p(-probs))


def make(config: Any, shapes: dict[str, tuple[int, ...]]) -> Peer:
    """Builds the recurrence with softmax weights and cross-entropies."""
    size, raters = shapes["image"][1:3], len(config.raters)
    conm = ConM(config, size, raters * len(config.regions))
    divm = DivM(config, size)

    def one_round(batch: Any, left: Any) -> tuple[Tensor, Any]:
        image, drawn, present = unit(batch["image"]), batch["raters"].float(), batch["rater_weight"]
        here = present[:, :, None, None, None]
        if left is None:
            told = image.new_full((len(image), raters * drawn.shape[2], *image.shape[2:]), 1 / raters)
            label = (drawn * here).sum(1) / present.sum(1).clamp(min=1)[:, None, None, None]
        else:
            told, label = left
        logits = conm(image, told)
        fixed = logits.detach()
        masks, trust = divm(image, fixed)
        simulated = masks.sigmoid()
        weights = trust.masked_fill(here == 0, torch.finfo(torch.float32).min).softmax(1) * here
        fused = (weights * drawn).sum(1).clamp(0, 1)
        learned = F.binary_cross_entropy_with_logits(logits, label, reduction="none").mean((2, 3)).sum(1)
        apart = pixel_entropy(fused, fixed.sigmoid()).mean((2, 3)).sum(1)
        order = torch.randperm(raters, device=image.device)
        pixels = pixel_entropy(simulated[:, order] * weights, (drawn[:, order] * weights).detach()).mean((2, 3, 4))
        both = present * present[:, order]
        shuffled = (pixels * both).sum(1) / both.sum(1).clamp(min=1)
        known = (present.amax(1) > 0).float()
        each = learned + apart + config.shuffle_weight * shuffled
        value = (each * known).sum() / known.sum().clamp(min=1)
        return value, ((simulated * weights).flatten(1, 2).detach(), fused.detach())

    move = Move(one_round, ("conm", "divm"), adam(config.lr, config.betas))
    return Peer({"conm": conm, "divm": divm}, {"recurrence": (move,) * config.train_rounds})
