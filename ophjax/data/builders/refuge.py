"""REFUGE: fundus images of two cameras, glaucoma or not: Zeiss Visucam 500 (training) and Canon CR-2 (validation).

Orlando et al., "REFUGE Challenge", Medical Image Analysis 59:101570, 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ophjax.data import files, shift
from ophjax.data.files import Record
from ophjax.data.sources import Dataset
from ophjax.errors import InputError

FOLDERS = {"Non-Glaucoma": 0, "Glaucoma": 1}


@dataclass(frozen=True)
class Config(shift.Config):
    """Training400/{Glaucoma,Non-Glaucoma}/*.jpg, and REFUGE-Validation400/V*.jpg with a table of its labels."""

    root: str = ""
    """Folder that holds Training400/ and REFUGE-Validation400/."""
    domains: tuple[str, ...] = ("zeiss", "canon")
    """The domains: the source first, then the target."""
    table: str = "labels_and_fovea.csv"
    """Table inside REFUGE-Validation400/ with the columns ImgName and Glaucoma Label (0 or 1): the official sheet saved
    as CSV. Without the file the Canon images have no labels."""


def make(config: Config) -> Dataset:
    """Reads the images of both cameras; all splits are drawn.

    Raises:
      InputError: where the layout is another, or a label is missing.
    """
    shift.check(config, known=("zeiss", "canon"))
    root = files.folder_at(config.root)
    records = {"zeiss": _zeiss(root / "Training400"), "canon": _canon(root / "REFUGE-Validation400", config.table)}
    domains = [shift.domain_of(name, records[name], size=config.size) for name in config.domains]
    return shift.assemble("refuge", domains, config=config, classes=("normal", "glaucoma"))


def _zeiss(folder: Path) -> list[Record]:
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Give the folder around Training400/ with --data.root.")
    return [
        Record(stem, path, None, label, stem)
        for name, label in FOLDERS.items()
        for stem, path in files.list_images(folder / name).items()
    ]


def _canon(folder: Path, name: str) -> list[Record]:
    pictures = files.list_images(folder)
    table = folder / name
    if not table.is_file():
        return [Record(stem, path, None, -1, stem) for stem, path in pictures.items()]
    labels = files.read_labels(table, key="imgname", column="glaucoma label", values=("0", "1"))
    return [Record(stem, path, None, files.label_of(labels, path, table), stem) for stem, path in pictures.items()]
