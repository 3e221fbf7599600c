"""What the loaders of official challenge sets share: finding the layout, splits, masks that may be absent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ophjax.data import files, look
from ophjax.data.sheets import image_id
from ophjax.data.sources import Cached, Dataset, Example, OfPatients, Source, Subset
from ophjax.data.split import split
from ophjax.errors import InputError

CHECKED = 32
"""So many examples are read at the start, so that bad files show at once."""


@dataclass(frozen=True)
class Config:
    """A challenge's training set, of which validation and test are drawn, and perhaps a set without answers."""

    root: str = ""
    """Folder of the training set, or one up to three above it."""
    test_root: str = ""
    """Folder of a set without answers, laid out alike, which becomes the test split: the run writes a submission."""
    size: int = 256
    """Height of the pictures that the net sees, in pixels."""
    val_fraction: float = 0.15
    """Share of the images drawn for validation."""
    test_fraction: float = 0.25
    """Share of the images drawn for the test, where there is no set without answers."""
    split_seed: int = 0
    """Seed of the draw."""


class Records:
    """Reads examples by a function of their name when they are asked for.

    ``example_bytes`` is how large an example is, where that matters.
    """

    def __init__(self, names: Sequence[str], read: Callable[[str], Example], *, example_bytes: int = 0):
        self.names = list(names)
        self.example_bytes = example_bytes
        self._read = read

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        return self._read(self.names[index])


def find_home(root: str, markers: Sequence[str], *, beside: Path | None = None) -> Path:
    """Finds the folder that holds one of the marker folders: the root, or the first below it, training before others.

    Args:
      root: given by the user.
      markers: names of folders.
      beside: the training set's, where that of a set without answers is looked for: another one, training after others.

    Raises:
      InputError: there is none down to three levels.
    """
    if not root or not Path(root).expanduser().is_dir():
        files.folder_at(root)
    top = Path(root).expanduser()
    homes, level = [], [top]
    for _ in range(4):
        here = [path for path in level if any((path / marker).is_dir() for marker in markers)]
        homes += here
        level = sorted(
            path for other in level if other not in here for path in other.iterdir()
            if path.is_dir() and path.name[0] != "."
        )  # fmt: skip
    others = [home for home in homes if beside is None or home.resolve() != beside.resolve()]
    if others:
        return min(others, key=lambda home: ("train" in str(home.relative_to(top)).lower()) != (beside is None))
    if homes:
        raise InputError(
            f"{top} holds the training set {beside} and no other. Give the folder of the set without answers, "
            "--data.test-root, or leave it out: a part of the training set is then the test."
        )
    raise InputError(
        f"Neither {top} nor the folders below it hold {' or '.join(repr(marker) for marker in markers)}. Give the "
        f"folder of the set in its official layout: --data.{'root' if beside is None else 'test-root'}."
    )


def lay_apart(mask: np.ndarray) -> np.ndarray:
    """Gives pixels that two layers share half and half, after stretching, to the later layer."""
    later = np.cumsum(mask[..., ::-1], -1)[..., ::-1] - mask
    return mask * (later == 0).astype(mask.dtype)


def list_ids(folder: Path) -> dict[str, Path]:
    """Lists the image files of a folder by their number of four digits."""
    return {image_id(stem, path): path for stem, path in files.list_images(folder).items()}


def need_all(images: Mapping[str, Path], known: Mapping[str, object], what: str, where: Path) -> None:
    """Raises InputError where an image lacks something, or something belongs to no image."""
    lacking = [path for name, path in images.items() if name not in known]
    strange = [name for name in known if name not in images]
    if lacking:
        raise InputError(
            f"{where} has no {what} for {len(lacking)} image(s), the first of which is {lacking[0]}. Add it."
        )
    if strange:
        raise InputError(f"{where} has a {what} for {len(strange)} image(s) that are not there: {files.some(strange)}.")


