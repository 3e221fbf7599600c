"""Shapes: grey pictures of one lesion on noise, whose class is the kind of shape. Two tasks with different shapes.

A hypernetwork is trained on the task ``source`` and its networks are then tried on ``target``, whose four shapes it has
never seen. Place, size, turn and contrast are drawn anew for each picture; the mask is the shape filled out. The task
is made easy on purpose (noise without structure behind the shape): in pilot runs a low-frequency background kept a
hypernetwork at chance for hundreds of steps (spec of hyperinit, section (k)).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ophjax.data.drawing import TURN, step, stream, to_bytes
from ophjax.data.sources import Cached, Dataset, Example, Source, Subset
from ophjax.errors import InputError

# Changes to Config for two CPU cores, and for tests.
DEMO: dict[str, Any] = dict(size=24)
SMOKE: dict[str, Any] = dict(size=16, train=16, val=16, test=16)

TASKS = {
    "source": ("disc", "ring", "striped disc", "cross"),
    "target": ("square", "hollow square", "double bar", "dotted ring"),
}
REGIONS = ("lesion",)

_ROOM = 100_000
_FIRST = {"train": 0, "val": _ROOM, "test": 2 * _ROOM}


@dataclass(frozen=True)
class Config:
    """Drawn shapes of four classes; nothing is read from disk."""

    size: int = 32
    """Side of the square pictures in pixels, at least 16."""
    task: Literal["source", "target"] = "source"
    """Which four shapes: disc, ring, striped disc, cross; or square, hollow square, double bar, dotted ring."""
    seed: int = 0
    """Chooses the pictures: example i of a seed is always the same."""
    train: int = 1500
    """Training pictures; all have labels and masks."""
    val: int = 200
    """Validation pictures."""
    test: int = 400
    """Test pictures."""


def _box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    """How deep a point lies within a box, negative outside."""
    return np.minimum(half_width - np.abs(x), half_height - np.abs(y))


# Each gives two depths at coordinates of a shape of radius 1: of what is bright, and of the whole lesion.
Depth = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
SHAPES: dict[str, Depth] = {
    "disc": lambda x, y: (1 - np.hypot(x, y), 1 - np.hypot(x, y)),
    "ring": lambda x, y: (0.24 - np.abs(np.hypot(x, y) - 0.76), 1 - np.hypot(x, y)),
    "striped disc": lambda x, y: (np.minimum(1 - np.hypot(x, y), 0.3 * np.cos(7.5 * x)), 1 - np.hypot(x, y)),
    "cross": lambda x, y: (np.maximum(_box(x, y, 0.3, 1.1), _box(x, y, 1.1, 0.3)),) * 2,
    "square": lambda x, y: (_box(x, y, 0.85, 0.85),) * 2,
    "hollow square": lambda x, y: (
        np.minimum(_box(x, y, 0.9, 0.9), -_box(x, y, 0.48, 0.48)), _box(x, y, 0.9, 0.9),
    ),
    "double bar": lambda x, y: (
        np.maximum(_box(x - 0.55, y, 0.25, 1.0), _box(x + 0.55, y, 0.25, 1.0)), _box(x, y, 0.8, 1.0),
    ),
    "dotted ring": lambda x, y: (
        np.maximum(0.2 - np.abs(np.hypot(x, y) - 0.8), 0.3 - np.hypot(x, y)), 1 - np.hypot(x, y),
    ),
}  # fmt: skip


def draw(seed: int, index: int, size: int, task: str) -> Example:
    """Draws an example: image, mask (the whole lesion) and label; the classes take turns."""
    label = index % len(TASKS[task])
    rng, noise = stream(seed, index, task, "scene"), stream(seed, index, task, "noise")
    radius, turn = rng.uniform(0.38, 0.58), rng.uniform(0, TURN)
    (cx, cy), contrast = rng.uniform(-0.3, 0.3, 2), rng.uniform(0.3, 0.5)
    line = (np.arange(size) + 0.5) * (2 / size) - 1
    dx, dy = (line[None, :] - cx) / radius, (line[:, None] - cy) / radius
    x, y = dx * math.cos(turn) + dy * math.sin(turn), dy * math.cos(turn) - dx * math.sin(turn)
    bright, whole = SHAPES[TASKS[task][label]](x, y)
    soft = 1.5 / (size * radius)
    picture = 0.35 + contrast * step(bright, soft) + 0.08 * noise.standard_normal((size, size))
    grey = to_bytes(np.broadcast_to(picture.astype(np.float32), (3, size, size)))
    return {
        "image": grey,
        "mask": (whole > 0)[..., None].astype(np.uint8),
        "label": np.asarray(label, np.int32),
    }


class Shapes:
    """Random access to a range of examples; nothing is kept between calls."""

    def __init__(self, indices: range, config: Config) -> None:
        self._indices, self._config = indices, config
        self.names = [f"{config.task}-{index:07d}" for index in indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: int) -> Example:
        i = operator.index(i)
        if not 0 <= i < len(self):
            raise IndexError(f"Example {i} of {len(self)}.")
        return draw(self._config.seed, self._indices[i], self._config.size, self._config.task)


def make(config: Config) -> Dataset:
    """Makes the splits; ``train`` and ``masks`` are the same pictures.

    Raises:
      InputError: pictures too small, no pictures, or more than a split has room for.
    """
    counts = {part: getattr(config, part) for part in _FIRST}
    if config.size < 16 or config.seed < 0:
        raise InputError(
            f"--data.size is {config.size}, --data.seed {config.seed}; expected at least 16 pixels and a seed that is "
            "not negative."
        )
    if not all(1 <= count <= _ROOM for count in counts.values()):
        raise InputError(f"The splits have {counts} pictures; expected 1 to {_ROOM} in each of train, val and test.")
    splits: dict[str, Source] = {
        part: Cached(Shapes(range(first, first + counts[part]), config)) for part, first in _FIRST.items()
    }
    splits["masks"] = Subset(splits["train"], range(counts["train"]))
    note = ", ".join(f"{counts[part]} {part}" for part in _FIRST)
    return Dataset(
        "shapes", REGIONS, TASKS[config.task], splits, f"{note}; the {config.task} shapes, drawn by seed {config.seed}."
    )
