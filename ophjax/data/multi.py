"""A data set of the user's own from several places: a folder for each domain, laid out as in ``folder.py``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ophjax.data import files, folder, shift
from ophjax.data.files import Record, some
from ophjax.data.images import parse_code
from ophjax.data.sources import Dataset
from ophjax.errors import InputError


@dataclass(frozen=True)
class Config(shift.Config):
    """A folder of your own with a folder for each domain, and in each images/, masks/ and labels.csv.

    Masks carry the name of their image, or that name and then _mask; images may lack one, and a domain may lack all of
    them. labels.csv has the columns image (file name, with or without extension) and label, and if you like patient and
    split (train, val, test). A target may do without labels: leave the file out, or the label empty or -1. Labels that
    a target has are used to score, never to train. Patients are told apart within a domain: one of the same name in
    another is taken for somebody else (``table`` knows them over all). Images may be of any size, grey or in colour:
    all become RGB squares of one size.
    """

    root: str = ""
    """The folder that holds the folders of the domains."""
    mask_code: str = "binary"
    """Pixel values of each region in the masks of all domains, e.g. "disc=1,2;cup=2" (add "background=255" where it is
    not 0), or a name: binary (one region, 1 or 255), refuge (cup 0, rim 128, background 255), drishti (rim 1, cup
    2)."""
    labels: str = "labels.csv"
    """Name of the table of labels inside each folder. Where there are labels, images without one are not scored; an
    empty name leaves all tables out, so that segmentation is scored on all masks (each image counts as a patient)."""


def make(config: Config) -> Dataset:
    """Reads the folders. Regions are there where any domain has masks, classes where the source has labels.

    Raises:
      InputError: for every mistake in the folders, naming the domain, the file or the row; see ``shift.assemble``.
    """
    root = files.folder_at(config.root)
    _check_folders(root, config)
    code = parse_code(config.mask_code)
    pictures = {name: files.list_images(root / name / "images") for name in config.domains}
    masks = {name: _masks(root / name / "masks", pictures[name]) for name in config.domains}
    rows = {
        name: folder.read_table(table, pictures[name], unlabelled=True)
        for name in config.domains
        if config.labels and (table := root / name / config.labels).is_file()
    }
    classes = shift.name_classes(
        {name: [row["label"] for row in rows.get(name, {}).values()] for name in config.domains}
    )
    regions = tuple(code.regions) if any(masks.values()) else ()
    domains = []
    for name in config.domains:
        records = []
        for stem, path in pictures[name].items():
            row = rows.get(name, {}).get(stem, {})
            label = shift.class_index(row.get("label", ""), classes)
            group, part = row.get("patient", stem), row.get("split", "").lower()
            records.append(Record(stem, path, masks[name].get(stem), label, group, part))
        domains.append(shift.domain_of(name, records, size=config.size, code=code if regions else None))
    return shift.assemble("domains", domains, config=config, regions=regions, classes=classes)


def _check_folders(root: Path, config: Config) -> None:
    there = sorted(path.name for path in root.iterdir() if (path / "images").is_dir())
    listed = f"{root} has the folders {some(there)}" if there else f"{root} has no folder with images/ in it"
    try:
        shift.check(config)
    except InputError as error:
        raise InputError(f"{error} {listed}.") from error
    for name in config.domains:
        if name not in there:
            raise InputError(
                f"There is no folder {root / name / 'images'} for the domain {name!r}; {listed}. Correct "
                "--data.domains, or add the folder."
            )


def _masks(path: Path, pictures: dict[str, Path]) -> dict[str, Path]:
    return files.pair_masks(pictures, files.list_images(path), suffix="_mask") if path.is_dir() else {}
