"""Convolutions in the formulation that runs best on the present backend.

XLA lowers several convolutions badly on CPUs: depthwise ones, transposed ones, 1x1, those on maps of a few positions,
kernel gradients with fewer output than input channels, those batched over kernels, and all gradients inside loops. The
functions here compute what ``lax.conv_general_dilated`` computes, to rounding, and choose at trace time by
``jax.default_backend()`` and by shape. On GPUs and TPUs they are ``lax``'s own, but for those that double a map or take
a doubled one; under ``with as_lax(True)`` all are. Under ``with for_all_platforms(True)`` a program gets both and
chooses where it runs.

On CPUs most convolutions carry their own gradient: reverse mode (``grad``, ``vjp``, ``jacrev``) works, forward mode
(``jvp``, ``jacfwd``) does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# Up to this many output positions in an image, a convolution on a CPU is im2col and one matrix product. XLA's own is
# up to 80 times slower where a side of the map is smaller than the kernel (3x3 on 2x2 positions, 512 channels),
# and so is its input gradient of a stride-2 convolution that ends there.
_FEW_POSITIONS = 16
# Kernel gradients go in one piece of rows for each so many bytes, but in no more than so many pieces.
_PIECE, _MOST_PIECES = 3 * 2**18, 8
_NHWC = ("NHWC", "HWIO", "NHWC")

as_lax = jax.make_user_context(default_value=False)
"""Under ``with as_lax(True)`` every convolution and pooling is traced as ``lax``'s own, so that a graph can be read."""
for_all_platforms = jax.make_user_context(default_value=False)
"""Under ``with for_all_platforms(True)`` what is traced can be lowered to several platforms at once (export)."""


