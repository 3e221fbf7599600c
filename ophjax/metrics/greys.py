"""Grey levels of the challenges' mask files: which one stands for which class. NumPy only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class GreyCode(NamedTuple):
    """The classes of a mask file, each with its grey level.

    Attributes:
      classes: names of the classes 0, 1, ...; class 0 is the background.
      greys: grey level of each class.
    """

    classes: tuple[str, ...]
    greys: tuple[int, ...]


GAMMA = GreyCode(("background", "rim", "cup"), (255, 128, 0))
"""GAMMA spec, section (b): the disc is rim and cup together."""

GOALS = GreyCode(("other", "rnfl", "gcipl", "choroid"), (255, 0, 80, 160))
"""GOALS spec, section (b)."""


def encode(classes: np.ndarray, code: GreyCode) -> np.ndarray:
    """Turns class numbers of any shape into grey levels, uint8."""
    return np.array(code.greys, np.uint8)[classes]


def decode(grey: np.ndarray, code: GreyCode) -> tuple[np.ndarray, int]:
    """Turns grey levels, uint8 of any shape, into class numbers, uint8.

    A level that is no code goes to the nearest one, the higher in a tie. For GAMMA these are the cuts of its spec:
    below 64 cup, 64 to 191 rim, above background.

    Returns:
      The classes, and the number of pixels whose level was no code.
    """
    levels = np.array(sorted(code.greys, reverse=True))
    nearest = levels[np.abs(np.arange(256)[:, None] - levels).argmin(1)]
    classes = np.array([code.greys.index(level) for level in nearest], np.uint8)
    return classes[grey], int((nearest[grey] != grey).sum())
