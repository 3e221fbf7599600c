"""What a data set is: named splits of random-access sources, and the sources that need no files."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

Example = dict[str, np.ndarray]


class Source(Protocol):
    """Examples by position; safe to read from several threads.

    An example holds ``image`` uint8 [h, w, 3], ``mask`` uint8 [h, w, c] of 0/1 with one channel for each
    region (regions may be nested) and ``label`` int32 [] the class. It may hold ``raters`` uint8
    [r, h, w, c], and ``mask_weight`` float32 [], 0 where the mask is not known and its zeros mean nothing.

    Attributes:
      names: one for each example, unique.
    """

    names: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Dataset(NamedTuple):
    """A data set ready for training.

    Attributes:
      name: as in the registry.
      regions: names of the mask's channels.
      classes: names of the labels 0, 1, ...
      splits: ``masks`` (training images with masks), ``train`` (training images with labels), ``val`` and
        ``test``.
      note: one sentence on how the split was made.
    """

    name: str
    regions: tuple[str, ...]
    classes: tuple[str, ...]
    splits: dict[str, Source]
    note: str


class Arrays:
    """Examples that lie in memory, stacked along the first axis of each array."""

    def __init__(self, names: Sequence[str], arrays: Mapping[str, np.ndarray]):
        self.names = list(names)
        self._arrays = dict(arrays)
        for key, array in self._arrays.items():
            if len(array) != len(self.names):
                raise ValueError(f"{len(self.names)} names, but {key} has {len(array)} rows")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        return {key: np.asarray(array[index]) for key, array in self._arrays.items()}


class Subset:
    """Some positions of another source, in the order given."""

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray):
        self._source = source
        self._indices = [int(index) for index in indices]
        self.names = [source.names[index] for index in self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return self._source[self._indices[index]]


class Cached:
    """Keeps decoded examples of another source in memory, up to a number of bytes.

    What does not fit is decoded each time. Nothing is ever thrown out: every epoch reads everything once in
    a new order, so that what was read last is no better guess than what was read first. The arrays handed out
    are read-only, since all readers share them.
    """

    def __init__(self, source: Source, *, limit_bytes: int = 1 << 30):
        self._source = source
        self.names = source.names
        self._left = limit_bytes
        self._kept: dict[int, Example] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        kept = self._kept.get(index)
        if kept is None:
            kept = self._source[index]
            needed = sum(array.nbytes for array in kept.values())
            with self._lock:
                # Another thread may have kept the same example meanwhile.
                if index not in self._kept and needed <= self._left:
                    for array in kept.values():
                        array.flags.writeable = False
                    self._kept[index] = kept
                    self._left -= needed
        return dict(kept)
