"""MedMNIST: any of its 2-D sets with one label an image, as handed out (npz).

Yang et al., "MedMNIST v2", Scientific Data 10:41, 2023. Classes have their numbers for names, as in the files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ophjax.data import archives, files, official
from ophjax.data.builders.xrays import Thumbnails
from ophjax.data.sources import Dataset
from ophjax.errors import InputError


@dataclass(frozen=True)
class Config:
    """NAME.npz with {train,val,test}_images uint8 [n, h, w] or [n, h, w, 3] and {train,val,test}_labels [n, 1]."""

    root: str = ""
    """Folder that holds the file."""
    set: str = "pneumoniamnist"
    """Name of the set: bloodmnist, breastmnist, dermamnist, octmnist, pathmnist, pneumoniamnist, retinamnist, ..."""
    size: int = 64
    """Side of the square that images are stretched to, in pixels."""


def make(config: Config) -> Dataset:
    """Reads the file into memory. There are no masks.

    Raises:
      InputError: the file is missing or damaged, or holds volumes or several labels an image.
    """
    path = files.folder_at(config.root) / f"{config.set}.npz"
    if "/" in config.set or "\\" in config.set or not path.is_file():
        raise InputError(f"There is no file {path}. Give the folder of {config.set}.npz, and its --data.set.")
    if not 16 <= config.size <= 4096:
        raise InputError(f"The image size is {config.size}; give a side between 16 and 4096 pixels.")
    arrays = archives.read_npz(path, [f"{part}_{kind}" for part in files.PARTS for kind in ("images", "labels")])
    parts, most = {}, 0
    for part in files.PARTS:
        pictures, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        flat = pictures.ndim == 3 or (pictures.ndim == 4 and pictures.shape[-1] == 3)
        if (
            not flat
            or pictures.dtype != np.uint8
            or labels.shape != (len(pictures), 1)
            or labels.dtype.kind not in "ui"
        ):
            raise InputError(
                f"{path} holds {part}_images {pictures.dtype} {list(pictures.shape)} and {part}_labels "
                f"{list(labels.shape)}; expected 2-D images and one label each (no volumes, no ChestMNIST)."
            )
        classes = labels[:, 0].astype(int)
        most = max(most, int(classes.max(initial=0)))
        names = [f"{config.set}-{part}-{i:05d}" for i in range(len(pictures))]
        parts[part] = Thumbnails(names, pictures, classes, size=config.size), classes.tolist()
    return official.as_given("medmnist", parts, None, classes=tuple(map(str, range(most + 1))))
