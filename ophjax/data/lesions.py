"""Lesions: drawn dermoscopy pictures from four clinics, whose class is the number of lobes of the border.

Classes are 0, 2, 3 and 5 lobes. Place, size, turn and a small ripple of the border are drawn anew for each lesion, and
so are the tint of the skin, the pigment pattern, hairs and light, none of which tells about the class. The source is
``clinic``; the targets keep the scene and change its colour (``cast``), contrast and noise (``faded``) or tone
(``dark``). The mask is the lesion. The experiment is that of the specification of FCCL, section (k), drawn more richly;
what looks how is our own decision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ophjax.data import domains
from ophjax.data.drawing import THETA, TURN, Grid, clouds, lay, lay_grid, ripples, step, stream, to_bytes, wave
from ophjax.data.sources import Dataset, Example

# Changes to Config for two CPU cores, and for tests.
DEMO: dict[str, Any] = dict(size=32)
SMOKE: dict[str, Any] = dict(size=32, train=16, val=8, test=8)

LOBES = (0, 2, 3, 5)
CLASSES = ("round", "two lobes", "three lobes", "five lobes")

_SKIN = (0.86, 0.67, 0.58)
_LESION = (0.55, 0.33, 0.24)
_RUST = (0.66, 0.36, 0.25)
_DEEP = (0.25, 0.14, 0.11)
_VEIL = (0.47, 0.43, 0.47)
_HAIR = (0.16, 0.11, 0.09)


class Look(NamedTuple):
    """How a clinic's dermatoscope turns light into numbers."""

    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    lift: float = 0.0
    contrast: float = 1.0
    """About the grey 0.55."""
    gamma: float = 1.0
    noise: float = 0.03


LOOKS: dict[str, Look] = {
    "clinic": Look(),
    "cast": Look(gain=(0.76, 0.95, 1.18), lift=0.03),
    "faded": Look(contrast=0.65, noise=0.06),
    "dark": Look(gamma=1.3),
}


@dataclass(frozen=True)
class Config(domains.Config):
    """Drawn skin lesions of four classes; nothing is read from disk."""

    train: int = 300
    """Training pictures of each domain."""
    domains: tuple[str, ...] = tuple(LOOKS)
    """The clinics: the source first, then the targets."""


class Scene(NamedTuple):
    """All that a picture shows.

    Attributes:
      label: place in ``LOBES``.
      centre: x and y of the lesion's centre.
      outline: its border, radius float32 [ANGLES] about the centre.
      tint: what is added to red, green and blue of the whole skin.
      dots: rows of (x, y, radius, strength): dark globules, the first of them large.
      veil: x, y and strength of a blue-grey patch.
      hairs: rows of (direction, distance from the centre, bend, half width).
      light: direction and strength of the illumination gradient.
    """

    label: int
    centre: tuple[float, float]
    outline: np.ndarray
    tint: np.ndarray
    dots: np.ndarray
    veil: tuple[float, float, float]
    hairs: np.ndarray
    light: tuple[float, float]


def draw_scene(seed: int, index: int) -> Scene:
    """Draws the latent numbers of one example; the classes take turns."""
    rng = stream(seed, index, "scene")
    label = index % len(LOBES)
    radius, phase = rng.uniform(0.45, 0.62), rng.uniform(0, TURN)
    depth = 0.32 if LOBES[label] else 0.0
    outline = np.float32(radius) * (1 + np.float32(depth) * np.cos(LOBES[label] * THETA + np.float32(phase)))
    outline = outline * (1 + wave(rng, 0.03))
    centre = rng.uniform(-0.14, 0.14, 2)

    def scatter(count: int, reach: float) -> np.ndarray:
        angle, far = rng.uniform(0, TURN, count), reach * radius * np.sqrt(rng.random(count))
        return np.stack([centre[0] + far * np.cos(angle), centre[1] + far * np.sin(angle)], -1)

    count = 1 + int(rng.integers(4, 16))
    size, strength = rng.uniform(0.015, 0.04, count), rng.uniform(0.3, 0.8, count)
    size[0], strength[0] = rng.uniform(0.08, 0.16), rng.uniform(0.2, 0.6)
    dots = np.concatenate([scatter(count, 0.75), size[:, None], strength[:, None]], -1)
    (veil,) = scatter(1, 0.4)
    hairs = int(rng.integers(0, 4))
    lines = np.stack(
        [rng.uniform(0, TURN, hairs), rng.uniform(-0.9, 0.9, hairs), rng.normal(0, 0.25, hairs),
         rng.uniform(0.006, 0.012, hairs)], -1,
    )  # fmt: skip
    return Scene(
        label=label,
        centre=(float(centre[0]), float(centre[1])),
        outline=outline.astype(np.float32),
        tint=(rng.normal(0, 0.025) + rng.normal(0, 0.018, 3)).astype(np.float32),
        dots=dots.astype(np.float32),
        veil=(float(veil[0]), float(veil[1]), float(rng.uniform(0.3, 0.7) * (rng.random() < 0.35))),
        hairs=lines.astype(np.float32),
        light=(rng.uniform(0, TURN), rng.uniform(0.0, 0.08)),
    )


