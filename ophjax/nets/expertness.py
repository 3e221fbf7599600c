"""Expertness maps as functions of few or many free numbers: one instance describes the raters of one image.

All three give free numbers [height, width, raters], of which ``transforms.expertise.expertness`` makes weights. Each
image has parameters of its own: ``jax.vmap`` over keys makes those of many images, and over parameters applies them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ophjax.errors import unknown

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# Normal with variance 1 / inputs.
_normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


@jax.custom_jvp
def arctan(x: Array) -> Array:
    """Computes the arc tangent to 2e-7, seventeen times faster than XLA does on CPUs, where it dominated the search.

    Cephes' way: the argument is brought into [-tan(pi/8), tan(pi/8)], where a polynomial of degree 9 is exact enough.
    """
    size = jnp.abs(x)
    far, middle = size > 2.4142135, size > 0.41421357
    t = jnp.where(far, -1 / jnp.maximum(size, 1.0), jnp.where(middle, (size - 1) / (size + 1), size))
    base = jnp.where(far, np.pi / 2, jnp.where(middle, np.pi / 4, 0.0)).astype(x.dtype)
    z = t * t
    odd = ((8.05374449538e-2 * z - 1.38776856032e-1) * z + 1.99777106478e-1) * z - 3.33329491539e-1
    return jnp.sign(x) * (base + odd * z * t + t)


arctan.defjvps(lambda tangent, _, x: tangent / (1 + x * x))


class _Affine(nn.Module):
    """The parameters of a pointwise layer, as ``flax.linen.Dense`` has them."""

    inputs: int
    outputs: int
    kernel_init: Any = _normal

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", self.kernel_init, (self.inputs, self.outputs))
        return kernel, self.param("bias", nn.initializers.zeros, (self.outputs,))


class ExpG(nn.Module):
    """The expertness generator: a coordinate network (CPPN) whose maps are smooth (diff spec, section (c)2).

    Coordinates in [-sqrt 3, sqrt 3]^2 pass through ``layers - 1`` pointwise layers, each followed by
    a(h) = [atan(h) / 0.67, atan(h)^2 / 0.6], and a last one to the raters. That one begins at zero: all are equal.
    Channels lie in rows and pixels in columns. Of a larger image the pixels go block by block, each computed again for
    the gradient, so that nothing but the maps themselves is as large as the image.

    Attributes:
      raters: number of maps.
      hidden: outputs of a layer, doubled by the activation.
      layers: number of layers, the last one included.
      block: pixels in a block (of each image, under ``vmap``); 4096 are the fastest for 2 to 16 images on a CPU.
    """

    raters: int
    hidden: int = 24
    layers: int = 8
    block: int = 4096

    @nn.compact
    def __call__(self, height: int, width: int) -> Float[Array, "height width raters"]:
        sizes = [2, *[2 * self.hidden] * (self.layers - 1)]
        affine = [_Affine(n, self.hidden, name=f"layer{i}")() for i, n in enumerate(sizes[:-1], 1)]
        affine += [_Affine(sizes[-1], self.raters, nn.initializers.zeros, name=f"layer{self.layers}")()]

        def maps(x: jax.Array) -> jax.Array:
            """Maps [raters, p] at the coordinates [2, p] of some pixels."""
            for kernel, bias in affine[:-1]:
                x = arctan(kernel.T @ x + bias[:, None])
                x = jnp.concatenate([x / 0.67, x * x / 0.6])
            kernel, bias = affine[-1]
            return kernel.T @ x + bias[:, None]

        ends, pixels = 3**0.5, height * width
        v, u = jnp.meshgrid(jnp.linspace(-ends, ends, height), jnp.linspace(-ends, ends, width), indexing="ij")
        places = jnp.stack([u.ravel(), v.ravel()])
        if pixels <= self.block:
            found = maps(places)
        else:
            blocks = jnp.pad(places, ((0, 0), (0, -pixels % self.block))).reshape(2, -1, self.block)
            each = jax.lax.map(jax.checkpoint(maps), blocks.swapaxes(0, 1))
            found = each.swapaxes(0, 1).reshape(self.raters, -1)[:, :pixels]
        return found.T.reshape(height, width, self.raters)


class PixelMaps(nn.Module):
    """A free number for each rater and pixel, for the ablation; begins at N(0, 0.01^2)."""

    raters: int

    @nn.compact
    def __call__(self, height: int, width: int) -> Float[Array, "height width raters"]:
        return self.param("pixels", nn.initializers.normal(0.01), (height, width, self.raters))


class FourierMaps(nn.Module):
    """A free spectrum for each rater, for the ablation: scaled by 1 / frequency, transformed back, divided by 4.

    The least frequency that divides is one over the longer side, as the mean's own is zero. Begins at N(0, 0.01^2).
    """

    raters: int

    @nn.compact
    def __call__(self, height: int, width: int) -> Float[Array, "height width raters"]:
        rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
        scale = 1 / np.maximum(np.hypot(rows, columns), 1 / max(height, width))
        init = nn.initializers.normal(0.01)
        parts: Any = self.param("spectrum", init, (2, *scale.shape, self.raters))
        spectrum = (parts[0] + 1j * parts[1]) * jnp.asarray(scale[..., None], jnp.float32)
        return jnp.fft.irfft2(spectrum, s=(height, width), axes=(0, 1), norm="ortho") / 4


def make_maps(kind: str, raters: int, *, hidden: int) -> nn.Module:
    """Builds one of the three, ``"expg"`` with its width."""
    kinds = {"expg": ExpG(raters, hidden), "pixel": PixelMaps(raters), "fourier": FourierMaps(raters)}
    if kind not in kinds:
        raise unknown("parametrisation", kind, tuple(kinds))
    return kinds[kind]
