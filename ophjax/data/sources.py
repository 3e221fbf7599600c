"""What a data set is: named splits of random-access sources, and the sources that need no files."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

Example = dict[str, np.ndarray]


class Source(Protocol):
    """Examples by position; safe to read from several threads.

    An example holds ``image`` uint8 [h, w, 3] and, as the data set has regions or classes, ``mask`` uint8
    [h, w, c] of 0/1 with one channel for each region (regions may be nested) and ``label`` int32 [] the class, -1
    where it is not known. It may hold ``mask_weight`` float32 [], 0 where the mask is not known and its zeros mean
    nothing, ``domain`` int32 [], its place among the data set's domains, and ``patient`` int32 [], equal for what is
    not independent: images of one patient, slices of one volume, tiles of one image. ``pairs`` describes examples for
    super-resolution.

    Where several raters drew masks it holds ``raters`` uint8 [r, h, w, c] of 0/1, in the order of ``Dataset.raters``,
    and ``rater_weight`` float32 [r], 0 where a rater did not draw this image and the zeros mean nothing. Regions are
    nested for every rater as they are in the mask. The mask is the truth, where there is one (drawn data), or what
    the data set takes for it; methods that learn from raters use it for scores only.

    Attributes:
      names: one for each example, unique.

    A source of large examples may say by ``example_bytes`` how large they are, so that few are read ahead.
    """

    names: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def size_of(source: Source) -> int:
    """The bytes of an example as the source says; 0 where it does not."""
    return getattr(source, "example_bytes", 0)


def patient_number(name: str) -> np.ndarray:
    """An example's entry ``patient`` by the name of the patient, the same in every run and process."""
    return np.asarray(zlib.crc32(name.encode()) >> 1, np.int32)


class Dataset(NamedTuple):
    """A data set ready for training.

    Attributes:
      name: as in the registry.
      regions: names of the mask's channels.
      classes: names of the labels 0, 1, ...
      splits: ``masks`` (training images with masks), ``train`` (training images with labels), ``val`` and
        ``test``. Where there are several domains, ``train`` is the source alone, ``domains`` the source and the
        unlabelled training images of each target, ``labelled`` (where known) the same with labels, and ``val`` and
        ``test`` hold all domains. Pairs for super-resolution also come as ``search`` (``train``, its halves in turn)
        and ``adapt`` (``train`` mixed with inputs whose truth is not known).
      note: one sentence on how the split was made.
      domains: names of the domains 0, 1, ...: the source, then the targets.
      raters: names of the raters 0, 1, ..., none where examples have no ``raters``.
      scale: how many times larger the ``target`` of an example is than its ``image`` (super-resolution, see
        ``pairs``); 1 where there is no such pair.
    """

    name: str
    regions: tuple[str, ...]
    classes: tuple[str, ...]
    splits: dict[str, Source]
    note: str
    domains: tuple[str, ...] = ()
    raters: tuple[str, ...] = ()
    scale: int = 1


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
        self.example_bytes = size_of(source)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return self._source[self._indices[index]]


class OfPatients:
    """Another source whose examples say of which patient they are."""

    def __init__(self, source: Source, patients: Sequence[str]):
        self._source = source
        self._patients = list(patients)
        self.names = source.names
        self.example_bytes = size_of(source)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        return self._source[index] | {"patient": patient_number(self._patients[index])}


class Unlabelled:
    """Another source without its truth, so that nothing can learn from it by mistake: every ``label`` is -1, every
    ``mask`` empty with a ``mask_weight`` of 0."""

    def __init__(self, source: Source):
        self._source = source
        self.names = source.names
        self.example_bytes = size_of(source)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index] | {"label": np.full((), -1, np.int32)}
        if "mask" in example:
            example |= {"mask": np.zeros_like(example["mask"]), "mask_weight": np.zeros((), np.float32)}
        return example


class Chained:
    """Sources of the same entries one after the other."""

    def __init__(self, parts: Sequence[Source]):
        self._parts = list(parts)
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])
        self.names = [name for part in self._parts for name in part.names]
        self.example_bytes = max(map(size_of, self._parts), default=0)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        part = self.part_of(index)
        return self._parts[part][index - int(self._starts[part])]

    def part_of(self, index: int) -> int:
        """Finds the number of the source that holds an example."""
        if not 0 <= index < len(self):
            raise IndexError(f"Example {index} of {len(self)}.")
        return int(np.searchsorted(self._starts, index, side="right")) - 1


class Joined(Chained):
    """The domains of a data set one after the other; each example gets its number as ``domain``.

    Training batches take their rows from the domains in turn, whatever their sizes (see ``groups``).

    Attributes:
      groups: the positions of each domain.
    """

    def __init__(self, parts: Sequence[Source], *, first: int = 0):
        super().__init__(parts)
        self._first = first
        self.groups = [range(a, b) for a, b in zip(self._starts[:-1], self._starts[1:], strict=True)]

    def __getitem__(self, index: int) -> Example:
        return super().__getitem__(index) | {"domain": np.full((), self._first + self.part_of(index), np.int32)}


class Grouped:
    """Another source whose groups take turns in training batches, whatever their sizes (see ``pipeline``).

    Attributes:
      groups: the positions of each.
    """

    def __init__(self, source: Source, groups: Sequence[Sequence[int]]):
        self._source = source
        self.names = source.names
        self.example_bytes = size_of(source)
        self.groups = [list(group) for group in groups]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        return self._source[index]


class Balanced(Grouped):
    """Another source whose classes take turns in training batches, however rare one of them is.

    Examples whose class is not known (-1) are left out of these batches, unless no class is known.
    """

    def __init__(self, source: Source):
        labels = np.array([int(source[i]["label"]) for i in range(len(source))])
        classes = np.unique(labels[labels >= 0]) if (labels >= 0).any() else np.unique(labels)
        super().__init__(source, [np.flatnonzero(labels == label).tolist() for label in classes])


class Cached:
    """Keeps decoded examples of another source in memory, up to a number of bytes.

    What does not fit is decoded each time. Nothing is ever thrown out: every epoch reads everything once in
    a new order, so that what was read last is no better guess than what was read first. The arrays handed out
    are read-only, since all readers share them.
    """

    def __init__(self, source: Source, *, limit_bytes: int = 1 << 30):
        self._source = source
        self.names = source.names
        self.example_bytes = size_of(source)
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
