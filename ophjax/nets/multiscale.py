"""The networks of M2DAN: a trunk with a multi-scale module, a label head and domain critics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from ophjax.errors import unknown
from ophjax.nets.blocks import make_norm
from ophjax.nets.conv import Conv
from ophjax.nets.pooled import TRUNKS, PlainTrunk
from ophjax.nets.resnet import ResNet
from ophjax.nets.transformer import pool_to

if TYPE_CHECKING:
    from jaxtyping import Array, Float

FUSIONS = ("concat", "sum", "attention")


class MultiScale(nn.Module):
    """Parallel branches with receptive fields of several sizes, and their fusion (M2DAN, our decision).

    Branch j: 1x1 convolution to ``width``, then ``kernels[j]`` x ``kernels[j]``, each with norm and ReLU. Fusion: the
    branches side by side ("concat"), their sum, or their mean by weights that a softmax draws from the pooled
    sum ("attention"); then a 1x1 convolution to ``features``, norm, ReLU. Returns the fused map [b, h, w, features] and
    the branch maps [b, h, w, width].

    Attributes:
      kernels: side of each branch's convolution.
      width: channels of a branch.
      features: channels of the fused map.
      fusion: one of ``FUSIONS``.
      squeeze: squeeze-and-excitation on each branch, with a quarter of its channels.
    """

    kernels: tuple[int, ...] = (3, 5, 7)
    width: int = 256
    features: int = 256
    fusion: str = "concat"
    squeeze: bool = False
    norm: str = "batch"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, maps: Sequence[Float[Array, "b h w c"]], *, train: bool
    ) -> tuple[Float[Array, "b h w f"], list[Float[Array, "b h w d"]]]:
        """Takes one map for each branch (the same one several times, or one from each level of a pyramid)."""
        if self.fusion not in FUSIONS:
            raise unknown("fusion of scales", self.fusion, FUSIONS)
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def layer(x: Array, channels: int, size: int, name: str) -> Array:
            x = Conv(channels, size, use_bias=self.norm == "none", name=name, **types)(x)
            return nn.relu(make_norm(self.norm, channels, train=train, name=f"{name}_norm", **types)(x))

        branches: list[Array] = []
        for x, size in zip(maps, self.kernels, strict=True):
            number = len(branches) + 1
            x = layer(layer(x, self.width, 1, f"reduce{number}"), self.width, size, f"branch{number}")
            if self.squeeze:
                gate = nn.relu(nn.Dense(max(self.width // 4, 1), name=f"squeeze{number}", **types)(x.mean((1, 2))))
                gate = nn.sigmoid(nn.Dense(self.width, name=f"excite{number}", **types)(gate))
                x = x * gate[:, None, None]
            branches.append(x)
        stacked = jnp.stack(branches)
        if self.fusion == "concat":
            joined = jnp.concatenate(branches, -1)
        elif self.fusion == "sum":
            joined = stacked.sum(0)
        else:
            scores = nn.Dense(len(branches), name="attend", **types)(stacked.sum(0).mean((1, 2)))
            weights = nn.softmax(scores.astype(jnp.float32), -1).astype(stacked.dtype)
            joined = jnp.einsum("sbhwd,bs->bhwd", stacked, weights)
        return layer(joined, self.features, 1, "fuse"), branches


class MultiScaleNet(nn.Module):
    """A trunk under a multi-scale module: ``(features [b, f], branches [s, b, d])``, both float32.

    Each vector is the mean of its map over positions, then, with ``normalised``, a LayerNorm without parameters. That
    LayerNorm is not from the paper: without it the critic wins and adaptation harms (M2DAN spec, section (k)).

    Attributes:
      trunk: "resnet", or "plain" (``PlainTrunk``, for small images, without norms: there only width and levels matter).
      depth, width, stem_kind: of the ``ResNet``.
      levels: how many of its four stages are used (small images need less), or convolutions of the plain trunk.
      norm: of the ResNet and the multi-scale module.
      kernels, branch_width, features, fusion, squeeze: see ``MultiScale``.
      pyramid: the branches take the outputs of the last stages, one each, pooled to the size of the last, instead
        of all taking the last.
      normalised: LayerNorm on every vector.
    """

    trunk: str = "resnet"
    depth: int = 18
    width: int = 64
    stem_kind: str = "imagenet"
    levels: int = 4
    norm: str = "batch"
    kernels: tuple[int, ...] = (3, 5, 7)
    branch_width: int = 256
    features: int = 256
    fusion: str = "concat"
    squeeze: bool = False
    pyramid: bool = False
    normalised: bool = True
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> tuple[Float[Array, "b f"], Float[Array, "s b d"]]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = x.astype(self.dtype)
        if self.trunk == "plain":
            maps = [PlainTrunk(self.width, self.levels, name="trunk", **types)(x)]
        elif self.trunk == "resnet":
            trunk = ResNet(1, self.depth, self.width, self.stem_kind, self.norm, name="trunk", **types)
            x = trunk.stem(x, train=train)
            maps = [x := trunk.stage(level, x, train=train) for level in range(1, self.levels + 1)]
        else:
            raise unknown("trunk", self.trunk, TRUNKS)
        count, size = len(self.kernels), maps[-1].shape[1:3]
        taken = [pool_to(one, *size) for one in maps[-count:]] if self.pyramid else [maps[-1]] * count
        module = MultiScale(
            self.kernels, self.branch_width, self.features, self.fusion, self.squeeze, self.norm, name="scales", **types
        )
        fused, branches = module(taken, train=train)

        vectors = [one.astype(jnp.float32).mean((1, 2)) for one in (fused, *branches)]
        if self.normalised:
            norm = nn.LayerNorm(use_bias=False, use_scale=False, name="norm")
            vectors = [norm(vector) for vector in vectors]
        return vectors[0], jnp.stack(vectors[1:])


class LabelHead(nn.Module):
    """One linear layer to the logits, in float32."""

    outputs: int

    @nn.compact
    def __call__(self, x: Float[Array, "b f"]) -> Float[Array, "b k"]:
        return nn.Dense(self.outputs, name="linear")(x)


class Critic(nn.Module):
    """Two hidden layers with ReLU and no norm, which could read the domain from a batch's statistics; float32."""

    outputs: int
    width: int = 1024

    @nn.compact
    def __call__(self, x: Float[Array, "b f"]) -> Float[Array, "b n"]:
        for i in (1, 2):
            x = nn.relu(nn.Dense(self.width, name=f"hidden{i}")(x))
        return nn.Dense(self.outputs, name="logits")(x)


class Critics(nn.Module):
    """A critic on the fused vector, one on the vector of each branch, or both: logits [heads, b, outputs].

    Attributes:
      align: "fused", "branches" or "both".
      outputs, width: of each ``Critic``.
    """

    outputs: int
    align: str = "both"
    width: int = 1024

    @nn.compact
    def __call__(self, features: Float[Array, "b f"], branches: Float[Array, "s b d"]) -> Float[Array, "m b n"]:
        found = []
        if self.align in ("fused", "both"):
            found.append(Critic(self.outputs, self.width, name="fused")(features)[None])
        if self.align in ("branches", "both"):
            # The critics of the branches have their own parameters and one compiled body.
            many = nn.vmap(Critic, variable_axes={"params": 0}, split_rngs={"params": True})
            found.append(many(self.outputs, self.width, name="branches")(branches))
        return jnp.concatenate(found)