def divide(
    name: str,
    source: Source,
    labels: Sequence[int],
    config: Config,
    *,
    regions: tuple[str, ...],
    classes: tuple[str, ...],
    groups: Sequence[str] | None = None,
    test: Source | None = None,
    masked: Sequence[bool] | None = None,
    remark: str = "",
) -> Dataset:
    """Draws the splits and reads the first examples.

    Args:
      name: of the data set.
      source: all examples with answers.
      labels: their classes, by which the draw is stratified; equal where there are none.
      config: fractions and seed.
      regions, classes: of the data set.
      groups: of each example (patients), kept whole.
      test: examples without answers; then no test split is drawn.
      masked: which examples have a mask; by default all.
      remark: added to the note.
    """
    parts = ["train", "val"] if test is not None else ["train", "val", "test"]
    shares = [config.val_fraction, config.test_fraction][: len(parts) - 1]
    chosen = split(labels, groups or source.names, fractions=[1 - sum(shares), *shares], seed=config.split_seed)
    kept = Cached(OfPatients(source, groups) if groups else source)
    splits: dict[str, Source] = {part: Subset(kept, rows) for part, rows in zip(parts, chosen, strict=True)}
    if test is not None:
        splits["test"] = Cached(test)
    rows = [i for i in chosen[0] if masked is None or masked[i]]
    if rows:
        splits["masks"] = Subset(kept, rows)
    _look(splits)
    sizes = ", ".join(f"{len(splits[part])} {part}" for part in ("train", "val", "test"))
    drawn = " and ".join(parts[1:])
    how = f"{drawn} drawn by seed {config.split_seed}" + (", groups kept whole" if groups else "")
    return Dataset(name, regions, classes, splits, f"{sizes}; {how}.{' ' if remark else ''}{remark}")


class Parts(Protocol):
    """What the configs of sets with given parts have in common."""

    @property
    def val_fraction(self) -> float: ...
    @property
    def test_fraction(self) -> float: ...
    @property
    def split_seed(self) -> int: ...


def as_given(
    name: str,
    parts: Mapping[str, tuple[Source, Sequence[int]]],
    config: Parts | None,
    *,
    regions: tuple[str, ...] = (),
    classes: tuple[str, ...] = (),
    groups: Sequence[str] | None = None,
    remark: str = "",
) -> Dataset:
    """Takes the parts of a set as they are given; what is missing of val and test is drawn from train by seed.

    Args:
      name: of the data set.
      parts: the source of each part (train, val, test) with its labels, which are equal where there are none.
      config: fractions and seed of the draw; None where all parts are given.
      regions, classes: of the data set.
      groups: of each training example (patients, lesions), kept whole where parts are drawn.
      remark: added to the note where parts are drawn.
    """
    source, labels = parts["train"]
    missing = [part for part in ("val", "test") if part not in parts]
    kept: Source = Cached(OfPatients(source, groups) if groups else source)
    splits: dict[str, Source] = {part: Cached(other) for part, (other, _) in parts.items() if part != "train"}
    how = "as given."
    if missing and config is not None:
        shares = {"val": config.val_fraction, "test": config.test_fraction}
        drawn = [shares[part] for part in missing]
        chosen = split(labels, groups or source.names, fractions=[1 - sum(drawn), *drawn], seed=config.split_seed)
        splits |= {part: Subset(kept, rows) for part, rows in zip(missing, chosen[1:], strict=True)}
        kept = Subset(kept, chosen[0])
        how = f"{' and '.join(missing)} drawn by seed {config.split_seed}" + (", groups kept whole" if groups else "")
        how += f". {remark}" if remark else "."
    splits = {"train": kept, **splits}
    if regions:
        splits["masks"] = splits["train"]
    _look(splits)
    sizes = ", ".join(f"{len(splits[part])} {part}" for part in ("train", "val", "test"))
    return Dataset(name, regions, classes, splits, f"{sizes}; {how}")


def _look(splits: Mapping[str, Source]) -> None:
    """Reads the first examples of the training and the test split."""
    for part in {"train", "test"} & set(splits):
        look.decode(splits[part], range(min(len(splits[part]), CHECKED)))


def no_answers(example: Example) -> Example:
    """Marks an example's truth as not known."""
    return example | {"label": np.full((), -1, np.int32), "mask_weight": np.zeros((), np.float32)}
