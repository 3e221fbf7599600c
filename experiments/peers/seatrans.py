"""SeATrans in PyTorch: the segmenter, and the diagnosis net that its features steer (BUILD_NOTES.md, SeATrans)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peers import Move, Peer
from peers.attention import AttentionLayer, TokenEmbed, grid_of
from peers.blocks import ResNet, ResUNet
from peers.common import adamw, soft_dice_loss, unit, weighted_mean

# Settings of ours that the peer does not have.
WITHOUT: dict[str, Any] = dict(flip=False)


class Exchange(nn.Module):
    """An encoder that embeds the diagnosis on the segmentation's tokens, and a decoder that brings it back."""

    def __init__(self, width: int, heads: int, single: bool, settings: tuple[float, float]) -> None:
        super().__init__()
        self.single = single
        if not single:
            self.encoder1 = AttentionLayer(width, heads, *settings)
        self.decoder = AttentionLayer(width, heads, *settings)

    def forward(self, diag: Tensor, place: Tensor, seg: Tensor, seg_place: Tensor) -> Tensor:
        embedded = seg if self.single else self.encoder1(seg, seg_place, diag, place)
        return self.decoder(diag, place, embedded, seg_place)


class SeABlock(nn.Module):
    """Updates a diagnosis map from the tokens of one segmentation map."""

    def __init__(self, channels: int, width: int, heads: int, grid: tuple[int, int], single: bool,
                 settings: tuple[float, float]) -> None:  # fmt: skip
        super().__init__()
        self.grid, self.embed = grid, TokenEmbed(channels, width, heads, grid)
        self.exchange = Exchange(width, heads, single, settings)
        self.write = nn.Linear(width, channels, bias=False)
        nn.init.zeros_(self.write.weight)

    def forward(self, diag: Tensor, seg: Tensor, seg_place: Tensor) -> Tensor:
        tokens = self.embed(diag)
        out = self.exchange(tokens, self.embed.position, seg, seg_place)
        update = self.write(out - tokens).transpose(1, 2).unflatten(2, self.grid)
        return diag + F.interpolate(update, diag.shape[2:], mode="bilinear")


class SeAFusion(nn.Module):
    """One SeA-block for each scale, coarse to fine; given the channels, height and width of each map."""

    def __init__(self, diag: tuple[int, int, int], segs: list[tuple[int, int, int]], heads: int, config: Any) -> None:
        super().__init__()
        channels, width = diag[0], config.token_width or diag[0]
        settings = (config.feed_forward_ratio, config.drop_path)
        for i, (features, *size) in enumerate(segs, 1):
            setattr(self, f"embed{i}", TokenEmbed(features, width, heads, grid_of(size, config.tokens)))
        single, grid = config.baseline == "single-attention", grid_of(diag[1:], config.tokens)
        self.blocks = nn.ModuleList(SeABlock(channels, width, heads, grid, single, settings) for _ in segs)

    def forward(self, diag: Tensor, segs: list[Tensor]) -> Tensor:
        for i, (block, seg) in enumerate(zip(self.blocks, segs, strict=True), 1):
            embed = getattr(self, f"embed{i}")
            diag = block(diag, embed(seg), embed.position)
        return diag


class AssistedResNet(nn.Module):
    """A ResNet with a fusion after some of its stages."""

    def __init__(self, config: Any, pairing: dict[int, tuple[int, ...]], size: tuple[int, int],
                 taps: list[tuple[int, int, int]], channels: int) -> None:  # fmt: skip
        super().__init__()
        outputs = 1 if len(config.classes) == 2 else len(config.classes)
        self.pairing = pairing
        self.backbone = ResNet(outputs, config.depth, config.width, config.stem, config.norm, channels)
        for level, scales in pairing.items():
            stride = self.backbone.strides[level]
            diag = (self.backbone.channels[level], *(-(-side // stride) for side in size))
            fusion = SeAFusion(diag, [taps[i] for i in scales], config.heads[level - 1], config)
            setattr(self, f"fusion{level}", fusion)

    def forward(self, x: Tensor, taps: list[Tensor]) -> Tensor:
        x = self.backbone.first(x)
        for level in (1, 2, 3, 4):
            x = self.backbone.stage(level, x)
            if level in self.pairing:
                x = getattr(self, f"fusion{level}")(x, [taps[i] for i in self.pairing[level]])
        return self.backbone.linear(x.mean((2, 3)))


def make(config: Any, shapes: dict[str, tuple[int, ...]]) -> Peer:
    """Builds the nets and both stages, the second with a frozen segmenter."""
    size, regions = shapes["image"][1:3], len(config.regions)
    segmenter = ResUNet(regions, config.segmenter_depth, config.segmenter_width, config.decoder_width, config.stem,
                        config.segmenter_norm)  # fmt: skip
    coarsest = segmenter.encoder.strides[4]
    widths = [segmenter.encoder.channels[4], *(2 * config.decoder_width,) * 3]
    taps = [(c, *(-(-side // coarsest) * 2**i for side in size)) for i, c in enumerate(widths)]
    pairing: dict[int, tuple[int, ...]] = {}
    if config.baseline not in ("image-only", "mask-concat"):
        same = config.baseline == "same-scale"
        pairing = {level: (4 - level,) if same else config.scales for level in config.low_level}
    joined, assisted = config.baseline == "mask-concat", config.baseline != "image-only"
    diagnosis = AssistedResNet(config, pairing, size, taps, 3 + regions if joined else 3)
    binary = len(config.classes) == 2

    def learn_masks(batch: Any, _: Any) -> tuple[Tensor, None]:
        logits, target = segmenter(unit(batch["image"]))[0], batch["mask"].float()
        both = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((2, 3))
        both = both + config.dice_weight * soft_dice_loss(logits.sigmoid(), target)
        return weighted_mean(both.sum(1), batch["mask_weight"]), None

    def learn_labels(batch: Any, _: Any) -> tuple[Tensor, None]:
        image, found = unit(batch["image"]), []
        if assisted:
            with torch.no_grad():
                logits, found = segmenter(image)
                image = torch.cat([image, logits.sigmoid()], 1) if joined else image
        outputs = diagnosis(image, found)
        if binary:
            weight = torch.tensor(config.positive_weight, device=outputs.device)
            labels = batch["label"].float()
            return F.binary_cross_entropy_with_logits(outputs[:, 0], labels, pos_weight=weight), None
        return F.cross_entropy(outputs, batch["label"]), None

    nets: dict[str, Any] = {"diagnosis": diagnosis}
    diagnose = Move(learn_labels, ("diagnosis",), adamw(config.lr, config.betas, config.weight_decay))
    stages = {"diagnosis": (diagnose,)}
    if assisted:
        nets["segmenter"] = segmenter
        optimiser = adamw(config.segmenter_lr, config.betas, config.weight_decay)
        stages["segmenter"] = (Move(learn_masks, ("segmenter",), optimiser),)
    return Peer(nets, stages)
