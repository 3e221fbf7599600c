"""Single pictures out of DICOM files (fundus, X-ray, ultrasound, one slice); needs pydicom, the extra ``medical``.

Series of slices that are one volume are read by ``volumes.read_dicom``.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ophjax.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import UInt8

SUFFIX = ".dcm"


def needed(package: str) -> Any:
    """Imports a package of the extra ``medical``; an InputError says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"This data set needs the package {package}, which is not installed: pip install 'ophjax[medical]'."
        ) from error


def size(path: Path) -> tuple[int, int]:
    """Reads (width, height) from the header.

    Raises:
      InputError: as ``picture``.
    """
    header = read(path, pixels=False)
    return int(header.Columns), int(header.Rows)


def picture(path: Path, *, most: int) -> UInt8[np.ndarray, "h w *c"]:
    """Decodes a picture: grey [h, w] or colour [h, w, 3].

    Grey values are rescaled as the file says, cut at its first window (from centre - width/2 to centre + width/2) or,
    where it has none, taken from their least to their greatest, and turned over for MONOCHROME1 (our decisions).

    Args:
      path: the file.
      most: pixels that are decoded at most.

    Raises:
      InputError: pydicom is not installed, or the file is missing, damaged, too large or holds several frames.
    """
    data = read(path, most=most)
    try:
        kind = str(data.get("PhotometricInterpretation", "MONOCHROME2"))
        values = np.asarray(data.pixel_array)
        if kind == "PALETTE COLOR":
            from pydicom.pixels import apply_color_lut

            values = np.asarray(apply_color_lut(values, data))
            return (values >> 8).astype(np.uint8) if values.dtype == np.uint16 else values
        if values.ndim == 3:
            return _colour(values, int(data.BitsStored))
        values = values.astype(np.float32) * float(data.get("RescaleSlope", 1)) + float(data.get("RescaleIntercept", 0))
        if values.ndim != 2:
            raise ValueError(f"its pixels have the shape {list(values.shape)}")
        centre, width = (_first(data.get(name)) for name in ("WindowCenter", "WindowWidth"))
    except Exception as error:  # a damaged file makes pydicom and its decoders raise nearly anything
        raise damaged(path, error) from error
    if centre is not None and width:
        low, high = centre - width / 2, centre + width / 2
    else:
        low, high = float(values.min()), float(values.max())
    grey = np.clip((values - low) * (255 / max(high - low, 1e-6)), 0, 255)
    return np.rint(255 - grey if kind == "MONOCHROME1" else grey).astype(np.uint8)


def _colour(values: np.ndarray, bits: int) -> np.ndarray:
    if values.shape[2] < 3:
        raise ValueError(f"its pixels have {values.shape[2]} colours")
    return (values if bits <= 8 else values >> (bits - 8)).astype(np.uint8)[..., :3]


def _first(value: Any) -> float | None:
    """The first of perhaps several windows."""
    if value is None:
        return None
    return float(value if isinstance(value, str | int | float) else np.ravel(np.asarray(value, float))[0])


def read(path: Path, *, pixels: bool = True, most: int = 100_000_000) -> Any:
    """Opens a file of one frame; its pixels are not decoded yet, and with ``pixels=False`` not even read.

    Raises:
      InputError: as ``picture``.
    """
    pydicom = needed("pydicom")
    if not path.is_file():
        raise InputError(f"There is no image file {path}. Check the path.")
    try:
        data = pydicom.dcmread(path, stop_before_pixels=not pixels)
        size, frames = int(data.Rows) * int(data.Columns), int(data.get("NumberOfFrames") or 1)
        if size < 1:
            raise ValueError("it has no pixels")
    except Exception as error:  # as above
        raise damaged(path, error) from error
    if size > most:
        raise InputError(f"{path} has {size} pixels; at most {most} are decoded. Scale it down or remove it.")
    if frames > 1:
        raise InputError(f"{path} holds {frames} frames; one picture is expected. Save its frames as single files.")
    return data


def damaged(path: Path, error: Exception) -> InputError:
    """Says what is wrong with a file."""
    said = " ".join(str(error).split())[:300]
    return InputError(f"{path} cannot be read as DICOM ({type(error).__name__}: {said}). Replace or remove it.")
