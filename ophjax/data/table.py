"""A data set described by one table: image, label, domain, and perhaps patient and split, as Camelyon17-WILDS, the ISIC
archive and HAM10000 are handed round."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ophjax.data import files, shift
from ophjax.data.files import Record, some
from ophjax.data.sources import Dataset
from ophjax.errors import InputError

FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Config(shift.Config):
    """A folder of images and a table that says the label and the domain of each.

    Camelyon17-WILDS: --data.image
    'patches/patient_{patient}_node_{node}/patch_patient_{patient}_node_{node}_x_{x_coord}_y_{y_coord}.png'
    --data.label tumor --data.domain center --data.split '' --data.domains 0 1 2 3 4.

    HAM10000: --data.table HAM10000_metadata.csv --data.image 'images/{image_id}.jpg' --data.label dx --data.domain
    dataset --data.patient lesion_id --data.classes nv mel.
    """

    root: str = ""
    """The folder that holds the table; paths of images are relative to it."""
    table: str = "metadata.csv"
    """Name of the table."""
    image: str = "image"
    """Column of the images' paths, or a pattern of columns in braces."""
    label: str = "label"
    """Column of the labels; empty or -1 where a target's label is not known."""
    domain: str = "domain"
    """Column of the domains. Rows of other domains than --data.domains are left out."""
    patient: str = "patient"
    """Column of the patients, who stay in one split over all domains, so that different ones need different names;
    where there is no such column each image counts as one."""
    split: str = "split"
    """Column of the split (train, val, test); where there is no such column, or this is empty, splits are drawn."""
    classes: tuple[str, ...] = ()
    """The labels to tell apart, in this order; rows of others are left out. By default all that the source has."""


def make(config: Config) -> Dataset:
    """Reads the table, and of each domain's images the first ones; the others are read when they are needed.

    Raises:
      InputError: for every mistake in the table, naming the column, the row or the file; see ``shift.assemble``.
    """
    root = files.folder_at(config.root)
    table = root / config.table
    columns = FIELD.findall(config.image) or [config.image]
    needed = [name.lower() for name in dict.fromkeys([*columns, config.label, config.domain])]
    rows = files.read_rows(table, needed=needed)
    counts = Counter(row[config.domain.lower()] for row in rows)
    listed = ", ".join(f"{name} ({count} rows)" for name, count in counts.most_common(10))
    try:
        shift.check(config)
    except InputError as error:
        raise InputError(f"{error} Column {config.domain!r} of {table} has {listed}.") from error
    strange = [name for name in config.domains if name not in counts]
    if strange:
        raise InputError(f"{table} has no row of domain {strange[0]!r}; column {config.domain!r} has {listed}.")
    if len(config.classes) == 1:
        raise InputError(
            f"--data.classes names {config.classes[0]!r} alone. Give at least two classes, or none for all."
        )
    label = config.label.lower()
    kept: dict[str, list[dict[str, str]]] = {name: [] for name in config.domains}
    for row in rows:
        name = row[config.domain.lower()]
        if name in kept and (not config.classes or row[label] in (*config.classes, *shift.UNKNOWN)):
            kept[name].append(row)
    classes = config.classes or shift.name_classes({name: [row[label] for row in own] for name, own in kept.items()})
    domains = []
    for name, own in kept.items():
        records = [_record(row, config, classes, table) for row in own]
        _check_files(records, table)
        domains.append(shift.domain_of(name, records, size=config.size))
    return shift.assemble("table", domains, config=config, classes=classes, shared=True)


def _record(row: dict[str, str], config: Config, classes: tuple[str, ...], table: Path) -> Record:
    if FIELD.search(config.image):
        path = FIELD.sub(lambda field: row[field[1].lower()], config.image)
    else:
        path = row[config.image.lower()]
    image = files.inside(table.parent, path, table)
    part = row.get(config.split.lower(), "") if config.split else ""
    if part.lower() not in ("", *files.PARTS):
        raise InputError(
            f"{table} has the split {part!r} in the row of image {path!r}; it must be one of {', '.join(files.PARTS)}, "
            "or empty. Have splits drawn with --data.split ''."
        )
    group = row.get(config.patient.lower(), "") or path
    return Record(path, image, None, shift.class_index(row[config.label.lower()], classes), group, part.lower())


def _check_files(records: list[Record], table: Path) -> None:
    twice = [name for name, count in Counter(record.name for record in records).items() if count > 1]
    if twice:
        raise InputError(f"{table} has two rows of one domain for the image(s) {some(twice)}. Keep one of each.")
    missing = [record.name for record in records if not (table.parent / record.name).is_file()]
    if missing:
        raise InputError(
            f"{table} names {len(missing)} image(s) that are not there: {some(missing)}. Paths are relative to "
            f"{table.parent}: correct --data.image, or add the files."
        )
