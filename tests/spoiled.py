"""Damaged files for the fuzz tests: noise, and good files with bytes changed, cut off or put in."""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from ophjax.errors import InputError

FEW = settings(
    max_examples=40, derandomize=True, database=None, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
"""Always the same draws, so that a failure stays one."""

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3), st.lists, max_leaves=4)


def spoiled(*whole: bytes) -> st.SearchStrategy[bytes]:
    """Noise; or one of these files with some bytes changed (mostly near its head), its end cut off, bytes put in."""

    def change(file: bytes, edits: list[tuple[int, int]], end: int, extra: bytes, at: int) -> bytes:
        content = bytearray(file)
        for where, value in edits:
            content[where % len(content)] = value
        content[at % len(content) : at % len(content)] = extra
        return bytes(content[: max(len(content) - end, 0)])

    place = st.integers(0, max(map(len, whole)) - 1)
    edits = st.lists(st.tuples(st.integers(0, 80) | place, st.integers(0, 255)), max_size=4)
    changed = st.builds(
        change, st.sampled_from(whole), edits, st.just(0) | place, st.just(b"") | st.binary(max_size=4), place
    )
    return st.binary(max_size=200) | changed


@contextmanager
def holding(name: str, content: bytes) -> Iterator[Path]:
    """A file of this content, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        yield path


def loads(read: Callable[[Path], Any], path: Path) -> bool:
    """Calls a reader, which must end well (True) or with one paragraph of an InputError that names file or folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries warn a user of damage; in tests a warning is an error
        try:
            read(path)
        except InputError as error:
            said = str(error)
            assert path.name in said or str(path.parent) in said, error
            assert len(said) < 2000, error
            return False
    return True
