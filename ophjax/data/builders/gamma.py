"""GAMMA: fundus picture and OCT volume of an eye, its grade, fovea, disc and cup, in the official layouts.

Wu et al., "GAMMA challenge", Medical Image Analysis 90:102938, 2023. GAMMA spec, section (g): the zips of AI Studio,
the tree of grand-challenge and its mirrors, and the zip of the fovea task alone. The official set is handed out on
request only: the loader is tested on trees of our own making.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ophjax.data import challenges, files, images, incoming, official
from ophjax.data.images import Box
from ophjax.data.official import Records, find_home, list_ids, need_all, no_answers
from ophjax.data.sheets import find_table, image_id
from ophjax.data.sources import Dataset, Example
from ophjax.errors import InputError
from ophjax.metrics.gamma import GRADES
from ophjax.metrics.greys import GAMMA

REGIONS = ("disc", "cup")
CODE = images.MaskCode({"disc": GAMMA.greys[1:], "cup": GAMMA.greys[2:]}, GAMMA.greys[:1])
PAIRED, ALONE = "multi-modality_images", "fundus color images"


@dataclass(frozen=True)
class Config(official.Config):
    """training_data/multi-modality_images/0001/{0001.jpg, 0001/0_image.jpg ...}, tables *_GT.xlsx (or .csv) and
    Disc_Cup_Mask/0001.png (cup 0, rim 128, else 255); or the same under grading/Glaucoma_grading/training/; or
    training/fundus color images/0001.jpg for the fovea alone. What truth is there is read."""

    frame: Literal["centre", "whole"] = "centre"
    """What the net sees of the fundus: the middle square, or the whole picture stretched to a square."""
    volumes: bool = True
    """Read the OCT volumes, which only the grading needs."""
    slices: int = 256
    """B-scans that every volume must have, numbered from 0."""
    depth_stride: int = 1
    """Keep every so many-th B-scan."""
    oct_crop: int = 512
    """Side of the square in the middle of a B-scan that is kept, in pixels; where the scan is smaller, all of it."""
    oct_size: int = 512
    """Side that it is scaled to."""
    legacy_slice_order: bool = False
    """The baseline's order of the B-scans: by the first digit of their number only."""
    one_based: bool = False
    """Foveas count pixels from 1."""


class Eye(NamedTuple):
    """The files of one example."""

    fundus: Path
    slices: tuple[Path, ...]


def make(config: Config) -> Dataset:
    """Reads the set.

    Examples hold ``image``, ``label`` (-1: not known), ``fovea`` in pixels of the original (-1: not known), ``mask``
    (``mask_weight`` 0: not known), ``volume`` uint8 [h, w, slices], ``size`` (width, height) of the original and
    ``frame`` (left, top, width, height), the part of it that the image shows; where foveas count from 1 ``origin`` 1,
    by which ``fovea`` is less than in the table, but for (0, 0).

    Raises:
      InputError: the layout is another, slices are missing or doubled, or a truth is missing or wrong.
    """
    if min(config.slices, config.depth_stride, config.oct_crop, config.oct_size) < 1:
        raise InputError("--data.slices, --data.depth-stride, --data.oct-crop and --data.oct-size must be at least 1.")
    home = find_home(config.root, (PAIRED, ALONE))
    eyes = list_eyes(home, config)
    pictures = {name: eye.fundus for name, eye in eyes.items()}
    near = [home, home.parent]  # the table of foveas lies one level up in one of the layouts
    tables = {what: find_table(near, f"*{what}*GT") for what in ("grading", "fovea")}
    labels = challenges.read_grades(tables["grading"]) if tables["grading"] else {}
    foveas = challenges.read_points(tables["fovea"], by_position=True) if tables["fovea"] else {}
    drawn = next((home / n for n in ("Disc_Cup_Mask", "Disc_Cup_Masks") if (home / n).is_dir()), None)
    masks = list_ids(drawn) if drawn else {}
    for found, what, where in ((labels, "grade", tables["grading"]), (foveas, "fovea", tables["fovea"]),
                               (masks, "mask", drawn)):  # fmt: skip
        if found and where:
            need_all(pictures, found, what, where)
    if not (labels or foveas or masks):
        raise InputError(
            f"{home} has no truth: neither tables *grading*_GT and *fovea*_GT nor Disc_Cup_Mask/. Add one."
        )
    for name, mask in masks.items():
        if images.image_size(mask) != images.image_size(pictures[name]):
            raise InputError(
                f"Image {pictures[name]} and its mask {mask} differ in size. Both must show the same frame."
            )

    def known(name: str) -> Example:
        return read(eyes[name], config, labels.get(name, -1), foveas.get(name), masks.get(name))

    # Fundus and mask are small beside a volume.
    large = config.oct_size**2 * len(next(iter(eyes.values())).slices)
    test = None
    if config.test_root:
        unknown = list_eyes(find_home(config.test_root, (PAIRED, ALONE), beside=home), config)

        def blind(name: str) -> Example:
            return no_answers(read(unknown[name], config, -1, None, None))

        test = Records(list(unknown), blind, example_bytes=large)
    missing = [what for what, found in (("grades", labels), ("foveas", foveas), ("masks", masks)) if not found]
    return official.divide(
        "gamma", Records(list(eyes), known, example_bytes=large), [labels.get(name, 0) for name in eyes], config,
        regions=REGIONS if masks else (), classes=GRADES if labels else (), test=test,
        masked=[bool(masks)] * len(eyes), remark=f"Without {' and '.join(missing)}." if missing else "",
    )  # fmt: skip


