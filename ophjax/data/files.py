"""Data sets made of image files, mask files and a table of labels: listing, checks, splits, decoding."""

from __future__ import annotations

import csv
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

import numpy as np

from ophjax.data import images, look
from ophjax.data.images import MaskCode
from ophjax.data.sources import Cached, Dataset, Example, Source, Subset, patient_number
from ophjax.data.split import split
from ophjax.errors import InputError
from ophjax.metrics.domain_scores import check_names

PARTS = ("train", "val", "test")
CHECKED_PIXELS = 100_000_000
"""So many pixels are decoded at the start: all of a small set, in about a second."""


class Record(NamedTuple):
    """One example as files.

    Attributes:
      name: unique in the data set.
      image: path of the image, or what else is read as one.
      mask: path of the mask, None where there is none.
      label: class index.
      group: images of one group (patient) stay in one split.
      part: ``train``, ``val`` or ``test`` where the split is given, else empty.
      further: where each region has a mask of its own, those after the first in the mask code's order.
    """

    name: str
    image: images.Encoded
    mask: Path | None
    label: int
    group: str
    part: str = ""
    further: tuple[Path, ...] = ()

    @property
    def masks(self) -> tuple[Path, ...]:
        """All files of the mask, none where there is none."""
        return () if self.mask is None else (self.mask, *self.further)


class FileConfig(Protocol):
    """What the configs of all data sets made of files have in common."""

    @property
    def size(self) -> int: ...
    @property
    def val_fraction(self) -> float: ...
    @property
    def test_fraction(self) -> float: ...
    @property
    def split_seed(self) -> int: ...


class FileSource:
    """Decodes examples from files when they are asked for.

    An example has ``mask_weight`` float32 [] besides the usual entries: 0 where there is no mask file. On
    construction only headers are read, to compare the sizes of image and mask.

    Args:
      records: the files.
      size: side of the square that images and masks are stretched to, in pixels.
      code: pixel values of the masks' regions.
      crop: where it is not 0, only the square of so many diameters around the code's first region is read, see
        ``images.square_around``. It is found by the given mask, in every split.
      slack: share by which the sides of a mask may differ from its image's; both show the same frame all the same.

    Attributes:
      names: one for each record.
      pixels: number of pixels of each image file.

    Raises:
      InputError: at once for a region's name that scores cannot carry; at once too (within ``look.later`` on reading)
        where an image and its mask differ in size, there is no mask to crop by, or a header cannot be read; on reading
        for damaged files, pixel values that the mask code does not know, and where the region to crop by is empty.
    """

    def __init__(self, records: Sequence[Record], *, size: int, code: MaskCode, crop: float = 0.0, slack: float = 0.0):
        if not 16 <= size <= 4096:
            raise InputError(f"The image size is {size}; give a side between 16 and 4096 pixels.")
        if crop and not 1 <= crop <= 100:
            raise InputError(f"The crop is {crop}; give the side in diameters, from 1 to 100, or 0 for whole frames.")
        check_names("region", code.regions)
        self.names = [record.name for record in records]
        self._records = list(records)
        self._size, self._code, self._crop, self._slack = size, code, crop, slack
        with warnings.catch_warnings():
            # Pillow warns of large images before the error of our own limit.
            warnings.simplefilter("ignore")
            checked = look.each(lambda index: self._check(self._records[index]), range(len(self._records)))
        self._bad = {index: str(found) for index, found in enumerate(checked) if isinstance(found, InputError)}
        self.pixels = [0 if isinstance(found, InputError) else found for found in checked]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        if index in self._bad:
            raise InputError(self._bad[index])
        record = self._records[index]
        mask, box = np.zeros((self._size, self._size, len(self._code.regions)), np.uint8), images.WHOLE
        if record.masks:
            regions = images.read_regions(record.masks, self._code)
            if self._crop:
                box = images.square_around(record.masks[0], regions[0], self._crop)
            mask = images.stretch_mask(regions, self._size, box)
        return {
            "image": images.read_image(record.image, self._size, box),
            "mask": mask,
            "mask_weight": np.asarray(bool(record.masks), np.float32),
            "label": np.asarray(record.label, np.int32),
            "patient": patient_number(record.group),
        }

    def _check(self, record: Record) -> int:
        width, height = images.image_size(record.image)
        if self._crop and not record.masks:
            raise InputError(
                f"Image {record.image} has no mask to crop by. Add it, or take whole frames: --data.crop 0."
            )
        for mask in record.masks:
            other = images.image_size(mask)
            if abs(other[0] - width) > self._slack * width or abs(other[1] - height) > self._slack * height:
                raise InputError(
                    f"Image {record.image} is {width} x {height} pixels, but its mask {mask} is {other[0]} x "
                    f"{other[1]}. Both must show the same frame: correct one of the files or remove the mask."
                )
        return width * height


