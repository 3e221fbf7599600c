"""RIGA: fundus images from three places, disc and cup drawn by six ophthalmologists; as released, or as MRNet prepared
it.

Almazroa et al., "Retinal fundus images for glaucoma analysis: the RIGA dataset", SPIE Medical Imaging 2018. Neither
form was at hand: both layouts were learned from public programs that read them (selfcal spec, section (g)) and are
tested on trees of our own making. BinRushed and MESSIDOR are for training, Magrabia for the test.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ophjax.data import files, images, multirater
from ophjax.data.images import MaskCode
from ophjax.data.multirater import Annotated, Reader
from ophjax.data.sources import Dataset
from ophjax.errors import InputError

RATERS = 6
TEST = "magrab"
CLEAN = re.compile(r"image(\d+)prime\.(tiff?|jpe?g|png)", re.IGNORECASE)
ENDS = ("tif", "tiff", "jpg", "jpeg", "png")
SITES = ("BinRushed", "MESSIDOR", "Magrabia")
CODE = MaskCode({"disc": tuple(range(1, 256)), "cup": (255,)}, (0,))
ERODED = 8
"""Pixels within the disc's outline that are no longer taken for it when the cup's outline is looked for."""


@dataclass(frozen=True)
class Config:
    """As released: folders such as BinRushed1/, MagrabiaMale/, MESSIDOR/ with imageNprime.tif (the clean photograph)
    and imageN-1.tif to imageN-6.tif, copies with a rater's outlines drawn in. Prepared (DiscRegion):
    Glaucoma_multirater_{BinRushed,Magrabia,MESSIDOR}.csv with the columns imgName, maskName and rater, and masks of 0,
    rim and 255 (cup) under FinalLabel/ and Rater1/ to Rater6/."""

    root: str = ""
    """Folder that holds either."""
    size: int = 256
    """Side of the square that images and masks are stretched to, in pixels."""
    crop: float = 0.0
    """Side of the square that is cut out around what any rater gave as disc, in diameters (1 to 100), in the test split
    too; 0 takes images whole, as the prepared ones are cropped already."""
    val_fraction: float = 0.15
    """Share of the training images drawn for validation."""
    test_fraction: float = 0.25
    """Share drawn for the test where there are no images of Magrabia."""
    split_seed: int = 0
    """Seed of the draw."""


def make(config: Config) -> Dataset:
    """Reads either layout, whichever is there. The files do not tell patients apart; no classes.

    Raises:
      InputError: where the layout is another, or an outline or a file is bad.
    """
    root = files.folder_at(config.root)
    tables = [root / f"Glaucoma_multirater_{site}.csv" for site in SITES]
    prepared = any(table.is_file() for table in tables)
    records = _prepared(root, tables) if prepared else _released(root)
    reader = multirater.picture_reader(CODE) if prepared else Reader(images.image_size, images.read_image, _outlines)
    return multirater.assemble(
        "riga",
        records,
        raters=[f"rater-{k}" for k in range(1, RATERS + 1)],
        reader=reader,
        regions=("disc", "cup"),
        config=config,
        nested=True,
        crop=config.crop,
    )


def _released(root: Path) -> list[Annotated]:
    records = []
    for folder in [root, *sorted(path for path in root.rglob("*") if path.is_dir())]:
        there = sorted(folder.iterdir())
        by_name = {path.name.lower(): path for path in there}
        above = folder.relative_to(root).parts
        part = "test" if any(name.lower().startswith(TEST) for name in above) else ""
        for path in there:
            match = CLEAN.fullmatch(path.name)
            if not match:
                continue
            drawn = []
            for k in range(1, RATERS + 1):
                copies = [f"image{match[1]}-{k}.{end}" for end in (match[2].lower(), *ENDS)]
                copy = next((by_name[copy] for copy in copies if copy in by_name), None)
                # The outlines are what differs from the clean photograph, so both files are read.
                drawn.append(() if copy is None else (path, copy))
            if not any(drawn):
                raise InputError(
                    f"Image {path} has no rater's copy: none of image{match[1]}-1 to image{match[1]}-{RATERS} is "
                    f"beside it ({', '.join(ENDS)}). Add the copies, or remove the image."
                )
            name = f"{folder.name}-{match[1]}"
            records.append(Annotated(name, path, tuple(drawn), -1, name, part))
    if not records:
        raise InputError(
            f"{root} has neither imageNprime.tif in folders such as BinRushed1/ nor tables "
            f"Glaucoma_multirater_{{{','.join(SITES)}}}.csv. Give the folder around them with --data.root."
        )
    return records


def _prepared(root: Path, tables: Sequence[Path]) -> list[Annotated]:
    records = []
    for table in tables:
        if not table.is_file():
            continue
        site = table.stem.rsplit("_", 1)[1]
        for row in files.read_rows(table, needed=("imgname", "maskname", "rater"), encoding="gbk"):
            if row["rater"] != "0":  # rows of the single raters repeat the image
                continue
            given, final = (row[key].replace("\\", "/").lstrip("/") for key in ("imgname", "maskname"))
            image = files.inside(root, given, table)
            if not image.is_file() or "FinalLabel" not in final:
                raise InputError(
                    f"{table} names the image {row['imgname']!r} and the mask {row['maskname']!r}; expected a file "
                    f"under {root} and a path with FinalLabel in it. Check --data.root."
                )
            names = [final.replace("FinalLabel", f"Rater{k}") for k in range(1, RATERS + 1)]
            masks = [files.inside(root, name, table) for name in names]
            drawn = tuple((mask,) if mask.is_file() else () for mask in masks)
            if not any(drawn):
                raise InputError(f"Image {image} has no rater's mask, such as {masks[0]}. Add it, or remove the row.")
            name = f"{site}-{image.stem}"
            part = "test" if site.lower().startswith(TEST) else ""
            records.append(Annotated(name, image, drawn, -1, name, part))
    return records


def _outlines(paths: Sequence[Path], frame: tuple[int, int]) -> list[np.ndarray]:
    """Recovers disc and cup from a clean photograph and its copy with outlines drawn in."""
    clean, copy = paths
    if images.image_size(copy) != frame:
        width, height = images.image_size(copy)
        return [np.zeros((height, width), np.uint8)] * 2  # told as a mask of another size
    one, other = (images.read_whole(path).astype(np.int16)[..., 0] for path in (clean, copy))
    lossy = copy.suffix.lower() in (".jpg", ".jpeg")
    lines = (np.abs(one - other) > (10 if lossy else 1)) & _retina(one)
    regions = find_outlines(lines, least=32 if lossy else 1)
    if regions is None:
        raise InputError(
            f"No outlines of disc and cup can be told between {clean} and {copy}. Both must be the same photograph, "
            "the second with one rater's two outlines drawn in: correct the file, or remove it to leave the rater out."
        )
    return regions


def _retina(red: np.ndarray) -> np.ndarray:
    """Where the photograph shows the eye and not the black around it."""
    return red > 20


def find_outlines(lines: np.ndarray, *, least: int = 1) -> list[np.ndarray] | None:
    """Fills two closed outlines, one within the other.

    The largest connected part of the lines is the disc's, and its convex hull the disc. Of what lies deeper than 8
    pixels within it the largest part is the cup's.

    Args:
      lines: bool [h, w], where something was drawn.
      least: smaller parts are taken for noise.

    Returns:
      Disc and cup as uint8 [h, w] of 255 and 0; None where there are no such parts.
    """
    from scipy import ndimage

    disc = _largest(lines, least)
    if disc is None:
        return None
    deep = ndimage.distance_transform_edt(disc > 0) > ERODED
    cup = _largest(lines & deep, least)
    return None if cup is None else [disc, cup]


def _largest(lines: np.ndarray, least: int) -> np.ndarray | None:
    """The convex hull of the largest connected part, filled."""
    from PIL import Image, ImageDraw
    from scipy import ndimage, spatial

    parts, count = ndimage.label(lines, structure=np.ones((3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=1)
    sizes[0] = 0
    if not count or sizes.max() < max(least, 3):
        return None
    points = np.argwhere(parts == sizes.argmax())[:, ::-1]
    try:
        hull = points[spatial.ConvexHull(points).vertices]
    except spatial.QhullError:  # all on one line
        return None
    canvas = Image.new("L", lines.shape[::-1], 0)
    ImageDraw.Draw(canvas).polygon([(int(x), int(y)) for x, y in hull], fill=255, outline=255)
    return np.asarray(canvas)