def new_examples(
    config: Config, path: Path, needed: Collection[str] = ("volume",), *, outside: Path | None = None
) -> dict[str, tuple[Path, Callable[[], Example]]]:
    """New eyes to predict: the folder ``multi-modality_images`` or one above it, or where no volumes are needed any
    pictures. Gives the picture of each and what reads the example. For ``outside`` see ``incoming.list_inputs``.

    Raises:
      InputError: a run with volumes is given something else than pairs in the official layout.
    """
    home = path if path.name == PAIRED else path / PAIRED
    if not config.volumes or "volume" not in needed:
        pictures = {name: (file, Eye(file, ())) for name, file in incoming.list_inputs(path, outside=outside).items()}
        return {name: (file, partial(read, eye, config, -1, None, None)) for name, (file, eye) in pictures.items()}
    folders = sorted(one for one in home.iterdir() if one.is_dir() and one.name[0] != ".") if home.is_dir() else []
    folders = [one for one in folders if outside is None or one.resolve() != outside.resolve()]
    if not folders:
        raise InputError(
            f"{path} holds no pairs of fundus and OCT, which this run needs. Give a folder with {PAIRED}/0001/0001.jpg "
            f"and its B-scans {PAIRED}/0001/0001/0_image.jpg to {config.slices - 1}_image.jpg, and so on for each eye."
        )

    def one(folder: Path) -> Example:
        slices = list_slices(folder / folder.name, config.slices, legacy=config.legacy_slice_order)
        return read(Eye(folder / f"{folder.name}.jpg", slices[:: config.depth_stride]), config, -1, None, None)

    return {folder.name: (folder / f"{folder.name}.jpg", partial(one, folder)) for folder in folders}


def list_eyes(home: Path, config: Config) -> dict[str, Eye]:
    """Lists the eyes of a set by their number, with their B-scans in order.

    Raises:
      InputError: an eye lacks its picture, or B-scans are missing or doubled.
    """
    if not (home / PAIRED).is_dir():
        return {name: Eye(path, ()) for name, path in list_ids(home / ALONE).items()}
    eyes = {}
    for folder in sorted(path for path in (home / PAIRED).iterdir() if path.is_dir() and path.name[0] != "."):
        name = image_id(folder.name, home / PAIRED)
        fundus = folder / f"{folder.name}.jpg"
        if not fundus.is_file():
            raise InputError(f"There is no fundus picture {fundus}. Add it, or remove the folder.")
        slices: tuple[Path, ...] = ()
        if config.volumes:
            slices = list_slices(folder / folder.name, config.slices, legacy=config.legacy_slice_order)
        eyes[name] = Eye(fundus, slices[:: config.depth_stride])
    if not eyes:
        raise InputError(f"{home / PAIRED} is empty. It must hold a folder for each eye: 0001, 0002, ...")
    return eyes


