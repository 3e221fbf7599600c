"""Prepared data sets: examples as their loader gives them, decoded, checked and stretched, in array_record files.

A folder holds ``dataset.json`` (names, splits, options), ``records-NNNNN.array_record`` and, for each, a list of what
went into it, by which an interrupted writer goes on. An example that is in several splits is stored once. Records are
npz, read without pickle. A data set whose ``--data.root`` is such a folder is read from it, with the same options.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ophjax.data.sources import Dataset, Example, Grouped, Source, size_of
from ophjax.errors import InputError

ABOUT, FORMAT = "dataset.json", 1
SHARD = re.compile(r"records-\d{5}\.array_record")
PATHS = ("root", "test_root", "btcv", "chaos", "pneumonia", "shenzhen", "unpaired")
"""Options of all loaders that name a file or folder; tables and columns are named within one."""


def pack(example: Example) -> bytes:
    """Writes an example as compressed npz."""
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **example)
    return stream.getvalue()


def unpack(record: bytes) -> Example:
    """Reads what ``pack`` wrote."""
    with np.load(io.BytesIO(record), allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def digest(example: Example) -> str:
    """Tells whether two examples are the same, whatever their names."""
    found = hashlib.sha256()
    for name in sorted(example):
        value = np.ascontiguousarray(example[name])
        found.update(f"{name}{value.dtype}{value.shape}".encode())
        found.update(value.tobytes())
    return found.hexdigest()


def options_of(config: Any) -> dict[str, Any]:
    """The options that decide what an example holds: all but those that are paths, which may differ."""
    plain = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return {name: value for name, value in plain.items() if name not in paths_of(config)}


def paths_of(config: Any) -> dict[str, str]:
    """The options that name a file or folder, told by their own names and not by what lies in the working folder."""
    given = {name: getattr(config, name, "") for name in PATHS}
    return {name: value for name, value in given.items() if value and isinstance(value, str)}


def folders_of(config: Any) -> list[Path]:
    """The folders that a configuration's options name."""
    paths = (Path(value).expanduser() for value in paths_of(config).values())
    return [path for path in paths if path.is_dir()]


def home_of(config: Any) -> Path | None:
    """The prepared folder that one of a configuration's options names; None where there is none."""
    return next((path for path in folders_of(config) if (path / ABOUT).is_file()), None)


def facts_of(data: Dataset) -> dict[str, Any]:
    """What is known of a data set beside its examples, as JSON takes it."""
    facts = {name: list(getattr(data, name)) for name in ("regions", "classes", "domains", "raters")}
    return {**facts, "scale": data.scale, "note": data.note}


def split_of(source: Source, positions: Sequence[int]) -> dict[str, Any]:
    """What is known of a split beside its examples, of which those at these positions are kept."""
    place = {position: i for i, position in enumerate(positions)}
    groups = [[place[i] for i in group if i in place] for group in getattr(source, "groups", [])]
    return {
        "names": [source.names[position] for position in positions],
        "groups": [group for group in groups if group],
        "example_bytes": size_of(source),
    }


def check(about: dict[str, Any], folder: Path, name: str, config: Any) -> None:
    """Raises InputError where a prepared folder holds another data set, or one prepared with other options."""
    if about["name"] != name:
        raise InputError(f"{folder} holds the data set {about['name']!r}: give --data {about['name']}.")
    here = options_of(config)
    other = [
        f"--data.{key.replace('_', '-')} {value}"
        for key, value in about["options"].items()
        if key in here and here[key] != value and not (isinstance(value, str) and not value)
    ]
    if other:
        raise InputError(f"{folder} was prepared with other options. Give {' '.join(other)}, or prepare it anew.")


def assemble(about: dict[str, Any], sources: dict[str, Source]) -> Dataset:
    """Puts a data set together again out of what is known of it and its splits' examples."""
    facts = {key: tuple(map(str, about[key])) for key in ("regions", "classes", "domains", "raters")}
    grouped = {split: about["splits"][split]["groups"] for split in sources}
    splits = {split: Grouped(source, grouped[split]) if grouped[split] else source for split, source in sources.items()}
    return Dataset(name=about["name"], splits=splits, note=about["note"], scale=int(about["scale"]), **facts)


