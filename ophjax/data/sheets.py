"""Tables of the challenges, as CSV or as the official xlsx sheets, and the numbers of their images."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from ophjax.data import files, images
from ophjax.errors import InputError

LARGEST = 5_000_000
"""Bytes of a part of an xlsx file that are unpacked at most; parsed, they may take forty times as much."""
CELLS = 1_000_000
"""Cells of a sheet that are read at most; those before a cell that names its column count, written or not."""

_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_RELATED = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"


def find_table(folders: Sequence[Path], pattern: str) -> Path | None:
    """Finds the one table in these folders whose name without extension fits a glob pattern; None where there is none.

    Raises:
      InputError: several fit in one folder (a table and its copy, for example).
    """
    for folder in folders:
        found = sorted(path for path in folder.glob(f"{pattern}.*") if path.suffix.lower() in (".csv", ".xlsx"))
        found = [path for path in found if not path.name.startswith((".", "~"))]
        if len(found) > 1:
            raise InputError(
                f"{folder} holds several tables of one kind: {files.some(p.name for p in found)}. Keep one."
            )
        if found:
            return found[0]
    return None


def read_table(path: Path, columns: Sequence[str], *, by_position: bool = False) -> dict[str, list[str]]:
    """Reads a table that has one row for each image.

    Names of columns are compared without regard to case, and a blank is as good as ``_`` ("GC Pred").

    Args:
      path: CSV, or xlsx of which the first sheet is read.
      columns: those wanted; the first one holds the number of the image.
      by_position: only the first name must be right, the others are those that follow it.

    Returns:
      The cells of the other columns, by image (see ``image_id``).

    Raises:
      InputError: the file cannot be read, lacks a column, or has two rows for one image.
    """
    if path.suffix.lower() == ".xlsx":
        header, *lines = _read_xlsx(path) or [[]]
        header = [_plain(name) for name in header]
        rows = [dict(zip(header, line + [""] * len(header), strict=False)) for line in lines if any(line)]
    else:
        rows = [{_plain(name): cell for name, cell in row.items()} for row in files.read_rows(path, needed=())]
        header = list(rows[0]) if rows else []
    if not rows:
        raise InputError(f"The table {path} has no rows. Give one for each image, under a line with their names.")
    wanted = [_plain(name) for name in columns]
    if by_position and header[:1] == wanted[:1] and len(header) >= len(wanted):
        wanted = header[: len(wanted)]
    missing = [name for name in wanted if name not in header]
    if missing or len(set(header)) < len(header):
        raise InputError(
            f"The table {path} has the columns {', '.join(header) or '(none)'}; it must have {', '.join(columns)}, and "
            "no column twice. The first line must hold their names."
        )
    table: dict[str, list[str]] = {}
    for row in rows:
        name = image_id(row[wanted[0]], path)
        if name in table:
            raise InputError(f"The table {path} has two rows for image {name}. Keep one.")
        table[name] = [row[column] for column in wanted[1:]]
    return table


def image_id(given: str, where: Path) -> str:
    """Brings the number of an image into its official form of four digits: 7, "7", "7.0", "0007" and "0007.png" agree.

    Raises:
      InputError: it is no number, for example a path; ``where`` names the file in the message.
    """
    stem = given[: -len(Path(given).suffix)] if Path(given).suffix.lower() in images.SUFFIXES else given
    if re.fullmatch(r"[0-9]{1,6}(\.0+)?", stem) is None:
        raise InputError(
            f"{where} names the image {given!r}; expected its number, such as 0101 or 0101.png, without any folder."
        )
    return f"{int(stem.partition('.')[0]):04}"


def number(cell: str, where: Path, name: str) -> float:
    """Reads a finite number; the message of the InputError names the file and the image."""
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if value - value != 0:  # not finite
        raise InputError(f"{where} has {cell!r} in the row of image {name}; expected a finite number. Correct it.")
    return value


def one_hot(cells: Sequence[str], where: Path, name: str) -> int:
    """Reads a one-hot row as the position of its 1; InputError where it is none."""
    values = [number(cell, where, name) for cell in cells]
    if sorted(values) != [0.0] * (len(values) - 1) + [1.0]:
        raise InputError(f"{where} has {', '.join(cells)} in the row of image {name}; expected a single 1 and else 0.")
    return values.index(1.0)


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_")


def _read_xlsx(path: Path) -> list[list[str]]:
    """The cells of the first sheet as text. Only what the official sheets use: numbers and strings."""
    try:
        with zipfile.ZipFile(path) as archive:

            def part(name: str) -> ElementTree.Element:
                info = archive.getinfo(name)
                if info.file_size > LARGEST:
                    raise ValueError(f"{name} unpacks to {info.file_size} bytes")
                text = archive.read(info)
                if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
                    raise ValueError(f"{name} declares entities")
                if b"\0" in text:  # UTF-16, which would hide them
                    raise ValueError(f"{name} is not UTF-8")
                return ElementTree.fromstring(text)

            sheet = part("xl/workbook.xml").find(f"{_MAIN}sheets/{_MAIN}sheet")
            if sheet is None:
                raise ValueError("it has no sheet")
            targets = {link.get("Id"): str(link.get("Target")) for link in part("xl/_rels/workbook.xml.rels")}
            target = targets[sheet.get(_RELATED)]
            strings: list[str] = []
            if "xl/sharedStrings.xml" in archive.namelist():
                strings = [
                    "".join(t.text or "" for t in item.iter(f"{_MAIN}t")) for item in part("xl/sharedStrings.xml")
                ]
            cells = part(target.removeprefix("/") if target.startswith("/") else f"xl/{target}")
            rows: list[list[str]] = []
            left = CELLS
            for row in cells.iter(f"{_MAIN}row"):
                rows.append(_row(row, strings))
                left -= len(rows[-1])
                if left < 0:
                    raise ValueError(f"it has more than {CELLS} cells")
            return rows
    except Exception as error:  # a damaged file makes zipfile, zlib and the parser raise nearly anything
        said = " ".join(str(error).split())[:300]
        raise InputError(f"The table {path} cannot be read as xlsx ({said}). Save it as CSV.") from error


def _row(row: ElementTree.Element, strings: Sequence[str]) -> list[str]:
    found: list[str] = []
    for cell in row.findall(f"{_MAIN}c"):
        letters = cell.get("r", "").rstrip("0123456789")
        column = len(found)
        if letters:
            column = 0
            for letter in letters[:4]:  # of a sheet's columns, none has more than three
                column = 26 * column + ord(letter) - ord("A") + 1
            column -= 1
        if column > 1000:
            raise ValueError(f"a row has {column} columns")
        found += [""] * (column - len(found))
        text = cell.findtext(f"{_MAIN}v") or "".join(t.text or "" for t in cell.iter(f"{_MAIN}t"))
        found.append((strings[int(text)] if cell.get("t") == "s" else text).strip())
    return found
