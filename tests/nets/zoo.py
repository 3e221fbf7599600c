"""Small networks of many families, in Flax's own layers, that no part of ophjax knows."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Plain(nn.Module):
    """Convolutions with BatchNorm, max-pools, a linear head."""

    classes: int = 3
    widths: tuple[int, ...] = (8, 16)

    @nn.compact
    def __call__(self, x, *, train):
        for i, width in enumerate(self.widths):
            x = nn.Conv(width, (3, 3), name=f"conv{i}")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, name=f"norm{i}")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(self.classes, name="head")(x.mean((1, 2)))


class ResNet(nn.Module):
    """Three residual blocks, the last two with a projection: 9 convolutions and 9 norms."""

    classes: int = 3
    width: int = 8
    block: Any = None

    @nn.compact
    def __call__(self, x, *, train):
        block = self.block or ResBlock
        x = nn.Conv(self.width, (3, 3), use_bias=False, name="stem")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="stem_norm")(x))
        for i in range(3):
            x = block(self.width * 2**i, 1 if i == 0 else 2, train, name=f"block{i}")(x)
        return nn.Dense(self.classes, name="head")(x.mean((1, 2)))


class ResBlock(nn.Module):
    width: int
    stride: int
    train: bool

    @nn.compact
    def __call__(self, x):
        def conv_norm(x, size, stride, name):
            x = nn.Conv(self.width, (size, size), (stride, stride), use_bias=False, name=name)(x)
            return nn.BatchNorm(use_running_average=not self.train, name=f"{name}_norm")(x)

        y = nn.relu(conv_norm(x, 3, self.stride, "conv1"))
        y = conv_norm(y, 3, 1, "conv2")
        if self.stride > 1:
            x = conv_norm(x, 1, self.stride, "project")
        return nn.relu(x + y)


class UNet(nn.Module):
    """Two levels with GroupNorm; up by ConvTranspose or by resizing."""

    classes: int = 2
    width: int = 8
    resize: bool = False

    @nn.compact
    def __call__(self, x):
        def double(x, width, name):
            for i in (1, 2):
                x = nn.Conv(width, (3, 3), name=f"{name}_conv{i}")(x)
                x = nn.relu(nn.GroupNorm(num_groups=4, name=f"{name}_norm{i}")(x))
            return x

        skips = []
        for i in (0, 1):
            skips.append(double(x, self.width * 2**i, f"down{i}"))
            x = nn.max_pool(skips[-1], (2, 2), (2, 2))
        x = double(x, self.width * 4, "middle")
        for i in (1, 0):
            if self.resize:
                x = jax.image.resize(x, (*skips[i].shape[:3], x.shape[-1]), "bilinear")
                x = nn.Conv(self.width * 2**i, (1, 1), name=f"up{i}")(x)
            else:
                x = nn.ConvTranspose(self.width * 2**i, (2, 2), (2, 2), name=f"up{i}")(x)
            x = double(jnp.concatenate([skips[i], x], -1), self.width * 2**i, f"merge{i}")
        return nn.Conv(self.classes, (1, 1), name="head")(x)


class ViT(nn.Module):
    """Patches, class token, positions, two blocks before whose parts LayerNorm stands."""

    classes: int = 3
    width: int = 16
    fused: bool = False

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(self.width, (4, 4), (4, 4), padding="VALID", name="patches")(x)
        x = x.reshape(len(x), -1, self.width)
        token = self.param("token", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, self.width)), x], 1)
        x = x + self.param("position", nn.initializers.normal(0.02), (1, x.shape[1], self.width))
        for i in range(2):
            y = nn.LayerNorm(name=f"norm{i}a")(x)
            if self.fused:
                query, key, value = jnp.split(nn.Dense(3 * self.width, name=f"qkv{i}")(y), 3, -1)
                scores = nn.softmax(jnp.einsum("bnd,bmd->bnm", query, key))
                y = nn.Dense(self.width, name=f"attend{i}")(jnp.einsum("bnm,bmd->bnd", scores, value))
            else:
                y = nn.MultiHeadDotProductAttention(4, deterministic=not train, name=f"attend{i}")(y)
            x = x + nn.Dropout(0.1, deterministic=not train)(y)
            y = nn.Dense(2 * self.width, name=f"expand{i}")(nn.LayerNorm(name=f"norm{i}b")(x))
            x = x + nn.Dense(self.width, name=f"contract{i}")(nn.gelu(y))
        return nn.Dense(self.classes, name="head")(nn.LayerNorm(name="norm")(x)[:, 0])


class DenseNet(nn.Module):
    """Two dense blocks of three layers and a transition with an average pool."""

    classes: int = 3
    growth: int = 4

    @nn.compact
    def __call__(self, x, *, train):
        def act(x, name):
            return nn.relu(nn.BatchNorm(use_running_average=not train, name=name)(x))

        x = nn.Conv(8, (3, 3), use_bias=False, name="stem")(x)
        for block in range(2):
            for i in range(3):
                y = nn.Conv(self.growth, (3, 3), use_bias=False, name=f"conv{block}{i}")(act(x, f"norm{block}{i}"))
                x = jnp.concatenate([x, y], -1)
            if block == 0:
                x = nn.Conv(8, (1, 1), use_bias=False, name="shrink")(act(x, "shrink_norm"))
                x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(self.classes, name="head")(act(x, "last_norm").mean((1, 2)))


class Mobile(nn.Module):
    """Two inverted bottlenecks with squeeze-and-excitation."""

    classes: int = 3

    @nn.compact
    def __call__(self, x, *, train):
        def norm(x, name):
            return nn.BatchNorm(use_running_average=not train, name=name)(x)

        x = nn.silu(norm(nn.Conv(8, (3, 3), (2, 2), use_bias=False, name="stem")(x), "stem_norm"))
        for i in range(2):
            y = nn.silu(norm(nn.Conv(16, (1, 1), use_bias=False, name=f"expand{i}")(x), f"expand_norm{i}"))
            y = nn.Conv(16, (3, 3), feature_group_count=16, use_bias=False, name=f"depthwise{i}")(y)
            y = nn.silu(norm(y, f"depthwise_norm{i}"))
            gate = nn.silu(nn.Dense(4, name=f"squeeze{i}")(y.mean((1, 2), keepdims=True)))
            y = y * nn.sigmoid(nn.Dense(16, name=f"excite{i}")(gate))
            x = x + norm(nn.Conv(8, (1, 1), use_bias=False, name=f"project{i}")(y), f"project_norm{i}")
        return nn.Dense(self.classes, name="head")(x.mean((1, 2)))


class ConvNeXt(nn.Module):
    """Two blocks: depthwise 7x7, LayerNorm, two linear layers, layer scale."""

    classes: int = 3
    width: int = 8

    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm(name="stem_norm")(nn.Conv(self.width, (4, 4), (4, 4), name="stem")(x))
        for i in range(2):
            y = nn.Conv(self.width, (7, 7), feature_group_count=self.width, name=f"depthwise{i}")(x)
            y = nn.gelu(nn.Dense(4 * self.width, name=f"expand{i}")(nn.LayerNorm(name=f"norm{i}")(y)))
            y = nn.Dense(self.width, name=f"contract{i}")(y)
            gamma = self.param(f"gamma{i}", nn.initializers.constant(1e-6), (self.width,))
            x = x + y * gamma[None, None, None]
        return nn.Dense(self.classes, name="head")(nn.LayerNorm(name="norm")(x.mean((1, 2))))


class Net3D(nn.Module):
    """Volumes: strided 3-D convolutions with InstanceNorm."""

    @nn.compact
    def __call__(self, x):
        for i in (0, 1):
            x = nn.Conv(4, (3, 5, 7), (2, 2, 2), name=f"conv{i}")(x)
            x = nn.relu(nn.InstanceNorm(name=f"norm{i}")(x))
        return nn.Dense(2, name="head")(x.mean((1, 2, 3)))


class Grouped(nn.Module):
    """A convolution in two groups, a dilated one, and a linear layer normalised by weight."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), name="stem")(x))
        x = nn.relu(nn.Conv(12, (3, 3), feature_group_count=2, name="grouped")(x))
        x = nn.relu(nn.Conv(8, (3, 3), kernel_dilation=(2, 2), name="dilated")(x))
        x = nn.relu(nn.WeightNorm(nn.Conv(6, (3, 3), name="normalised"), name="weight_norm")(x))
        return nn.Dense(2, name="head")(x.mean((1, 2)))


