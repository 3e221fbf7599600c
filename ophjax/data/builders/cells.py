"""BU-BIL: single cells by phase-contrast microscopy, one outlined in each image; three kinds of cells as domains.

Gurari et al., "How to collect segmentations for biomedical images? A benchmark evaluating the performance of experts,
crowdsourced non-experts, and algorithms", WACV 2015.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ophjax.data import files, images, shift
from ophjax.data.files import Record
from ophjax.data.images import parse_code
from ophjax.data.sources import Dataset, Example, Source
from ophjax.errors import InputError

CODE = parse_code("background=1,255;cell=0")
FOLDERS = {"rat": "BU-BIL_Dataset1", "rabbit": "BU-BIL_Dataset2", "fibroblast": "BU-BIL_Dataset3"}


@dataclass(frozen=True)
class Config(shift.Config):
    """BU-BIL_Dataset1/, 2/ (or 2/2A/) and 3/, each with RawImages/N, GoldStandard/seg_N (the cell black) and
    ExpertsAnnotations/PERSON/seg_N."""

    root: str = ""
    """Folder that holds BU-BIL_Dataset1/, BU-BIL_Dataset2/ and BU-BIL_Dataset3/."""
    domains: tuple[str, ...] = tuple(FOLDERS)
    """The domains, the source first: rat and rabbit smooth muscle cells (sets 1 and 2A), fibroblasts (set 3)."""
    truth: Literal["gold", "majority"] = "gold"
    """gold: the set's own fusion of the annotations. majority: what more than half of the annotations hold."""


class Majority:
    """Another source whose mask is the vote of several annotations of each image; half of them is not enough."""

    def __init__(self, source: Source, annotations: Sequence[Sequence[Path]], size: int):
        self._source = source
        self._annotations = annotations
        self._size = size
        self.names = source.names

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        votes = np.mean([images.read_mask(path, self._size, CODE) for path in self._annotations[index]], axis=0)
        return self._source[index] | {"mask": (votes > 0.5).astype(np.uint8)}


def make(config: Config) -> Dataset:
    """Reads the images of each set with one mask. There are no classes: the kind of cell is the domain.

    Raises:
      InputError: where the layout is another, or a mask is missing or of another size.
    """
    shift.check(config, known=tuple(FOLDERS))
    root = files.folder_at(config.root)
    domains = []
    for name in config.domains:
        folder = root / FOLDERS[name]
        folder = folder / "2A" if (folder / "2A").is_dir() else folder
        pictures = files.list_images(folder / "RawImages")
        domain = _domain(name, pictures, _masks(folder / "GoldStandard", pictures), config)
        if config.truth == "majority":
            people = [path for path in sorted((folder / "ExpertsAnnotations").glob("*")) if path.is_dir()]
            if not people:
                raise InputError(f"There are no annotations in {folder / 'ExpertsAnnotations'}. Use --data.truth gold.")
            drawn = [_masks(person, pictures) for person in people]
            for masks in drawn:
                _domain(name, pictures, masks, config)  # compares the sizes of image and mask
            annotations = [[masks[stem] for masks in drawn] for stem in sorted(pictures)]
            domain = domain._replace(source=Majority(domain.source, annotations, config.size))
        domains.append(domain)
    return shift.assemble("cells", domains, config=config, regions=("cell",))


def _domain(name: str, pictures: Mapping[str, Path], masks: Mapping[str, Path], config: Config) -> shift.Domain:
    records = [Record(stem, path, masks[stem], -1, stem) for stem, path in pictures.items()]
    return shift.domain_of(name, records, size=config.size, code=CODE)


def _masks(folder: Path, pictures: Mapping[str, Path]) -> dict[str, Path]:
    """Finds the mask of every image in one annotator's folder."""
    found = {stem.removeprefix("seg_"): path for stem, path in files.list_images(folder).items()}
    missing = sorted(set(pictures) - set(found))
    if missing:
        raise InputError(f"{folder} has no mask of the image(s) {files.some(missing)}. Add seg_{missing[0]}.")
    return found
