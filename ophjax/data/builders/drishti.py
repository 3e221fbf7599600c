"""Drishti-GS1: optic disc and cup, glaucoma or normal; the official full frames, or crops around the disc.

Sivaswamy et al., "Drishti-GS: Retinal image dataset for optic nerve head segmentation", ISBI 2014.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ophjax.data import files
from ophjax.data.files import Record
from ophjax.data.images import MaskCode, parse_code
from ophjax.data.sources import Dataset
from ophjax.errors import InputError

OFFICIAL = {"Training": "train", "Test": "test"}
CLASSES = {"NORMAL": 0, "GLAUCOMA": 1}
EXPERTS = 4
SLACK = 0.01
"""Official soft maps may be some pixels smaller than their images; stretched alike, both show the same frame. Where the
sides differ by a larger share than this (our decision), that is taken for a mistake."""


@dataclass(frozen=True)
class Config:
    """Drishti-GS1 as released (full frames with soft maps), or as crops around the disc with fused masks.

    As released: Training/ and Test/, each with Images/ (flat, or in the folders GLAUCOMA and NORMAL) and GT/ or
    Test_GT/ with drishtiGS_NNN/SoftMap/drishtiGS_NNN_ODsegSoftmap.png and ..._cupsegSoftmap.png. As crops: each with
    Images/ and GT_roi/ (1 rim, 2 cup).
    """

    root: str = ""
    """Folder that holds Training/ (and Test/), or the one above it, Drishti-GS1_files being in between. Where the
    images lie flat it also holds labels.csv with the columns image and glaucoma (0 or 1)."""
    size: int = 256
    """Side of the square that images and masks are stretched to, in pixels."""
    crop: float | None = None
    """Side of the square that is cut out around the given disc, in disc diameters (1 to 100); 0 takes the image whole.
    By default 2 for full frames and 0 for crops. The disc is that of the data set's own mask, in the test split too:
    scores are those of a system that has been told where the disc is and how large."""
    agreement: int = 3
    """Full frames: of the four experts so many must have marked a pixel for it to be disc, or cup (1 to 4)."""
    val_fraction: float = 0.15
    """Share of the official training images drawn for validation."""
    test_fraction: float = 0.25
    """Share drawn for the test where only one of the official parts is there."""
    split_seed: int = 0
    """Seed of the draw."""


def make(config: Config) -> Dataset:
    """Reads either layout. The official split is kept where both of its parts are there.

    A soft map holds the share of the four experts who marked a pixel, as 255 times that share; by default a strict
    majority decides (our decision: three of four, where many programs take half, 128 and above). Labels are those of
    the folders GLAUCOMA and NORMAL where there are such, else those of labels.csv. Rows of labels.csv without an image
    are passed over: the table covers both parts. Neither layout says whose eye an image shows, so that two eyes of
    one patient may come into different splits.

    Raises:
      InputError: where the layout is another, a mask or label is missing, or an option is out of its range.
    """
    if not 1 <= config.agreement <= EXPERTS:
        raise InputError(f"--data.agreement is {config.agreement}; {EXPERTS} experts were asked: give 1 to {EXPERTS}.")
    given = files.folder_at(config.root)
    inner = given / "Drishti-GS1_files"  # the archive holds a folder of its own name
    homes = (given, inner, inner / "Drishti-GS1_files")
    root = next((home for home in homes if any((home / folder).is_dir() for folder in OFFICIAL)), None)
    if root is None:
        raise InputError(f"{given} has neither Training/ nor Test/. Give the folder that holds them: --data.root.")
    found = [folder for folder in OFFICIAL if (root / folder).is_dir()]
    full = [not (root / folder / "GT_roi").is_dir() for folder in found]
    if len(set(full)) > 1:
        raise InputError(f"Of Training/ and Test/ in {root} only one has GT_roi/. Give full frames or crops, not both.")
    pictures = {folder: _pictures(root / folder / "Images") for folder in found}
    labels = _labels((root, given), [path for part in pictures.values() for path in part.values()])
    records = []
    for folder in found:
        masks = (_soft_maps if full[0] else _fused)(root / folder, pictures[folder])
        # Where one part is missing the other is divided by seed.
        part = OFFICIAL[folder] if len(found) == 2 else ""
        for stem, path in pictures[folder].items():
            first, *further = masks[stem]
            records.append(Record(stem, path, first, labels[path], stem, part, tuple(further)))
    crop = config.crop if config.crop is not None else 2.0 * full[0]
    code = soft_code(config.agreement) if full[0] else parse_code("drishti")
    return files.assemble(
        "drishti", records, code=code, classes=("normal", "glaucoma"), config=config, crop=crop, slack=SLACK * full[0]
    )


def soft_code(agreement: int) -> MaskCode:
    """The mask code of soft maps: pixels marked by at least so many of the four experts.

    The least value lies half a step under that share, since the levels are rounded (64, 128, 191, 255).
    """
    least = round(255 * (agreement - 0.5) / EXPERTS)
    marked = tuple(range(least, 256))
    return MaskCode({"disc": marked, "cup": marked}, tuple(range(least)))


def _pictures(folder: Path) -> dict[str, Path]:
    """The images of a part, from the folders of their classes where there are such."""
    named = [path for path in sorted(folder.glob("*/")) if path.name.upper() in CLASSES]
    pictures: dict[str, Path] = {}
    for place in named or [folder]:
        for stem, path in files.list_images(place).items():
            if stem in pictures:
                raise InputError(f"Image {path} is also there as {pictures[stem]}. Remove one.")
            pictures[stem] = path
    return pictures


def _labels(homes: Sequence[Path], images: Sequence[Path]) -> dict[Path, int]:
    """The class of each image: that of its folder, or else that of the table."""
    loose = [image for image in images if image.parent.name.upper() not in CLASSES]
    table = next((home / "labels.csv" for home in homes if (home / "labels.csv").is_file()), homes[0] / "labels.csv")
    if loose and not table.is_file():
        raise InputError(
            f"There is no table {table}, and {len(loose)} images lie in no folder GLAUCOMA or NORMAL: "
            f"{files.some(image.name for image in loose)}. Save the diagnoses (the release has them in "
            "Drishti-GS1_diagnosis.xlsx) as that table, with the columns image and glaucoma (0 or 1)."
        )
    read = files.read_labels(table, key="image", column="glaucoma", values=("0", "1")) if loose else {}
    labels = {image: files.label_of(read, image, table) for image in loose}
    return {image: CLASSES[image.parent.name.upper()] for image in images if image not in labels} | labels


def _soft_maps(part: Path, pictures: dict[str, Path]) -> dict[str, tuple[Path, ...]]:
    """The soft maps of each image, disc and cup."""
    drawn = next((part / name for name in ("GT", "Test_GT") if (part / name).is_dir()), None)
    if drawn is None:
        raise InputError(
            f"{part} has no folder of masks: neither GT/ or Test_GT/ (full frames) nor GT_roi/ (crops). Check "
            "--data.root."
        )
    lonely = [folder.parent.name for folder in sorted(drawn.glob("*/SoftMap")) if folder.parent.name not in pictures]
    if lonely:
        raise InputError(
            f"{len(lonely)} folder(s) of masks in {drawn} have no image in {part / 'Images'}, or in its folders "
            f"GLAUCOMA and NORMAL where it has such: {files.some(lonely)}. Add the images, or remove the masks."
        )
    masks = {}
    for stem, image in pictures.items():
        masks[stem] = tuple(drawn / stem / "SoftMap" / f"{stem}_{name}segSoftmap.png" for name in ("OD", "cup"))
        missing = [path for path in masks[stem] if not path.is_file()]
        if missing:
            raise InputError(f"Image {image} has no mask: there is no {missing[0]}. Add it.")
    return masks


def _fused(part: Path, pictures: dict[str, Path]) -> dict[str, tuple[Path, ...]]:
    """The fused mask of each crop."""
    masks = files.pair_masks(pictures, files.list_images(part / "GT_roi"))
    for stem, path in pictures.items():
        if stem not in masks:
            raise InputError(f"Image {path} has no mask in {part / 'GT_roi'}. Add it.")
    return {stem: (path,) for stem, path in masks.items()}
