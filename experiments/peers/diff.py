"""DiFF in PyTorch: the classifiers, the Take-and-Give net and the search for expertness (diff spec, section (c)).

The search is no stage here: ``bench.py --dfgt IMAGES --peer torch`` times it, image by image as the released code does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peers import Move, Peer
from peers.attention import AttentionStage
from peers.blocks import DecoderBlock, ResNet, conv, crop_to, pad_to_multiple
from peers.common import adam, unit, weighted_mean

# Settings of ours that the peer does not have: it learns to draw the mean of the raters, ours under all weights equal,
# and has no plain U-Net.
WITHOUT: dict[str, Any] = dict(target="majority", inherit=False, segmenter="take-and-give")

TAKE_HEADS, GIVE_HEADS = (1, 2, 4, 8), (8, 4, 2, 1)


class TakeAndGiveNet(nn.Module):
    """A residual encoder with a coarse decoder, a diagnosis branch that it asks, and a decoder that is asked."""

    def __init__(self, config: Any, size: tuple[int, int]) -> None:
        super().__init__()
        self.encoder = ResNet(0, config.depth, config.width, norm=config.norm)
        self.branch = ResNet(0, config.depth, config.width, norm=config.norm, channels=4, levels=3)
        width, before, channels = 2 * config.decoder, self.encoder.channels[4], self.encoder.channels
        padded = tuple(-(-side // 32) * 32 for side in size)
        settings: dict[str, Any] = dict(tokens=config.tokens, drop_path=config.drop_path)
        for i, tap in enumerate((3, 2, 1, 0)):
            for name in ("coarse", "decoder"):
                setattr(self, f"{name}{i + 1}", DecoderBlock(before, channels[tap], config.decoder, config.norm))
            maps = tuple(side // self.encoder.strides[tap] for side in padded)
            asked = (channels[tap], *maps)
            take = AttentionStage(channels[tap], maps, TAKE_HEADS[tap], context=asked, **settings)
            give = AttentionStage(width, maps, GIVE_HEADS[i], context=(width, *maps), **settings)
            setattr(self, f"take{tap + 1}", take)
            setattr(self, f"give{i + 1}", give)
            setattr(self, f"give{i + 1}_query", conv(channels[tap], width, 1))
            before = width
        self.coarse_head = nn.ConvTranspose2d(width, 1, 2, 2)
        self.head = nn.ConvTranspose2d(width, len(config.regions), 2, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        height, width = x.shape[2:]
        x = pad_to_multiple(x, 32)
        *p, bottleneck = self.encoder.taps(x)
        y = bottleneck
        for i in range(4):
            y = getattr(self, f"coarse{i + 1}")(y, p[3 - i])
        coarse = self.coarse_head(y)
        d = self.branch.taps(torch.cat([x, coarse.sigmoid()], 1), 3)
        y = bottleneck
        for i in range(4):
            tap = 3 - i
            taken = getattr(self, f"take{tap + 1}")(p[tap], d[tap])
            y = getattr(self, f"decoder{i + 1}")(y, p[tap])
            y = getattr(self, f"give{i + 1}")(getattr(self, f"give{i + 1}_query")(taken), y)
        return crop_to(self.head(y), height, width), crop_to(coarse, height, width)


class ExpG(nn.Module):
    """The expertness maps [raters, h, w] of one image, a function of coordinates alone."""

    def __init__(self, raters: int, hidden: int, layers: int = 8) -> None:
        super().__init__()
        self.layers = layers
        for i in range(1, layers + 1):
            channels, last = 2 if i == 1 else 2 * hidden, i == layers
            layer = conv(channels, raters if last else hidden, 1)
            nn.init.normal_(layer.weight, std=0.0 if last else channels**-0.5)
            nn.init.zeros_(layer.bias)
            setattr(self, f"layer{i}", layer)

    def forward(self, height: int, width: int) -> Tensor:
        ends = 3**0.5
        rows, columns = torch.linspace(-ends, ends, height), torch.linspace(-ends, ends, width)
        v, u = torch.meshgrid(rows, columns, indexing="ij")
        x = torch.stack([u, v])[None]
        for i in range(1, self.layers):
            x = torch.atan(getattr(self, f"layer{i}")(x))
            x = torch.cat([x / 0.67, x * x / 0.6], 1)
        return getattr(self, f"layer{self.layers}")(x)[0]


def search(net: nn.Module, maps: nn.Module, image: Tensor, encoded: Tensor, *, steps: int, lr: float) -> list[float]:
    """Raises the frozen diagnosis net's logit of one image [3, h, w] by the maps' weights of its raters' masks
    [r, h, w]; the maps are changed in place.

    Returns:
      The logit before each step.
    """
    net.eval().requires_grad_(False)
    optimiser, logits = adam(lr)({"maps": list(maps.parameters())}), []
    for _ in range(steps):
        weights = maps(*image.shape[1:]).sigmoid().softmax(0)
        fused = (weights * encoded).sum(0, keepdim=True)
        logit = net(torch.cat([image, fused])[None])[0, 0]
        optimiser.zero_grad(set_to_none=True)
        (-logit).backward()
        optimiser.step()
        logits.append(logit.detach())
    return torch.stack(logits).tolist()


def encode(masks: Tensor) -> Tensor:
    """Nested regions [b, c, h, w] in one channel."""
    return masks.mean(1, keepdim=True)


def make(config: Any, shapes: dict[str, tuple[int, ...]]) -> Peer:
    """Builds the classifiers and the segmenter with their stages; targets are the means of the raters."""

    def classifier(channels: int) -> ResNet:
        return ResNet(1, config.diagnosis_depth, config.diagnosis_width, "small", config.norm, channels)

    names = ("diagnosis", "unseen", "judge") if config.target == "dfgt" else ("diagnosis", "judge")
    nets: dict[str, Any] = {name: classifier(1 if name == "judge" else 4) for name in names}
    nets["segmenter"] = segmenter = TakeAndGiveNet(config, shapes["image"][1:3])

    def nest(masks: Tensor, axis: int) -> Tensor:
        """What lies in a later region is part of all earlier ones."""
        return masks.float().flip(axis).cummax(axis).values.flip(axis)

    def mean_mask(batch: Any) -> Tensor:
        masks, present = nest(batch["raters"], 2), batch["rater_weight"]
        share = present / present.sum(1, keepdim=True).clamp(min=1)
        return torch.einsum("brchw,br->bchw", masks, share)

    def learn_labels(batch: Any, _: Any) -> tuple[Tensor, None]:
        labels, known = (batch["label"] == 1).float(), (batch["label"] >= 0).float()
        image = torch.cat([unit(batch["image"]), encode(mean_mask(batch))], 1)
        values, weight = [], torch.tensor(config.positive_weight)
        for name in names:
            judges = name == "judge"
            logits = nets[name](encode(nest(batch["mask"], 1)) if judges else image)[:, 0]
            each = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight, reduction="none")
            values.append(weighted_mean(each, known * batch["mask_weight"] if judges else known))
        return torch.stack(values).sum(), None

    def learn_masks(batch: Any, _: Any) -> tuple[Tensor, None]:
        target = mean_mask(batch)
        logits, coarse = segmenter(unit(batch["image"]))
        value = F.binary_cross_entropy_with_logits(logits, target)
        return value + F.binary_cross_entropy_with_logits(coarse, encode(target)), None

    stages = {
        "diagnosis": (Move(learn_labels, names, adam(config.diagnosis_lr)),),
        "segmentation": (Move(learn_masks, ("segmenter",), adam(config.lr, eps=config.eps), config.clip),),
    }
    return Peer(nets, stages)
