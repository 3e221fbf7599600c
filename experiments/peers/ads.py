"""ADS in PyTorch: a segmenter against two domain synthesizers and a critic on patches (ADS spec, sections (c), (d))."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peers import Move, Peer
from peers.blocks import UNet
from peers.common import adam, classes_of, normalise, one_hot, soft_dice_loss, unit
from peers.efficientnet import EfficientUNet

# Settings of ours that the peer does not have.
WITHOUT: dict[str, Any] = dict(flip=False, gamma=(1.0, 1.0), noise=0.0, zoom=0.0, rotate=0.0, shear=0.0, elastic=0.0)

TAPS = ("pixels", "stem", "down1", "down2", *(f"res{i}" for i in range(1, 7)))


def standardise(weight: Tensor) -> Tensor:
    """A tensor at mean 0 and deviation 1, both without a gradient."""
    fixed = weight.detach()
    return (weight - fixed.mean()) / fixed.std()


class StandardisedConv(nn.Conv2d):
    """A convolution whose kernel is used standardised."""

    def __init__(self, channels: int, features: int, size: int, standardised: bool) -> None:
        super().__init__(channels, features, size, padding=(size - 1) // 2)
        self.standardised = standardised
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        weight = standardise(self.weight) if self.standardised else self.weight
        return F.conv2d(x, weight, self.bias, padding=self.padding)


class NoiseStyle(nn.Linear):
    """An instance norm whose scale and shift are a linear map of noise."""

    def __init__(self, size: int, channels: int, standardised: bool) -> None:
        super().__init__(size, 2 * channels)
        self.standardised = standardised
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(len(x), self.in_features, device=x.device)
        style = F.linear(noise, standardise(self.weight) if self.standardised else self.weight, self.bias)
        gamma, beta = style[:, :, None, None].chunk(2, 1)
        return (1 + gamma) * F.instance_norm(x) + beta


class Synthesizer(nn.Module):
    """Small convolutions that change how an image looks."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.sizes, before, standardised = config.kernel_sizes, 3, config.weights == "standardised"
        self.noise = config.style_noise > 0
        for i, size in enumerate(self.sizes, 1):
            features = config.hidden if i < len(self.sizes) else 3
            setattr(self, f"conv{i}", StandardisedConv(before, features, size, standardised))
            if i < len(self.sizes) and self.noise:
                setattr(self, f"style{i}", NoiseStyle(config.style_noise, features, standardised))
            before = features

    def forward(self, x: Tensor) -> Tensor:
        for i in range(1, len(self.sizes) + 1):
            x = getattr(self, f"conv{i}")(x)
            if i < len(self.sizes):
                x = getattr(self, f"style{i}")(x) if self.noise else x
                x = F.leaky_relu(x, 0.01)
        return x


class ReflectConv(nn.Conv2d):
    """A convolution without bias that sees the image mirrored beyond its border."""

    def __init__(self, channels: int, features: int, size: int) -> None:
        super().__init__(channels, features, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.kernel_size[0] // 2,) * 4, mode="reflect"))


def blur_down(x: Tensor) -> Tensor:
    """Halves the resolution after a blur by (1, 2, 1) / 4 in both directions."""
    taps = torch.tensor([0.25, 0.5, 0.25], device=x.device)
    kernel = (taps[:, None] * taps[None]).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (1,) * 4, mode="reflect"), kernel, stride=2, groups=x.shape[1])


