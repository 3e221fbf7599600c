"""GOALS: circumpapillary OCT scans with three layers and glaucoma, in the official layout (GOALS spec, section (g)).

Fang et al., "Dataset and Evaluation Algorithm Design for GOALS Challenge", OMIA 2022. The official scans are not handed
out freely: the loader is tested on a tree of our own making.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ophjax.data import challenges, images, official
from ophjax.data.official import Records, find_home, lay_apart, list_ids, need_all, no_answers
from ophjax.data.sheets import find_table, read_table
from ophjax.data.sources import Dataset, Example
from ophjax.errors import InputError
from ophjax.metrics.greys import GOALS

REGIONS, CLASSES = GOALS.classes[1:], ("normal", "glaucoma")
CODE = images.MaskCode({name: (grey,) for name, grey in zip(REGIONS, GOALS.greys[1:], strict=True)}, GOALS.greys[:1])


@dataclass(frozen=True)
class Config(official.Config):
    """GOALS2022-Train/Train/ with Image/0001.png, Layer_Masks/0001.png (0, 80, 160, 255) and Train_GC_GT.xlsx or .csv.

    Without the table there are no classes, and only layers are learned.
    """

    width: int = 0
    """Width in pixels; 0: as high as wide, as in the baseline. The scans have 1100 x 800."""
    patients: str = ""
    """Table inside the training folder with the columns ImgName and Patient: a patient's scans stay in one split. None
    is published, though 300 scans show 99 eyes."""


def make(config: Config) -> Dataset:
    """Reads the set; splits are drawn by image, or by patient where a table of them is given.

    Raises:
      InputError: the layout is another, or something is missing, has another size or other grey levels.
    """
    home = find_home(config.root, ("Image",))
    pictures, masks = list_ids(home / "Image"), list_ids(home / "Layer_Masks")
    need_all(pictures, masks, "mask", home / "Layer_Masks")
    table = find_table([home], "*GC_GT")
    labels = challenges.read_labels(table) if table else {}
    if table:
        need_all(pictures, labels, "label", table)
    groups = None
    if config.patients:
        rows = read_table(home / config.patients, ("ImgName", "Patient"))
        need_all(pictures, rows, "patient", home / config.patients)
        groups = [rows[name][0] for name in pictures]
    frame = (config.width or config.size, config.size)
    for name, path in pictures.items():
        if images.image_size(path) != images.image_size(masks[name]):
            raise InputError(f"Image {path} and its mask {masks[name]} differ in size. Both must show the same frame.")
    source = Records(list(pictures), lambda name: read(pictures[name], frame, masks[name], labels.get(name, -1)))
    test = None
    if config.test_root:
        unknown = list_ids(find_home(config.test_root, ("Image",), beside=home) / "Image")
        test = Records(list(unknown), lambda name: no_answers(read(unknown[name], frame)))
    drawn = [labels.get(name, 0) for name in pictures]
    remark = "" if table else "There is no table of labels: layers only."
    return official.divide(
        "goals", source, drawn, config, regions=REGIONS, classes=CLASSES if table else (), groups=groups, test=test,
        remark=remark,
    )  # fmt: skip


def read(path: Path, frame: tuple[int, int], mask: Path | None = None, label: int = -1) -> Example:
    """Reads a scan stretched to (width, height), with its mask where there is one and its original size."""
    layers = np.zeros((frame[1], frame[0], len(REGIONS)), np.uint8)
    if mask is not None:
        layers = lay_apart(images.stretch_mask(images.read_regions([mask], CODE), frame))
    return {
        "image": images.read_image(path, frame),
        "mask": layers,
        "mask_weight": np.ones((), np.float32),
        "label": np.asarray(label, np.int32),
        "size": np.array(images.image_size(path), np.int32),
    }
