"""PSNR and SSIM as super-resolution reports them: on studio-range luma, without a border (dualsr spec, (h)).

The functions take NumPy arrays (float64, the numbers of a table) and JAX arrays (float32, inside a compiled
evaluation; the PSNR of 8-bit images then agrees to about 1e-4 dB).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ophjax.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float

WINDOW, SIGMA = 11, 1.5
CEILING = 100.0
"""Highest PSNR in dB: infinity has no mean, and a score that is not finite would not be counted."""


def luma(image: Any) -> Any:
    """Computes BT.601 luma in studio range, 16 to 235, not rounded: [..., 3] in 0..255 to [...]."""
    return 16 + (65.481 * image[..., 0] + 128.553 * image[..., 1] + 24.966 * image[..., 2]) / 255


def quantise(image: Any) -> Any:
    """Clips to 0..255 and rounds to whole numbers, the type kept."""
    xp = image.__array_namespace__()
    return xp.round(xp.clip(image, 0, 255))


def shave(image: Any, border: int) -> Any:
    """Removes so many pixels on each side of [..., h, w]."""
    return image[..., border : image.shape[-2] - border, border : image.shape[-1] - border]


def psnr(one: Any, other: Any) -> Any:
    """10 log10(255^2 / mean square difference) of images [..., h, w], at most ``CEILING``, which equal ones have."""
    xp = one.__array_namespace__()
    with np.errstate(divide="ignore"):
        return xp.minimum(10 * xp.log10(255**2 / xp.mean((one - other) ** 2, axis=(-2, -1))), CEILING)


def ssim(one: Any, other: Any) -> Any:
    """Mean structural similarity of images [..., h, w] in 0..255 (Wang et al., 2004): [...].

    Gaussian window of 11 x 11 and sigma 1.5, valid positions only, C1 = (0.01 * 255)^2, C2 = (0.03 * 255)^2, biased
    moments.

    Raises:
      InputError: a side is shorter than the window.
    """
    if min(one.shape[-2:]) < WINDOW:
        raise InputError(
            f"SSIM needs images of at least {WINDOW} x {WINDOW} pixels after the border is cut; these have "
            f"{one.shape[-1]} x {one.shape[-2]}. Give larger images."
        )
    xp = one.__array_namespace__()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    # About the middle grey: in float32 the variances would drown in the squares otherwise.
    a, b = one - 128, other - 128
    mean_a, mean_b, aa, bb, ab = (_blur(x) for x in (a, b, a * a, b * b, a * b))
    var_a, var_b, covariance = aa - mean_a * mean_a, bb - mean_b * mean_b, ab - mean_a * mean_b
    mean_a, mean_b = mean_a + 128, mean_b + 128
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return xp.mean(above / below, axis=(-2, -1))


def luma_scores(restored: Any, target: Any, border: int) -> tuple[Any, Any]:
    """Scores images [..., h, w, 3] in 0..255 against the truth: PSNR and SSIM, each [...].

    Args:
      restored: float; rounded to bytes first.
      target: the truth; where it is larger its top left part counts.
      border: pixels that do not count on each side, normally the scale.
    """
    height, width = restored.shape[-3:-1]
    found = shave(luma(quantise(restored)), border)
    truth = shave(luma(target[..., :height, :width, :]), border)
    return psnr(found, truth), ssim(found, truth)


def _blur(image: Float[Any, "... h w"]) -> Float[Any, "... i j"]:
    """Filters with the Gaussian window, along one axis and then the other; valid positions only."""
    window = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / SIGMA) ** 2)
    window /= window.sum()
    height, width = image.shape[-2] - WINDOW + 1, image.shape[-1] - WINDOW + 1
    rows = sum(float(w) * image[..., i : i + height, :] for i, w in enumerate(window))
    return sum(float(w) * rows[..., i : i + width] for i, w in enumerate(window))
