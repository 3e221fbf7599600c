"""PH2: dermoscopic images with the outline of the lesion; melanoma against nevi.

Mendonca et al., "PH2 - A dermoscopic image database for research and benchmarking", EMBC 2013.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ophjax.data import files
from ophjax.data.files import Record
from ophjax.data.images import parse_code
from ophjax.data.sources import Dataset
from ophjax.errors import InputError

# "|| IMD003 || histology || 0 || ..." as published, or "IMD003<tab>0<tab>..." as in shortened copies.
ROW = re.compile(r"^\W*(IMD\d+)(?:\s*\|\|[^|]*\|\|\s*|\s*[\t,;]\s*)([012])\b", re.MULTILINE)


@dataclass(frozen=True)
class Config:
    """PH2 as published (PH2 Dataset images/IMDnnn/..., PH2_dataset.txt) or as images/, masks/, labels.csv."""

    root: str = ""
    """Folder that holds images/, masks/ (IMDnnn_lesion) and labels.csv (Name, Clinical Diagnosis, 2 being
    melanoma), or else the folder PH2Dataset or the one above it."""
    size: int = 256
    """Side of the square that images and masks are stretched to, in pixels."""
    val_fraction: float = 0.15
    """Share of the images drawn for validation."""
    test_fraction: float = 0.25
    """Share of the images drawn for the test."""
    split_seed: int = 0
    """Seed of the draw; PH2 has no official split."""


def make(config: Config) -> Dataset:
    """Reads the images with their lesion masks; common and atypical nevi are one class, melanoma the other.

    Raises:
      InputError: where the layout is another, or a label is missing.
    """
    root = files.folder_at(config.root)
    if (root / "images").is_dir():
        pictures, masks = files.list_images(root / "images"), files.list_images(root / "masks")
    else:
        pictures, masks = _published(root)
    masks = files.pair_masks(pictures, masks, suffix="_lesion")
    diagnoses, table = _diagnoses(root)
    records = [
        Record(stem, path, masks.get(stem), int(files.label_of(diagnoses, path, table) == 2), stem)
        for stem, path in pictures.items()
    ]
    return files.assemble("ph2", records, code=parse_code("lesion=1,255"), classes=("nevus", "melanoma"), config=config)


def _published(root: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    pattern = "PH2 Dataset images/IMD*/IMD*_{}/*.bmp"
    for base in (root, root / "PH2Dataset"):
        pictures = sorted(base.glob(pattern.format("Dermoscopic_Image")))
        if pictures:
            masks = sorted(base.glob(pattern.format("lesion")))
            return {path.stem: path for path in pictures}, {path.stem: path for path in masks}
    raise InputError(
        f"{root} has neither images/ nor PH2Dataset/PH2 Dataset images/IMDnnn/. Give the folder of PH2 with "
        "--data.root."
    )


def _diagnoses(root: Path) -> tuple[dict[str, int], Path]:
    for table in (root / "PH2_dataset.txt", root / "PH2Dataset" / "PH2_dataset.txt"):
        if table.is_file():
            # The published file is not UTF-8 throughout; names and numbers are ASCII.
            rows = ROW.findall(table.read_text(encoding="latin-1"))
            return {name: int(diagnosis) for name, diagnosis in rows}, table
    table = root / "labels.csv"
    return files.read_labels(table, key="name", column="clinical diagnosis", values=("0", "1", "2")), table
