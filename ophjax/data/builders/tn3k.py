"""TN3K: thyroid nodules in ultrasound with their outlines.

Gong et al., "Thyroid region prior guided attention for ultrasound segmentation of thyroid nodules", Computers in
Biology and Medicine 155:106389, 2023. The set was not at hand: the loader is tested on a tree of our own making.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ophjax.data import files, official
from ophjax.data.files import FileSource, Record
from ophjax.data.images import MaskCode
from ophjax.data.sources import Dataset

# Masks are JPEG files, whose edges are smooth: they are cut in the middle.
CODE = MaskCode({"nodule": tuple(range(128, 256))}, tuple(range(128)))


@dataclass(frozen=True)
class Config:
    """trainval-image/NNNN.jpg and trainval-mask/NNNN.jpg, test-image/ and test-mask/ likewise."""

    root: str = ""
    """Folder that holds these four folders."""
    size: int = 256
    """Side of the square that images and masks are stretched to, in pixels."""
    val_fraction: float = 0.15
    """Share of the trainval images drawn for validation."""
    test_fraction: float = 0.25
    """Share of them drawn for the test where it is not there."""
    split_seed: int = 0
    """Seed of the draw."""


def make(config: Config) -> Dataset:
    """Reads images and outlines; there are no classes.

    Raises:
      InputError: the layout is another, or a mask is missing or of another size.
    """
    root = files.folder_at(config.root)
    names = {"train": "trainval", "test": "test"}
    records = {
        part: _records(root, name)
        for part, name in names.items()
        if part == "train" or (root / f"{name}-image").is_dir()
    }
    parts = {
        part: (FileSource(found, size=config.size, code=CODE), [0] * len(found)) for part, found in records.items()
    }
    return official.as_given("tn3k", parts, config, regions=tuple(CODE.regions))


def _records(root: Path, part: str) -> list[Record]:
    pictures, masks = files.list_images(root / f"{part}-image"), files.list_images(root / f"{part}-mask")
    official.need_all(pictures, masks, "mask", root / f"{part}-mask")
    return [Record(f"{part}-{stem}", path, masks[stem], -1, stem) for stem, path in pictures.items()]
