"""Retinal vessels by two cameras: DRIVE (Canon CR5) and CHASE_DB1 (Nidek NM-200-D).

Staal et al., "Ridge-based vessel segmentation in color images of the retina", IEEE TMI 23(4), 2004; Fraz et al., "An
ensemble classification-based approach applied to retinal blood vessel segmentation", IEEE TBME 59(9), 2012.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ophjax.data import files, shift
from ophjax.data.files import Record
from ophjax.data.images import MaskCode, parse_code
from ophjax.data.sources import Dataset
from ophjax.errors import InputError

BINARY = parse_code("vessel=1,255")
# JPEG smooths masks: they are cut in the middle.
SMOOTHED = MaskCode({"vessel": tuple(range(128, 256))}, tuple(range(128)))
EYE = re.compile(r"Image_(\d+)[LR]")


@dataclass(frozen=True)
class Config(shift.Config):
    """DRIVE: training/images/NN_training.tif, training/1st_manual/NN_manual1.gif, and test/ likewise. CHASE_DB1:
    Image_NNL.jpg with Image_NNL_1stHO.png beside it, or images/ and 1stHO/ with the same names in both.

    The first observer's masks are the truth. The rim outside the field of view counts as background.
    """

    root: str = ""
    """Folder that holds DRIVE/ and CHASEDB1/ (or CHASEDB1_512/)."""
    domains: tuple[str, ...] = ("drive", "chase")
    """The domains: the source first, then the target."""


def make(config: Config) -> Dataset:
    """Reads images and vessel masks. DRIVE's test images are the test split where their first observer is there too.

    Raises:
      InputError: where the layout is another, or a mask is missing.
    """
    shift.check(config, known=("drive", "chase"))
    root = files.folder_at(config.root)
    domains = []
    for name in config.domains:
        records = _drive(root) if name == "drive" else _chase(root)
        smoothed = any(record.mask and record.mask.suffix.lower() in (".jpg", ".jpeg") for record in records)
        domains.append(shift.domain_of(name, records, size=config.size, code=SMOOTHED if smoothed else BINARY))
    return shift.assemble("vessels", domains, config=config, regions=("vessel",))


def _drive(root: Path) -> list[Record]:
    test = (root / "DRIVE" / "test" / "1st_manual").is_dir()
    records = []
    for part in ("training", "test") if test else ("training",):
        folder = root / "DRIVE" / part
        masks = {stem.split("_")[0]: path for stem, path in files.list_images(folder / "1st_manual").items()}
        for stem, path in files.list_images(folder / "images").items():
            number = stem.split("_")[0]
            if number not in masks:
                raise InputError(f"Image {path} has no mask {folder / '1st_manual' / number}_manual1. Add it.")
            # Validation, and the test where it is not given, are drawn from the training images.
            records.append(Record(stem, path, masks[number], -1, stem, "test" if part == "test" else ""))
    return records


def _chase(root: Path) -> list[Record]:
    folder = _first(root, ("CHASEDB1", "CHASEDB1_512", "CHASE_DB1"))
    if (folder / "images").is_dir():
        pictures, masks = files.list_images(folder / "images"), files.list_images(folder / "1stHO")
    else:
        found = files.list_images(folder)
        pictures = {stem: path for stem, path in found.items() if EYE.fullmatch(stem)}
        masks = {stem: path for stem, path in found.items() if stem.endswith("_1stHO")}
    masks = files.pair_masks(pictures, masks, suffix="_1stHO")
    records = []
    for stem, path in pictures.items():
        eye = EYE.fullmatch(stem)
        if eye is None:
            raise InputError(f"{path} is not called Image_NNL or Image_NNR. Give it its official name.")
        if stem not in masks:
            raise InputError(f"Image {path} has no mask of the first observer (1stHO). Add it.")
        records.append(Record(stem, path, masks[stem], -1, f"subject {eye[1]}"))
    return records


def _first(root: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise InputError(
        f"{root} has none of the folders {', '.join(names)}. Give the folder around them with --data.root."
    )