class Shared(nn.Module):
    """One block used twice."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), name="stem")(x)
        conv, norm = nn.Conv(8, (3, 3), name="shared"), nn.LayerNorm(name="norm")
        for _ in range(2):
            x = x + nn.relu(norm(conv(x)))
        return nn.Dense(2, name="head")(x.mean((1, 2)))


class TwoHeads(nn.Module):
    """A class and a mask."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), name="trunk")(x))
        return {"label": nn.Dense(3, name="label")(x.mean((1, 2))), "mask": nn.Conv(1, (1, 1), name="mask")(x)}


class Recurrent(nn.Module):
    """Rows as a sequence: a GRU, then a stack of linear layers in a scan."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, name="embed")(x.reshape(len(x), x.shape[1], -1))
        x = nn.RNN(nn.GRUCell(8, name="cell"), name="rnn")(x)[:, -1]

        def layer(dense, x, _):
            return nn.relu(dense(x)), None

        stack = nn.scan(layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = stack(nn.Dense(8, name="stack"), x, None)
        return nn.Dense(2, name="head")(x)


class Tokens(nn.Module):
    """Words: a table looked up, and used again for the output."""

    @nn.compact
    def __call__(self, words):
        table = nn.Embed(11, 8, name="words")
        x = nn.Dense(8, name="mix")(table(words))
        return table.attend(nn.LayerNorm(name="norm")(x))


class Fourier(nn.Module):
    """A learned complex filter of the spectrum, beside a composed kernel and an unused parameter."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), name="stem")(x)
        spectrum = jnp.fft.rfft2(x, axes=(1, 2))
        weight = self.param("filter", nn.initializers.ones, spectrum.shape[1:], jnp.complex64)
        x = x + jnp.fft.irfft2(spectrum * weight[None], x.shape[1:3], axes=(1, 2))
        self.param("unused", nn.initializers.ones, (3,))
        low = [self.param(name, nn.initializers.lecun_normal(), shape) for name, shape in _LOW]
        return nn.Dense(2, name="head")((x @ (low[0] @ low[1])).mean((1, 2)))


_LOW = (("down", (4, 2)), ("up", (2, 4)))

IMAGE = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
VOLUME = jax.ShapeDtypeStruct((2, 16, 16, 16, 1), jnp.float32)
WORDS = jax.ShapeDtypeStruct((2, 5), jnp.int32)

ZOO = {
    "plain": (Plain(), IMAGE),
    "resnet": (ResNet(), IMAGE),
    "unet": (UNet(), IMAGE),
    "unet-resize": (UNet(resize=True), IMAGE),
    "vit": (ViT(), IMAGE),
    "vit-fused": (ViT(fused=True), IMAGE),
    "densenet": (DenseNet(), IMAGE),
    "mobile": (Mobile(), IMAGE),
    "convnext": (ConvNeXt(), IMAGE),
    "3d": (Net3D(), VOLUME),
    "grouped": (Grouped(), IMAGE),
    "shared": (Shared(), IMAGE),
    "two-heads": (TwoHeads(), IMAGE),
    "recurrent": (Recurrent(), IMAGE),
    "tokens": (Tokens(), WORDS),
    "fourier": (Fourier(), IMAGE),
}
"""Name: a network and what it is called with."""
