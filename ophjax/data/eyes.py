"""Drawn eyes: a fundus picture and an OCT volume whose grade depends on both.

The picture shows a disc with a cup of relative height v and a dark fovea, the volume a bright upper band that is the
thicker the larger t. With rule ``sum`` the grade is that of z = v + (1 - t), cut where a half and 76 % of all cases lie
below; with ``xor`` it is 2 where exactly one of v and t is above one half, else 0. v and t are independent and uniform
from 0 to 1, so that one of the two tells little alone: ``ceilings`` computes how little. The experiment is that of the
GAMMA spec, section (k).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ophjax.data.drawing import TURN, clouds, lay_grid, stream
from ophjax.data.sources import Cached, Dataset, Example, Source, Subset
from ophjax.errors import InputError
from ophjax.metrics.gamma import GRADES

# Changes to Config for two CPU cores, and for tests.
DEMO: dict[str, Any] = dict(size=64, oct_size=32, val=40)
SMOKE: dict[str, Any] = dict(size=32, oct_size=16, slices=4, train=16, val=16, test=16)

REGIONS = ("disc", "cup")

CUTS = (1.0, 2 - math.sqrt(0.48))
"""Quantiles of 50 % and 76 % of z, the sum of two uniform numbers."""

# Red, green, blue of the ground, the rim and the cup, and how much of each the fovea takes away.
_COLOURS = ((0.62, 0.85, 0.95, 0.6), (0.34, 0.55, 0.85, 0.55), (0.16, 0.3, 0.6, 0.4))

# Splits take their examples from ranges of indices that cannot meet.
_ROOM = 100_000
_FIRST = {"train": 0, "val": _ROOM, "test": 2 * _ROOM}


@dataclass(frozen=True)
class Config:
    """Drawn pairs of a fundus picture and an OCT volume; nothing is read from disk."""

    size: int = 64
    """Side of the square fundus pictures in pixels, at least 16."""
    oct_size: int = 64
    """Side of the square B-scans in pixels, at least 16."""
    slices: int = 16
    """B-scans of a volume."""
    rule: Literal["sum", "xor"] = "sum"
    """What makes the grade of both modalities."""
    seed: int = 0
    """Chooses the scenes: example i of a seed is always the same."""
    train: int = 1000
    """Training pairs."""
    val: int = 100
    """Validation pairs."""
    test: int = 400
    """Test pairs."""


class Scene(NamedTuple):
    """The latent numbers of one example. Places are shares of the picture's side.

    Attributes:
      ratio: v, height of the cup over that of the disc.
      thickness: t.
      disc: x and y of its centre.
      fovea: x and y.
    """

    ratio: float
    thickness: float
    disc: tuple[float, float]
    fovea: tuple[float, float]


def grade(ratio: float, thickness: float, rule: str) -> int:
    """Applies the rule: 0, 1 or 2."""
    if rule == "xor":
        return 2 * int((ratio > 0.5) != (thickness > 0.5))
    return int(np.searchsorted(CUTS, ratio + 1 - thickness, side="right"))


def ceilings(rule: str = "sum", cells: int = 400) -> dict[str, float]:
    """Computes the best kappa that one modality alone can reach, whatever the classifier.

    By the distribution of the grade given v (that given 1 - t is the same), on a grid of ``cells`` values.

    Returns:
      ``argmax``: kappa of the most probable grade; ``tuned``: of the two cuts of v that make kappa largest; 0 for xor,
      whose grades are even whatever v.
    """
    v = (np.arange(cells) + 0.5) / cells
    if rule == "xor":
        return {"argmax": 0.0, "tuned": 0.0}
    below = np.clip(np.stack([cut - v for cut in CUTS], -1), 0, 1)  # P(z < cut | v)
    joint = np.diff(below, axis=1, prepend=0, append=1) / cells  # [cells, grades]
    costs = np.square(np.subtract.outer(np.arange(3), np.arange(3)))

    def kappa(counts: np.ndarray) -> np.ndarray:
        """Quadratic kappa of joint distributions [..., predicted, true]."""
        chance = counts.sum(-1)[..., :, None] * counts.sum(-2)[..., None, :]
        return 1 - (costs * counts).sum((-2, -1)) / (costs * chance).sum((-2, -1))

    chosen = joint.argmax(1)
    best = np.stack([joint[chosen == k].sum(0) for k in range(3)])
    total = np.vstack([np.zeros(3), np.cumsum(joint, 0)])
    low, high = np.triu_indices(cells + 1)
    cut = np.stack([total[low], total[high] - total[low], total[-1] - total[high]], -2)
    return {"argmax": float(kappa(best)), "tuned": float(kappa(cut).max())}


def draw_scene(seed: int, index: int) -> Scene:
    """Draws the latent numbers of one example; the fovea lies beside the disc, on either side."""
    rng = stream(seed, index, "scene")
    ratio, thickness = rng.uniform(0, 1, 2)
    side = 1 if rng.random() < 0.5 else -1
    disc = (0.5 - side * rng.uniform(0.10, 0.18), rng.uniform(0.40, 0.60))
    fovea = (0.5 + side * rng.uniform(0.22, 0.38), rng.uniform(0.30, 0.70))
    return Scene(float(ratio), float(thickness), disc, fovea)


def draw_fundus(scene: Scene, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws the picture uint8 [size, size, 3] and the masks of disc and cup uint8 [size, size, 2]."""
    half = 24 / 64  # height of the disc in half sides
    grid = lay_grid((2 * scene.disc[0] - 1, 2 * scene.disc[1] - 1), size)
    x, y = grid.radius * np.cos(grid.theta), grid.radius * np.sin(grid.theta)
    reach = np.hypot(x / (0.9 * half), y / half)
    disc, cup = (np.clip(0.5 + (edge - reach) * half * size / 2, 0, 1) for edge in (1.0, scene.ratio))
    away = lay_grid((2 * scene.fovea[0] - 1, 2 * scene.fovea[1] - 1), size)
    spot = np.exp(-0.5 * (away.radius / 0.13) ** 2)
    light = 1 + 0.12 * clouds(rng, size, 6)
    picture = np.empty((size, size, 3))
    for channel, (ground, rim, pale, dark) in enumerate(_COLOURS):
        tone = ground * (1 - dark * spot)
        tone = tone + disc * (rim - tone)
        picture[..., channel] = (tone + cup * (pale - tone)) * light
    picture += rng.normal(0, 0.02, picture.shape)
    mask = np.stack([reach < 1, reach < scene.ratio], -1).astype(np.uint8)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8), mask


