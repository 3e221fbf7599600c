"""Dual regression in PyTorch: DRN and the dual networks in the closed loop (dualsr spec, sections (c) and (d))."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peers import Move, Peer
from peers.blocks import conv
from peers.common import adam

# Settings of ours that the peer does not have; it cuts its patches from the corner.
WITHOUT: dict[str, Any] = dict(augment=False)

MEAN = (0.4488 * 255, 0.4371 * 255, 0.4040 * 255)


class Halving(nn.Module):
    """Convolution of stride 2, LeakyReLU(0.2), convolution; no biases."""

    def __init__(self, channels: int, inner: int, features: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(channels, inner, 3, 2, bias=False), conv(inner, features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.leaky_relu(self.conv1(x), 0.2))


class Dual(nn.Module):
    """Maps an image to half its size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.halving = Halving(3, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.halving(x)


class AttentionBlock(nn.Module):
    """A residual channel attention block (RCAB)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = max(1, width // 16)
        self.conv1, self.conv2 = conv(width, width), conv(width, width)
        self.squeeze, self.excite = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x), inplace=True))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3))))))
        return x + y * gate[:, :, None, None]


class AttentionBlocks(nn.Sequential):
    """The blocks of a stage; ours keeps their inner channels side by side in one leaf."""

    def take(self, tree: dict[str, Any]) -> None:
        """Takes our stacked parameters."""
        width = self[0].conv1.in_channels
        for i, block in enumerate(self):
            inner = slice(i * width, (i + 1) * width)
            given = {
                block.conv1.weight: tree["conv1_kernel"][..., inner].transpose(3, 2, 0, 1),
                block.conv1.bias: tree["conv1_bias"][inner],
                block.conv2.weight: tree["conv2_kernel"][:, :, inner].transpose(3, 2, 0, 1),
                block.conv2.bias: tree["conv2_bias"][i],
            }
            for name in ("squeeze", "excite"):
                layer = getattr(block, name)
                given |= {layer.weight: tree[f"{name}_kernel"][i].T, layer.bias: tree[f"{name}_bias"][i]}
            for leaf, value in given.items():
                leaf.copy_(torch.from_numpy(value.copy()))


class DRN(nn.Module):
    """The primal network, dense: images of 0..255 at every scale, coarse to fine."""

    def __init__(self, scale: int, blocks: int, width: int) -> None:
        super().__init__()
        self.scale, self.phases = scale, scale.bit_length() - 1
        self.register_buffer("mean", torch.tensor(MEAN).reshape(1, 3, 1, 1))
        self.head = conv(3, width)
        for p in range(self.phases):
            setattr(self, f"down{p}", Halving(2**p * width, 2**p * width, 2 ** (p + 1) * width))
        wide = 2**self.phases * width
        self.tail0 = conv(wide, 3)
        for i in range(self.phases):
            out = 2 ** (self.phases - 1 - i) * width
            setattr(self, f"stage{i}", AttentionBlocks(*(AttentionBlock(wide) for _ in range(blocks))))
            setattr(self, f"up{i}", conv(wide, 4 * wide))
            setattr(self, f"project{i}", conv(wide, out, 1))
            setattr(self, f"tail{i + 1}", conv(2 * out, 3))
            wide = 2 * out

    def forward(self, image: Tensor) -> list[Tensor]:
        x = F.interpolate(image, scale_factor=self.scale, mode="bicubic")
        x, copies = self.head(x - self.mean), []
        for p in range(self.phases):
            copies.append(x)
            x = getattr(self, f"down{p}")(x)
        images = [self.tail0(x) + self.mean]
        for i in range(self.phases):
            x = F.pixel_shuffle(getattr(self, f"up{i}")(getattr(self, f"stage{i}")(x)), 2)
            x = torch.cat([getattr(self, f"project{i}")(x), copies.pop()], 1)
            images.append(getattr(self, f"tail{i + 1}")(x) + self.mean)
        return images


def make(config: Any, shapes: dict[str, tuple[int, ...]]) -> Peer:
    """Builds the dense network with its dual ones: the stages before a compression."""
    del shapes
    phases = config.scale.bit_length() - 1
    primal = DRN(config.scale, config.blocks, config.width)
    nets: dict[str, Any] = {"primal": primal}
    closed = config.dual_weight > 0
    if closed:
        names = [f"to{2**i}" for i in range(phases)]
        nets["dual"] = dual = nn.ModuleDict({name: Dual(config.dual_width or config.width) for name in names})

    def cut(batch: Any) -> list[Tensor]:
        """The images at every scale."""
        side, found = config.patch // config.scale, []
        for i in range(phases + 1):
            name = "image" if i == 0 else "target" if i == phases else f"image_x{2**i}"
            found.append(batch[name][:, :, : 2**i * side, : 2**i * side].float())
        return found

    def back(restored: list[Tensor], images: list[Tensor]) -> Tensor:
        """The dual loss."""
        pairs = zip(dual.values(), restored[1:], images[:-1], strict=True)
        return torch.stack([F.l1_loss(net(large), small) for net, large, small in pairs]).sum()

    def learn_dual(batch: Any, _: Any) -> tuple[Tensor, None]:
        images = cut(batch)
        return back(images, images), None

    def learn(batch: Any, _: Any) -> tuple[Tensor, None]:
        images = cut(batch)
        restored = primal(images[0])
        value = torch.stack([F.l1_loss(one, other) for one, other in zip(restored, images, strict=True)]).sum()
        if closed:
            value = value + config.dual_weight * back(restored, images)
        return value, None

    trained = ("primal", "dual") if closed and not config.freeze_dual else ("primal",)
    stages = {"training": (Move(learn, trained, adam(config.lr, config.betas)),)}
    if closed:
        stages["dual"] = (Move(learn_dual, ("dual",), adam(config.dual_lr, config.betas)),)
    return Peer(nets, stages)
