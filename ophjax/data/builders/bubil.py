"""BU-BIL with all its annotations: single cells by phase-contrast microscopy, each outlined ten times.

Gurari et al., "How to collect segmentations for biomedical images? A benchmark evaluating the performance of experts,
crowdsourced non-experts, and algorithms", WACV 2015. ``cells`` reads the same files as three domains of one mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ophjax.data import files, multirater
from ophjax.data.builders.cells import CODE, FOLDERS
from ophjax.data.multirater import Annotated
from ophjax.data.sources import Dataset
from ophjax.errors import InputError


@dataclass(frozen=True)
class Config:
    """BU-BIL_Dataset1/, 2/ (or 2/2A/) and 3/, each with RawImages/N, GoldStandard/seg_N (the cell black) and
    ExpertsAnnotations/PERSON/seg_N; a person may lack some images."""

    root: str = ""
    """Folder that holds BU-BIL_Dataset1/, BU-BIL_Dataset2/ and BU-BIL_Dataset3/, or some of them."""
    size: int = 256
    """Side of the square that images and masks are stretched to, in pixels."""
    val_fraction: float = 0.15
    """Share of the images drawn for validation, in the same shares of each kind of cell."""
    test_fraction: float = 0.25
    """Share of the images drawn for the test."""
    split_seed: int = 0
    """Seed of the draw."""


def make(config: Config) -> Dataset:
    """Reads the images of all sets found, the kinds of cell being the classes. Scores are against the gold standard.

    Raises:
      InputError: where the layout is another, the gold standard of an image is missing, or a mask is bad.
    """
    root = files.folder_at(config.root)
    found = {}
    for name, folder in FOLDERS.items():
        home = root / folder
        if home.is_dir():
            found[name] = home / "2A" if (home / "2A").is_dir() else home
    if not found:
        raise InputError(f"{root} has none of the folders {', '.join(FOLDERS.values())}. Check --data.root.")
    people = sorted({path.name for home in found.values() for path in (home / "ExpertsAnnotations").glob("*/")})
    if not people:
        raise InputError(f"There are no annotations in {next(iter(found.values())) / 'ExpertsAnnotations'}. Add them.")
    records = []
    for number, (name, home) in enumerate(found.items()):
        pictures = files.list_images(home / "RawImages")
        gold = _masks(home / "GoldStandard", pictures)
        drawn = [_masks(home / "ExpertsAnnotations" / person, pictures) for person in people]
        for stem, path in pictures.items():
            if stem not in gold:
                raise InputError(f"Image {path} has no mask {home / 'GoldStandard' / f'seg_{stem}'}. Add it.")
            raters = tuple((masks[stem],) if stem in masks else () for masks in drawn)
            records.append(Annotated(f"{name}-{stem}", path, raters, number, f"{name}-{stem}", "", (gold[stem],)))
    return multirater.assemble(
        "bubil",
        records,
        raters=[person.lower().replace("_", "-") for person in people],
        reader=multirater.picture_reader(CODE),
        regions=("cell",),
        classes=tuple(found),
        config=config,
    )


def _masks(folder: Path, pictures: dict[str, Path]) -> dict[str, Path]:
    """The masks in one annotator's folder by image; none where there is no such folder."""
    if not folder.is_dir():
        return {}
    masks = {stem.removeprefix("seg_"): path for stem, path in files.list_images(folder).items()}
    return files.pair_masks(pictures, masks)