def folder_at(root: str) -> Path:
    """Turns the user's root into a path and checks that the folder is there."""
    if not root:
        raise InputError("This data set needs a folder: give its path with --data.root.")
    path = Path(root).expanduser()
    if not path.is_dir():
        raise InputError(f"There is no folder {path}. Give the path of the data set with --data.root.")
    return path


def inside(folder: Path, given: str, table: Path) -> Path:
    """Joins a path out of a table to its folder; InputError where it is empty, absolute or would leave the folder."""
    path = PurePosixPath(given.replace("\\", "/"))
    if not given or path.is_absolute() or ".." in path.parts:
        raise InputError(f"{table} names the image {given!r}. Give paths of files under {folder}.")
    return folder / given


def list_images(folder: Path) -> dict[str, Path]:
    """Lists the image files of a folder by name without extension, sorted; other files are passed over.

    Raises:
      InputError: where the folder is missing or has no images, or two files differ in extension only.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Check --data.root against the layout in --help.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in images.SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        if path.stem in found:
            raise InputError(
                f"Folder {folder} has both {found[path.stem].name} and {path.name}. Names without extension "
                "must be unique: rename or remove one."
            )
        found[path.stem] = path
    if not found:
        raise InputError(f"Folder {folder} has no image files ({', '.join(images.SUFFIXES)}).")
    return found


def pair_masks(pictures: dict[str, Path], masks: dict[str, Path], *, suffix: str = "") -> dict[str, Path]:
    """Finds the mask of each image: the same name, or the same name and then ``suffix``.

    Returns:
      Masks by image name; images without a mask are left out.

    Raises:
      InputError: where a mask belongs to no image, or an image has two masks.
    """
    pairs: dict[str, Path] = {}
    lonely = []
    for stem, path in masks.items():
        name = stem if stem in pictures else stem.removesuffix(suffix)
        if name not in pictures:
            lonely.append(path.name)
        elif name in pairs:
            raise InputError(f"Image {pictures[name]} has two masks, {pairs[name]} and {path}. Remove one.")
        else:
            pairs[name] = path
    if lonely:
        also = f", or with {suffix!r} behind." if suffix else "."
        raise InputError(
            f"{len(lonely)} mask(s) have no image of the same name: {some(lonely)}. A mask is called as its image{also}"
        )
    return pairs


def read_rows(
    path: Path, *, needed: Sequence[str], bare: bool = False, encoding: str = "utf-8-sig"
) -> list[dict[str, str]]:
    """Reads a table separated by commas, semicolons or tabs.

    Args:
      path: the file.
      needed: columns that must be there.
      bare: the file has no header; its columns are the needed ones, in their order.
      encoding: of the text.

    Returns:
      The rows that are not empty; keys in lower case, keys and values without surrounding blanks.

    Raises:
      InputError: where the file is missing, is not UTF-8 text, or lacks a needed column; the message lists
        the columns found.
    """
    try:
        text = path.read_text(encoding=encoding)
    except FileNotFoundError as error:
        raise InputError(f"There is no table {path}; it has the columns {', '.join(needed)}.") from error
    except (OSError, UnicodeDecodeError) as error:
        kind = "UTF-8" if encoding == "utf-8-sig" else encoding
        raise InputError(f"The table {path} is not {kind} text ({error}). Save it as CSV.") from error
    lines = text.splitlines()
    delimiter = max(",;\t", key=lines[0].count) if lines else ","
    try:
        table = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    except csv.Error as error:
        raise InputError(f"The table {path} is not valid CSV ({error}). Save it again as CSV.") from error
    if bare:
        table = [list(needed), *table]
    header = [cell.lower() for cell in table[0]] if table else []
    missing = [name for name in needed if name not in header]
    if missing or len(set(header)) < len(header):
        raise InputError(
            f"The table {path} has the columns {', '.join(header) or '(none)'}; it must have "
            f"{', '.join(needed)}, and no column twice. The first line must hold their names."
        )
    return [dict(zip(header, row + [""] * len(header), strict=False)) for row in table[1:] if any(row)]


def read_labels(
    path: Path, *, key: str, column: str, values: Sequence[str], bare: Sequence[str] = ()
) -> dict[str, int]:
    """Reads one column of a table as classes, by image name without extension.

    Args:
      path: the table.
      key: the column of image names.
      column: the column of labels.
      values: the labels that may occur; the class is the position in this list.
      bare: the columns where the file has no header.

    Raises:
      InputError: as ``read_rows``, or for another label or a name that comes twice.
    """
    labels: dict[str, int] = {}
    for row in read_rows(path, needed=bare or (key, column), bare=bool(bare)):
        name, label = row[key], row[column]
        name = name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in images.SUFFIXES else name
        if label not in values:
            raise InputError(
                f"{path} has the {column} {label!r} in the row of {name!r}; it must be {' or '.join(values)}."
            )
        if name in labels:
            raise InputError(f"{path} has two rows for {name!r}. Keep one.")
        labels[name] = values.index(label)
    return labels


def label_of(labels: dict[str, int], image: Path, table: Path) -> int:
    """Looks up the label of an image; InputError where the table has none."""
    if image.stem not in labels:
        raise InputError(f"{table} has no row for image {image}. Add its label or remove the image.")
    return labels[image.stem]


def some(names: Iterable[str]) -> str:
    """Lists the first few of many names for a message."""
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def assemble(
    name: str,
    records: Sequence[Record],
    *,
    code: MaskCode,
    classes: Sequence[str],
    config: FileConfig,
    crop: float = 0.0,
    slack: float = 0.0,
) -> Dataset:
    """Builds the data set out of its records: checks, splits, decoding with a cache.

    Where a record says its part, it goes there. If no record is ``val`` (or ``test``), that part is drawn
    from the others by seed, stratified by label and without dividing a group. ``crop`` and ``slack`` are those of
    ``FileSource``.

    Raises:
      InputError: where there is nothing to train on, a split has fewer than two classes, a group is divided
        between given parts, or a file is bad.
    """
    records = sorted(records, key=lambda record: record.name)
    twice = [key for key, count in Counter(record.name for record in records).items() if count > 1]
    if twice:
        raise InputError(f"Names must be unique in data set {name!r}, but these come twice: {some(twice)}.")
    if not records:
        raise InputError(f"Data set {name!r} has no examples under the given folder. Check --data.root.")
    _need_classes(f"Data set {name!r}", records, classes)
    parts = place(records, config)
    for part, chosen in parts.items():
        if not chosen:
            raise InputError(f"The {part} split of data set {name!r} is empty. Put examples into it.")
        _need_classes(f"The {part} split of data set {name!r}", [records[i] for i in chosen], classes)
    absent = set(range(len(classes))) - {records[i].label for i in parts["train"]}
    if absent:
        raise InputError(
            f"The train split of data set {name!r} has no example of class {classes[min(absent)]!r}, which "
            "could not be learned. Put some into it."
        )
    masked = [i for i in parts["train"] if records[i].mask is not None]
    if not masked:
        raise InputError(
            f"None of the {len(parts['train'])} training images of data set {name!r} has a mask, so that "
            "there is nothing to train the segmentation on. Add masks."
        )
    files = FileSource(records, size=config.size, code=code, crop=crop, slack=slack)
    source = Cached(files)
    decode_first(source, files.pixels)
    splits: dict[str, Source] = {part: Subset(source, chosen) for part, chosen in parts.items()}
    splits["masks"] = splits["train"] if len(masked) == len(parts["train"]) else Subset(source, masked)
    drawn = [part for part in ("val", "test") if all(record.part != part for record in records)]
    how = "as given"
    if drawn:
        how = f"{' and '.join(drawn)} drawn by seed {config.split_seed} in the same shares of each class"
        how += ", patients kept whole" if len({record.group for record in records}) < len(records) else ""
    sizes = ", ".join(f"{len(chosen)} {part}" for part, chosen in parts.items())
    note = f"{sizes}; {how}; {len(masked)} training images have masks."
    if crop:
        note += f" Each image is the square of {crop:g} diameters around its given {next(iter(code.regions))}, in the "
        note += "test split too."
    return Dataset(name, tuple(code.regions), tuple(classes), splits, note)


def place(records: Sequence[Any], config: FileConfig) -> dict[str, list[int]]:
    """Says which examples (records with label, group and part) are in which split: as given, else drawn by seed."""
    parts: dict[str, list[int]] = {part: [] for part in PARTS}
    homes: dict[str, str] = {}
    for index, record in enumerate(records):
        part = record.part or "train"
        parts[part].append(index)
        if homes.setdefault(record.group, part) != part:
            raise InputError(
                f"Patient {record.group!r} has images in the {homes[record.group]} and in the {part} split. "
                "Put all images of a patient into one split."
            )
    fractions = {"val": config.val_fraction, "test": config.test_fraction}
    drawn = [part for part in fractions if not parts[part]]
    pool = parts["train"]
    if drawn and pool:
        shares = [fractions[part] for part in drawn]
        chosen = split(
            [records[i].label for i in pool],
            [records[i].group for i in pool],
            fractions=[1 - sum(shares), *shares],
            seed=config.split_seed,
        )
        for part, positions in zip(["train", *drawn], chosen, strict=True):
            parts[part] = [pool[position] for position in positions]
    return parts


def decode_first(source: Source, pixels: Sequence[int]) -> None:
    """Decodes a small set whole and a large one in part, so that bad files show now and not at the test.

    What is decoded stays in the cache, where there is room: for a small set this is no extra work.
    """
    look.decode(source, np.flatnonzero(np.cumsum(pixels) <= CHECKED_PIXELS).tolist())


def _need_classes(what: str, records: Sequence[Record], classes: Sequence[str]) -> None:
    counts = Counter(record.label for record in records)
    if len(counts) < 2:
        raise InputError(
            f"{what} has {len(records)} example(s), all of class {classes[records[0].label]!r}. At least two classes "
            "are needed to train and to score a diagnosis: check the labels and the split."
        )
