"""Shenzhen chest X-rays with the outline of the lungs; tuberculosis or normal.

Images: Jaeger et al., Quant. Imaging Med. Surg. 4(6), 2014. Masks: Stirenko et al., 2018.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ophjax.data import files
from ophjax.data.files import Record
from ophjax.data.images import parse_code
from ophjax.data.sources import Dataset
from ophjax.errors import InputError

NAME = re.compile(r"CHNCXR_\d+_([01])")


@dataclass(frozen=True)
class Config:
    """Shenzhen chest X-rays: CXR_png/CHNCXR_nnnn_0.png (_1 is tuberculosis), mask/CHNCXR_nnnn_0_mask.png."""

    root: str = ""
    """Folder that holds CXR_png/ and mask/; images may lack a mask."""
    size: int = 256
    """Side of the square that images and masks are stretched to, in pixels."""
    val_fraction: float = 0.15
    """Share of the images drawn for validation."""
    test_fraction: float = 0.25
    """Share of the images drawn for the test."""
    split_seed: int = 0
    """Seed of the draw; the set has no official split."""


def make(config: Config) -> Dataset:
    """Reads images and lung masks; the label is the last digit of the name, and each image is one patient.

    Raises:
      InputError: where the layout is another or a file name gives no label.
    """
    root = files.folder_at(config.root)
    pictures = files.list_images(root / "CXR_png")
    masks = files.pair_masks(pictures, files.list_images(root / "mask"), suffix="_mask")
    records = []
    for stem, path in pictures.items():
        match = NAME.fullmatch(stem)
        if match is None:
            raise InputError(f"{path} is not called CHNCXR_nnnn_0 or CHNCXR_nnnn_1. Give it its official name.")
        records.append(Record(stem, path, masks.get(stem), int(match[1]), stem))
    return files.assemble(
        "shenzhen", records, code=parse_code("lung=1,255"), classes=("normal", "tuberculosis"), config=config
    )
