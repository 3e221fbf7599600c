"""AS-OCT images by device, angle open or closed: a folder for each device, a table for each split.

The layout is ours: the published set of this task, AGE (MICCAI 2019), is of one device and keeps its labels in a
spreadsheet, which becomes these tables by saving the columns named below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ophjax.data import files, images, shift
from ophjax.data.files import Record, some
from ophjax.data.sources import Dataset, Example, Source
from ophjax.errors import InputError

SIDES = ("", "left", "right")
LABELS = ("0", "1")


@dataclass(frozen=True)
class Config(shift.Config):
    """DEVICE/train.csv (and val.csv, test.csv) with the columns path, label and, if you like, patient, eye and side,
    and the images under DEVICE/.

    label is 0 (open), 1 (closed), or -1 or empty where it is not known. side is left, right or empty: a scan shows two
    angles, and a row with a side takes that half of it, the right one mirrored, so that the angle lies on the left.
    Patients are told apart within a device: one of the same name at another device is taken for somebody else.
    """

    root: str = ""
    """Folder that holds a folder for each device."""
    domains: tuple[str, ...] = ()
    """The devices: the labelled source first, then the targets."""


class Halves:
    """Another source of which some examples are half an image: the left one, or the right one mirrored."""

    def __init__(self, source: Source, halves: Mapping[str, tuple[Record, str]], *, size: int):
        self._source = source
        self._halves = halves
        self._size = size
        self.names = source.names

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        if self.names[index] not in self._halves:
            return self._source[index]
        record, side = self._halves[self.names[index]]
        # Decoded at twice the size: a half then has the columns wanted, and pairs of its rows are averaged.
        size = self._size
        whole = images.read_image(record.image, 2 * size)
        half = whole[:, :size] if side == "left" else whole[:, ::-1][:, :size]
        image = half.reshape(size, 2, size, 3).mean(1).round().astype(np.uint8)
        return {"image": image, "label": np.asarray(record.label, np.int32)}


def make(config: Config) -> Dataset:
    """Reads the tables of each device; a split without a table is drawn from the training rows.

    Raises:
      InputError: where a folder, a table or an image is missing, or a row cannot be understood.
    """
    root = files.folder_at(config.root)
    there = sorted(path.name for path in root.iterdir() if (path / "train.csv").is_file())
    listed = f"{root} has the folders {some(there)}" if there else f"{root} has no folder with train.csv in it"
    try:
        shift.check(config)
    except InputError as error:
        raise InputError(f"{error} {listed}.") from error
    domains = []
    for name in config.domains:
        if name not in there:
            raise InputError(f"There is no table {root / name / 'train.csv'} for the device {name!r}; {listed}.")
        rows = [row for part in files.PARTS for row in _rows(root / name, part)]
        if not rows:
            raise InputError(f"The tables of the device {name!r} have no rows. Add images, or leave the device out.")
        twice = len(rows) - len({record.name for record, _ in rows})
        if twice:
            raise InputError(f"The tables of the device {name!r} have {twice} row(s) twice. Keep one of each.")
        domain = shift.domain_of(name, [record for record, _ in rows], size=config.size)
        halves = {f"{name}-{record.name}": (record, side) for record, side in rows if side}
        domains.append(domain._replace(source=Halves(domain.source, halves, size=config.size)))
    return shift.assemble("asoct", domains, config=config, classes=("open", "closed"))


def _rows(folder: Path, part: str) -> list[tuple[Record, str]]:
    table = folder / f"{part}.csv"
    if part != "train" and not table.is_file():
        return []
    rows = []
    for row in files.read_rows(table, needed=("path", "label")):
        given, label, side = row["path"], row["label"], row.get("side", "").lower()
        if label not in (*LABELS, *shift.UNKNOWN) or side not in SIDES:
            raise InputError(
                f"{table} has the label {label!r} and the side {side!r} in the row of {given!r}; the label must be 0, "
                "1 or -1, and the side left, right or empty."
            )
        places = [files.inside(home, given, table) for home in (folder, folder / "images")]
        path = next((path for path in places if path.is_file()), None)
        if path is None:
            raise InputError(
                f"{table} names the image {given!r}, which is neither in {folder} nor in its images/. Add it."
            )
        patient = row.get("patient", "") or given
        name = f"{given}-{side}" if side else given
        rows.append((Record(name, path, None, shift.class_index(label, LABELS), patient, part), side))
    return rows
