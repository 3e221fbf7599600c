"""Classifiers that also give the feature their linear head reads: the trunk's maps, averaged over positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from ophjax.errors import unknown
from ophjax.nets.conv import Conv
from ophjax.nets.resnet import ResNet
from ophjax.nets.vit import VisionTransformer

if TYPE_CHECKING:
    from jaxtyping import Array, Float

TRUNKS = ("resnet", "plain")


class PlainTrunk(nn.Module):
    """3x3 convolutions of stride 2, each with a ReLU and no norm; ``width``, 2, 4, ... times as many channels."""

    width: int = 16
    levels: int = 3
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        for i in range(self.levels):
            conv = Conv(
                self.width * 2**i,
                stride=2,
                kernel_init=nn.initializers.he_normal(),
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=f"conv{i + 1}",
            )
            x = nn.relu(conv(x))
        return x


class PooledClassifier(nn.Module):
    """A trunk, the average over positions (of a vision transformer the class token), and one linear layer.

    Attributes:
      classes: number of logits.
      trunk: ``"resnet"``, ``"plain"`` (``PlainTrunk``, for small images; only ``width`` matters to it), or ``"vit"``.
      depth, width, stem_kind, norm: of the ResNet.
      vit: patch, width and depth of the vision transformer, whose heads have 64 numbers each (one head below that). It
        is given half of ``x``: centred images (``augment.centred``) then are in [-1, 1], as timm gives them to its own.
      projection: the feature that is given out beside the logits passes through a linear layer to this many numbers;
        None gives it out as it is. The logits always come from the feature itself.
    """

    classes: int
    trunk: str = "resnet"
    depth: int = 50
    width: int = 64
    stem_kind: str = "imagenet"
    norm: str = "batch"
    vit: tuple[int, int, int] = (16, 384, 12)
    projection: int | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> tuple[Float[Array, "b classes"], Float[Array, "b d"]]:
        """Returns logits and the feature, both float32."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = x.astype(self.dtype)
        if self.trunk == "resnet":
            backbone = ResNet(self.classes, self.depth, self.width, self.stem_kind, self.norm, name="backbone", **types)
            x = backbone.stem(x, train=train)
            for level in (1, 2, 3, 4):
                x = backbone.stage(level, x, train=train)
            feature, logits = x.astype(jnp.float32).mean((1, 2)), backbone.head(x)
        elif self.trunk == "plain":
            feature = PlainTrunk(self.width, name="backbone", **types)(x).astype(jnp.float32).mean((1, 2))
            logits = self._linear(self.classes, "linear")(feature)
        elif self.trunk == "vit":
            patch, width, depth = self.vit
            sizes = (None, patch, width, depth, max(1, width // 64))
            feature = VisionTransformer(*sizes, name="backbone", **types)(x / 2).astype(jnp.float32)
            logits = self._linear(self.classes, "linear")(feature)
        else:
            raise unknown("trunk", self.trunk, (*TRUNKS, "vit"))
        if self.projection is not None:
            feature = self._linear(self.projection, "projection")(feature)
        return logits, feature

    def _linear(self, features: int, name: str) -> nn.Module:
        return nn.Dense(features, dtype=jnp.float32, param_dtype=self.param_dtype, name=name)