def draw_volume(scene: Scene, size: int, slices: int, rng: np.random.Generator) -> np.ndarray:
    """Draws the volume uint8 [size, size, slices]: a bright band over grey tissue, with speckle."""
    rows = ((np.arange(size) + 0.5) * (64 / size))[:, None, None]
    columns, depth = np.arange(size) / size, np.arange(slices) / slices
    tilt, phase = rng.normal(0, 2, 2), rng.uniform(0, TURN)
    top = 16 + rng.uniform(-4, 4) + tilt[0] * columns[None, :, None] + tilt[1] * depth[None, None]
    top = top + 1.5 * np.sin(TURN * columns[None, :, None] + phase)
    end = top + 3 + 8 * scene.thickness
    soft = 64 / size

    def past(edge: np.ndarray) -> np.ndarray:
        return np.clip(0.5 + (rows - edge) / soft, 0, 1)

    light = 0.08 + past(top) * 0.72 - past(end) * 0.45 - past(end + 24) * 0.25
    speckle = rng.rayleigh(np.sqrt(2 / np.pi), (2, size, size, slices)).mean(0)
    return (np.clip(light * speckle * rng.uniform(0.85, 1.05), 0, 1) * 255 + 0.5).astype(np.uint8)


def draw(config: Config, index: int) -> Example:
    """Draws an example: image, volume, mask, label, fovea in pixels, size, and the frame that the image shows."""
    scene = draw_scene(config.seed, index)
    image, mask = draw_fundus(scene, config.size, stream(config.seed, index, "fundus"))
    return {
        "image": image,
        "volume": draw_volume(scene, config.oct_size, config.slices, stream(config.seed, index, "volume")),
        "mask": mask,
        "label": np.asarray(grade(scene.ratio, scene.thickness, config.rule), np.int32),
        "fovea": config.size * np.array(scene.fovea, np.float32),
        "size": np.array([config.size, config.size], np.int32),
        "frame": np.array([0, 0, config.size, config.size], np.int32),
    }


class Eyes:
    """An endless source cut to a number of examples; see ``draw``."""

    def __init__(self, config: Config, indices: range):
        self._config, self._indices = config, indices
        self.names = [f"eye-{config.seed}-{index:06d}" for index in indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return draw(self._config, self._indices[index])


def new_examples(
    config: Config, path: Path, needed: Collection[str] = ("volume",), *, outside: Path | None = None
) -> dict[str, tuple[Path, Callable[[], Example]]]:
    """New eyes in GAMMA's layout, scaled as the drawn ones: see ``builders.gamma.new_examples``."""
    from ophjax.data.builders import gamma

    return gamma.new_examples(
        gamma.Config(size=config.size, frame="whole", slices=config.slices, oct_size=config.oct_size), path, needed,
        outside=outside,
    )  # fmt: skip


def make(config: Config) -> Dataset:
    """Makes the splits; ``train`` and ``masks`` are the same pairs.

    Raises:
      InputError: pictures too small, no pairs, or more than a split has room for.
    """
    least = {"size": 16, "oct-size": 16, "slices": 1, "seed": 0, "train": 1, "val": 1, "test": 1}
    for name, bound in least.items():
        given = getattr(config, name.replace("-", "_"))
        if given < bound or (name in _FIRST and given > _ROOM):
            raise InputError(
                f"--data.{name} is {given}; expected at least {bound}, and at most {_ROOM} pairs in a split."
            )
    splits: dict[str, Source] = {
        part: Cached(Eyes(config, range(first, first + getattr(config, part)))) for part, first in _FIRST.items()
    }
    splits["masks"] = Subset(splits["train"], range(config.train))
    note = ", ".join(f"{len(splits[part])} {part}" for part in _FIRST)
    return Dataset("eyes", REGIONS, GRADES, splits, f"{note}; drawn by seed {config.seed}, rule {config.rule}.")
