"""The prostate by MR (T2) at six sites, slice by slice.

Liu et al., "Shape-aware meta-learning for generalizing prostate MRI segmentation to unseen domains", MICCAI 2020: the
collection, from NCI-ISBI 2013, I2CVB and PROMISE12, in the layout of that release.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ophjax.data import files, shift, volumes
from ophjax.data.sources import Dataset
from ophjax.data.volumes import Case
from ophjax.errors import InputError

SITES = ("RUNMC", "BMC", "I2CVB", "UCL", "BIDMC", "HK")
MARK = "_segmentation"


@dataclass(frozen=True)
class Config(shift.Config):
    """A folder for each site with CaseNN.nii.gz and CaseNN_segmentation.nii.gz; needs nibabel: pip install
    'ophjax[medical]'."""

    root: str = ""
    """Folder that holds the sites' folders."""
    domains: tuple[str, ...] = SITES
    """The sites: the source first, then the targets."""
    slices: Literal["organ", "all"] = "organ"
    """organ: slices in which the prostate is drawn. all: every slice."""


def make(config: Config) -> Dataset:
    """Reads all volumes, clipped at their 99.5th percentile; every label above 0 is the prostate.

    Raises:
      InputError: where nibabel or a file is missing, or the layout is another.
    """
    shift.check(config, known=SITES)
    root = files.folder_at(config.root)
    domains = [
        volumes.domain_of(name, _cases(root / name), size=config.size, regions=1, slices=config.slices)
        for name in config.domains
    ]
    return shift.assemble("prostate", domains, config=config, regions=("prostate",))


def grey_volume(path: Path) -> np.ndarray:
    """Maps a new volume to bytes as in training, uint8 [n, h, w]: a NIfTI file or a folder of DICOM slices."""
    return volumes.clip_top(volumes.read_volume(path))


def _cases(folder: Path) -> list[Case]:
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Give the folder around it with --data.root, or other domains.")
    found = {path.name.split(".")[0].lower(): path for path in sorted(folder.glob("*.nii*"))}
    cases = []
    for stem, path in found.items():
        if stem.endswith(MARK):
            continue
        if stem + MARK not in found:
            raise InputError(f"Volume {path} has no labels {path.name.split('.')[0]}{MARK}.nii.gz beside it. Add them.")
        cases.append(Case(path.name.split(".")[0], functools.partial(_load, path, found[stem + MARK])))
    return cases


def _load(path: Path, labels: Path) -> tuple[np.ndarray, np.ndarray]:
    return grey_volume(path), (volumes.read_labels(labels) > 0).astype(np.uint8)
