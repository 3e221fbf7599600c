"""Scans of three other devices whose layers can be named as in GOALS: RNFL and GCIPL, without a choroid or classes.

``nr206``: He et al., Front. Bioeng. Biotechnol. 11:1191803, 2023 (macula). ``cirrus``: the peripapillary sample of
OCTseg-Zeiss. ``spectralis``: Rathke et al., Medical Image Analysis 18(5), 2014 (a circle scan).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ophjax.data import files, images
from ophjax.data.official import lay_apart
from ophjax.data.sources import Arrays, Dataset, Example, Source
from ophjax.errors import InputError

REGIONS = ("rnfl", "gcipl")

# Colours of RNFL and of GCL with IPL in the masks of NR206, and grey levels or numbers in the others.
_NR206 = ((255, 0, 0), (128, 128, 0))
_GREYS = {
    "cirrus": images.MaskCode({"rnfl": (0,), "gcipl": (30,)}, tuple(range(60, 241, 30))),
    "spectralis": images.MaskCode({"rnfl": (1,), "gcipl": (2,)}, (0, *range(3, 9))),
}


@dataclass(frozen=True)
class Config:
    """Scans with more layers than GOALS has, of which RNFL and GCIPL are taken; too few to be split."""

    root: str = ""
    """Folder of the device: train/ and train_labels/, val/ and val_labels/ (nr206); train/img, train/mask, eval/img,
    eval/mask (cirrus); NAME.png beside NAME_layers.png (spectralis)."""
    device: Literal["nr206", "cirrus", "spectralis"] = "nr206"
    """Whose layout and codes the folder has."""
    size: int = 256
    """Height of the pictures in pixels."""
    width: int = 0
    """Width in pixels; 0: as high as wide."""
    split_seed: int = 0
    """Not used: what is given as training is trained on, the rest is validation and test."""


def make(config: Config) -> Dataset:
    """Reads the scans into memory. Where there is nothing but training scans they are validation and test too.

    Raises:
      InputError: the layout is another, a mask is missing or has other codes or another size.
    """
    root, frame = files.folder_at(config.root), (config.width or config.size, config.size)
    parts: dict[str, dict[str, tuple[Path, Path]]]
    if config.device == "spectralis":
        drawn = sorted(root.glob("*_layers.png"))
        found = {path.stem.removesuffix("_layers"): path for path in drawn}
        parts = {"train": {name: (root / f"{name}.png", path) for name, path in found.items()}}
    else:
        names = ("train", "val") if config.device == "nr206" else ("train", "eval")
        places = {
            part: (root / part, root / f"{part}_labels")
            if config.device == "nr206"
            else (root / part / "img", root / part / "mask")
            for part in names
        }
        parts = {part: _pairs(*folders) for part, folders in places.items() if folders[0].is_dir()}
    if not parts.get("train"):
        raise InputError(
            f"{root} holds no training scans in the layout of {config.device} (see --help of --data.root)."
        )
    splits: dict[str, Source] = {}
    for part, pairs in parts.items():
        examples = [_read(*pair, frame=frame, device=config.device) for pair in pairs.values()]
        arrays = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
        splits["train" if part == "train" else "val"] = Arrays(list(pairs), arrays)
    other = splits.get("val", splits["train"])
    note = f"{len(splits['train'])} training scans of {config.device}; validation and test are "
    note += "the same scans." if "val" not in splits else f"the other {len(other)}."
    whole = {"masks": splits["train"], "train": splits["train"], "val": other, "test": other}
    return Dataset("octlayers", REGIONS, (), whole, note)


def _pairs(folder: Path, drawn: Path) -> dict[str, tuple[Path, Path]]:
    pictures = files.list_images(folder)
    masks: Mapping[str, Path] = files.pair_masks(pictures, files.list_images(drawn))
    missing = [path for name, path in pictures.items() if name not in masks]
    if missing:
        raise InputError(f"Image {missing[0]} has no mask in {drawn}. Add it.")
    return {name: (path, masks[name]) for name, path in pictures.items()}


def _read(picture: Path, drawn: Path, *, frame: tuple[int, int], device: str) -> Example:
    if images.image_size(picture) != images.image_size(drawn):
        raise InputError(f"Image {picture} and its mask {drawn} differ in size. Both must show the same frame.")
    if device == "nr206":
        colours = images.read_colours(drawn)
        regions = [(colours == colour).all(-1).astype(np.uint8) * 255 for colour in _NR206]
        if not all(region.any() for region in regions):
            raise InputError(f"Mask {drawn} lacks the colours of RNFL and GCIPL, {_NR206}. Give the set's own masks.")
    else:
        regions = images.read_regions([drawn], _GREYS[device])
    return {
        "image": images.read_image(picture, frame),
        "mask": lay_apart(images.stretch_mask(regions, frame)),
        "mask_weight": np.ones((), np.float32),
        "label": np.full((), -1, np.int32),
        "size": np.array(images.image_size(picture), np.int32),
    }
