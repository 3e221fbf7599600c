"""PAPILA: fundus images of both eyes of each patient, disc and cup outlined by two experts, with clinical data.

Kovalyk et al., "PAPILA: Dataset with fundus images and clinical data of both eyes of the same patient for glaucoma
assessment", Scientific Data 9:291, 2022. The images were not at hand: the loader was tested on the release's contour
files and on images of our own making.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ophjax.data import files, images, multirater
from ophjax.data.multirater import Annotated, Reader
from ophjax.data.sources import Dataset
from ophjax.errors import InputError

EXPERTS = 2
EYE = re.compile(r"RET(\d+)(OD|OS)")
LABELS = {"0": 0, "1": 1, "2": -1, "-1": -1}
"""Healthy, glaucoma; suspects (2, or -1 in some copies) have no label."""
NAMES = {
    "patient": ("patient", "id", "original_name", "patient_id"),
    "diagnosis": ("diagnosis", "types"),
    "eye": ("eye",),
}
"""Columns of the patient table by the names that copies of it use."""


@dataclass(frozen=True)
class Config:
    """FundusImages/RETpppOD.jpg and RETpppOS.jpg; ExpertsSegmentations/Contours/RETpppOD_{disc,cup}_exp{1,2}.txt, lines
    of x and y in pixels of the image."""

    root: str = ""
    """Folder that holds FundusImages/ and ExpertsSegmentations/."""
    size: int = 256
    """Side of the square that images and masks are stretched to, in pixels."""
    crop: float = 3.0
    """Side of the square that is cut out around what any expert gave as disc, in diameters (1 to 100), in the test
    split too; 0 takes whole frames."""
    tables: tuple[str, ...] = ("ClinicalData/patient_data_od.csv", "ClinicalData/patient_data_os.csv")
    """Patient tables saved as CSV, with columns for the patient (ID), the diagnosis (0 healthy, 1 glaucoma, 2 suspect)
    and, where one table holds both eyes, eye (OD or OS); else the file's name tells it. Without them images have no
    label."""
    val_fraction: float = 0.15
    """Share of the images drawn for validation; both eyes of a patient stay together."""
    test_fraction: float = 0.25
    """Share of the images drawn for the test."""
    split_seed: int = 0
    """Seed of the draw."""


def make(config: Config) -> Dataset:
    """Reads all images. Scores are against what both experts marked.

    Raises:
      InputError: where the layout is another, a table lacks an image, or a contour is bad.
    """
    root = files.folder_at(config.root)
    drawn = root / "ExpertsSegmentations" / "Contours"
    labels = _labels([root / name for name in config.tables])
    records = []
    for stem, path in files.list_images(root / "FundusImages").items():
        eye = EYE.fullmatch(stem)
        if eye is None:
            raise InputError(f"{path} is not called RETpppOD or RETpppOS. Give it its official name.")
        raters = []
        for k in range(1, EXPERTS + 1):
            pair = tuple(drawn / f"{stem}_{region}_exp{k}.txt" for region in ("disc", "cup"))
            raters.append(pair if all(one.is_file() for one in pair) else ())
        key = (int(eye[1]), eye[2])
        if labels and key not in labels:
            raise InputError(f"The patient tables have no row for image {path}. Add it, or remove the image.")
        records.append(Annotated(stem, path, tuple(raters), labels.get(key, -1), f"patient {int(eye[1])}"))
    return multirater.assemble(
        "papila",
        records,
        raters=[f"expert-{k}" for k in range(1, EXPERTS + 1)],
        reader=Reader(images.image_size, images.read_image, lambda paths, frame: [fill(path, frame) for path in paths]),
        regions=("disc", "cup"),
        classes=("healthy", "glaucoma") if labels else (),
        config=config,
        nested=True,
        crop=config.crop,
    )


def fill(path: Path, frame: tuple[int, int]) -> np.ndarray:
    """Fills the closed contour in a text file: uint8 [h, w] of 255 and 0.

    Raises:
      InputError: the file holds no contour of at least three points, or one that leaves the image.
    """
    from PIL import Image, ImageDraw

    try:
        points = np.array(
            [[float(cell) for cell in line.split()] for line in path.read_text().splitlines() if line.strip()]
        )
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path} is no list of points ({error}). A contour has x and y in each line.") from error
    if points.ndim != 2 or points.shape[1:] != (2,) or len(points) < 3 or not np.isfinite(points).all():
        raise InputError(f"{path} holds an array of shape {list(points.shape)}; expected at least three points x y.")
    if points.min() < -1 or (points > np.array(frame) + 1).any():
        raise InputError(
            f"Contour {path} leaves its image of {frame[0]} x {frame[1]} pixels. It was drawn on another frame: "
            "correct the file, or remove it to leave the expert out."
        )
    canvas = Image.new("L", frame, 0)
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in points], fill=255, outline=255)
    return np.asarray(canvas)


def _labels(tables: Sequence[Path]) -> dict[tuple[int, str], int]:
    labels = {}
    for table in tables:
        if not table.is_file():
            continue
        rows = files.read_rows(table, needed=())
        found = {kind: next((n for n in names if rows and n in rows[0]), None) for kind, names in NAMES.items()}
        named = next((eye for eye in ("OD", "OS") if table.stem.upper().endswith(eye)), None)
        for row in rows:
            eye = row[found["eye"]].upper() if found["eye"] else named
            patient = re.search(r"\d+", row.get(found["patient"] or "", ""))
            label = row.get(found["diagnosis"] or "", "").removesuffix(".0")
            if eye not in ("OD", "OS") or patient is None or label not in LABELS:
                raise InputError(
                    f"{table} has a row with patient {row.get(found['patient'] or '', '(none)')!r}, eye {eye!r} and "
                    f"diagnosis {label!r}; expected columns ID and Diagnosis (0, 1 or 2) and, unless the file's name "
                    "ends in od or os, eye. Save the release's sheet as CSV with its column names in the first line."
                )
            labels[int(patient[0]), eye] = LABELS[label]
    return labels
