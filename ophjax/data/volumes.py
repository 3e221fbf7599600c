"""Volumes of CT and MR as slices: NIfTI and DICOM (with nibabel and pydicom, the extra ``medical``), grey windows.

A volume is float32 [slice, row, column] with rows from front to back of the patient and columns from right to left, as
axial slices are shown; DICOM files are taken as they are. Grey values become bytes by a window, the same for the whole
volume. Standardising a picture afterwards (z-score) undoes the window's scale, but not what it cuts off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np

from ophjax.data import dicom
from ophjax.data.archives import DEFLATE
from ophjax.data.dicom import needed as needed
from ophjax.data.shift import Domain
from ophjax.data.sources import Example, OfPatients
from ophjax.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8

THREADS = 4
"""Volumes read at the same time; each may take some hundreds of MB meanwhile."""


class Load(Protocol):
    """Reads a case: ``volume, labels = load()``, grey uint8 [n, h, w] and labels uint8 [n, h, w], 0 being no region."""

    def __call__(self) -> tuple[np.ndarray, np.ndarray]: ...


class Case(NamedTuple):
    """One volume of one patient.

    Attributes:
      name: unique in its domain.
      load: reads it.
    """

    name: str
    load: Load


class Slices:
    """Slices in memory, grey and label of one byte a pixel: ``image``, ``mask``, ``mask_weight`` and ``label`` -1."""

    def __init__(
        self,
        names: Sequence[str],
        grey: UInt8[np.ndarray, "n size size"],
        labels: UInt8[np.ndarray, "n size size"],
        *,
        regions: int,
    ):
        self.names = list(names)
        self._grey = grey
        self._labels = labels
        self._values = np.arange(1, regions + 1, dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        return {
            "image": np.repeat(self._grey[index][..., None], 3, axis=-1),
            "mask": (self._labels[index][..., None] == self._values).astype(np.uint8),
            "mask_weight": np.ones((), np.float32),
            "label": np.full((), -1, np.int32),
        }


def domain_of(
    name: str, cases: Sequence[Case], *, size: int, regions: int, slices: Literal["organ", "all"] = "organ"
) -> Domain:
    """Reads all volumes of a domain and stretches their slices to a square; a patient's slices stay in one split.

    Args:
      name: of the domain.
      cases: its volumes.
      size: side of the square in pixels.
      regions: their number c; labels are 1 to c.
      slices: organ: those in which a region is drawn. all: every slice. Scores are means over slices, and a slice
        without a region in which none is found scores 1, which empty slices would make easy.

    Raises:
      InputError: where there are no cases, one cannot be read, or no slice has a region.
    """
    if not cases:
        raise InputError(f"Domain {name!r} has no volumes. Check the folder given for it.")

    def read(case: Case) -> tuple[list[int], list[np.ndarray], list[np.ndarray]]:
        grey, labels = case.load()
        if grey.shape != labels.shape:
            raise InputError(
                f"Volume {case.name!r} of domain {name!r} has the shape {list(grey.shape)}, but its labels have "
                f"{list(labels.shape)}. Both must show the same frame."
            )
        if labels.max(initial=0) > regions:
            raise InputError(
                f"The labels of volume {case.name!r} of domain {name!r} go up to {labels.max()}, but there are "
                f"{regions} region(s)."
            )
        chosen = [i for i in range(len(grey)) if slices == "all" or labels[i].any()]
        return chosen, [stretch(grey[i], size) for i in chosen], [_stretch_labels(labels[i], size) for i in chosen]

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(read, cases))
    names = [f"{name}-{case.name}-{i:03d}" for case, (chosen, _, _) in zip(cases, found, strict=True) for i in chosen]
    groups = [case.name for case, (chosen, _, _) in zip(cases, found, strict=True) for _ in chosen]
    grey, labels = ([one for case in found for one in case[kind]] for kind in (1, 2))
    if not names:
        raise InputError(f"No slice of the {len(cases)} volume(s) of domain {name!r} has a region. Check the labels.")
    source = OfPatients(Slices(names, np.stack(grey), np.stack(labels), regions=regions), groups)
    return Domain(name, source, [-1] * len(names), groups, [""] * len(names), [True] * len(names))


def window(volume: Float32[np.ndarray, "n h w"], low: float, high: float) -> UInt8[np.ndarray, "n h w"]:
    """Maps grey values from ``low`` to ``high`` to 0 to 255; what is outside becomes the limit."""
    scaled = (volume - np.float32(low)) * np.float32(255 / max(high - low, 1e-6))
    return np.rint(np.clip(scaled, 0, 255, out=scaled), out=scaled).astype(np.uint8)  # in place: volumes are large


def clip_top(volume: Float32[np.ndarray, "n h w"], *, percentile: float = 99.5) -> UInt8[np.ndarray, "n h w"]:
    """Maps the least value of an MR volume to 0, and the percentile and all above it to 255."""
    return window(volume, float(volume.min()), float(np.percentile(volume, percentile)))


def load_nifti(path: Path, *, canonical: bool = True) -> Float32[np.ndarray, "*n"]:
    """Reads the array of a NIfTI file, by default with its axes to the right, to the front and upwards.

    Raises:
      InputError: where nibabel is not installed, or the file is missing, damaged or claims more than it can hold.
    """
    nibabel = needed("nibabel")
    if not path.is_file():
        raise InputError(f"There is no file {path}. Check the folder given for it.")
    try:
        image = nibabel.load(path)
        if math.prod(image.shape) * image.get_data_dtype().itemsize > DEFLATE * path.stat().st_size:
            raise ValueError(f"it claims the shape {image.shape}, more than the file can hold")
        return np.asarray((nibabel.as_closest_canonical(image) if canonical else image).dataobj, np.float32)
    except Exception as error:  # a damaged file makes nibabel and zlib raise nearly anything
        raise InputError(f"{path} cannot be read as NIfTI ({type(error).__name__}: {error}). Replace it.") from error


def read_nifti(path: Path) -> Float32[np.ndarray, "n h w"]:
    """Reads a NIfTI file as axial slices, from the feet upwards.

    Raises:
      InputError: as ``load_nifti``, or where it holds no single volume.
    """
    values = load_nifti(path)
    if values.ndim == 4 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 3 or not np.isfinite(values).all():
        raise InputError(f"{path} holds an array of shape {list(values.shape)}; expected one volume of finite numbers.")
    return np.ascontiguousarray(values[::-1, ::-1].transpose(2, 1, 0))


def read_volume(path: Path) -> Float32[np.ndarray, "n h w"]:
    """Reads a NIfTI file, or a folder with one DICOM series."""
    return read_dicom(path)[0] if path.is_dir() else read_nifti(path)


def read_labels(path: Path) -> UInt8[np.ndarray, "n h w"]:
    """Reads a NIfTI file of labels.

    Raises:
      InputError: as ``read_nifti``, or where the values are not integers from 0 to 255.
    """
    values = read_nifti(path)
    if (values != values.round()).any() or values.min() < 0 or values.max() > 255:
        raise InputError(f"{path} has values that are no labels: they must be integers from 0 to 255.")
    return values.astype(np.uint8)


def read_dicom(folder: Path) -> tuple[Float32[np.ndarray, "n h w"], list[str]]:
    """Reads the files of one DICOM series, in the order of their names; hidden ones are passed over.

    Returns:
      The volume, and the name of each slice's file without extension.

    Raises:
      InputError: where pydicom is not installed, there are no files, or one cannot be read or is of another size.
    """
    needed("pydicom")
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    paths = [path for path in inside if path.suffix.lower() == dicom.SUFFIX and not path.name.startswith(".")]
    if not paths:
        raise InputError(f"There are no files *.dcm in {folder}. Check the folder given for it.")
    slices = []
    for path in paths:
        data = dicom.read(path)
        try:
            slope, shift = (float(data.get(key, value)) for key, value in _RESCALE.items())
            slices.append(data.pixel_array.astype(np.float32) * slope + shift)
            if slices[-1].ndim != 2:
                raise ValueError(f"its pixels have the shape {list(slices[-1].shape)}")
        except Exception as error:  # as above
            raise dicom.damaged(path, error) from error
    shapes = {grey.shape for grey in slices}
    if len(shapes) > 1:
        raise InputError(f"The slices in {folder} have several sizes: {sorted(shapes)}. Keep one series in a folder.")
    return np.stack(slices), [path.stem for path in paths]


_RESCALE = {"RescaleSlope": 1, "RescaleIntercept": 0}


def stretch(grey: np.ndarray, size: int) -> np.ndarray:
    """Stretches a slice uint8 [h, w] to a square."""
    from PIL import Image

    if grey.shape == (size, size):
        return grey
    return np.asarray(Image.fromarray(grey).resize((size, size), Image.Resampling.BILINEAR))


def _stretch_labels(labels: np.ndarray, size: int) -> np.ndarray:
    """Gives a new pixel the label that covers at least half of it, as ``images.read_mask`` does."""
    from PIL import Image

    if labels.shape == (size, size):
        return labels
    stretched = np.zeros((size, size), np.uint8)
    for label in np.unique(labels[labels > 0]):
        cover = Image.fromarray((labels == label).astype(np.uint8) * 255).resize((size, size), Image.Resampling.BOX)
        stretched[np.asarray(cover) >= 128] = label
    return stretched
