"""Data sets in which several raters drew the same images: reading their masks, checks, splits.

What is wrong with a mask is told with its file and its rater. A rater who did not draw an image has no files for it;
``rater_weight`` is 0 there and the masks are zeros. Any number of raters will do, one included, and raters who agree
everywhere as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ophjax.data import files, images
from ophjax.data.images import WHOLE, Box, MaskCode
from ophjax.data.sources import Cached, Dataset, Example, Source, Subset, patient_number
from ophjax.errors import InputError

STRAY = 0.05
"""So large a share of a region may lie outside the region around it (a slip of the hand, lossy files); it is cut off.
More than that is taken for a mistake (our decision)."""


class Annotated(NamedTuple):
    """One image and what each rater drew.

    Attributes:
      name: unique in the data set.
      image: path of the image.
      raters: the files of each rater, in the order of the data set's raters; none where one did not draw this image.
      label: class index, -1 where there is none.
      group: images of one group (patient) stay in one split.
      part: ``train``, ``val`` or ``test`` where the split is given, else empty.
      truth: the files of the data set's own mask, where it has one.
    """

    name: str
    image: Path
    raters: tuple[tuple[Path, ...], ...]
    label: int
    group: str
    part: str = ""
    truth: tuple[Path, ...] = ()


class Reader(NamedTuple):
    """How the files of a data set are read.

    Attributes:
      frame: gives width and height of an image.
      image: decodes an image, or what lies of it in a box, to uint8 [size, size, 3].
      regions: decodes one rater's files for an image of some width and height into a uint8 [h, w] of 255 and 0 for each
        region.
    """

    frame: Callable[[Path], tuple[int, int]]
    image: Callable[[Path, int, Box], np.ndarray]
    regions: Callable[[Sequence[Path], tuple[int, int]], Sequence[np.ndarray]]


def picture_reader(code: MaskCode) -> Reader:
    """Reads images and masks as pictures: one mask file with all regions, or one for each."""
    return Reader(images.image_size, images.read_image, lambda paths, frame: images.read_regions(paths, code))


class AnnotatedSource:
    """Reads examples with ``raters`` and ``rater_weight`` when they are asked for.

    ``mask`` is the data set's own where it has one, else what more than half of the raters who drew the image marked;
    ``mask_weight`` is 0 where there is neither.

    Args:
      records: the files.
      raters: names of the raters, for messages.
      reader: how the files are read.
      regions: names of the regions.
      size: side of the square that images and masks are stretched to, in pixels.
      nested: whether each region lies within the one before it.
      crop: where it is not 0, only the square of so many diameters around what any rater gave as the first region is
        read, see ``images.square_around``.

    Raises:
      InputError: on reading, where a file is damaged, a mask is of another size than its image, or a region lies
        outside the one around it.
    """

    def __init__(
        self,
        records: Sequence[Annotated],
        raters: Sequence[str],
        reader: Reader,
        regions: Sequence[str],
        *,
        size: int,
        nested: bool,
        crop: float = 0.0,
    ):
        if not 16 <= size <= 4096:
            raise InputError(f"The image size is {size}; give a side between 16 and 4096 pixels.")
        if crop and not 1 <= crop <= 100:
            raise InputError(f"The crop is {crop}; give the side in diameters, from 1 to 100, or 0 for whole frames.")
        self.names = [record.name for record in records]
        self._records, self._raters, self._reader, self._regions = list(records), list(raters), reader, list(regions)
        self._size, self._nested, self._crop = size, nested, crop

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        record, size = self._records[index], self._size
        frame = self._reader.frame(record.image)
        drawn = [
            self._read(record.image, paths, frame, f"of rater {name!r}") if paths else None
            for name, paths in zip(self._raters, record.raters, strict=True)
        ]
        there = np.array([one is not None for one in drawn], np.float32)
        box = WHOLE
        if self._crop:
            first = np.zeros((frame[1], frame[0]), np.uint8)
            for one in drawn:
                first = first if one is None else np.maximum(first, one[0])
            if not first.any():
                raise InputError(
                    f"Image {record.image} has no {self._regions[0]} of any rater to crop by. Add a mask, remove the "
                    "image, or take whole frames: --data.crop 0."
                )
            box = images.square_around(record.image, first, self._crop)
        empty = np.zeros((size, size, len(self._regions)), np.uint8)
        masks = np.stack([empty if one is None else images.stretch_mask(one, size, box) for one in drawn])
        if record.truth:
            mask = images.stretch_mask(self._read(record.image, record.truth, frame, "of the data set"), size, box)
        else:
            mask = (2 * masks.sum(0, dtype=np.int32) > there.sum()).astype(np.uint8)
        return {
            "image": self._reader.image(record.image, size, box),
            "mask": mask,
            "mask_weight": np.asarray(bool(record.truth) or there.any(), np.float32),
            "label": np.asarray(record.label, np.int32),
            "patient": patient_number(record.group),
            "raters": masks,
            "rater_weight": there,
        }

    def _read(self, image: Path, paths: Sequence[Path], frame: tuple[int, int], whose: str) -> list[np.ndarray]:
        regions = list(self._reader.regions(paths, frame))
        # One file with all regions, or one for each.
        places = list(paths) if len(paths) == len(regions) else [paths[-1]] * len(regions)
        for path, region in zip(places, regions, strict=True):
            if region.shape != (frame[1], frame[0]):
                raise InputError(
                    f"Mask {path} {whose} is {region.shape[1]} x {region.shape[0]} pixels, but its image {image} is "
                    f"{frame[0]} x {frame[1]}. All raters must draw on the same frame: correct the file or remove it."
                )
        for i in range(1, len(regions) if self._nested else 0):
            stray = (regions[i] > regions[i - 1]).sum()
            if stray > STRAY * max((regions[i] > 0).sum(), 1):
                inner, outer = self._regions[i], self._regions[i - 1]
                raise InputError(
                    f"Mask {places[i]} {whose} has {stray / (regions[i] > 0).sum():.0%} of its {inner} outside the "
                    f"{outer}; the {inner} lies within the {outer}. Correct the file, or remove this rater's mask."
                )
            regions[i] = np.minimum(regions[i], regions[i - 1])
        return regions


def assemble(
    name: str,
    records: Sequence[Annotated],
    *,
    raters: Sequence[str],
    reader: Reader,
    regions: Sequence[str],
    config: files.FileConfig,
    classes: Sequence[str] = (),
    nested: bool = False,
    crop: float = 0.0,
) -> Dataset:
    """Builds the data set out of its records; splits that are not given are drawn by seed, patients kept whole.

    Small sets are read whole at once, so that what is wrong shows now.

    Raises:
      InputError: there is nothing to read, a name comes twice, no rater drew anything, a split is empty, or a file is
        bad.
    """
    records = sorted(records, key=lambda record: record.name)
    twice = sorted({a.name for a, b in pairwise(records) if a.name == b.name})
    if not records or twice:
        what = f"these names twice: {files.some(twice)}" if twice else "no examples under the given folder"
        raise InputError(f"Data set {name!r} has {what}. Check --data.root.")
    if not any(paths for record in records for paths in record.raters):
        raise InputError(f"No rater drew any of the {len(records)} images of data set {name!r}. Add their masks.")
    parts = files.place(records, config)
    for part, chosen in parts.items():
        if not chosen:
            raise InputError(f"The {part} split of data set {name!r} is empty. Put examples into it.")
    source = Cached(AnnotatedSource(records, raters, reader, regions, size=config.size, nested=nested, crop=crop))
    width, height = reader.frame(records[0].image)
    files.decode_first(source, [width * height * (1 + len(raters))] * len(records))
    drawn = [i for i in parts["train"] if any(records[i].raters)]
    if not drawn:
        raise InputError(f"No rater drew any of the training images of data set {name!r}. Add masks.")
    splits: dict[str, Source] = {part: Subset(source, chosen) for part, chosen in parts.items()}
    splits["masks"] = splits["train"] if len(drawn) == len(parts["train"]) else Subset(source, drawn)
    made = [part for part in ("val", "test") if all(record.part != part for record in records)]
    missing = sum(not paths for record in records for paths in record.raters)
    note = ", ".join(f"{len(chosen)} {part}" for part, chosen in parts.items())
    note += f"; {' and '.join(made)} drawn by seed {config.split_seed}" if made else "; splits as given"
    note += f"; {len(raters)} raters, {missing} of their {len(raters) * len(records)} masks missing; scored against "
    note += "the data set's own mask." if all(record.truth for record in records) else "their majority vote."
    return Dataset(name, tuple(regions), tuple(classes), splits, note, raters=tuple(raters))