def _choose(on_cpu: Callable[..., jax.Array], elsewhere: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Applies the formulation of the present backend; for all platforms, that of the one it will run on."""
    if for_all_platforms.value:
        return lax.platform_dependent(*arrays, cpu=on_cpu, default=elsewhere)
    own = jax.default_backend() == "cpu" and not as_lax.value
    return (on_cpu if own else elsewhere)(*arrays)


def conv2d(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c d"], *, stride: int = 1, padding: int | None = None
) -> Float[Array, "b i j d"]:
    """Convolves (correlates) images with a square kernel, PyTorch's padding.

    Args:
      x: images or features.
      kernel: [height, width, input channels, output channels].
      stride: step between output positions, in both directions.
      padding: zeros added on each of the four sides; by default ``(k - 1) // 2``.
    """
    size = kernel.shape[0]
    padding = (size - 1) // 2 if padding is None else padding
    return _choose(
        lambda x, kernel: _conv2d_on_cpu(x, kernel, stride, padding),
        lambda x, kernel: _lax_conv(x, kernel, stride, padding),
        x,
        kernel,
    )


def _conv2d_on_cpu(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    size = kernel.shape[0]
    if size == 1:
        x = _pad(x, padding)
        return jnp.einsum("bhwc,cd->bhwd", x[:, ::stride, ::stride], kernel[0, 0])
    height, width = ((n + 2 * padding - size) // stride + 1 for n in x.shape[1:3])
    if size == stride and not padding:  # windows that do not overlap: one matrix product
        windows = x[:, : height * size, : width * size].reshape(x.shape[0], height, size, width, size, x.shape[3])
        return jnp.einsum("bhiwjc,ijcd->bhwd", windows, kernel)
    if height * width <= _FEW_POSITIONS:
        columns = _columns(_pad(x, padding), size, height, width, stride)
        return jnp.einsum("bijc,cd->bijd", columns, kernel.reshape(-1, kernel.shape[3]))
    return _conv(x, kernel, stride, padding)


def depthwise2d(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k 1 c"], *, stride: int = 1
) -> Float[Array, "b i j c"]:
    """Convolves every channel with its own odd square kernel, padded with zeros so that stride 1 keeps the size."""
    channels = kernel.shape[3]
    padding = (kernel.shape[0] - 1) // 2
    return _choose(
        lambda x, kernel: _depthwise(x, kernel, stride),
        lambda x, kernel: _lax_conv(x, kernel, stride, padding, groups=channels),
        x,
        kernel,
    )


def conv_each(x: Float[Array, "b h w c"], kernels: Float[Array, "b k k c d"]) -> Float[Array, "b h w d"]:
    """Convolves each image with an odd square kernel of its own, stride 1, size kept by zero padding."""
    size = kernels.shape[1]
    padding = (size - 1) // 2

    def by_columns(x: jax.Array, kernels: jax.Array) -> jax.Array:
        columns = _columns(_pad(x, padding), size, x.shape[1], x.shape[2], 1)
        return jnp.einsum("bijc,bcd->bijd", columns, kernels.reshape(x.shape[0], -1, kernels.shape[4]))

    def by_lax(x: jax.Array, kernels: jax.Array) -> jax.Array:
        return jax.vmap(lambda one, kernel: _lax_conv(one[None], kernel, 1, padding)[0])(x, kernels)

    return _choose(by_columns, by_lax, x, kernels)


def upsample2x2(x: Float[Array, "b h w c"], kernel: Float[Array, "2 2 c d"]) -> Float[Array, "b 2*h 2*w d"]:
    """Doubles the size by a 2x2 transposed convolution of stride 2.

    ``y[2i + m, 2j + n] = x[i, j] @ kernel[m, n]``: the windows do not overlap, so it is one matrix product
    and a rearrangement, on every backend. PyTorch places the kernel so; ``flax.linen.ConvTranspose`` has it
    rotated by half a turn.
    """
    if as_lax.value:
        return lax.conv_transpose(x, kernel[::-1, ::-1], (2, 2), "VALID", dimension_numbers=_NHWC)
    batch, height, width, channels = x.shape
    features = kernel.shape[3]
    columns = kernel.transpose(2, 0, 1, 3).reshape(channels, 4 * features)
    y = jnp.einsum("bhwc,cd->bhwd", x, columns).reshape(batch, height, width, 2, 2, features)
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, features)


# Which of a kernel's three taps fall on one pixel, where pixels are doubled: [even or odd position, two pixels, taps].
_ON_ONE_PIXEL = (((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1)))


def double(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Doubles the size by repeating each pixel."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def conv_doubled(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b 2*h 2*w d"]:
    """Convolves ``double(x)``, padded with one zero on each side, without repeating anything.

    Nine taps meet four different pixels: each of the four kinds of output positions has a 2x2 kernel of its own, which
    is 16 products in place of 36. Equal to ``conv2d(double(x), kernel)`` to rounding.
    """
    if as_lax.value:
        return conv2d(double(x), kernel)
    batch, height, width, _ = x.shape
    on_one = jnp.asarray(_ON_ONE_PIXEL, kernel.dtype)
    folded = jnp.einsum("ami,bnj,ijcd->mncabd", on_one, on_one, kernel)
    y = conv2d(x, folded.reshape(2, 2, x.shape[3], -1), padding=1)
    y = y.reshape(batch, height + 1, width + 1, 2, 2, kernel.shape[3])
    rows = [jnp.stack([y[:, i : i + height, j : j + width, i, j] for j in (0, 1)], axis=3) for i in (0, 1)]
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, -1)


def max_pool(x: Float[Array, "b h w c"], *, size: int, stride: int, padding: int = 0) -> Float[Array, "b i j c"]:
    """Takes the maximum over square windows, PyTorch's padding (of minus infinity).

    On CPUs it is the maximum of shifted slices, whose gradient is three to thirty times faster than that of a
    window reduction. Where values tie, the gradient is divided among them instead of going to the first; after
    a ReLU the only frequent ties are zeros, through which no gradient passes.
    """
    sides = ((padding, padding), (padding, padding))

    def by_slices(x: jax.Array) -> jax.Array:
        if padding:
            x = jnp.pad(x, ((0, 0), *sides, (0, 0)), constant_values=-jnp.inf)
        height, width = ((n - size) // stride + 1 for n in x.shape[1:3])
        y = _tap(x, 0, 0, height, width, stride)
        for i in range(size):
            for j in range(size):
                y = jnp.maximum(y, _tap(x, i, j, height, width, stride)) if i or j else y
        return y

    return _choose(by_slices, lambda x: nn.max_pool(x, (size, size), strides=(stride, stride), padding=sides), x)


class Conv(nn.Module):
    """A convolution with a square kernel and PyTorch's padding; parameters as in ``flax.linen.Conv``.

    Attributes:
      features: output channels.
      size: side of the kernel.
      stride: step between output positions.
      padding: zeros on each side; None: ``(size - 1) // 2``.
      doubled: convolves ``double(x)`` in place of ``x``; for a 3x3 kernel of stride 1.
      use_bias: adds a learned constant to each channel.
      kernel_init, dtype, param_dtype: as in ``flax.linen.Conv``.
    """

    features: int
    size: int = 3
    stride: int = 1
    padding: int | None = None
    doubled: bool = False
    use_bias: bool = True
    kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.doubled:
            if (self.size, self.stride, self.padding) != (3, 1, None):
                raise ValueError("doubled is for a 3x3 kernel of stride 1 with its own padding")
            y = conv_doubled(x, kernel)
        else:
            y = conv2d(x, kernel, stride=self.stride, padding=self.padding)
        return _add_bias(self, y) if self.use_bias else y


class DepthwiseConv(nn.Module):
    """A depthwise convolution that keeps size and channels; parameters as in a grouped ``flax.linen.Conv``."""

    size: int = 3
    use_bias: bool = True
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        shape = (self.size, self.size, 1, x.shape[-1])
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, self.param_dtype)
        y = depthwise2d(x.astype(self.dtype), kernel.astype(self.dtype))
        return _add_bias(self, y) if self.use_bias else y


class ConvTranspose2x2(nn.Module):
    """A 2x2 transposed convolution of stride 2 with bias, placed as in ``upsample2x2``."""

    features: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w d"]:
        # Each output sees one tap only: the fan-in is the input channels, not four times as many.
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", batch_axis=(0, 1))
        kernel = self.param("kernel", init, (2, 2, x.shape[-1], self.features), self.param_dtype)
        return _add_bias(self, upsample2x2(x.astype(self.dtype), kernel.astype(self.dtype)))


def _add_bias(module: nn.Module, y: jax.Array) -> jax.Array:
    bias = module.param("bias", nn.initializers.zeros, (y.shape[-1],), module.param_dtype)
    return y + bias.astype(y.dtype).reshape(1, 1, 1, -1)


def _lax_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int = 1) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((padding, padding), (padding, padding)),
        dimension_numbers=_NHWC,
        feature_group_count=groups,
    )


def _vmappable(function: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """Batches ``function(images, kernel)`` without a grouped convolution, which is tens of times slower on CPUs.

    One kernel for all: the batched images are one larger batch. One kernel each (a ``vmap`` over seeds): one
    after the other.
    """
    batched = jax.custom_batching.custom_vmap(function)

    @batched.def_vmap
    def rule(axis_size: int, in_batched: list[bool], x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, bool]:
        if in_batched[0] and not in_batched[1]:
            y = batched(x.reshape(-1, *x.shape[2:]), kernel)
            return y.reshape(axis_size, -1, *y.shape[1:]), True
        if not in_batched[0]:
            return lax.map(lambda k: batched(x, k), kernel), True
        return lax.map(lambda pair: batched(*pair), (x, kernel)), True

    return batched


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return _vmappable(lambda x, kernel: _lax_conv(x, kernel, stride, padding))(x, kernel)


def _conv_forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(x, kernel, stride, padding), (x, kernel)


def _conv_backward(
    stride: int, padding: int, residuals: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    of_input = _vmappable(lambda g, kernel: _input_gradient(g, kernel, x.shape[1:3], stride, padding))
    size = kernel.shape[0]
    of_kernel = jax.custom_batching.sequential_vmap(lambda x, g: _kernel_gradient(x, g, size, stride, padding))
    return of_input(g, kernel), of_kernel(x, g)


_conv.defvjp(_conv_forward, _conv_backward)

# XLA would derive both gradients as convolutions with exchanged dimensions and bring them into the form that it has
# fast code for, but on CPUs it does so at the top level of a program only: inside a scan, a cond or a map they are
# a hundred times slower. Here the dimensions are exchanged by transposes.


def _input_gradient(g: jax.Array, kernel: jax.Array, shape: tuple[int, ...], stride: int, padding: int) -> jax.Array:
    size = kernel.shape[0]
    sides = [(size - 1 - padding, n + padding - (m - 1) * stride - 1) for n, m in zip(shape, g.shape[1:3], strict=True)]
    turned = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    return lax.conv_general_dilated(g, turned, (1, 1), sides, lhs_dilation=(stride, stride), dimension_numbers=_NHWC)


def _kernel_gradient(x: jax.Array, g: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
    # The side that slides should be the narrower one, on which XLA builds windows.
    if stride == 1 and g.shape[3] <= x.shape[3]:
        return _slide(g, x, size, 1, size - 1 - padding)[:, ::-1, ::-1].transpose(1, 2, 3, 0)
    return _slide(x, g, size, stride, padding).transpose(1, 2, 0, 3)


def _slide(slides: jax.Array, still: jax.Array, size: int, stride: int, low: int) -> jax.Array:
    """Products of each channel of one side with each of the other at ``size`` offsets either way: [c, k, k, d].

    Channels take the place of the batch and the batch that of the channels summed over. If larger than the result, what
    lies still goes in pieces of rows for a core's cache, none of which may meet padding alone (BUILD_NOTES, "Pieces").
    """
    height, width = slides.shape[1:3]
    rows, result = still.shape[1], size * size * slides.shape[3] * still.shape[3]
    most = min(_MOST_PIECES, rows // size) if still.size > result and low < size else 1
    pieces = max(1, min(still.size * still.dtype.itemsize // _PIECE, most))
    right = (still.shape[2] - 1) * stride + size - low - width
    slides, still = slides.transpose(3, 1, 2, 0), still.transpose(1, 2, 0, 3)
    found = []
    for i in range(pieces):
        start, end = i * rows // pieces, (i + 1) * rows // pieces
        top, bottom = start * stride - low, (end - 1) * stride + size - low
        y = lax.conv_general_dilated(
            slides[:, max(top, 0) : min(bottom, height)],
            still[start:end],
            (1, 1),
            [(max(-top, 0), max(bottom - height, 0)), (low, right)],
            rhs_dilation=(stride, stride),
            dimension_numbers=_NHWC,
        )
        found.append(y.astype(jnp.promote_types(y.dtype, jnp.float32)))
    return sum(found[1:], start=found[0]).astype(slides.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    taps = kernel[:, :, None, None]  # [k, k, 1, 1, 1, c]
    return sum((tap * taps[i, j] for i, j, tap in _taps(x, kernel.shape[0], stride)), start=jnp.zeros((), x.dtype))


def _depthwise_forward(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # Derived by JAX, each tap's product would keep its weights as large as the images.
    return _depthwise(x, kernel, stride), (x, kernel)


def _depthwise_backward(
    stride: int, residuals: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    of_kernel = jnp.stack([(tap * g).sum((0, 1, 2)) for _, _, tap in _taps(x, kernel.shape[0], stride)])
    # The gradient lies at every stride-th position, zeros between.
    spread = [(0, n - 1 - (m - 1) * stride, stride - 1) for n, m in zip(x.shape[1:3], g.shape[1:3], strict=True)]
    apart = lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *spread, (0, 0, 0)])
    return _depthwise(apart, kernel[::-1, ::-1], 1), of_kernel.reshape(kernel.shape)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _taps(x: jax.Array, size: int, stride: int) -> Iterator[tuple[int, int, jax.Array]]:
    """Yields what each tap (i, j) of an odd kernel meets at every ``stride``-th position."""
    height, width = (-(-n // stride) for n in x.shape[1:3])
    padded = _pad(x, (size - 1) // 2)
    for i in range(size):
        for j in range(size):
            yield i, j, _tap(padded, i, j, height, width, stride)


def _pad(x: jax.Array, padding: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0))) if padding else x


def _tap(x: jax.Array, i: int, j: int, height: int, width: int, stride: int) -> jax.Array:
    """Takes the values that tap (i, j) of a kernel meets, one for each output position, from padded input."""
    rows, columns = (height - 1) * stride + 1, (width - 1) * stride + 1
    return x[:, i : i + rows : stride, j : j + columns : stride]


def _columns(x: jax.Array, size: int, height: int, width: int, stride: int) -> jax.Array:
    """Lays the values that all taps meet beside one another: [b, height, width, size * size * channels]."""
    taps = [_tap(x, i, j, height, width, stride) for i in range(size) for j in range(size)]
    return jnp.concatenate(taps, axis=-1)
