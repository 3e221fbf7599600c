"""The critic that bounds mutual information: features of the same place in two images, in a space of their own."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ophjax.errors import InputError, unknown
from ophjax.keys import at
from ophjax.nets.conv import Conv, conv2d
from ophjax.transforms.centroids import normalise

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from ophjax.types import Key

BLOCKS = 6
TAPS = ("pixels", "stem", "down1", "down2", *(f"res{i}" for i in range(1, BLOCKS + 1)))
"""Places of the encoder where features can be taken, from the image inwards."""

_normal = nn.initializers.normal(0.02)


class ReflectConv(nn.Module):
    """A convolution without bias that sees the image mirrored beyond its border."""

    features: int
    size: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        kernel = self.param("kernel", _normal, (self.size, self.size, x.shape[-1], self.features))
        return conv2d(reflect(x.astype(self.dtype), self.size // 2), kernel.astype(self.dtype), padding=0)


class PatchEncoder(nn.Module):
    """The encoder of CUT (Park et al., 2020), down to its residual blocks; gives the features at the named taps.

    ``pixels``: the image, mirrored by 3 pixels beyond its border. ``stem``: 7x7 convolution and instance norm.
    ``down1``, ``down2``: 3x3 convolutions to 2 and 4 times the channels, before their norms, at full and at half
    resolution; each is followed by norm, ReLU and a blur of stride 2. ``res1`` to ``res6``: residual blocks at a
    quarter of the resolution. Instance norms have no parameters. Convolutions whose norm follows before any tap have no
    bias, which the norm would take off again (our decision). What lies behind the last tap is not built.

    Attributes:
      taps: some of ``TAPS``.
      width: channels of the stem.
    """

    taps: tuple[str, ...] = ("pixels", "stem", "down1", "down2", "res1")
    width: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> dict[str, Float[Array, "b i j d"]]:
        for tap in self.taps:
            if tap not in TAPS:
                raise unknown("tap of the critic", tap, TAPS)
        depth = max(TAPS.index(tap) for tap in self.taps)
        norm = nn.InstanceNorm(use_bias=False, use_scale=False, epsilon=1e-5, dtype=self.dtype, name="norm")
        found = {"pixels": reflect(x, 3)}
        if depth >= 1:
            found["stem"] = norm(ReflectConv(self.width, 7, self.dtype, name="stem")(x))
            x = nn.relu(found["stem"])
        for i in (1, 2):
            if depth > i:
                conv = Conv(self.width * 2**i, kernel_init=_normal, dtype=self.dtype, name=f"down{i}")
                found[f"down{i}"] = conv(x)
                x = blur_down(nn.relu(norm(found[f"down{i}"])))
        for i in range(1, depth - 2):
            y = nn.relu(norm(ReflectConv(x.shape[-1], 3, self.dtype, name=f"res{i}a")(x)))
            found[f"res{i}"] = x = x + norm(ReflectConv(x.shape[-1], 3, self.dtype, name=f"res{i}b")(y))
        return {tap: found[tap] for tap in self.taps}


class PatchProjector(nn.Module):
    """Two linear layers with a ReLU between them for each tap, then length 1, in float32."""

    features: int = 256

    @nn.compact
    def __call__(self, taps: dict[str, Float[Array, "b n c"]]) -> dict[str, Float[Array, "b n d"]]:
        found = {}
        for tap, x in taps.items():
            x = nn.relu(nn.Dense(self.features, kernel_init=_normal, name=f"{tap}1")(x.astype(jnp.float32)))
            found[tap] = normalise(nn.Dense(self.features, kernel_init=_normal, name=f"{tap}2")(x))
        return found


class PatchCritic(nn.Module):
    """Encoder and projector: unit vectors [b, n, d] of n random places at each tap.

    The places are drawn from the key, without repetition, and are the same for all images of the call; equal keys give
    equal places. Two equal places would be false negatives of each other.

    Attributes:
      taps, width: of ``PatchEncoder``.
      features: length of the vectors.
      patches: places at each tap.
    """

    taps: tuple[str, ...] = ("pixels", "stem", "down1", "down2", "res1")
    width: int = 32
    features: int = 256
    patches: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], key: Key) -> dict[str, Float[Array, "b n d"]]:
        maps = PatchEncoder(self.taps, self.width, self.dtype, name="encoder")(x)
        check_patches(self.patches, maps.values(), x.shape[1:3])
        taken = {}
        for tap, y in maps.items():
            places = jax.random.permutation(at(key, tap), y.shape[1] * y.shape[2])[: self.patches]
            taken[tap] = y.reshape(len(y), -1, y.shape[-1])[:, places]
        return PatchProjector(self.features, name="projector")(taken)


def check_patches(patches: int, maps: Collection[Array], image: tuple[int, ...]) -> None:
    """Raises InputError where a map has fewer places than are to be drawn."""
    fewest = min(y.shape[1] * y.shape[2] for y in maps)
    if patches > fewest:
        raise InputError(
            f"{patches} places are to be drawn at each tap of the critic, but on images of {image[0]} x {image[1]} the "
            f"smallest tap has {fewest}. Draw at most {fewest} (--method.patches), or give larger images."
        )


def reflect(x: Float[Array, "b h w c"], margin: int) -> Float[Array, "b i j c"]:
    """Mirrors images beyond their border, the border itself not repeated."""
    return jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="reflect")


def blur_down(x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
    """Halves the resolution after a blur by (1, 2, 1) / 4 in both directions (Zhang, 2019)."""
    x = reflect(x, 1)
    x = 0.25 * x[:, :-2:2] + 0.5 * x[:, 1:-1:2] + 0.25 * x[:, 2::2]
    return 0.25 * x[:, :, :-2:2] + 0.5 * x[:, :, 1:-1:2] + 0.25 * x[:, :, 2::2]
