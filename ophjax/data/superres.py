"""Images in folders, in the layouts of super-resolution benchmarks, or any folder of images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ophjax.data import files, images, tfds
from ophjax.data.pairs import SCALES, halves, input_only, name_of, pyramid, steps, with_inputs
from ophjax.data.sources import Cached, Dataset, Example, Source, patient_number
from ophjax.data.split import split
from ophjax.errors import InputError

# Changes to Config for the paper's scale, for two CPU cores, and for tests.
PAPER: dict[str, Any] = dict(size=480, step=240)
DEMO: dict[str, Any] = dict(size=96, scale=2)
SMOKE: dict[str, Any] = dict(size=32, scale=2)


@dataclass(frozen=True)
class Config:
    """A folder of images, with or without their low resolution.

    Either images only; or HR/ (or NAME_HR/) and beside it LR_bicubic/ (NAME_LR_bicubic/) with X2/, X4/, X8/, whose
    files are called as the image and then x2, x4, x8: Set5 and the other benchmarks, DIV2K, Flickr2K, DF2K. Where a
    scale's folder is missing its files are made by MATLAB's bicubic rule. Of two sets whose names hold train and valid
    (DIV2K), the second is the test split. Or a TFDS data set (array_record) with the features lr and hr: div2k, of
    which the splits train and validation are taken.
    """

    root: str = ""
    """The folder."""
    size: int = 256
    """Side of the square tiles in high resolution, a multiple of the scale; at most the images' shorter side."""
    step: int = 0
    """Pixels from one training tile to the next; 0: the tiles do not overlap."""
    scale: int = 4
    """How many times smaller the inputs are: 2, 4 or 8."""
    border: Literal["mirror", "clamp"] = "mirror"
    """Made inputs: what lies beyond the edge; clamp as older MATLAB (RCAN's and SelfExSR's files)."""
    rounded: bool = True
    """Made inputs: round to bytes between the two passes, as MATLAB does; the common x8 files were made without."""
    unpaired: str = ""
    """Folder of inputs without truth, for the adaptation."""
    val_fraction: float = 0.1
    """Share of the training images drawn for validation."""
    test_fraction: float = 0.2
    """Share of the images drawn for the test where no test set is given."""
    split_seed: int = 0
    """Seed of the draws."""


Pictures = dict[str, images.Encoded]