class PatchEncoder(nn.Module):
    """The encoder of CUT as far as the last tap; the features at the taps."""

    def __init__(self, taps: tuple[str, ...], width: int) -> None:
        super().__init__()
        self.taps, self.depth = taps, max(TAPS.index(tap) for tap in taps)
        self.widths = {"pixels": 3, "stem": width, "down1": 2 * width}
        self.widths |= dict.fromkeys(TAPS[3:], 4 * width)
        if self.depth >= 1:
            self.stem = ReflectConv(3, width, 7)
        for i in (1, 2):
            if self.depth > i:
                setattr(self, f"down{i}", nn.Conv2d(width * 2 ** (i - 1), width * 2**i, 3, padding=1))
        for i in range(1, self.depth - 2):
            setattr(self, f"res{i}a", ReflectConv(4 * width, 4 * width, 3))
            setattr(self, f"res{i}b", ReflectConv(4 * width, 4 * width, 3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = {"pixels": F.pad(x, (3,) * 4, mode="reflect")}
        if self.depth >= 1:
            found["stem"] = F.instance_norm(self.stem(x))
            x = F.relu(found["stem"])
        for i in (1, 2):
            if self.depth > i:
                found[f"down{i}"] = getattr(self, f"down{i}")(x)
                x = blur_down(F.relu(F.instance_norm(found[f"down{i}"])))
        for i in range(1, self.depth - 2):
            y = F.relu(F.instance_norm(getattr(self, f"res{i}a")(x)))
            found[f"res{i}"] = x = x + F.instance_norm(getattr(self, f"res{i}b")(y))
        return {tap: found[tap] for tap in self.taps}


class PatchCritic(nn.Module):
    """Encoder and projector: unit vectors of the given places at each tap."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.encoder, self.projector = PatchEncoder(config.taps, config.critic_width), nn.ModuleDict()
        for tap in config.taps:
            self.projector[f"{tap}1"] = nn.Linear(self.encoder.widths[tap], config.projection)
            self.projector[f"{tap}2"] = nn.Linear(config.projection, config.projection)

    def forward(self, x: Tensor, places: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for tap, y in self.encoder(x).items():
            taken = y.flatten(2)[:, :, places[tap]].transpose(1, 2)
            found[tap] = normalise(self.projector[f"{tap}2"](F.relu(self.projector[f"{tap}1"](taken))))
        return found


def z_score(image: Tensor) -> Tensor:
    """Each image at mean 0 and deviation 1."""
    image = image - image.mean((1, 2, 3), keepdim=True)
    return image / image.std((1, 2, 3), correction=0, keepdim=True).clamp(min=1e-6)


def energy(image: Tensor) -> Tensor:
    """The norm of each image."""
    return image.square().sum((1, 2, 3), keepdim=True).sqrt()


def mix_randomly(image: Tensor, other: Tensor) -> Tensor:
    """Mixes images by random shares at the energy of the original."""
    share = torch.rand(len(image), 1, 1, 1, device=image.device)
    mixed = share * other + (1 - share) * image
    return mixed * (energy(image) / energy(mixed.detach()).clamp(min=1e-6))


def symmetric_kl(one: Tensor, other: Tensor, eps: float = 1e-6) -> Tensor:
    """The mean over pixels of (KL(p || q) + KL(q || p)) / 2 of smoothed probabilities."""
    p, q = ((logits.softmax(1) + eps) / (1 + logits.shape[1] * eps) for logits in (one, other))
    return 0.5 * ((p - q) * (p.log() - q.log())).sum(1).mean()


def patch_nce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """How badly each place of one image is found among those of the other."""
    logits = torch.bmm(queries, keys.detach().transpose(1, 2)) / temperature
    own = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    return F.cross_entropy(logits.transpose(1, 2), own)


def make(config: Any, shapes: dict[str, tuple[int, ...]]) -> Peer:
    """Builds the game of the segmenter and two learned synthesizers, with the critic on their outputs."""
    count, side = 1 + len(config.regions), shapes["image"][1:3]
    if config.segmenter == "unet":
        segmenter: Any = UNet(count, config.width, config.depth, config.norm)
    else:
        segmenter = EfficientUNet(count, config.norm)
    copies = ("both",) if config.synthesizers == "shared" else ("first", "second")
    synthesizers = nn.ModuleDict({name: Synthesizer(config) for name in copies})
    nets: dict[str, Any] = {"segmenter": segmenter, "synthesizers": synthesizers}
    informed = config.mi_weight > 0
    if informed:
        nets["critic"] = critic = PatchCritic(config)

    def views(image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        raw = [synthesizers[copies[number % len(copies)]](image) for number in (0, 1)]
        return raw, [mix_randomly(image, one) for one in raw]

    def learn_masks(batch: Any, _: Any) -> tuple[Tensor, None]:
        image, classes = z_score(unit(batch["image"])), classes_of(batch["mask"])
        with torch.no_grad():
            _, seen = views(image)
        logits, truth = [segmenter(one) for one in seen], one_hot(classes, count)
        value = (config.consistency_weight / count) * symmetric_kl(*logits)
        for one in logits:
            each = F.cross_entropy(one, classes, reduction="none").mean((1, 2))
            each = each + soft_dice_loss(one.softmax(1), truth, 1e-5).mean(1)
            value = value + (each * batch["mask_weight"]).sum() / batch["mask_weight"].sum().clamp(min=1)
        return value, None

    def place_counts() -> dict[str, int]:
        """Places of each tap's map."""
        height, width = side
        full, half = height * width, -(-height // 2) * -(-width // 2)
        quarter = -(-height // 4) * -(-width // 4)
        known = {"pixels": (height + 6) * (width + 6), "stem": full, "down1": full, "down2": half}
        return {tap: known.get(tap, quarter) for tap in config.taps}

    def synthesize(batch: Any, _: Any) -> tuple[Tensor, None]:
        image = z_score(unit(batch["image"]))
        raw, seen = views(image)
        value = (-config.adversary_weight / count) * symmetric_kl(*(segmenter(one) for one in seen))
        if informed:
            shown = (raw if config.mi_image == "raw" else seen)[: 2 if config.mi_views == "both" else 1]
            places = {
                tap: torch.randperm(number, device=image.device)[: config.patches]
                for tap, number in place_counts().items()
            }
            with torch.no_grad():
                known = critic(image, places)
            asked = critic(torch.cat(shown), places)
            repeated = {tap: torch.cat([keys] * len(shown)) for tap, keys in known.items()}
            paid = [patch_nce(asked[tap], repeated[tap], config.temperature) for tap in config.taps]
            value = value + config.mi_weight * torch.stack(paid).mean()
        return value, None

    def opponents(params: dict[str, list[Any]]) -> torch.optim.Optimizer:
        """The synthesizers have a rate of their own."""
        rates = {"synthesizers": config.lr * config.synthesizer_rate, "critic": config.lr}
        groups = [{"params": leaves, "lr": rates[name]} for name, leaves in params.items()]
        return torch.optim.Adam(groups, config.lr, config.betas, fused=True)

    moves = [Move(learn_masks, ("segmenter",), adam(config.lr, config.betas))]
    if config.synthesizers != "frozen":
        moves.append(Move(synthesize, ("synthesizers", "critic") if informed else ("synthesizers",), opponents))
    return Peer(nets, {"game" if len(moves) == 2 else "training": tuple(moves)})
