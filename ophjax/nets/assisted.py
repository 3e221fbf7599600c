"""A ResNet whose early features are steered by another net's features (SeATrans)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from ophjax.nets.resnet import ResNet
from ophjax.nets.transformer import SeAFusion, token_grid

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Float


class AssistedResNet(nn.Module):
    """A diagnosis ResNet with SeA-blocks after some of its stages (BUILD_NOTES.md, SeATrans).

    With an empty ``pairing`` it is the plain ResNet; with any pairing it gives the plain ResNet's logits exactly
    when it is initialised, since every SeA-block begins as the identity.

    Attributes:
      outputs: number of logits.
      depth, width, stem_kind, norm: of the ResNet.
      pairing: for each steered stage (1 to 3), the positions in ``features`` of the scales it meets, in order.
      heads: of every attention after stages 1, 2 and 3.
      token_width: channels of the tokens; None takes the stage's own.
      tokens, scale_fusion, block, encoder_query, ratio, drop_path: of the SeA-blocks, see ``SeAFusion``.
    """

    outputs: int = 1
    depth: int = 34
    width: int = 64
    stem_kind: str = "imagenet"
    norm: str = "batch"
    pairing: tuple[tuple[int, tuple[int, ...]], ...] = ()
    heads: tuple[int, int, int] = (2, 4, 8)
    token_width: int | None = None
    tokens: int = 16
    scale_fusion: str = "sequential"
    block: str = "sea"
    encoder_query: str = "seg"
    ratio: float = 3
    drop_path: float = 0.05
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], features: Sequence[Float[Array, "b i j s"]], *, train: bool
    ) -> tuple[Float[Array, "b outputs"], dict[str, Float[Array, "b i j"]]]:
        """Returns logits, and for each steered stage ``stage1``, ... where its tokens are looked for.

        That map is the attention on the diagnosis tokens that the encoders' segmentation queries pay, averaged
        over heads, queries and scales; where the encoder does not read diagnosis tokens it is empty.
        """
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        backbone = ResNet(self.outputs, self.depth, self.width, self.stem_kind, self.norm, name="backbone", **types)
        met = dict(self.pairing)
        maps = {}
        x = backbone.stem(x.astype(self.dtype), train=train)
        for level in (1, 2, 3, 4):
            x = backbone.stage(level, x, train=train)
            if level not in met:
                continue
            x, seen = SeAFusion(
                heads=self.heads[level - 1],
                width=self.token_width,
                tokens=self.tokens,
                scale_fusion=self.scale_fusion,
                block=self.block,
                encoder_query=self.encoder_query,
                ratio=self.ratio,
                drop_path=self.drop_path,
                name=f"fusion{level}",
                **types,
            )(x, [features[scale] for scale in met[level]], train=train)
            encoders = [attention for one in seen for attention in one.encoder]
            if encoders and self.encoder_query == "seg":
                looked = jnp.stack([attention.mean((1, 2)) for attention in encoders]).mean(0)
                maps[f"stage{level}"] = looked.reshape(-1, *token_grid(*x.shape[1:3], tokens=self.tokens))
        return backbone.head(x), maps
