"""QUBIQ: quantification of uncertainties in biomedical images, 2D slices in NIfTI files with several raters each.

Menze et al., QUBIQ challenge, MICCAI 2020 and 2021.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ophjax.data import files, multirater, volumes
from ophjax.data.images import Box
from ophjax.data.multirater import Annotated, Reader
from ophjax.data.sources import Dataset
from ophjax.errors import InputError

REGIONS = {"brain-growth": ("myelin",), "kidney": ("kidney",), "prostate": ("prostate-1", "prostate-2")}
"""The tasks of each part, one region each. The brain tumours have images of four channels and are not read."""
GIVEN = {"Training": "train", "Validation": "val", "Test": "test", "Testing": "test"}
FILE = re.compile(r"task(\d+)_seg(\d+)\.nii(\.gz)?")


@dataclass(frozen=True)
class Config:
    """PART/caseNN/ or PART/{Training,Validation,Test}/caseNN/, each with image.nii.gz and taskTT_segRR.nii.gz."""

    root: str = ""
    """Folder that holds the part's folder, such as brain-growth/, or that folder itself."""
    part: Literal["brain-growth", "kidney", "prostate"] = "brain-growth"
    """brain-growth: newborn MR slices, 7 raters. kidney: CT, 3 raters. prostate: MR, 6 raters, two tasks."""
    size: int = 256
    """Side of the square that images and masks are stretched to, in pixels."""
    val_fraction: float = 0.15
    """Share of the cases drawn for validation where the folders do not say."""
    test_fraction: float = 0.25
    """Share of the cases drawn for the test where the folders do not say."""
    split_seed: int = 0
    """Seed of the draw."""


def make(config: Config) -> Dataset:
    """Reads all cases of a part; a rater who lacks a task of a case is missing there. No classes, no official mask.

    Raises:
      InputError: where the layout is another, or a file is bad.
    """
    root = files.folder_at(config.root)
    home = root / config.part if (root / config.part).is_dir() else root
    cases = dict.fromkeys(sorted(home.glob("case*/")), "")
    cases |= {path: part for name, part in GIVEN.items() for path in sorted((home / name).glob("case*/"))}
    if not cases:
        raise InputError(f"{home} has no folders caseNN/. Give the folder around {config.part}/ with --data.root.")
    regions = REGIONS[config.part]
    drawn: dict[Path, dict[int, dict[int, Path]]] = {}
    for case in cases:
        masks = [(FILE.fullmatch(path.name), path) for path in sorted(case.iterdir())]
        known = drawn.setdefault(case, {})
        for match, path in masks:
            if match and 1 <= int(match[1]) <= len(regions):
                known.setdefault(int(match[2]), {})[int(match[1])] = path
    numbers = sorted({rater for known in drawn.values() for rater in known})
    records = []
    for case, part in cases.items():
        image = next((case / name for name in ("image.nii.gz", "image.nii") if (case / name).is_file()), None)
        if image is None:
            raise InputError(f"{case} has no image.nii.gz. Add it, or remove the folder.")
        files_of = [drawn[case].get(rater, {}) for rater in numbers]
        raters = tuple(tuple(one.values()) if len(one) == len(regions) else () for one in files_of)
        name = f"{part}-{case.name}" if part else case.name
        records.append(Annotated(name, image, raters, -1, name, part))
    return multirater.assemble(
        "qubiq",
        records,
        raters=[f"rater-{number}" for number in numbers],
        reader=Reader(_frame, _image, _regions),
        regions=regions,
        config=config,
    )


def read_slice(path: Path) -> np.ndarray:
    """Reads a NIfTI file of one slice as float32 [h, w], rows along its second axis; axes of length 1 are dropped.

    Raises:
      InputError: as ``volumes.load_nifti``, or where the file is no single slice.
    """
    values = volumes.load_nifti(path, canonical=False).squeeze()
    if values.ndim != 2 or not np.isfinite(values).all():
        raise InputError(f"{path} holds an array of shape {list(values.shape)}; expected one slice of finite numbers.")
    return np.ascontiguousarray(values.T)


def grey_volume(path: Path) -> np.ndarray:
    """Reads a slice as bytes, cut at its 99.5th percentile: uint8 [1, h, w]."""
    return volumes.clip_top(read_slice(path)[None])


def _frame(path: Path) -> tuple[int, int]:
    height, width = read_slice(path).shape
    return width, height


def _image(path: Path, size: int, box: Box) -> np.ndarray:
    from PIL import Image

    whole = Image.fromarray(grey_volume(path)[0])
    stretched = np.asarray(whole.resize((size, size), Image.Resampling.BILINEAR, box.of(*whole.size)))
    return np.repeat(stretched[..., None], 3, axis=-1)


def _regions(paths: Sequence[Path], frame: tuple[int, int]) -> list[np.ndarray]:
    del frame
    return [np.where(_mask(path) > 0, 255, 0).astype(np.uint8) for path in paths]


def _mask(path: Path) -> np.ndarray:
    values = read_slice(path)
    found = np.unique(values)
    if len(found) > 2 or not np.isin(found, (0, 1, 255)).all():
        listed = ", ".join(f"{value:g}" for value in found[:6])
        raise InputError(f"Mask {path} holds the values {listed}; expected 0 and 1. Correct the file.")
    return values
