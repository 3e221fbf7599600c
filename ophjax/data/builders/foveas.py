"""Fundus pictures with the place of the fovea in a table, as REFUGE hands them out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ophjax.data import files, images, official
from ophjax.data.builders.gamma import frame_of
from ophjax.data.images import Box
from ophjax.data.official import Records
from ophjax.data.sources import Dataset, Example
from ophjax.errors import InputError


@dataclass(frozen=True)
class Config(official.Config):
    """A folder of pictures with a table of ImgName, Fovea_X and Fovea_Y in pixels, such as REFUGE-Validation400."""

    table: str = "labels_and_fovea.csv"
    """Name of the table inside the folder."""
    frame: Literal["whole", "centre"] = "whole"
    """whole: the picture stretched to a square. centre: its middle square."""


def make(config: Config) -> Dataset:
    """Reads the pictures that the table names; other columns are passed over.

    Raises:
      InputError: a picture or a coordinate is missing.
    """
    root = files.folder_at(config.root)
    pictures = files.list_images(root)
    rows = files.read_rows(root / config.table, needed=("imgname", "fovea_x", "fovea_y"))
    points = {}
    for row in rows:
        name = row["imgname"]
        name = name[: -len(suffix)] if (suffix := _suffix(name)) else name
        try:
            points[name] = float(row["fovea_x"]), float(row["fovea_y"])
        except ValueError as error:
            raise InputError(
                f"{root / config.table} has no coordinates in the row of {name!r}. Fill them in."
            ) from error
    official.need_all(pictures, points, "fovea", root / config.table)

    def read(name: str) -> Example:
        size = images.image_size(pictures[name])
        left, top, width, height = frame_of(size, config.frame)
        box = Box(left / size[0], top / size[1], (left + width) / size[0], (top + height) / size[1])
        return {
            "image": images.read_image(pictures[name], config.size, box),
            "fovea": np.array(points[name], np.float32),
            "size": np.array(size, np.int32),
            "frame": np.array([left, top, width, height], np.int32),
        }

    source = Records(list(pictures), read)
    return official.divide("foveas", source, [0] * len(pictures), config, regions=(), classes=())


def _suffix(name: str) -> str:
    return next((suffix for suffix in images.SUFFIXES if name.lower().endswith(suffix)), "")