class Whole:
    """Whole images with their smaller versions, read from files or made."""

    def __init__(self, pictures: Pictures, smaller: dict[int, Pictures], config: Config):
        self.names = list(pictures)
        self._pictures, self._smaller, self._config = pictures, smaller, config
        # Width and height of the high resolution that has a low one.
        self.sizes = [
            tuple(n - n % config.scale for n in images.image_size(path)) if 1 not in smaller
            else tuple(n * config.scale for n in images.image_size(smaller[1][name]))
            for name, path in pictures.items()
        ]  # fmt: skip

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        name, config, (width, height) = self.names[index], self._config, self.sizes[index]
        path = self._pictures[name]
        target = images.read_whole(path)
        if target.shape[0] < height or target.shape[1] < width:
            raise InputError(
                f"Image {path} has {target.shape[1]} x {target.shape[0]} pixels, but its low resolution needs "
                f"{width} x {height} at {config.scale}x. Both must show the same: correct one of them."
            )
        target = np.ascontiguousarray(target[:height, :width])
        wanted = [times for times in steps(config.scale)[:-1] if times not in self._smaller]
        found = {"target": target, "target_weight": np.ones((), np.float32)}
        if wanted:
            found = pyramid(target, config.scale, border=config.border, rounded=config.rounded)
        for times, paths in self._smaller.items():
            small = images.read_whole(paths[name])[: height // (config.scale // times)]
            found[name_of(times, config.scale)] = small[:, : width // (config.scale // times)]
        return found


class Tiles:
    """Square tiles of whole images, in rows from the top left corner; what remains right and below is left out.

    Attributes:
      images: the number of the whole image that each tile is cut from.
    """

    def __init__(self, whole: Source, sizes: list[tuple[int, ...]], *, size: int, step: int, scale: int):
        self._whole, self._size, self._scale = whole, size, scale
        self._places: list[tuple[int, int, int]] = []
        self.names: list[str] = []
        for number, (name, (width, height)) in enumerate(zip(whole.names, sizes, strict=True)):
            if min(width, height) < size:
                raise InputError(
                    f"Image {name} has {width} x {height} pixels that the scale divides; tiles of {size} do not fit. "
                    "Give a smaller --data.size, or remove the image."
                )
            for top in range(0, height - size + 1, step):
                for left in range(0, width - size + 1, step):
                    self._places.append((number, top, left))
                    self.names.append(f"{name}-{top}-{left}")
        self.images = [number for number, _, _ in self._places]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        number, top, left = self._places[index]
        whole = self._whole[number]
        found: Example = {"target_weight": whole["target_weight"], "patient": patient_number(self._whole.names[number])}
        for times in steps(self._scale):
            y, x, side = (n * times // self._scale for n in (top, left, self._size))
            name = name_of(times, self._scale)
            found[name] = np.ascontiguousarray(whole[name][y : y + side, x : x + side])
        return found


def make(config: Config) -> Dataset:
    """Reads the folder: splits ``train``, ``search`` (its halves in turn, which share no image), ``val``, ``test`` and,
    where there are inputs without truth, ``adapt`` (mixed with them).

    Raises:
      InputError: for every mistake in the folder or the options.
    """
    steps(config.scale)
    step = config.step or config.size
    if config.size < 16 or config.size % config.scale or step < 1 or step % config.scale:
        raise InputError(
            f"--data.size {config.size} --data.step {config.step} at scale {config.scale}: give multiples of the "
            "scale, and tiles of at least 16 pixels."
        )
    root = files.folder_at(config.root)
    stored = tfds.folder_in(root)
    sets = find_sets(root, config.scale) if stored is None else stored_sets(stored, config.scale)

    def tiles(pictures: Pictures, smaller: dict[int, Pictures], names: list[str], step: int) -> Tiles:
        whole = Whole(
            {name: pictures[name] for name in names},
            {times: {name: paths[name] for name in names} for times, paths in smaller.items()},
            config,
        )
        return Tiles(Cached(whole), whole.sizes, size=config.size, step=step, scale=config.scale)

    pictures, smaller = sets[0]
    names, given = list(pictures), len(sets) > 1
    rest = 1 - config.val_fraction - (0 if given else config.test_fraction)
    fractions = [rest, config.val_fraction] + ([] if given else [config.test_fraction])
    parts = [
        [names[i] for i in part] for part in split([0] * len(names), names, fractions=fractions, seed=config.split_seed)
    ]
    train = tiles(pictures, smaller, parts[0], step)
    splits: dict[str, Source] = {
        "train": train,
        "search": halves(train, train.images),
        "val": tiles(pictures, smaller, parts[1], config.size),
        "test": tiles(*sets[1], list(sets[1][0]), config.size)
        if given
        else tiles(pictures, smaller, parts[2], config.size),
    }
    if config.unpaired:
        splits["adapt"] = with_inputs(train, inputs(Path(config.unpaired).expanduser(), config))
    made = [f"x{config.scale // times}" for times in steps(config.scale)[:-1] if times not in smaller]
    how = f"; {', '.join(made)} made by MATLAB's rule ({config.border}, rounded {config.rounded})" if made else ""
    return Dataset(
        name="superres",
        regions=(),
        classes=(),
        splits=splits,
        note=f"{len(names)} images of {root} at {config.scale}x{how}; tiles of {config.size} pixels.",
        scale=config.scale,
    )


def find_sets(root: Path, scale: int) -> list[tuple[Pictures, dict[int, Pictures]]]:
    """Finds the images of each set and, by how many times the input's size they have, their smaller versions.

    Raises:
      InputError: no images, more sets than a training and a test one, or an image whose smaller version is missing.
    """
    high = [path for path in sorted(root.iterdir()) if path.is_dir() and re.fullmatch(r"(.*_)?HR", path.name)]
    if not high:
        return [(dict(files.list_images(root)), {})]
    if len(high) == 2 and "train" in high[0].name and "valid" in high[1].name:
        return [_read_set(path, scale) for path in high]
    if len(high) > 1:
        listed = ", ".join(path.name for path in high)
        raise InputError(
            f"{root} holds several sets: {listed}. Give the folder of one, or one train and one valid set."
        )
    return [_read_set(high[0], scale)]


def stored_sets(folder: Path, scale: int) -> list[tuple[Pictures, dict[int, Pictures]]]:
    """Finds the images of TFDS' ``div2k``, or of another TFDS data set like it, as ``find_sets``.

    Raises:
      InputError: its features, its configuration or its scale are not what is wanted.
    """
    info, rows, _ = tfds.splits_of(folder, lr="Image", hr="Image")
    kind = info.get("configName", "")
    if "train" not in rows or kind.startswith("realistic"):
        raise InputError(
            f"{folder} has the configuration {kind or '(none)'} and the splits {', '.join(rows)}; expected a split "
            f"train, and inputs that are not shifted against the truth. Of div2k take bicubic_x{scale}."
        )
    sets: list[tuple[Pictures, dict[int, Pictures]]] = []
    for name in ("train", "validation"):
        if name in rows:
            high, low = (
                {f"{name}{i:05}": tfds.Stored(rows[name], i, feature, f"{name} in {folder}")
                 for i in range(len(rows[name]))}
                for feature in ("hr", "lr")
            )  # fmt: skip
            sets.append((dict(high), {1: dict(low)}))
    sides = [images.image_size(next(iter(pictures.values())))[0] for pictures in (sets[0][0], sets[0][1][1])]
    found = round(sides[0] / sides[1])
    if found != scale:
        how = f"Give --data.scale {found}, or" if found in SCALES else "Take"
        raise InputError(
            f"{folder} holds inputs {found} times smaller than the truth, and --data.scale is {scale}. {how} the "
            f"configuration for that scale: div2k/bicubic_x{scale}."
        )
    return sets


def _read_set(folder: Path, scale: int) -> tuple[Pictures, dict[int, Pictures]]:
    pictures = files.list_images(folder)
    low = folder.with_name(f"{folder.name.removesuffix('HR')}LR_bicubic")
    smaller: dict[int, Pictures] = {}
    for times in steps(scale)[:-1]:
        factor = scale // times
        if (low / f"X{factor}").is_dir():
            found = files.list_images(low / f"X{factor}")
            paths = {name: found.get(f"{name}x{factor}") for name in pictures}
            lacking = [name for name, path in paths.items() if path is None]
            if lacking:
                listed = files.some([f"{name}x{factor}" for name in lacking])
                raise InputError(
                    f"{low / f'X{factor}'} lacks {len(lacking)} image(s): {listed}. Add "
                    " them, or remove the folder to have all made."
                )
            smaller[times] = {name: path for name, path in paths.items() if path is not None}
    return dict(pictures), smaller


class _Inputs:
    """Tiles of images that are inputs without truth."""

    def __init__(self, pictures: dict[str, Path], config: Config):
        side = config.size // config.scale
        self._scale, self._side = config.scale, side
        self._paths = list(pictures.values())
        self._places = []
        self.names = []
        for number, path in enumerate(self._paths):
            width, height = images.image_size(path)
            for top in range(0, height - side + 1, side):
                for left in range(0, width - side + 1, side):
                    self._places.append((number, top, left))
                    self.names.append(f"{path.stem}-{top}-{left}")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        number, top, left = self._places[index]
        tile = images.read_whole(self._paths[number])[top : top + self._side, left : left + self._side]
        found = input_only(np.ascontiguousarray(tile), self._scale)
        return found | {"patient": patient_number(self._paths[number].stem)}


def inputs(folder: Path, config: Config) -> Source:
    """Reads a folder of inputs without truth."""
    return Cached(_Inputs(files.list_images(folder), config))
