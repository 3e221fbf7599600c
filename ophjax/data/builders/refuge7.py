"""REFUGE with seven raters: fundus images with disc and cup drawn by seven ophthalmologists, glaucoma or not.

Fang et al., "REFUGE2 challenge", arXiv 2202.08994; the layout is that of the multi-rater release as public programs
read it (selfcal spec, section (g)). The release was not at hand: it is tested on a tree of our own making.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ophjax.data import files, multirater
from ophjax.data.images import MaskCode
from ophjax.data.multirater import Annotated
from ophjax.data.sources import Dataset
from ophjax.errors import InputError

GIVEN = {"training": "train", "validation": "val", "test": "test"}
MARKED = tuple(range(1, 256))
CODE = MaskCode({"disc": MARKED, "cup": MARKED}, (0,))


@dataclass(frozen=True)
class Config:
    """{Training,Validation,Test}-400/ID/, each with ID.jpg and ID_seg_disc_K.png, ID_seg_cup_K.png for raters K = 1, 2,
    ..."""

    root: str = ""
    """Folder that holds Training-400/ and, where they are there, Validation-400/ and Test-400/."""
    size: int = 256
    """Side of the square that images and masks are stretched to, in pixels."""
    crop: float = 3.0
    """Side of the square that is cut out around what any rater gave as disc, in diameters (1 to 100); 0 takes whole
    frames. In the test split too: scores are those of a system that has been told where the disc is."""
    labels: str = "labels.csv"
    """Table in the root with the columns imgName (file name, or a path with the folder of the part: Test-400/ID.jpg)
    and label (1 for glaucoma). Without it images have no label."""
    val_fraction: float = 0.15
    """Share drawn for validation where there is no folder of it."""
    test_fraction: float = 0.25
    """Share drawn for the test where there is no folder of it."""
    split_seed: int = 0
    """Seed of the draw."""


def make(config: Config) -> Dataset:
    """Reads all images; a rater who lacks disc or cup of an image is missing there. Scores are against the majority
    vote.

    Raises:
      InputError: where the layout is another, a table lacks an image or does not tell images apart, or a file is bad.
    """
    root = files.folder_at(config.root)
    homes = {path: _part(path.name) for path in sorted(root.glob("*-*/"))}
    folders = [(case, part) for home, part in homes.items() if part for case in sorted(home.glob("*/"))]
    if not folders:
        raise InputError(f"{root} has no folders Training-400/ID/ or the like. Check --data.root against --help.")
    table = root / config.labels
    labels = _labels(table) if table.is_file() else {}
    found = []
    for case, part in folders:
        image = next(
            (case / f"{case.name}{end}" for end in (".jpg", ".png") if (case / f"{case.name}{end}").is_file()), None
        )
        if image is None:
            raise InputError(f"{case} has no image {case.name}.jpg. Add it, or remove the folder.")
        found.append((image, part, _masks(case)))
    numbers = sorted({number for _, _, masks in found for number in masks})
    parts: dict[str, set[str]] = {}
    for image, part, _ in found:
        parts.setdefault(image.stem, set()).add(part)
    unclear = [stem for stem, names in parts.items() if len(names) > 1 and ("", stem) in labels]
    if unclear:
        raise InputError(
            f"{table} does not say which part it means by {files.some(unclear)}, as several parts have images of that "
            f"name. Write imgName with the folder of the part, e.g. Training-400/{unclear[0]}/{unclear[0]}.jpg."
        )
    records = [
        Annotated(
            f"{part}-{image.stem}",
            image,
            tuple(masks.get(number, ()) for number in numbers),
            _label(labels, part, image, table) if labels else -1,
            f"{part}-{image.stem}",
            part,
        )
        for image, part, masks in found
    ]
    return multirater.assemble(
        "refuge7",
        records,
        raters=[f"rater-{number}" for number in numbers],
        reader=multirater.picture_reader(CODE),
        regions=("disc", "cup"),
        classes=("normal", "glaucoma") if labels else (),
        config=config,
        nested=True,
        crop=config.crop,
    )


def _part(folder: str) -> str:
    """The split that a folder's name says, or nothing."""
    return GIVEN.get(folder.split("-")[0].lower(), "")


def _labels(table: Path) -> dict[tuple[str, str], int]:
    """Labels by split, empty where the path names none, and image name without extension."""
    labels: dict[tuple[str, str], int] = {}
    for row in files.read_rows(table, needed=("imgname", "label")):
        path = PurePosixPath(row["imgname"].replace("\\", "/"))
        if row["label"] not in ("0", "1"):
            raise InputError(f"{table} has the label {row['label']!r} for {row['imgname']!r}; it must be 0 or 1.")
        key = next(filter(None, map(_part, path.parts[:-1])), ""), path.stem.removesuffix("_ci")
        if key in labels:
            raise InputError(
                f"{table} has two rows for {row['imgname']!r}. Keep one; where images of several parts share a name, "
                "write imgName with the folder of the part, e.g. Training-400/ID/ID.jpg."
            )
        labels[key] = int(row["label"])
    return labels


def _label(labels: dict[tuple[str, str], int], part: str, image: Path, table: Path) -> int:
    for key in ((part, image.stem), ("", image.stem)):
        if key in labels:
            return labels[key]
    raise InputError(f"{table} has no row for image {image}. Add its label or remove the image.")


def _masks(case: Path) -> dict[int, tuple[Path, ...]]:
    """Disc and cup of each rater who drew both."""
    name = re.compile(re.escape(case.name) + r"_seg_(disc|cup)_(\d+)\.(png|bmp)")
    drawn: dict[int, dict[str, Path]] = {}
    for path in sorted(case.iterdir()):
        match = name.fullmatch(path.name)
        if match:
            drawn.setdefault(int(match[2]), {})[match[1]] = path
    return {number: (one["disc"], one["cup"]) for number, one in drawn.items() if len(one) == 2}
