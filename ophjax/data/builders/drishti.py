"""Drishti-GS1: optic disc and cup on crops around the optic nerve head, glaucoma or normal.

Sivaswamy et al., "Drishti-GS: Retinal image dataset for optic nerve head segmentation", ISBI 2014.
"""

from __future__ import annotations

from dataclasses import dataclass

from ophjax.data import files
from ophjax.data.files import Record
from ophjax.data.images import parse_code
from ophjax.data.sources import Dataset
from ophjax.errors import InputError

OFFICIAL = {"Training": "train", "Test": "test"}


@dataclass(frozen=True)
class Config:
    """Drishti-GS1 crops: Training/ and Test/, each with Images/ and GT_roi/ (1 rim, 2 cup); labels.csv."""

    root: str = ""
    """Folder that holds Training/ (and Test/) and labels.csv with the columns image and glaucoma (0 or 1)."""
    size: int = 256
    """Side of the square that images and masks are stretched to, in pixels."""
    val_fraction: float = 0.15
    """Share of the official training images drawn for validation."""
    test_fraction: float = 0.25
    """Share drawn for the test where only one of the official parts is there."""
    split_seed: int = 0
    """Seed of the draw."""


def make(config: Config) -> Dataset:
    """Reads the crops. The official split is kept where both of its parts are there.

    Rows of labels.csv without an image are passed over: the table covers both parts.

    Raises:
      InputError: where the layout is another, or a mask or label is missing.
    """
    root = files.folder_at(config.root)
    found = [folder for folder in OFFICIAL if (root / folder).is_dir()]
    if not found:
        raise InputError(f"{root} has neither Training/ nor Test/. Give the folder that holds them: --data.root.")
    table = root / "labels.csv"
    labels = files.read_labels(table, key="image", column="glaucoma", values=("0", "1"))
    records = []
    for folder in found:
        pictures = files.list_images(root / folder / "Images")
        masks = files.pair_masks(pictures, files.list_images(root / folder / "GT_roi"))
        # Where one part is missing the other is divided by seed.
        part = OFFICIAL[folder] if len(found) == 2 else ""
        for stem, path in pictures.items():
            if stem not in masks:
                raise InputError(f"Image {path} has no mask in {root / folder / 'GT_roi'}. Add it.")
            # Every image is its own group: there is one eye of each patient.
            records.append(Record(stem, path, masks[stem], files.label_of(labels, path, table), stem, part))
    return files.assemble("drishti", records, code=parse_code("drishti"), classes=("normal", "glaucoma"), config=config)
