"""Networks that give an image another look: the learnt domain synthesizer of ADS, and random ones (GIN, RandConv)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from ophjax.keys import at
from ophjax.nets.conv import conv2d, conv_each

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from ophjax.types import Key

_xavier = nn.initializers.glorot_uniform()


def standardise(weight: Float[Array, ...]) -> Float[Array, ...]:
    """Shifts and scales a whole tensor to mean 0 and standard deviation 1 (n - 1), both without a gradient.

    Trained weights then always look like draws from N(0, 1), and a factor on all of them changes nothing (ADS spec,
    section (c.1)).
    """
    fixed = jax.lax.stop_gradient(weight)
    return (weight - fixed.mean()) / fixed.std(ddof=1)


class StandardisedConv(nn.Module):
    """A convolution with bias and zero padding whose kernel is used standardised, unless ``standardised`` is False."""

    features: int
    size: int = 3
    standardised: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        kernel = self.param("kernel", _xavier, (self.size, self.size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return conv2d(x, standardise(kernel) if self.standardised else kernel) + bias.reshape(1, 1, 1, -1)


class NoiseStyle(nn.Module):
    """AdaIN by noise: an instance norm whose scale and shift are a linear map of a normal vector, drawn per example.

    ``(1 + gamma) * norm(x) + beta`` with ``[gamma, beta] = s A + a`` and ``s ~ N(0, 1)`` of length ``size``; A is used
    standardised, unless ``standardised`` is False.
    """

    size: int = 2
    standardised: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], key: Key) -> Float[Array, "b h w c"]:
        kernel = self.param("kernel", _xavier, (self.size, 2 * x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (2 * x.shape[-1],))
        noise = jax.random.normal(key, (len(x), self.size))
        style = noise @ (standardise(kernel) if self.standardised else kernel) + bias[None]
        gamma, beta = jnp.split(style[:, None, None], 2, -1)
        return (1 + gamma) * nn.InstanceNorm(use_bias=False, use_scale=False, epsilon=1e-5, name="norm")(x) + beta


class DomainSynthesizer(nn.Module):
    """The synthesizer of ADS: four small convolutions that change how an image looks and not what it shows.

    Each but the last is followed by ``NoiseStyle`` and a leaky ReLU (0.01). The output has the shape of the input and
    is not bounded; mix it with the input (``transforms.mixing``). Computed in float32. With the defaults and three
    channels it has 225 parameters and sees 9 x 9 pixels.

    Attributes:
      hidden: channels between the convolutions.
      kernel_sizes: sides of the kernels, one for each convolution.
      noise: length of the noise vectors; 0 leaves norm and noise out.
      standardised: see ``standardise``.
    """

    hidden: int = 2
    kernel_sizes: tuple[int, ...] = (3, 3, 3, 3)
    noise: int = 2
    standardised: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], key: Key) -> Float[Array, "b h w c"]:
        channels, last = x.shape[-1], len(self.kernel_sizes)
        for i, size in enumerate(self.kernel_sizes, 1):
            features = self.hidden if i < last else channels
            x = StandardisedConv(features, size, self.standardised, name=f"conv{i}")(x)
            if i < last:
                x = NoiseStyle(self.noise, self.standardised, name=f"style{i}")(x, at(key, i)) if self.noise else x
                x = nn.leaky_relu(x, 0.01)
        return x


def random_network(
    key: Key, x: Float[Array, "b h w c"], *, hidden: int = 2, layers: int = 4
) -> Float[Array, "b h w c"]:
    """Passes each image through a small network of its own, drawn anew: the non-linear part of GIN.

    Convolutions with weights and shifts from N(0, 1) and kernels of 1x1 or 3x3 (one draw a layer), leaky ReLU (0.01)
    after each but the last (Ouyang et al., "Causality-inspired single-source domain generalization", 2022; ADS spec,
    section (i)). GIN mixes the result with the image (``transforms.mixing``).
    """
    channels = x.shape[-1]
    for i in range(1, layers + 1):
        shape = (len(x), 3, 3, x.shape[-1], hidden if i < layers else channels)
        size = jax.random.choice(at(key, "size", i), jnp.array([1, 3]))
        kernels = jax.random.normal(at(key, "kernel", i), shape) * _window(3, size)[None]
        shift = jax.random.normal(at(key, "shift", i), (len(x), 1, 1, shape[-1]))
        x = conv_each(x, kernels) + shift
        x = nn.leaky_relu(x, 0.01) if i < layers else x
    return x


def random_convolution(
    key: Key, x: Float[Array, "b h w c"], *, sizes: tuple[int, ...] = (1, 3, 5, 7)
) -> Float[Array, "b h w c"]:
    """Convolves the whole batch with one random kernel: RandConv (Xu et al., 2021).

    The side of the kernel is drawn from ``sizes`` (odd numbers), its weights from N(0, 1 / (side^2 c)).
    """
    channels, most = x.shape[-1], max(sizes)
    size = jax.random.choice(at(key, "size"), jnp.array(sizes))
    # A smaller kernel is a larger one with zeros around it, so that one program serves all sizes.
    kernel = jax.random.normal(at(key, "kernel"), (most, most, channels, channels)) * _window(most, size)
    return conv2d(x, kernel / (size * channels**0.5))


def _window(most: int, size: Array) -> Float[Array, "k k 1 1"]:
    """Marks the middle ``size`` x ``size`` of ``most`` x ``most`` taps by ones."""
    inside = (jnp.abs(jnp.arange(most) - most // 2) <= size // 2).astype(jnp.float32)
    return (inside[:, None] * inside[None, :])[:, :, None, None]
