"""DDTI: crops around thyroid nodules in ultrasound, with the outline of the nodule and its TI-RADS.

Pedraza et al., "An open access thyroid ultrasound image database", SIPAIM 2015.
"""

from __future__ import annotations

from dataclasses import dataclass

from ophjax.data import files
from ophjax.data.files import Record
from ophjax.data.images import parse_code
from ophjax.data.sources import Dataset


@dataclass(frozen=True)
class Config:
    """DDTI nodule crops: cropped/CASE_IMAGE(NODULE).png, mask/ with the same names, and diagnosis.csv."""

    root: str = ""
    """Folder that holds cropped/, mask/ and diagnosis.csv (name, TI-RADS, 1 for 4a and above; no header)."""
    size: int = 256
    """Side of the square that images and masks are stretched to, in pixels."""
    val_fraction: float = 0.15
    """Share of the images drawn for validation."""
    test_fraction: float = 0.25
    """Share of the images drawn for the test."""
    split_seed: int = 0
    """Seed of the draw; the set has no official split. All nodules of a patient (CASE) go into one part."""


def make(config: Config) -> Dataset:
    """Reads crops and nodule masks; TI-RADS 2 and 3 are benign, 4a to 5 suspicious.

    Raises:
      InputError: where the layout is another, or a label is missing.
    """
    root = files.folder_at(config.root)
    pictures = files.list_images(root / "cropped")
    masks = files.pair_masks(pictures, files.list_images(root / "mask"))
    table = root / "diagnosis.csv"
    columns = ("name", "tirads", "binary")
    labels = files.read_labels(table, key="name", column="binary", values=("0", "1"), bare=columns)
    records = [
        Record(stem, path, masks.get(stem), files.label_of(labels, path, table), stem.split("_")[0])
        for stem, path in pictures.items()
    ]
    return files.assemble(
        "ddti", records, code=parse_code("nodule=1,255"), classes=("benign", "suspicious"), config=config
    )