def draw_mask(grid: Grid, scene: Scene) -> np.ndarray:
    """Fills the border: uint8 [size, size, 1] of 0 and 1; a pixel counts by its centre."""
    return (grid.radius < grid.read(scene.outline))[..., None].astype(np.uint8)


def draw_light(grid: Grid, scene: Scene, texture: np.random.Generator) -> np.ndarray:
    """Draws what every dermatoscope would see: float32 [3, size, size], about 0 to 1."""
    size = len(grid.x)
    coarse, middle, fine = (clouds(texture, size, cells) for cells in (4, 10, 40))
    mesh = ripples(texture, grid, 36.0)
    picture = np.empty((3, size, size), np.float32)
    picture[:] = np.array(_SKIN, np.float32)[:, None, None]
    picture += scene.tint[:, None, None]
    # Skin: blotches of blood, which take green and blue, and the fine net of furrows.
    picture *= 1 + np.array((0.02, 0.05, 0.05), np.float32)[:, None, None] * (coarse + 0.5 * middle)
    picture *= 1 + 0.035 * np.minimum(np.abs(fine), 0.8)

    inside = grid.read(scene.outline) - grid.radius
    # Blood around the lesion reddens the skin.
    halo = 0.25 * np.exp(np.minimum(inside, 0) / 0.12)
    picture *= 1 - np.array((0.02, 0.16, 0.16), np.float32)[:, None, None] * halo
    # Pigment: a net of dark lines around lighter meshes, paler at the border; then globules and veil.
    body = step(inside - 0.01 * middle, 0.05)
    net = np.exp(-((mesh / 0.3) ** 2))
    ink = np.clip(0.70 + 0.14 * coarse + 0.25 * net + 0.5 * np.minimum(inside, 0.3), 0.4, 1.0)
    lay(picture, _RUST, body * ink)
    lay(picture, _LESION, body * np.clip(0.6 + 0.9 * coarse + 0.3 * net, 0, 1))
    lay(picture, _DEEP, 0.22 * body * net)
    x, y, strength = scene.veil
    apart = (grid.x - x) ** 2 + (grid.y - y) ** 2
    lay(picture, _VEIL, body * strength * np.exp(-apart / 0.03) * np.clip(0.8 + 0.8 * middle, 0, 1))
    for x, y, radius, strength in scene.dots:
        apart = np.sqrt((grid.x - x) ** 2 + (grid.y - y) ** 2)
        soft = max(0.5 * float(radius), 1.0 / size)
        lay(picture, _DEEP, body * strength * step(radius * (1 + 0.4 * middle) - apart, soft))

    for direction, away, bend, half_width in scene.hairs:
        along = grid.x * math.cos(direction) + grid.y * math.sin(direction)
        across = grid.y * math.cos(direction) - grid.x * math.sin(direction) - away - bend * along * along
        across = np.abs(across) / np.sqrt(1 + (2 * bend * along) ** 2)
        # A hair thinner than a pixel is drawn a pixel wide and as faint as it is thin.
        width = max(float(half_width), 1.0 / size)
        lay(picture, _HAIR, 0.85 * float(half_width) / width * step(width - across, width))
    angle, slope = scene.light
    return picture * (1 + np.float32(slope) * (math.cos(angle) * grid.x + math.sin(angle) * grid.y))


def take(look: Look, light: np.ndarray, noise: np.random.Generator) -> np.ndarray:
    """Passes light through a clinic's dermatoscope: uint8 [size, size, 3]."""
    picture = light * np.array(look.gain, np.float32)[:, None, None] + np.float32(look.lift)
    picture = 0.55 + look.contrast * (picture - 0.55)
    picture = np.clip(picture, 0, 1) ** np.float32(look.gamma)
    return to_bytes(picture + np.float32(look.noise) * noise.standard_normal(picture.shape, np.float32))


def draw(seed: int, index: int, domain: str, size: int) -> Example:
    """Draws an example as one clinic sees it: image, mask (lesion) and label."""
    scene = draw_scene(seed, index)
    grid = lay_grid(scene.centre, size)
    light = draw_light(grid, scene, stream(seed, index, "texture"))
    return {
        "image": take(LOOKS[domain], light, stream(seed, index, "noise")),
        "mask": draw_mask(grid, scene),
        "label": np.asarray(scene.label, np.int32),
    }


def make(config: Config) -> Dataset:
    """Makes the splits; see ``domains.make``."""
    return domains.make(config, draw, name="lesions", known=tuple(LOOKS), regions=("lesion",), classes=CLASSES)
