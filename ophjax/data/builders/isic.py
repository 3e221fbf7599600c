"""ISIC challenges: skin lesions with outline and diagnosis (2016), outline (2018 task 1), seven classes (2018 task 3).

Gutman et al., arXiv 1605.01397, 2016; Codella et al., arXiv 1902.03368, 2019; Tschandl et al., "The HAM10000 dataset",
Scientific Data 5:180161, 2018. The sets were not at hand: the loader is tested on trees of our own making.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ophjax.data import files, official
from ophjax.data.files import FileSource, Record
from ophjax.data.images import parse_code
from ophjax.data.shift import Pictures
from ophjax.data.sources import Dataset, Source
from ophjax.errors import InputError

CODE = parse_code("lesion=1,255")
TYPES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
PARTS = {"Training": "train", "Validation": "val", "Test": "test"}
GROUPINGS = "ISIC2018_Task3_Training_LesionGroupings.csv"
LABELS = {"benign": 0, "malignant": 1, "0": 0, "0.0": 0, "1": 1, "1.0": 1}


@dataclass(frozen=True)
class Config:
    """2016: ISBI2016_ISIC_Part3B_Training_Data/ with ISIC_N.jpg and ISIC_N_Segmentation.png, and ISBI2016_ISIC_Part3B_
    Training_GroundTruth.csv, and the same for Test; or the parts 1 (Data/, GroundTruth/) and 3 (csv). 2018:
    ISIC2018_Task1-2_Training_Input/ and ISIC2018_Task1_Training_GroundTruth/ISIC_N_segmentation.png;
    ISIC2018_Task3_Training_Input/ and ISIC2018_Task3_Training_GroundTruth/*.csv; Validation and Test likewise. Which
    training images show one lesion is read from ISIC2018_Task3_Training_LesionGroupings.csv there or in the root."""

    root: str = ""
    """Folder that holds these folders."""
    edition: Literal["2016", "2018-lesions", "2018-classes"] = "2016"
    """2016: outline, benign or malignant. 2018-lesions: outline. 2018-classes: seven diagnoses (HAM10000)."""
    size: int = 256
    """Side of the square that images and masks are stretched to, in pixels."""
    val_fraction: float = 0.15
    """Share of the training images drawn for validation where it is not given."""
    test_fraction: float = 0.25
    """Share drawn for the test where it is not given."""
    split_seed: int = 0
    """Seed of the draw, which keeps the images of one lesion together where that is known (task 3 of 2018). ISIC does
    not say which images of 2016 and of task 1 are of one patient."""


def make(config: Config) -> Dataset:
    """Reads an edition; parts whose truth is not there are passed over.

    Raises:
      InputError: the layout is another, or a mask or a label is missing.
    """
    root = files.folder_at(config.root)
    if config.edition == "2016":
        records = [record for part in ("Training", "Test") for record in _first(root, part)]
        if not records:
            raise InputError(f"{root} holds no ISBI2016_ISIC_Part1_Training_Data/ or the like. Check --data.root.")
        return files.assemble("isic", records, code=CODE, classes=("benign", "malignant"), config=config)
    lesions = config.edition == "2018-lesions"
    parts: dict[str, tuple[Source, Sequence[int]]] = {}
    groups: list[str] | None = None
    remark = ""
    for given, part in PARTS.items():
        found = _outlined(root, given) if lesions else _diagnosed(root, given)
        if found:
            source: Source = Pictures(found, size=config.size)
            if lesions:
                source = FileSource(found, size=config.size, code=CODE)
            parts[part] = source, [record.label for record in found]
        if found and part == "train" and not lesions:
            groups = _lesions(root, found)
            remark = "" if groups else f"Lesions are not known, as there is no {GROUPINGS}: splits may share one."
    if "train" not in parts:
        task = "Task1-2" if lesions else "Task3"
        raise InputError(f"{root} holds no ISIC2018_{task}_Training_Input/ with its GroundTruth. Check --data.root.")
    regions = tuple(CODE.regions) if lesions else ()
    classes = () if lesions else TYPES
    return official.as_given("isic", parts, config, regions=regions, classes=classes, groups=groups, remark=remark)


def _first(root: Path, part: str) -> list[Record]:
    """A part of 2016 in either layout."""
    name = f"ISBI2016_ISIC_Part3B_{part}"
    if (root / f"{name}_Data").is_dir():
        found = files.list_images(root / f"{name}_Data")
        masks = {
            stem.removesuffix("_Segmentation"): path for stem, path in found.items() if stem.endswith("_Segmentation")
        }
        pictures = {stem: path for stem, path in found.items() if not stem.endswith("_Segmentation")}
        table = root / f"{name}_GroundTruth.csv"
    elif (root / f"ISBI2016_ISIC_Part1_{part}_Data").is_dir():
        pictures = files.list_images(root / f"ISBI2016_ISIC_Part1_{part}_Data")
        masks = _masks(root / f"ISBI2016_ISIC_Part1_{part}_GroundTruth", "_Segmentation")
        table = root / f"ISBI2016_ISIC_Part3_{part}_GroundTruth.csv"
    else:
        return []
    official.need_all(pictures, masks, "mask", root)
    labels: dict[str, int] = {}
    for row in files.read_rows(table, needed=("image", "label"), bare=True):
        if row["label"] not in LABELS:
            raise InputError(
                f"{table} has the label {row['label']!r} for {row['image']!r}; expected benign or malignant."
            )
        labels[row["image"]] = LABELS[row["label"]]
    official.need_all(pictures, labels, "label", table)
    return [Record(stem, path, masks[stem], labels[stem], stem, PARTS[part]) for stem, path in pictures.items()]


def _outlined(root: Path, part: str) -> list[Record]:
    folder, truth = root / f"ISIC2018_Task1-2_{part}_Input", root / f"ISIC2018_Task1_{part}_GroundTruth"
    if not folder.is_dir() or not truth.is_dir():
        return []
    pictures, masks = files.list_images(folder), _masks(truth, "_segmentation")
    official.need_all(pictures, masks, "mask", truth)
    return [Record(stem, path, masks[stem], -1, stem) for stem, path in pictures.items()]


def _diagnosed(root: Path, part: str) -> list[Record]:
    folder, truth = root / f"ISIC2018_Task3_{part}_Input", root / f"ISIC2018_Task3_{part}_GroundTruth"
    table = truth / f"{truth.name}.csv"
    if not folder.is_dir() or not table.is_file():
        return []
    columns = [name.lower() for name in TYPES]
    pictures, labels = files.list_images(folder), {}
    for row in files.read_rows(table, needed=("image", *columns)):
        ones = [k for k, name in enumerate(columns) if row[name] in ("1", "1.0")]
        if len(ones) != 1:
            raise InputError(f"{table} has no single 1 in the row of {row['image']!r}. Correct it.")
        labels[row["image"]] = ones[0]
    official.need_all(pictures, labels, "diagnosis", table)
    return [Record(stem, path, None, labels[stem], stem) for stem, path in pictures.items()]


def _lesions(root: Path, records: Sequence[Record]) -> list[str] | None:
    """The lesion of each training image, None where there is no table of them."""
    places = (root / "ISIC2018_Task3_Training_GroundTruth" / GROUPINGS, root / GROUPINGS)
    table = next((path for path in places if path.is_file()), None)
    if table is None:
        return None
    lesions = {row["image"]: row["lesion_id"] for row in files.read_rows(table, needed=("image", "lesion_id"))}
    official.need_all({record.name: Path(record.name) for record in records}, lesions, "lesion", table)
    return [lesions[record.name] or record.name for record in records]


def _masks(folder: Path, suffix: str) -> dict[str, Path]:
    return {stem.removesuffix(suffix): path for stem, path in files.list_images(folder).items()}
