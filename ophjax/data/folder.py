"""A data set of the user's own: a folder with ``images/``, ``masks/`` and ``labels.csv``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ophjax.data import files
from ophjax.data.files import Record
from ophjax.data.images import parse_code
from ophjax.data.sources import Dataset
from ophjax.errors import InputError


@dataclass(frozen=True)
class Config:
    """A folder of your own: images/, masks/ and labels.csv.

    Masks carry the name of their image, or that name and then _mask; images may lack one. labels.csv has the
    columns image (file name, with or without extension) and label, and if you like patient and split (train,
    val, test). Without val or test rows these are drawn from the training rows.
    """

    root: str = ""
    """The folder."""
    size: int = 256
    """Side of the square that images and masks are stretched to, in pixels."""
    mask_code: str = "binary"
    """Pixel values of each region, e.g. "disc=1,2;cup=2" (add "background=255" where it is not 0), or a name:
    binary (one region, 1 or 255), refuge (cup 0, rim 128, background 255), drishti (rim 1, cup 2)."""
    labels: str = "labels.csv"
    """Name of the table of labels inside the folder."""
    val_fraction: float = 0.15
    """Share of the images drawn for validation where labels.csv has no split."""
    test_fraction: float = 0.25
    """Share of the images drawn for the test where labels.csv has no split."""
    split_seed: int = 0
    """Seed of the draw."""


def make(config: Config) -> Dataset:
    """Reads the folder. Classes are the labels found, in numerical order where all are integers.

    Raises:
      InputError: for every mistake in the folder, naming the file or the row.
    """
    root = files.folder_at(config.root)
    code = parse_code(config.mask_code)
    pictures = files.list_images(root / "images")
    masks = files.pair_masks(pictures, files.list_images(root / "masks"), suffix="_mask")
    rows = read_table(root / config.labels, pictures)
    labels = {row["label"] for row in rows.values()}
    numbers = all(re.fullmatch(r"-?\d+", label) for label in labels)
    classes = sorted(labels, key=int) if numbers else sorted(labels)
    records = [
        Record(
            name=stem,
            image=pictures[stem],
            mask=masks.get(stem),
            label=classes.index(row["label"]),
            group=row.get("patient", stem),
            part=row.get("split", "").lower(),
        )
        for stem, row in rows.items()
    ]
    return files.assemble("folder", records, code=code, classes=classes, config=config)


def read_table(path: Path, pictures: dict[str, Path], *, unlabelled: bool = False) -> dict[str, dict[str, str]]:
    """Reads the table and matches it with the images, one row for each.

    Args:
      path: the table, with the columns image and label, and perhaps patient and split.
      pictures: the images by name without extension.
      unlabelled: labels may be empty.

    Returns:
      The rows by name of the image without extension.

    Raises:
      InputError: for a row without an image, an image without a row or with two, an empty cell, an unknown split.
    """
    stems = {picture.name: stem for stem, picture in pictures.items()}
    rows: dict[str, dict[str, str]] = {}
    strangers = []
    for row in files.read_rows(path, needed=("image", "label")):
        given = row["image"]
        if not given or "/" in given or "\\" in given or given in (".", ".."):
            raise InputError(
                f"{path} names the image {given!r}. Give the name of a file in {path.parent / 'images'}, "
                "without any folder."
            )
        stem = stems.get(given, given)
        if stem not in pictures:
            strangers.append(given)
        elif stem in rows:
            raise InputError(f"{path} has two rows for the image {given!r}. Keep one.")
        filled = ("patient", "split") if unlabelled else ("label", "patient", "split")
        empty = [name for name in filled if row.get(name, "-") == ""]
        if empty:
            raise InputError(f"{path} has no {empty[0]} in the row of image {given!r}. Fill it in.")
        if row.get("split", "train").lower() not in files.PARTS:
            raise InputError(
                f"{path} has the split {row['split']!r} in the row of image {given!r}; it must be one of "
                f"{', '.join(files.PARTS)}."
            )
        rows[stem] = row
    if strangers:
        raise InputError(
            f"{path} names {len(strangers)} image(s) that are not in {path.parent / 'images'}: "
            f"{files.some(strangers)}. Remove the rows or add the files."
        )
    bare = [picture.name for stem, picture in pictures.items() if stem not in rows]
    if bare:
        raise InputError(f"{path} has no row for {len(bare)} image(s): {files.some(bare)}. Add their labels.")
    return rows
