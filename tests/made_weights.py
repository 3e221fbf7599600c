"""Random tensors under the names that torchvision and timm give them."""

import numpy as np

from ophjax.nets.resnet import DEPTHS


class Draw:
    """Random tensors under PyTorch's names, as they are asked for."""

    def __init__(self):
        self.rng = np.random.default_rng(0)
        self.tensors = {}

    def conv(self, name, out, channels, size, bias=False):
        scale = np.sqrt(2 / (channels * size * size))
        self.tensors[f"{name}.weight"] = self.rng.normal(0, scale, (out, channels, size, size)).astype(np.float32)
        if bias:
            self.tensors[f"{name}.bias"] = self.rng.normal(0, 0.1, out).astype(np.float32)

    def norm(self, name, channels):
        for leaf, low, high in (("weight", 0.5, 1.5), ("bias", -0.5, 0.5), ("running_mean", -0.5, 0.5),
                                ("running_var", 0.5, 1.5)):  # fmt: skip
            self.tensors[f"{name}.{leaf}"] = self.rng.uniform(low, high, channels).astype(np.float32)
        self.tensors[f"{name}.num_batches_tracked"] = np.array(7)


def draw_resnet(depth, width):
    draw = Draw()
    blocks, expansion = DEPTHS[depth]
    draw.conv("conv1", width, 3, 7)
    draw.norm("bn1", width)
    channels = width
    for stage, count in enumerate(blocks, 1):
        inner = width * 2 ** (stage - 1)
        for block in range(count):
            name = f"layer{stage}.{block}"
            sizes = [(inner, 3), (inner, 3)] if expansion == 1 else [(inner, 1), (inner, 3), (4 * inner, 1)]
            before = channels
            for k, (features, size) in enumerate(sizes, 1):
                draw.conv(f"{name}.conv{k}", features, before, size)
                draw.norm(f"{name}.bn{k}", features)
                before = features
            if block == 0 and (stage > 1 or channels != before):
                draw.conv(f"{name}.downsample.0", before, channels, 1)
                draw.norm(f"{name}.downsample.1", before)
            channels = before
    draw.tensors["fc.weight"], draw.tensors["fc.bias"] = np.zeros((1000, channels)), np.zeros(1000)
    return draw.tensors


def draw_vit(*, patch, width, depth, heads, side):
    """A vision transformer under timm's names whose patches lie on a grid of ``side`` by ``side``."""
    del heads
    draw = Draw()

    def linear(name, out, inputs):
        draw.conv(name, out, inputs, 1, bias=True)
        draw.tensors[f"{name}.weight"] = draw.tensors[f"{name}.weight"][:, :, 0, 0]

    def norm(name):
        draw.tensors[f"{name}.weight"] = draw.rng.uniform(0.5, 1.5, width).astype(np.float32)
        draw.tensors[f"{name}.bias"] = draw.rng.uniform(-0.5, 0.5, width).astype(np.float32)

    draw.tensors["cls_token"] = draw.rng.normal(0, 1, (1, 1, width)).astype(np.float32)
    draw.tensors["pos_embed"] = draw.rng.normal(0, 1, (1, 1 + side * side, width)).astype(np.float32)
    draw.conv("patch_embed.proj", width, 3, patch, bias=True)
    for i in range(depth):
        norm(f"blocks.{i}.norm1")
        linear(f"blocks.{i}.attn.qkv", 3 * width, width)
        linear(f"blocks.{i}.attn.proj", width, width)
        norm(f"blocks.{i}.norm2")
        linear(f"blocks.{i}.mlp.fc1", 4 * width, width)
        linear(f"blocks.{i}.mlp.fc2", width, 4 * width)
    norm("norm")
    linear("head", 10, width)
    return draw.tensors
