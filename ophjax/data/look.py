"""The first look at a data set: some of its files are read when it is made, so that bad ones show now."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from ophjax.data.sources import Source
from ophjax.errors import InputError

T = TypeVar("T")
_LATER = ContextVar("later", default=False)


@contextmanager
def later() -> Iterator[None]:
    """Within it a data set is made though some files are bad: the error comes when such an example is read."""
    before = _LATER.set(True)
    try:
        yield
    finally:
        _LATER.reset(before)


def each(read: Callable[[int], T], positions: Iterable[int]) -> list[T | InputError]:
    """Calls ``read(position)`` in threads. Its first InputError is raised; within ``later`` all are returned."""
    kept = _LATER.get()

    def attempt(position: int) -> T | InputError:
        try:
            return read(position)
        except InputError as error:
            if not kept:
                raise
            return error

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        return list(pool.map(attempt, positions))


def decode(source: Source, positions: Iterable[int]) -> None:
    """Reads some examples, as ``each``; what a cache has room for stays in it."""
    each(lambda position: len(source[position]), positions)