class Writer:
    """Writes examples in order; what an earlier writer of the same data set has finished in this folder stays.

    Args:
      folder: of the data set.
      shard_bytes: a file is closed when it holds so much.
    """

    def __init__(self, folder: Path, *, shard_bytes: int = 256 << 20):
        self._folder, self._limit = folder, shard_bytes
        self._known: dict[str, int] = {}
        self.entries: list[tuple[str, int, int]] = []
        self._shards = 0
        while (listed := self._list(self._shards)).is_file() and self._path(self._shards).is_file():
            try:
                found = json.loads(listed.read_text(encoding="utf-8"))
                self.entries += [(str(split), int(i), int(record)) for split, i, record in found["entries"]]
                self._known |= {str(key): int(record) for key, record in found["digests"].items()}
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{listed} cannot be read ({error!r}). Delete {folder} and prepare it anew."
                ) from error
            self._shards += 1
        self._writer: Any = None
        self._written, self._fresh = 0, len(self.entries)
        self._digests: dict[str, int] = {}

    def add(self, split: str, position: int, example: Example) -> None:
        """Adds an example of a split.

        Raises:
          InputError: the disk is full or the folder cannot be written; finished files stay.
        """
        key = digest(example)
        if key not in self._known:
            record = pack(example)
            try:
                self._open().write(record)
            except Exception as error:  # array_record raises what its C++ raises
                raise self._unwritten(error) from error
            self._known[key] = self._digests[key] = len(self._known)
            self._written += len(record)
        self.entries.append((split, position, self._known[key]))
        if self._written >= self._limit:
            self.close()

    def close(self) -> None:
        """Finishes the file that is being written."""
        if self._writer is None:
            if self._fresh == len(self.entries) or not self._shards:
                return
            # Only known examples came: they are noted with an empty file.
            self._open()
        try:
            self._writer.close()
            self._writer = None
            shard = self._path(self._shards)
            os.replace(shard.with_suffix(".part"), shard)
            content = {"entries": self.entries[self._fresh :], "digests": self._digests}
            scratch = self._list(self._shards).with_suffix(".part")
            scratch.write_text(json.dumps(content), encoding="utf-8")
            os.replace(scratch, self._list(self._shards))
        except Exception as error:
            raise self._unwritten(error) from error
        self._shards, self._written, self._fresh, self._digests = self._shards + 1, 0, len(self.entries), {}

    def finish(self, about: dict[str, Any]) -> None:
        """Writes dataset.json, by which the data set is whole."""
        self.close()
        content = {"format": FORMAT, "shards": [self._path(i).name for i in range(self._shards)], **about}
        scratch = self._folder / (ABOUT + ".part")
        try:
            scratch.write_text(json.dumps(content) + "\n", encoding="utf-8")
            os.replace(scratch, self._folder / ABOUT)
        except OSError as error:
            raise self._unwritten(error) from error

    def _open(self) -> Any:
        if self._writer is None:
            from array_record.python.array_record_module import ArrayRecordWriter

            self._writer = ArrayRecordWriter(str(self._path(self._shards).with_suffix(".part")), "group_size:1")
        return self._writer

    def _path(self, number: int) -> Path:
        return self._folder / f"records-{number:05d}.array_record"

    def _list(self, number: int) -> Path:
        return self._folder / f"records-{number:05d}.json"

    def _unwritten(self, error: Exception) -> InputError:
        return InputError(
            f"{self._folder} cannot be written ({error}). What was finished stays: make room or mend the "
            "permissions, then give the same command again."
        )


def prepare(
    data: Dataset,
    config: Any,
    folder: Path,
    *,
    shard_bytes: int = 256 << 20,
    examples: Callable[[str, Source, int], Iterator[tuple[int, Example]]],
) -> None:
    """Writes a data set's splits; goes on where it was interrupted.

    Args:
      data: as its loader made it.
      config: of the loader.
      folder: for the files.
      shard_bytes: see ``Writer``.
      examples: ``examples(split, source, first)`` gives the good examples of a split from position ``first`` on.

    Raises:
      InputError: the folder holds another data set, or cannot be written.
    """
    identity = {"name": data.name, "options": options_of(config), "sizes": {k: len(v) for k, v in data.splits.items()}}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        begun = folder / "begun.json"
        if not begun.exists():
            if any(folder.iterdir()):
                raise InputError(f"{folder} exists and holds something else. Give another --out, or empty it.")
            begun.write_text(json.dumps(identity), encoding="utf-8")
        before = json.loads(begun.read_text(encoding="utf-8"))
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} cannot be used ({error}). Give another --out, or delete it.") from error
    if before != json.loads(json.dumps(identity)):
        raise InputError(
            f"{folder} holds {before.get('name')!r} prepared with other options or from other files. Give another "
            "--out, or delete it."
        )
    writer = Writer(folder, shard_bytes=shard_bytes)
    last: dict[str, int] = {}
    for split, position, _ in writer.entries:
        last[split] = max(position, last.get(split, -1))
    for split, source in data.splits.items():
        for position, example in examples(split, source, last.get(split, -1) + 1):
            writer.add(split, position, example)
    writer.close()
    splits = {}
    for split, source in data.splits.items():
        chosen = [(position, record) for name, position, record in writer.entries if name == split]
        facts = split_of(source, [position for position, _ in chosen])
        splits[split] = {**facts, "records": [record for _, record in chosen]}
    writer.finish({**identity, **facts_of(data), "splits": splits})


class Records:
    """Examples of one split out of the record files."""

    def __init__(self, names: Sequence[str], records: Sequence[int], reader: Any, example_bytes: int = 0):
        self.example_bytes = example_bytes
        self.names, self._records, self._reader = list(names), list(records), reader

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        number = self._records[index]
        try:
            return unpack(self._reader[number])
        except Exception as error:  # damaged files make array_record and zlib raise nearly anything
            raise InputError(
                f"Record {number} of the prepared data ({self.names[index]}) cannot be read ({type(error).__name__}: "
                f"{error}). Prepare the data set anew."
            ) from error


def read(folder: Path, name: str, config: Any) -> Dataset:
    """Opens a prepared data set.

    Raises:
      InputError: the folder is damaged, holds another data set, or one prepared with other options.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        shards = [str(shard) for shard in about["shards"]]
        if about["format"] != FORMAT or not all(SHARD.fullmatch(shard) for shard in shards):
            raise ValueError("it is of another format")
        reader = ArrayRecordDataSource([str(folder / shard) for shard in shards])
        most = max((max(one["records"], default=-1) for one in about["splits"].values()), default=-1)
        if most >= len(reader):
            raise ValueError(f"its files hold {len(reader)} records, but number {most} is asked for")
        splits: dict[str, Source] = {
            split: Records(one["names"], one["records"], reader, one["example_bytes"])
            for split, one in about["splits"].items()
        }
        found = assemble(about, splits)
    except Exception as error:  # as above
        raise InputError(f"{folder} holds no whole prepared data set ({error}). Prepare it anew.") from error
    check(about, folder, name, config)
    return found