def list_slices(folder: Path, count: int, *, legacy: bool = False) -> tuple[Path, ...]:
    """Lists the B-scans 0_image.jpg to 255_image.jpg of a volume by their number.

    Args:
      folder: of the volume.
      count: how many there must be.
      legacy: the baseline's order: by the first digit of the number only, over the names in alphabetical order.

    Raises:
      InputError: the folder is missing, holds another file, or a number is missing, doubled or too large.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder} with the B-scans. Add it, or leave them out: --data.no-volumes.")
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name[0] == "." or path.suffix.lower() not in images.SUFFIXES:
            continue
        match = re.fullmatch(r"([0-9]+)_image", path.stem)
        if match is None or int(match[1]) >= count:
            raise InputError(f"{path} is not a B-scan: they are 0_image.jpg to {count - 1}_image.jpg (--data.slices).")
        if int(match[1]) in found:
            raise InputError(f"{path} has the same number as {found[int(match[1])].name}. Remove one.")
        found[int(match[1])] = path
    missing = [f"{i}_image.jpg" for i in range(count) if i not in found]
    if missing:
        raise InputError(f"{folder} lacks {len(missing)} of {count} B-scans: {files.some(missing)}. Add them.")
    if legacy:
        return tuple(sorted(sorted(found.values()), key=lambda path: int(path.name[0])))
    return tuple(found[i] for i in range(count))


def frame_of(size: tuple[int, int], kind: str) -> tuple[int, int, int, int]:
    """Gives the part of a picture that the net sees, in pixels: left, top, width, height."""
    width, height = size
    if kind == "whole":
        return 0, 0, width, height
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


def read(eye: Eye, config: Config, label: int, fovea: Any, mask: Path | None) -> Example:
    """Reads an example; what is not known is zeros, with a ``mask_weight`` of 0, ``label`` and ``fovea`` -1."""
    size = images.image_size(eye.fundus)
    left, top, width, height = frame_of(size, config.frame)
    box = Box(left / size[0], top / size[1], (left + width) / size[0], (top + height) / size[1])
    regions = np.zeros((config.size, config.size, len(REGIONS)), np.uint8)
    if mask is not None:
        regions = images.stretch_mask(images.read_regions([mask], CODE), config.size, box)
    point = np.full(2, -1, np.float32)
    if fovea is not None:
        # (0, 0) says that there is none to be seen, however pixels are counted.
        point = np.array(fovea, np.float32) - np.float32(config.one_based and any(fovea))
    example: Mapping[str, np.ndarray] = {
        "image": images.read_image(eye.fundus, config.size, box),
        "mask": regions,
        "mask_weight": np.asarray(mask is not None, np.float32),
        "label": np.asarray(label, np.int32),
        "fovea": point,
        "size": np.array(size, np.int32),
        "frame": np.array([left, top, width, height], np.int32),
    }
    origin = {"origin": np.ones((), np.int32)} if config.one_based else {}
    return dict(example) | origin | ({"volume": read_volume(eye.slices, config)} if eye.slices else {})


def read_volume(slices: tuple[Path, ...], config: Config) -> np.ndarray:
    """Reads B-scans, their middle square scaled, as uint8 [oct_size, oct_size, slices].

    Raises:
      InputError: a file cannot be read or differs from the first in size.
    """
    first = images.image_size(slices[0])
    volume = np.empty((config.oct_size, config.oct_size, len(slices)), np.uint8)
    width, height = (min(config.oct_crop, side) for side in first)
    left, top = (first[0] - width) // 2, (first[1] - height) // 2
    box = Box(left / first[0], top / first[1], (left + width) / first[0], (top + height) / first[1])
    for i, path in enumerate(slices):
        if images.image_size(path) != first:
            raise InputError(f"B-scan {path} is {images.image_size(path)} pixels, the first of its volume {first}.")
        volume[..., i] = images.read_image(path, config.oct_size, box)[..., 0]
    return volume
