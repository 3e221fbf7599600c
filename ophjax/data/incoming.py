"""New images for a trained network, read as its data set reads its own: same stretch, same frame, same grey window.

A data set whose images are more than one picture file says by ``new_examples(config, path, needed, outside=...)`` what
it takes ({name: (picture, function that reads the example)}), and one whose volumes have a window of their own by
``grey_volume(path)`` how it maps them to bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np

from ophjax.data import dicom, images, volumes
from ophjax.data.images import Box, MaskCode, parse_code
from ophjax.data.sources import Example
from ophjax.errors import InputError

VOLUMES = (".nii", ".nii.gz")
SHOWN = 1024
"""Longer side of the picture that an overlay is drawn on, at most."""


class Case(NamedTuple):
    """One image to predict.

    Attributes:
      name: unique among the inputs; its parts are folders.
      example: what the network is given.
      picture: uint8 [i, j, 3], the whole image for drawing, its longer side at most ``SHOWN``.
      size: (width, height) of the image in its file.
      frame: (left, top, width, height) of the part of it that the network sees.
    """

    name: str
    example: Example
    picture: np.ndarray
    size: tuple[int, int]
    frame: tuple[int, int, int, int]


Read = Callable[[], list[Case]]


def list_inputs(path: Path, *, series: bool = False, outside: Path | None = None) -> dict[str, Path]:
    """Lists the images of a folder and those below it, or one file, by a unique name.

    Other files, hidden ones and links that lead out of the folder are passed over. A name is the path inside the folder
    without suffix, or with it where another file would have that name or has it in full; the folder's own name goes
    before it where the folder itself is a series.

    Args:
      path: a file or a folder.
      series: a folder of DICOM files is one volume, and listed as such.
      outside: a folder below that is left out (an earlier run's results).

    Raises:
      InputError: there is no such file or folder, or no image in it.
    """
    if path.is_file():
        return {_stem(path.name): path}
    if not path.is_dir():
        raise InputError(f"There is no file or folder {path}. Give an image, a DICOM file or a folder: --input.")
    home, found = path.resolve(), []
    for file in sorted(path.rglob("*")):
        parts = file.relative_to(path).parts
        hidden = any(part.startswith(".") for part in parts)
        ours = outside is not None and file.resolve().is_relative_to(outside.resolve())
        if hidden or ours or not _known(file.name) or not file.is_file() or not file.resolve().is_relative_to(home):
            continue
        found.append(file)
    if series:
        found = sorted({file.parent if file.suffix.lower() == dicom.SUFFIX else file for file in found})
    if not found:
        suffixes = ", ".join((*images.SUFFIXES, *VOLUMES))
        raise InputError(f"The folder {path} holds no images ({suffixes}). Give another one: --input.")
    top = Path(home.name if path in found else "")  # a series that lies in the folder itself has that folder's name
    names = [(top / file.relative_to(path)).as_posix() for file in found]
    taken = Counter(used for name in names for used in {name, _stem(name)})
    return {_stem(name) if taken[_stem(name)] == 1 else name: file for name, file in zip(names, found, strict=True)}


def readers(
    module: ModuleType, config: Any, path: Path, *, needed: Collection[str] = (), outside: Path | None = None
) -> dict[str, tuple[Path, Read]]:
    """Says how each input is read: ``{name: (file, function that reads its cases)}``; nothing is read yet.

    Args:
      module: of the data set that the network was trained on.
      config: its configuration in training.
      path: a file or a folder.
      needed: entries of an example that the network reads.
      outside: see ``list_inputs``.

    Raises:
      InputError: as ``list_inputs``, or the data set takes another layout, or one DICOM file is given where it takes
        volumes, whose grey window one slice does not tell; the functions raise it for what they read.
    """
    if hasattr(module, "new_examples"):
        found = module.new_examples(config, path, needed, outside=outside)
        return {name: (file, _picked(name, file, read)) for name, (file, read) in found.items()}
    to_grey = getattr(module, "grey_volume", None)
    if to_grey is not None and path.is_file() and path.suffix.lower() == dicom.SUFFIX:
        raise InputError(
            f"{path} is one DICOM file, but this run learned from volumes, whose grey levels are mapped by the whole "
            "volume. Give the folder of its series (a series of one slice is taken as such), or a NIfTI file."
        )
    found = list_inputs(path, series=to_grey is not None, outside=outside)
    return {name: (file, _reader(name, file, config, to_grey)) for name, file in found.items()}


def _picked(name: str, file: Path, read: Callable[[], Example]) -> Read:
    def cases() -> list[Case]:
        example, size = read(), images.image_size(file)
        frame = tuple(example["frame"].tolist()) if "frame" in example else (0, 0, *size)
        return [Case(name, example, shown(file, size), size, frame)]

    return cases


def _reader(name: str, file: Path, config: Any, to_grey: Callable[[Path], np.ndarray] | None) -> Read:
    def cases() -> list[Case]:
        if is_volume(file):
            grey = (to_grey or clip)(file)
            return list(_slices(name, grey, config.size))
        return [_picture(name, file, config)]

    return cases


def is_volume(file: Path) -> bool:
    """Tells inputs that may be many slices: NIfTI files, and folders of DICOM files that are one series."""
    return file.is_dir() or file.name.lower().endswith(VOLUMES)


def clip(path: Path) -> np.ndarray:
    """Reads a NIfTI volume as bytes, cut at its 99.5th percentile: uint8 [n, h, w]."""
    return volumes.clip_top(volumes.read_nifti(path))


def _picture(name: str, file: Path, config: Any) -> Case:
    from ophjax.data.builders.gamma import frame_of

    size = images.image_size(file)
    left, top, width, height = frame = frame_of(size, getattr(config, "frame", "whole"))
    box = Box(left / size[0], top / size[1], (left + width) / size[0], (top + height) / size[1])
    image = images.read_image(file, (getattr(config, "width", 0) or config.size, config.size), box)
    example = {"image": image, "size": np.array(size, np.int32), "frame": np.array(frame, np.int32)}
    return Case(name, example, shown(file, size), size, frame)


def _slices(name: str, grey: np.ndarray, side: int) -> Iterator[Case]:
    height, width = grey.shape[1:]
    frame = (0, 0, width, height)
    for i, one in enumerate(grey):
        image = np.repeat(volumes.stretch(one, side)[..., None], 3, axis=-1)
        example = {"image": image, "size": np.array([width, height], np.int32), "frame": np.array(frame, np.int32)}
        picture = np.repeat(one[..., None], 3, axis=-1)
        yield Case(f"{name}-{i:03d}" if len(grey) > 1 else name, example, picture, (width, height), frame)


def shown(file: Path, size: tuple[int, int]) -> np.ndarray:
    """Reads a picture for drawing: its longer side at most ``SHOWN``."""
    scale = min(1.0, SHOWN / max(size))
    return images.read_image(file, (max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)))


def grey_levels(module: ModuleType, config: Any, regions: tuple[str, ...]) -> tuple[int, tuple[int, ...]]:
    """Says what the regions are drawn with in a mask file, one over the other in their order: background, regions.

    By the data set's own code where it has one for single files; else 255 for one region, or 1, 2, ... on 0.
    """
    code: MaskCode | None = getattr(module, "CODE", None)
    if hasattr(config, "mask_code"):
        code = parse_code(config.mask_code)
    if code is not None and tuple(code.regions) == regions:
        values, levels = list(code.regions.values()), []
        for i, own in enumerate(values):
            later = {value for other in values[i + 1 :] for value in other}
            levels.append(max(set(own) - later, default=-1))
        if min(levels) >= 0:
            return 0 if 0 in code.background else max(code.background), tuple(levels)
    return 0, (255,) if len(regions) == 1 else tuple(range(1, len(regions) + 1))


def to_mask(
    probs: np.ndarray,
    size: tuple[int, int],
    frame: tuple[int, int, int, int],
    levels: tuple[int, tuple[int, ...]],
    *,
    exclusive: bool | Literal["nested"],
) -> np.ndarray:
    """Makes a mask file's pixels of probability maps [h, w, c]: uint8 at the size of the original image.

    Maps are stretched to the frame (bilinear) and decided there: with ``exclusive`` the most probable of the regions
    and the background, with "nested" of the parts of each that lie in no later one, else each region where it is above
    one half, later ones over earlier ones. What lies outside the frame is background.
    """
    from PIL import Image

    left, top, width, height = frame
    background, values = levels
    inside = np.full((height, width), background, np.uint8)
    most = np.full((height, width), 0.5, np.float32)
    large = [
        np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BILINEAR))
        for one in np.moveaxis(np.asarray(probs, np.float32), -1, 0)
    ]
    if exclusive == "nested":
        large = [one - later for one, later in zip(large, [*large[1:], np.zeros_like(large[-1])], strict=True)]
    if exclusive:
        most = 1 - np.sum(large, axis=0)
    for value, one in zip(values, large, strict=True):
        inside[one > most] = value
        if exclusive:
            most = np.maximum(most, one)
    if frame == (0, 0, *size):
        return inside
    whole = np.full((size[1], size[0]), background, np.uint8)
    whole[top : top + height, left : left + width] = inside
    return whole


def describe_levels(levels: tuple[int, tuple[int, ...]], regions: tuple[str, ...]) -> Mapping[str, int]:
    """The pixel values of mask files by name; a pixel of several regions has that of the last."""
    return {"background": levels[0], **dict(zip(regions, levels[1], strict=True))}


def _known(name: str) -> bool:
    return name.lower().endswith((*images.SUFFIXES, *VOLUMES))


def _stem(name: str) -> str:
    lower = name.lower()
    suffix = next((s for s in (".nii.gz", ".nii", *images.SUFFIXES) if lower.endswith(s)), "")
    return name[: len(name) - len(suffix)] if suffix else name
