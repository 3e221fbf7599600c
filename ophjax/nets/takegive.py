"""The Take-and-Give segmentation network of DiFF: a diagnosis branch's features steer the segmentation's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ophjax.nets.blocks import crop_to, pad_to_multiple
from ophjax.nets.conv import Conv, ConvTranspose2x2
from ophjax.nets.resnet import ResNet
from ophjax.nets.stage import AttentionStage
from ophjax.nets.unet import DecoderBlock

if TYPE_CHECKING:
    from jaxtyping import Array, Float

TAKE_HEADS = (1, 2, 4, 8)
"""Heads of Take at strides 2, 4, 8, 16."""
GIVE_HEADS = (8, 4, 2, 1)
"""Heads of Give at strides 16, 8, 4, 2."""


class TakeAndGiveNet(nn.Module):
    """Take and Give (diff spec, section (c)4).

    A ResNet encodes the image (taps p at strides 2, 4, 8, 16 and a bottleneck at 32); a coarse decoder makes one map
    of it. A second ResNet, the diagnosis branch, reads the image and that map *as a probability* (the released code
    gives it the logit, which its pretraining never saw) and has taps d of the same sizes. Take: p asks d, by an
    attention stage for each stride: t. Give: at each level of the segmentation decoder, a 1x1 convolution of t asks
    the decoder's map. A last transposed convolution gives the logits.

    Returns ``(logits [b, h, w, regions], coarse [b, h, w, 1])``, float32. Images of any size are padded to a multiple
    of 32 by repeating their edge, and the maps cropped.

    Attributes:
      regions: number of output channels.
      depth, width, norm: of both ResNets.
      decoder: channels of each half of a decoder block.
      take: False: no diagnosis branch; t is p itself (ablation).
      give: False: the decoder has no attention; t replaces p as its skip (ablation, our decision).
      tokens: most tokens down and across of an attention, see ``AttentionStage``.
      drop_path: probability of leaving a residual branch of an attention stage out.
    """

    regions: int
    depth: int = 34
    width: int = 64
    decoder: int = 128
    take: bool = True
    give: bool = True
    tokens: int = 32
    drop_path: float = 0.05
    norm: str = "batch"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> tuple[Float[Array, "b h w regions"], Float[Array, "b h w 1"]]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        resnet = {"depth": self.depth, "width": self.width, "norm": self.norm, **types}
        stage = {"tokens": self.tokens, "drop_path": self.drop_path, **types}

        def taps(net: ResNet, seen: Array) -> list[Array]:
            """Outputs of the stem and of stages 1 to 3."""
            found = [net.stem(seen.astype(self.dtype), train=train)]
            for level in (1, 2, 3):
                found.append(net.stage(level, found[-1], train=train))
            return found

        def decode(i: int, y: Array, skip: Array, name: str) -> Array:
            return DecoderBlock(self.decoder, self.norm, name=f"{name}{i + 1}", **types)(y, skip, train=train)

        height, columns = x.shape[1:3]
        x = pad_to_multiple(x, 32)
        encoder = ResNet(**resnet, name="encoder")
        p = taps(encoder, x)
        bottleneck = encoder.stage(4, p[3], train=train)

        y = bottleneck
        for i, skip in enumerate(p[::-1]):
            y = decode(i, y, skip, "coarse")
        coarse = ConvTranspose2x2(1, name="coarse_head", **types)(y).astype(jnp.float32)

        t = p
        if self.take:
            branch = ResNet(**resnet, name="branch")
            d = taps(branch, jnp.concatenate([x, jax.nn.sigmoid(coarse).astype(x.dtype)], -1))
            t = [
                AttentionStage(heads, name=f"take{i + 1}", **stage)(asking, asked, train=train)
                for i, (heads, asking, asked) in enumerate(zip(TAKE_HEADS, p, d, strict=True))
            ]

        y = bottleneck
        for i, (heads, skip, taken) in enumerate(zip(GIVE_HEADS, p[::-1], t[::-1], strict=True)):
            y = decode(i, y, skip if self.give else taken, "decoder")
            if self.give:
                query = Conv(2 * self.decoder, 1, name=f"give{i + 1}_query", **types)(taken)
                y = AttentionStage(heads, name=f"give{i + 1}", **stage)(query, y, train=train)
        logits = ConvTranspose2x2(self.regions, name="head", **types)(y).astype(jnp.float32)
        return crop_to(logits, height, columns), crop_to(coarse, height, columns)
