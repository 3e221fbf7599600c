"""Chest X-rays of two hospitals, normal or not: PneumoniaMNIST (children) and the Shenzhen set (tuberculosis).

Yang et al., "MedMNIST v2", Scientific Data 10:41, 2023, after Kermany et al., Cell 172(5), 2018; Jaeger et al., Quant.
Imaging Med. Surg. 4(6), 2014.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ophjax.data import archives, files, shift
from ophjax.data.builders.shenzhen import NAME
from ophjax.data.files import Record
from ophjax.data.shift import Domain
from ophjax.data.sources import Dataset, Example
from ophjax.errors import InputError

# Changes to Config for two CPU cores: the smaller set has 28 x 28 pixels.
DEMO: dict[str, Any] = dict(size=32)

CLASSES = ("normal", "abnormal")


@dataclass(frozen=True)
class Config(shift.Config):
    """Chest X-rays of two hospitals, normal or with a disease of the lung (pneumonia here, tuberculosis there)."""

    pneumonia: str = ""
    """The file pneumoniamnist.npz, or one of its larger versions (pneumoniamnist_64.npz, ...). Its split is kept."""
    shenzhen: str = ""
    """Folder of the Shenzhen set, with CXR_png/CHNCXR_nnnn_0.png (_1 is tuberculosis)."""
    domains: tuple[str, ...] = ("pneumoniamnist", "shenzhen")
    """The domains: the source first, then the target."""


class Thumbnails:
    """Grey images in memory, stretched to a square when they are asked for: ``image`` and ``label``."""

    def __init__(self, names: list[str], pictures: np.ndarray, labels: np.ndarray, *, size: int):
        self.names = names
        self._pictures = pictures
        self._labels = labels
        self._size = size

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        from PIL import Image

        side = (self._size, self._size)
        image = Image.fromarray(self._pictures[index]).convert("RGB").resize(side, Image.Resampling.BILINEAR)
        return {"image": np.asarray(image), "label": np.asarray(self._labels[index], np.int32)}


def make(config: Config) -> Dataset:
    """Reads both sets; the lung masks of the Shenzhen set are not used.

    Raises:
      InputError: where a file is missing, or is not what its set hands out.
    """
    shift.check(config, known=("pneumoniamnist", "shenzhen"))
    domains = {"pneumoniamnist": _pneumonia(config), "shenzhen": _shenzhen(config)}
    return shift.assemble("xrays", [domains[name] for name in config.domains], config=config, classes=CLASSES)


def _pneumonia(config: Config) -> Domain:
    path = Path(config.pneumonia).expanduser()
    if not config.pneumonia or not path.is_file():
        raise InputError(
            f"There is no file {config.pneumonia!r}. Give the path of pneumoniamnist.npz with --data.pneumonia."
        )
    labels, parts, names, pictures = [], [], [], []
    arrays = archives.read_npz(path)
    for part in files.PARTS:
        image, label = (arrays.get(f"{part}_{kind}", np.zeros(0)) for kind in ("images", "labels"))
        fits = image.ndim == 3 and image.dtype == np.uint8 and label.shape == (len(image), 1)
        if not fits or not np.isin(label, (0, 1)).all():
            raise InputError(
                f"{path} holds {part}_images {image.dtype} {list(image.shape)} and {part}_labels {list(label.shape)}; "
                "PneumoniaMNIST has grey images uint8 [n, h, w] and labels 0 or 1 [n, 1] for train, val and test. Give "
                "the official file."
            )
        pictures.append(image)
        labels.append(label[:, 0])
        parts += [part] * len(image)
        names += [f"pneumoniamnist-{part}-{i:05d}" for i in range(len(image))]
    if len({image.shape[1:] for image in pictures}) > 1:
        raise InputError(f"{path} holds images of several sizes. Give the official file.")
    found = np.concatenate(labels)
    source = Thumbnails(names, np.concatenate(pictures), found, size=config.size)
    return Domain("pneumoniamnist", source, found.tolist(), names, parts, [False] * len(names))


def _shenzhen(config: Config) -> Domain:
    if not config.shenzhen:
        raise InputError("The Shenzhen set was not given: give the path of its folder with --data.shenzhen.")
    folder = Path(config.shenzhen).expanduser() / "CXR_png"
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Give the folder around CXR_png/ with --data.shenzhen.")
    records = []
    for stem, path in files.list_images(folder).items():
        match = NAME.fullmatch(stem)
        if match is None:
            raise InputError(f"{path} is not called CHNCXR_nnnn_0 or CHNCXR_nnnn_1. Give it its official name.")
        records.append(Record(stem, path, None, int(match[1]), stem))
    return shift.domain_of("shenzhen", records, size=config.size)
