"""B-scans: drawn circumpapillary OCT scans with three layers and a glaucoma label.

Each picture is a ring around the optic disc, rolled out: temporal, superior, nasal, inferior, temporal. From the
vitreous down it shows the nerve fibre layer (RNFL, bright, with a hump above and one below the disc), ganglion cells
with the inner plexiform layer (GCIPL), the outer retina with its bright last line, the choroid and the sclera. The
label is a rule on one number, the strength T of the nerve fibre layer:

    glaucoma = T < THRESHOLD,    RNFL thickness at the angle a = T (10 + 6 |sin a|) / 200 of the height

What tells nothing about it: height, tilt and waves of the scan, thickness of all other layers, places and shares of the
humps, shadows of vessels, focus, brightness, speckle. The experiment is that of the GOALS spec, section (k), made more
like a scan; numbers that are not there are our own decisions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ophjax.data.drawing import TURN, clouds, stream
from ophjax.data.sources import Cached, Dataset, Example, Source, Subset
from ophjax.errors import InputError

# Changes to Config for two CPU cores, and for tests.
DEMO: dict[str, Any] = dict(size=96, width=64, val=40)
SMOKE: dict[str, Any] = dict(size=32, width=48, masks=16, val=16, test=16)

REGIONS = ("rnfl", "gcipl", "choroid")
CLASSES = ("normal", "glaucoma")
THRESHOLD = 0.75
WEAKEST, STRONGEST = 0.5, 1.1

# Splits take their examples from ranges of indices that cannot meet.
_ROOM = 100_000
_FIRST = {"masks": 0, "val": _ROOM, "test": 2 * _ROOM}

# Mean brightness, from the vitreous down: RNFL, GCIPL and choroid as in the spec.
_LIGHT = {"vitreous": 0.10, "rnfl": 0.90, "gcipl": 0.60, "outer": 0.32, "line": 0.85, "choroid": 0.45, "sclera": 0.18}


@dataclass(frozen=True)
class Config:
    """Drawn ring scans of the optic disc; nothing is read from disk."""

    size: int = 200
    """Height of the pictures in pixels, at least 16."""
    width: int = 0
    """Width in pixels; 0: as high as wide. The scans of GOALS are 1100 x 800."""
    seed: int = 0
    """Chooses the scenes: example i of a seed is always the same."""
    masks: int = 200
    """Training pictures; all have masks and a label."""
    val: int = 60
    """Validation pictures."""
    test: int = 100
    """Test pictures."""


class Scene(NamedTuple):
    """All that a picture shows but its texture. Lengths are shares of the height.

    Attributes:
      strength: T, which alone decides the label.
      edges: function tables over the columns, float64 [7, w]: where vitreous, RNFL, GCIPL, outer retina, its last line,
        choroid end, and a row of the vessels' shadows (0 to 1).
    """

    strength: float
    edges: np.ndarray


def diagnose(strength: float) -> int:
    """Applies the label rule: 1 for glaucoma."""
    return int(strength < THRESHOLD)


def draw_scene(seed: int, index: int, width: int) -> Scene:
    """Draws the latent numbers of one example, its layers at ``width`` columns."""
    rng = stream(seed, index, "scene")
    strength = rng.uniform(WEAKEST, STRONGEST)
    angle = (np.arange(width) + 0.5) / width * TURN

    def waves(size: float, orders: tuple[int, ...] = (1, 2, 3)) -> np.ndarray:
        amplitude, phase = rng.normal(0, size, len(orders)), rng.uniform(0, TURN, len(orders))
        return sum(
            (a * np.sin(k * angle + p) for k, a, p in zip(orders, amplitude, phase, strict=True)), np.zeros(width)
        )

    # Humps above (a quarter of the turn) and below (three quarters), moved a little, of unlike share.
    share = rng.uniform(-0.25, 0.25)
    humps = np.abs(np.sin(angle + rng.normal(0, 0.15))) * (1 + share * np.sign(np.sin(angle)))
    rnfl = strength * (10 + 6 * humps)
    top = 60 + rng.uniform(-8, 8) + 6 * np.sin(angle + rng.uniform(0, TURN)) + waves(1.0)
    gcipl = np.maximum(rng.uniform(8, 12) + waves(0.5), 4)
    outer = rng.uniform(25, 35) + waves(0.7)
    choroid = np.maximum(rng.uniform(14, 24) + waves(1.5, (1, 2, 3, 4, 5)), 7)
    ends = np.cumsum([top, rnfl, gcipl, outer - 3, np.full(width, 3.0), choroid], 0) / 200
    shadows = np.zeros(width)
    for place, half in zip(rng.uniform(0, TURN, 6), rng.uniform(0.015, 0.05, 6), strict=True):
        apart = np.abs((angle - place + TURN / 2) % TURN - TURN / 2)
        shadows = np.maximum(shadows, np.exp(-0.5 * (apart / half) ** 2) * rng.uniform(0.3, 0.8))
    return Scene(float(strength), np.concatenate([ends, shadows[None]]))


def draw_mask(scene: Scene, height: int) -> np.ndarray:
    """Draws the layers as uint8 [h, w, 3] of 0 and 1: a pixel belongs where its centre lies."""
    rows = ((np.arange(height) + 0.5) / height)[:, None]
    vitreous, rnfl, gcipl, _, line, choroid, _ = scene.edges[:, None]
    spans = ((vitreous, rnfl), (rnfl, gcipl), (line, choroid))
    return np.stack([(rows >= top) & (rows < bottom) for top, bottom in spans], -1).astype(np.uint8)


def draw(seed: int, index: int, height: int, width: int) -> Example:
    """Draws an example: image, mask, label, and its own size (width, height)."""
    scene = draw_scene(seed, index, width)
    rng, noise = stream(seed, index, "view"), stream(seed, index, "noise")
    rows = ((np.arange(height) + 0.5) / height)[:, None]
    soft = rng.uniform(0.5, 1.0) / height
    light = np.full((height, width), _LIGHT["vitreous"])
    for end, value in zip(scene.edges[:6], list(_LIGHT.values())[1:], strict=True):
        light += np.clip(0.5 + (rows - end) / (2 * soft), 0, 1) * (value - light)
    # Light is lost below vessels and, slowly, with depth; some of it comes and goes along the scan.
    below = np.clip((rows - scene.edges[1]) * 40, 0, 1)
    light *= (1 - scene.edges[6] * below) * np.exp(-0.5 * np.clip(rows - scene.edges[0], 0, 1))
    side = max(height, width)
    light *= 1 + 0.25 * clouds(rng, side, 5)[:height, :width]
    # Rayleigh speckle of mean 1, averaged over a few looks as scanners do.
    speckle = noise.rayleigh(np.sqrt(2 / np.pi), (4, height, width)).mean(0)
    grey = np.clip(light * speckle * rng.uniform(0.8, 1.05) + rng.uniform(0.0, 0.06), 0, 1)
    image = np.repeat((255 * grey + 0.5).astype(np.uint8)[..., None], 3, -1)
    return {
        "image": image,
        "mask": draw_mask(scene, height),
        "label": np.asarray(diagnose(scene.strength), np.int32),
        "size": np.array([width, height], np.int32),
    }


class BScans:
    """An endless source cut to a number of examples; see ``draw``."""

    def __init__(self, indices: range, *, seed: int, height: int, width: int):
        self._indices, self._seed, self._size = indices, seed, (height, width)
        self.names = [f"bscan-{seed}-{index:06d}" for index in indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return draw(self._seed, self._indices[index], *self._size)


def make(config: Config) -> Dataset:
    """Makes the splits; ``train`` and ``masks`` are the same pictures.

    Raises:
      InputError: pictures too small, no pictures, or more than a split has room for.
    """
    counts = {part: getattr(config, part) for part in _FIRST}
    if config.size < 16 or (config.width or config.size) < 16 or config.seed < 0:
        raise InputError(
            f"--data.size is {config.size}, --data.width {config.width}, --data.seed {config.seed}; expected at least "
            "16 pixels each way (a width of 0 makes a square), and a seed that is not negative."
        )
    if not all(1 <= count <= _ROOM for count in counts.values()):
        raise InputError(f"The splits have {counts} pictures; expected 1 to {_ROOM} in each of masks, val and test.")
    splits: dict[str, Source] = {}
    for part, first in _FIRST.items():
        indices = range(first, first + counts[part])
        drawn = BScans(indices, seed=config.seed, height=config.size, width=config.width or config.size)
        splits[part] = Cached(drawn)
    splits["train"] = Subset(splits["masks"], range(counts["masks"]))
    note = ", ".join(f"{len(splits[part])} {part}" for part in ("train", "val", "test"))
    return Dataset("bscans", REGIONS, CLASSES, splits, f"{note}; drawn by seed {config.seed}, all with masks.")
