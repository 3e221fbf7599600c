"""Abdominal organs by CT (BTCV, the Synapse set) and by MR (CHAOS, T2-SPIR), slice by slice.

Landman et al., "Multi-atlas labeling beyond the cranial vault", MICCAI 2015 workshop; Kavur et al., "CHAOS Challenge -
combined (CT-MR) healthy abdominal organ segmentation", Medical Image Analysis 69:101950, 2021. The window, the
organs and their numbers are those of the public code of ADS (its specification, section (g)), except that CT is cut at
the window's limits (section (j), 7).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ophjax.data import files, images, shift, volumes
from ophjax.data.sources import Dataset
from ophjax.data.volumes import Case
from ophjax.errors import InputError

HOUNSFIELD = (-275.0, 200.0)
BTCV = {"liver": 6, "right_kidney": 2, "left_kidney": 3, "spleen": 1}
# Grey levels of the masks; the challenge gives ranges around 63, 126, 189 and 252, all others being background.
CHAOS = {"liver": (55, 70), "right_kidney": (110, 135), "left_kidney": (175, 200), "spleen": (240, 255)}


@dataclass(frozen=True)
class Config(shift.Config):
    """Liver, kidneys and spleen in CT and MR slices; needs nibabel and pydicom: pip install 'ophjax[medical]'."""

    btcv: str = ""
    """Folder RawData/Training of BTCV, with img/imgNNNN.nii.gz and label/labelNNNN.nii.gz."""
    chaos: str = ""
    """Folder Train_Sets/MR of CHAOS, with PATIENT/T2SPIR/DICOM_anon/*.dcm and PATIENT/T2SPIR/Ground/*.png."""
    domains: tuple[str, ...] = ("ct", "mr")
    """The domains: the source first, then the target."""
    slices: Literal["organ", "all"] = "organ"
    """organ: slices in which one of the four organs is drawn. all: every slice."""


def make(config: Config) -> Dataset:
    """Reads all volumes. CT is windowed to -275..200 HU, MR clipped at its 99.5th percentile, volume by volume.

    Raises:
      InputError: where a package or a file is missing, or the layout is another.
    """
    shift.check(config, known=("ct", "mr"))
    cases = {"ct": _btcv(config), "mr": _chaos(config)}
    domains = [
        volumes.domain_of(name, cases[name], size=config.size, regions=len(BTCV), slices=config.slices)
        for name in config.domains
    ]
    return shift.assemble("abdomen", domains, config=config, regions=tuple(BTCV))


def grey_volume(path: Path) -> np.ndarray:
    """Maps a new volume to bytes, uint8 [n, h, w]: a NIfTI file or a folder of DICOM slices; CT by the window, all else
    as MR. CT is told by values under -200: nothing in MR is (our decision)."""
    volume = volumes.read_volume(path)
    return volumes.window(volume, *HOUNSFIELD) if volume.min() < -200 else volumes.clip_top(volume)


def _folder(given: str, option: str) -> Path:
    path = Path(given).expanduser()
    if not given or not path.is_dir():
        raise InputError(f"There is no folder {given!r}. Give the path of the data with --data.{option}.")
    return path


def _btcv(config: Config) -> list[Case]:
    root = _folder(config.btcv, "btcv")
    found = sorted((root / "img").glob("img*.nii*"))
    if not found:
        raise InputError(f"There are no volumes {root / 'img'}/imgNNNN.nii.gz. Give RawData/Training with --data.btcv.")
    return [
        Case(
            path.name.split(".")[0],
            functools.partial(_load_ct, path, root / "label" / path.name.replace("img", "label")),
        )
        for path in found
    ]


def _load_ct(path: Path, labels: Path) -> tuple[np.ndarray, np.ndarray]:
    table = np.zeros(256, np.uint8)
    table[list(BTCV.values())] = np.arange(1, len(BTCV) + 1)
    return volumes.window(volumes.read_nifti(path), *HOUNSFIELD), table[volumes.read_labels(labels)]


def _chaos(config: Config) -> list[Case]:
    root = _folder(config.chaos, "chaos")
    found = sorted(path for path in root.iterdir() if (path / "T2SPIR").is_dir())
    if not found:
        raise InputError(f"{root} has no PATIENT/T2SPIR/. Give the folder Train_Sets/MR with --data.chaos.")
    return [Case(path.name, functools.partial(_load_mr, path / "T2SPIR")) for path in found]


def _load_mr(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    volume, stems = volumes.read_dicom(folder / "DICOM_anon")
    drawn = files.list_images(folder / "Ground")
    missing = [stem for stem in stems if stem not in drawn]
    if missing:
        raise InputError(f"{folder / 'Ground'} has no mask of the slice(s) {files.some(missing)}. Add them.")
    table = np.zeros(256, np.uint8)
    for k, (low, high) in enumerate(CHAOS.values()):
        table[low : high + 1] = k + 1
    labels = [table[images.read_codes(drawn[stem])] for stem in stems]
    shapes = {one.shape for one in labels}
    if shapes != {volume.shape[1:]}:
        raise InputError(f"The masks in {folder / 'Ground'} are of {sorted(shapes)}, the slices of {volume.shape[1:]}.")
    return volumes.clip_top(volume), np.stack(labels)
