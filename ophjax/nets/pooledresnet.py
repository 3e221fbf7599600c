"""A residual network under linear layers, as the official baselines of GAMMA and GOALS have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from ophjax.nets.resnet import ResNet

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def pooled(net: ResNet, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b f"]:
    """Computes a ResNet's features averaged over positions, in float32; its own head is not built."""
    x = net.stem(x, train=train)
    for level in (1, 2, 3, 4):
        x = net.stage(level, x, train=train)
    return x.astype(jnp.float32).mean((1, 2))


class PooledResNet(nn.Module):
    """ResNet, average, linear layers; returns float32 [b, outputs].

    There is no activation between the hidden layers, as in the baselines: GOALS spec, section (c) C2 (ResNet-50, hidden
    1024, 2 outputs: 25,608,258 parameters); GAMMA spec, section (c) C2 (hidden 512 and 256, a ReLU, dropout, 2 outputs:
    24,688,962).

    Attributes:
      outputs: number of outputs.
      hidden: widths of the linear layers before the last.
      relu: a ReLU before the last layer.
      dropout: before the last layer, drawn from the stream "dropout" when ``train``.
      depth, width, stem_kind, norm: see ``ResNet``.
    """

    outputs: int
    hidden: tuple[int, ...] = ()
    relu: bool = False
    dropout: float = 0.0
    depth: int = 50
    width: int = 64
    stem_kind: str = "imagenet"
    norm: str = "batch"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b outputs"]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        trunk = ResNet(
            depth=self.depth, width=self.width, stem_kind=self.stem_kind, norm=self.norm, name="trunk", **types
        )
        features = pooled(trunk, x, train=train)
        for i, width in enumerate(self.hidden, 1):
            features = nn.Dense(width, param_dtype=self.param_dtype, name=f"hidden{i}")(features)
        if self.relu:
            features = nn.relu(features)
        if self.dropout:
            features = nn.Dropout(self.dropout, deterministic=not train)(features)
        return nn.Dense(self.outputs, param_dtype=self.param_dtype, name="head")(features)
