"""Bicubic resizing as the super-resolution community computes it: MATLAB's, byte for byte, and PyTorch's.

Both are linear along each axis, so a resize is two small matrices; the same ones serve NumPy on the host and JAX on
the device. ``jax.image.resize`` is neither of them: it has a = -0.5, but not MATLAB's borders; PyTorch has a = -0.75.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ophjax.errors import unknown

if TYPE_CHECKING:
    from jaxtyping import Float, Int, UInt8

Border = Literal["mirror", "clamp"]
BORDERS = ("mirror", "clamp")


def keys_kernel(x: Float[np.ndarray, ...], a: float) -> Float[np.ndarray, ...]:
    """Evaluates the cubic convolution kernel of Keys (1981) with the free parameter ``a``; it is 0 beyond 2."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def matlab_taps(
    size: int, factor: int, *, up: bool, border: str = "mirror"
) -> tuple[Int[np.ndarray, "out taps"], Float[np.ndarray, "out taps"]]:
    """Finds which samples each output sample of MATLAB's ``imresize`` reads, and their weights (dualsr spec, (g)).

    a = -0.5. Downscaling widens the kernel by the factor (antialiasing); each row of weights sums to 1.

    Args:
      size: length of the axis.
      factor: whole-number scale.
      up: enlarge by the factor, else shrink by it (to ``ceil(size / factor)``).
      border: beyond the edge stands the mirror image with the edge repeated, or (older MATLAB) the edge sample.
    """
    if border not in BORDERS:
        raise unknown("border", border, BORDERS)
    scale = float(factor) if up else 1 / factor
    width = min(scale, 1.0)
    out = size * factor if up else -(-size // factor)
    # MATLAB's positions count from 1.
    middle = np.arange(1, out + 1) / scale + 0.5 * (1 - 1 / scale)
    taps = np.floor(middle - 2 / width)[:, None] + np.arange(int(np.ceil(4 / width)) + 2)
    weight = width * keys_kernel(width * (middle[:, None] - taps), -0.5)
    weight /= weight.sum(1, keepdims=True)
    index = taps.astype(np.int64) - 1
    if border == "clamp":
        index = index.clip(0, size - 1)
    else:
        index = index % (2 * size)
        index = np.minimum(index, 2 * size - 1 - index)
    used = (weight != 0).any(0)
    return index[:, used], weight[:, used]


def resize_bytes(
    image: UInt8[np.ndarray, "h w c"],
    factor: int,
    *,
    up: bool = False,
    border: str = "mirror",
    rounded: bool = True,
) -> UInt8[np.ndarray, "i j c"]:
    """Resizes an image of bytes as MATLAB's ``imresize`` does: rows, then columns, in float64, half rounded up.

    ``rounded`` with the mirror border reproduces the published x2, x3 and x4 files of the EDSR benchmark archive,
    without it those of x8; with the clamped border RCAN's and SelfExSR's (dualsr spec, (g)).

    Args:
      image: bytes.
      factor: whole-number scale.
      up: enlarge by the factor, else shrink by it.
      border: ``mirror`` or ``clamp``.
      rounded: round to bytes between the passes, as MATLAB does for images of bytes.
    """
    values = image.astype(np.float64)
    for axis in (0, 1):
        index, weight = matlab_taps(image.shape[axis], factor, up=up, border=border)
        shape = [1] * image.ndim
        shape[axis] = -1
        values = sum(
            (np.take(values, index[:, t], axis) * weight[:, t].reshape(shape) for t in range(index.shape[1])),
            start=np.zeros(()),
        )
        if rounded or axis == 1:
            values = np.floor(values + 0.5).clip(0, 255)
    return values.astype(np.uint8)


@lru_cache(maxsize=64)
def matlab_matrix(size: int, factor: int, up: bool, border: str = "mirror") -> Float[np.ndarray, "out size"]:
    """The weights of ``matlab_taps`` as a float32 matrix."""
    return _matrix(size, *matlab_taps(size, factor, up=up, border=border))


@lru_cache(maxsize=64)
def torch_matrix(size: int, factor: int) -> Float[np.ndarray, "size*factor size"]:
    """PyTorch's bicubic enlargement of an axis as a float32 matrix: half-pixel centres, a = -0.75, edges clamped."""
    place = (np.arange(size * factor) + 0.5) / factor - 0.5
    low = np.floor(place)
    taps = low[:, None] + np.arange(-1, 3)
    weight = keys_kernel(place[:, None] - taps, -0.75)
    return _matrix(size, taps.astype(np.int64).clip(0, size - 1), weight)


def resize(image: Any, rows: Float[np.ndarray, "i h"], columns: Float[np.ndarray, "j w"]) -> Any:
    """Applies a matrix to each axis of images [..., h, w, c]; nothing is rounded or clipped.

    Args:
      image: float, NumPy or JAX; the result is of the same kind.
      rows, columns: from ``matlab_matrix`` or ``torch_matrix``.
    """
    xp = image.__array_namespace__()
    # In full precision: accelerators would round both factors to fewer digits than a grey level has.
    exact = {} if xp is np else {"precision": "highest"}
    return xp.einsum("jw,...iwc->...ijc", columns, xp.einsum("ih,...hwc->...iwc", rows, image, **exact), **exact)


def _matrix(size: int, index: np.ndarray, weight: np.ndarray) -> np.ndarray:
    matrix = np.zeros((len(index), size))
    np.add.at(matrix, (np.arange(len(index))[:, None], index), weight)
    matrix = matrix.astype(np.float32)
    matrix.flags.writeable = False
    return matrix
