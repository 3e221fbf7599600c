"""A folder with one sub-folder of images for each class, as MedNIST comes and as classifiers' data often does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ophjax.data import files, shift, tfds
from ophjax.data.files import Record
from ophjax.data.sources import Cached, Dataset, Source, Subset
from ophjax.errors import InputError

# Changes to Config for two CPU cores.
DEMO: dict[str, Any] = dict(size=32)


@dataclass(frozen=True)
class Config:
    """CLASS/IMAGE: the sub-folders' names are the classes, in alphabetical order. There are no masks.

    Or a TFDS data set (array_record) with the features image and label, whose splits train, validation and test are
    taken as they are; what is missing of them is drawn from train.
    """

    root: str = ""
    """Folder that holds one sub-folder for each class, or of the TFDS data set."""
    size: int = 256
    """Side of the square that images are stretched to, in pixels."""
    classes: tuple[str, ...] = ()
    """Only these classes, in this order; none: all of them."""
    val_fraction: float = 0.15
    """Share of the images drawn for validation."""
    test_fraction: float = 0.25
    """Share of the images drawn for the test."""
    split_seed: int = 0
    """Seed of the draw, in the same shares of each class. Images are not known by patient here."""


def make(config: Config) -> Dataset:
    """Lists the images and draws the splits.

    Raises:
      InputError: fewer than two classes, a class without images or that is not there, a bad image.
    """
    root = files.folder_at(config.root)
    if not 16 <= config.size <= 4096:
        raise InputError(f"The image size is {config.size}; give a side between 16 and 4096 pixels.")
    stored = tfds.folder_in(root)
    if stored is None:
        found = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        classes = _chosen(root, found, config, "sub-folders")
        records = [
            Record(f"{name}/{stem}", path, None, label, f"{name}/{stem}")
            for label, name in enumerate(classes)
            for stem, path in files.list_images(root / name).items()
        ]
    else:
        classes, records = _stored(stored, config)
    parts = files.place(records, config)
    empty = [part for part, chosen in parts.items() if not chosen]
    if empty:
        raise InputError(f"The {empty[0]} split of {root} is empty. Give more images, or larger fractions.")
    pictures = shift.Pictures(records, size=config.size)
    source = Cached(pictures)
    files.decode_first(source, pictures.pixels)
    splits: dict[str, Source] = {part: Subset(source, chosen) for part, chosen in parts.items()}
    sizes = ", ".join(f"{len(chosen)} {part}" for part, chosen in parts.items())
    drawn = [part for part in ("val", "test") if all(record.part != part for record in records)]
    how = f"{' and '.join(drawn)} drawn by seed {config.split_seed} in the same shares of each class"
    note = f"{sizes}; {how if drawn else 'as given'}; no masks."
    return Dataset("imagefolder", (), classes, splits, note)


def _chosen(root: Path, found: list[str], config: Config, kind: str) -> tuple[str, ...]:
    classes = config.classes or tuple(found)
    if len(classes) < 2 or not set(classes) <= set(found):
        raise InputError(
            f"{root} has the {kind} {', '.join(found) or 'none'}, and the classes are "
            f"{', '.join(classes) or 'none'}; expected at least two classes, each of them one of the {kind}."
        )
    return classes


def _stored(folder: Path, config: Config) -> tuple[tuple[str, ...], list[Record]]:
    """Lists the examples of a TFDS data set; those without a label, and of other splits, are left out."""
    _, rows, features = tfds.splits_of(folder, image="Image", label="ClassLabel")
    names = list(features["label"].names)
    classes = _chosen(folder, names, config, "labels")
    place = {names.index(name): label for label, name in enumerate(classes)}
    records = []
    for split, part in (("train", "train"), ("validation", "val"), ("test", "test")):
        where = f"{split} in {folder}"
        labels = tfds.labels_of(rows[split], where) if split in rows else []
        for i, label in enumerate(labels):
            if label in place:
                name, image = f"{split}{i:06}", tfds.Stored(rows[split], i, "image", where)
                records.append(Record(name, image, None, place[label], name, part))
    return classes, records
