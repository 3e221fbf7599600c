"""Organs: drawn abdominal slices whose tissues are bright or dark by the scanner, to be segmented.

A slice shows a body with fat, muscle wall, ribs and spine, and in it liver, kidneys and spleen (the mask, exclusive
regions) among stomach, bowel loops, vessels and psoas muscles, which look alike and are in no mask. Height in the body,
size, place, tilt and contours are drawn anew for each slice, and a low-frequency texture is unique to each place of it,
so that a picture tells more than its tissue classes do. The source is ``ct``; the targets keep the scene and give
tissues other values: ``inverted`` (what was bright is dark; the outside stays dark) and ``permuted`` (another order of
tissues, a smooth bias field and more noise). The experiment is that of the specification of ADS, section (k), drawn
more richly; what looks how is our own decision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ophjax.data import domains
from ophjax.data.drawing import THETA, clouds, lay_grid, ripples, step, stream, to_bytes, wave
from ophjax.data.sources import Dataset, Example

# Changes to Config for two CPU cores, and for tests.
DEMO: dict[str, Any] = dict(size=48)
SMOKE: dict[str, Any] = dict(size=32, train=16, val=8, test=8)

REGIONS = ("liver", "kidney", "spleen")
_FILLINGS = ("bowel", "fluid", "gas")


class Scanner(NamedTuple):
    """How bright a scanner shows each tissue, 0 to 1, and what it adds.

    Attributes:
      tissues: brightness by name; all scanners have the same names.
      texture: factor on the texture, negative where bright and dark change places.
      bias: size of the smooth field that the picture is multiplied by.
      noise: standard deviation.
    """

    tissues: dict[str, float]
    texture: float
    bias: float
    noise: float


_CT = dict(
    fat=0.20, muscle=0.46, bowel=0.54, fluid=0.38, gas=0.03, liver=0.62, spleen=0.69, kidney=0.82, pelvis=0.50,
    vessel=0.74, bone=0.97, marrow=0.72,
)  # fmt: skip
_OTHER = dict(
    fat=0.86, muscle=0.24, bowel=0.44, fluid=0.96, gas=0.03, liver=0.36, spleen=0.64, kidney=0.54, pelvis=0.90,
    vessel=0.12, bone=0.06, marrow=0.70,
)  # fmt: skip
SCANNERS: dict[str, Scanner] = {
    "ct": Scanner(_CT, texture=1.0, bias=0.0, noise=0.025),
    "inverted": Scanner({name: 1 - value for name, value in _CT.items()}, texture=-1.0, bias=0.0, noise=0.025),
    "permuted": Scanner(_OTHER, texture=1.0, bias=0.3, noise=0.05),
}


@dataclass(frozen=True)
class Config(domains.Config):
    """Drawn abdominal slices; nothing is read from disk."""

    train: int = 64
    """Training slices of the source."""
    val: int = 24
    """Validation slices of each domain."""
    test: int = 48
    """Test slices of each domain."""
    domains: tuple[str, ...] = tuple(SCANNERS)
    """The scanners: the source first, then the targets."""


class Scene(NamedTuple):
    """All that a slice shows; places are in half axes of the body, sizes in half image sides.

    Attributes:
      body: x, y, half width, half height and tilt.
      outline: factor on the body's ellipse, float32 [ANGLES].
      fat, wall: thickness of the fat under the skin and of the muscle wall.
      liver, spleen, kidneys: centres and contours about them.
      blobs: rows of (x, y, half width, half height, turn, kind): stomach and bowel loops, filled by ``_FILLINGS``.
      ribs: angles at which ribs are cut.
      spine: x, y and size of the vertebra.
      phase: what is added to the brightness of each tissue: how far the contrast agent has come.
    """

    body: tuple[float, float, float, float, float]
    outline: np.ndarray
    fat: float
    wall: float
    liver: tuple[float, float, np.ndarray]
    spleen: tuple[float, float, np.ndarray]
    kidneys: tuple[tuple[float, float, np.ndarray], ...]
    blobs: np.ndarray
    ribs: np.ndarray
    spine: tuple[float, float, float]
    phase: dict[str, float]


def _oval(rng: np.random.Generator, wide: float, high: float, turn: float, ripple: float) -> np.ndarray:
    """Draws a rippled ellipse as a contour, float32 [ANGLES]."""
    along, across = np.cos(THETA - turn) / wide, np.sin(THETA - turn) / high
    return ((1 + wave(rng, ripple)) / np.sqrt(along**2 + across**2)).astype(np.float32)


def _bulge(angle: float, half_width: float) -> np.ndarray:
    """Makes a bump of height 1 over angles."""
    return np.exp((np.cos(THETA - angle) - 1) / half_width**2).astype(np.float32)


def draw_scene(seed: int, index: int) -> Scene:
    """Draws the latent numbers of one slice."""
    rng = stream(seed, index, "scene")
    low = rng.random()  # from the dome of the liver down to the kidneys' lower poles
    scale = rng.uniform(0.88, 1.0)
    wide, high = 0.95 * scale, 0.80 * scale * rng.uniform(0.93, 1.07)
    body = (*rng.normal(0, 0.02, 2), wide, high, rng.normal(0, 0.07))

    def near(x: float, y: float, spread: float = 0.03) -> tuple[float, float]:
        return x + spread * rng.normal(), y + spread * rng.normal()

    size = scale * (1.12 - 0.34 * low) * rng.uniform(0.92, 1.08)
    liver = _oval(rng, 0.42 * size, 0.40 * size, rng.normal(0, 0.2), 0.05)
    liver = liver + np.float32(0.32 * size * rng.uniform(0.5, 1.2)) * _bulge(-0.5 + rng.normal(0, 0.12), 0.42)
    size = scale * (1.1 - 0.3 * low) * rng.uniform(0.9, 1.1)
    spleen = _oval(rng, 0.17 * size, 0.29 * size, 0.35 + rng.normal(0, 0.12), 0.04)
    kidneys = []
    for side in (-1, 1):
        size = scale * (0.85 + 0.25 * low) * rng.uniform(0.9, 1.1)
        hilum = (0.0 if side < 0 else math.pi) - side * rng.normal(0.45, 0.2)
        bean = _oval(rng, 0.155 * size, 0.20 * size, -0.25 * side + rng.normal(0, 0.15), 0.03)
        bean = bean * (1 - np.float32(rng.uniform(0.3, 0.5)) * _bulge(hilum, 0.42))
        kidneys.append((*near(0.42 * side, 0.40), bean))

    count = int(rng.integers(3, 6))
    loops = np.stack(
        [rng.uniform(-0.25, 0.62, count), rng.uniform(-0.45, 0.12, count), rng.uniform(0.06, 0.12, count),
         rng.uniform(0.06, 0.12, count), rng.uniform(0, math.pi, count), rng.integers(0, 3, count)], -1,
    )  # fmt: skip
    x, y = near(0.36, -0.40, 0.04)
    stomach = [[x, y, 0.24, 0.17, 0.3, 1.0], [x + 0.02, y - 0.10, 0.15, 0.07, 0.1, 2.0]]
    return Scene(
        body=body,
        outline=(1 + wave(rng, 0.015)).astype(np.float32),
        fat=rng.uniform(0.04, 0.10),
        wall=rng.uniform(0.05, 0.07),
        liver=(*near(-0.46, -0.12), liver),
        spleen=(*near(0.64, 0.12), spleen),
        kidneys=tuple(kidneys),
        blobs=np.concatenate([np.array(stomach), loops]) if low < 0.75 else loops,
        ribs=np.array([-2.7, -2.2, 2.75, 2.2, -0.45, -0.95, 0.4, 0.95]) + rng.normal(0, 0.1, 8),
        spine=(*near(0, 0.46, 0.015), 0.15 * scale * rng.uniform(0.95, 1.1)),
        phase={name: rng.normal(0, 0.012) for name in _CT},
    )


class Layer(NamedTuple):
    """One tissue laid over what is below: distance inside its edge, tissue, and region (0 none, 1, 2, ...)."""

    inside: np.ndarray
    tissue: str
    region: int = 0


def lay_tissues(scene: Scene, size: int, veins: np.random.Generator) -> Iterator[Layer]:
    """Gives the tissues of a slice from the lowest to the topmost; ``veins`` gives those within the liver."""
    x0, y0, wide, high, tilt = scene.body
    cos, sin = math.cos(tilt), math.sin(tilt)

    def place(x: float, y: float) -> tuple[float, float]:
        x, y = wide * x, high * y
        return x0 + cos * x - sin * y, y0 + sin * x + cos * y

    def organ(x: float, y: float, contour: np.ndarray) -> np.ndarray:
        grid = lay_grid(place(x, y), size)
        return grid.read(np.roll(contour, round(tilt * len(contour) / math.tau))) - grid.radius

    def oval(x: float, y: float, a: float, b: float, turn: float = 0.0) -> np.ndarray:
        x, y = place(x, y)
        c, s = math.cos(turn + tilt), math.sin(turn + tilt)
        dx, dy = grid.x - np.float32(x), grid.y - np.float32(y)
        along, across = (c * dx + s * dy) / np.float32(a), (c * dy - s * dx) / np.float32(b)
        return (1 - np.sqrt(along**2 + across**2)) * np.float32(min(a, b))

    grid = lay_grid((x0, y0), size)
    dx, dy = grid.x - np.float32(x0), grid.y - np.float32(y0)
    u, v = (cos * dx + sin * dy) / np.float32(wide), (cos * dy - sin * dx) / np.float32(high)
    skin = (grid.read(scene.outline) - np.sqrt(u * u + v * v)) * np.float32(high)
    cavity = skin - np.float32(scene.fat + scene.wall)
    yield Layer(skin, "muscle")
    yield Layer(skin - 0.018, "fat")
    yield Layer(skin - np.float32(scene.fat), "muscle")
    for angle in scene.ribs:
        r = 1 - (scene.fat + 0.5 * scene.wall) / high
        rib = oval(r * math.cos(angle), r * math.sin(angle), 0.085, 0.028, angle + 0.5 * math.pi)
        yield Layer(rib, "bone")
        yield Layer(rib - 0.016, "marrow")
    yield Layer(cavity, "fat")
    for side in (-1, 1):
        yield Layer(oval(0.26 * side, 0.80, 0.17, 0.13), "muscle")
    for x, y, a, b, turn, kind in scene.blobs:
        blob = np.minimum(oval(x, y, a, b, turn), cavity - 0.02)
        yield Layer(blob, "muscle")
        yield Layer(blob - 0.022, _FILLINGS[int(kind)])
    liver = np.minimum(organ(*scene.liver), cavity - 0.015)
    yield Layer(liver, "liver", 1)
    yield Layer(np.minimum(liver - 0.05, 0.03 * (ripples(veins, grid, 30.0) - 1.8)), "vessel", 1)
    yield Layer(np.minimum(organ(*scene.spleen), cavity - 0.015), "spleen", 3)
    for side in (-1, 1):
        yield Layer(oval(0.20 * side, 0.48, 0.085, 0.10), "muscle")
    for kidney in scene.kidneys:
        inside = np.minimum(organ(*kidney), cavity - 0.015)
        yield Layer(inside + 0.03, "fat")
        yield Layer(inside, "kidney", 2)
        yield Layer(0.8 * (inside - 0.075), "pelvis", 2)
    x, y, r = scene.spine
    yield Layer(np.minimum(oval(x, y + 0.36, 0.03, 0.14), skin - 0.05), "bone")
    for side in (-1, 1):
        yield Layer(oval(x + 0.17 * side, y + 0.24, 0.12, 0.03, 0.35 * side), "bone")
    yield Layer(oval(x, y + 0.20, 0.10, 0.10), "bone")
    yield Layer(oval(x, y + 0.22, 0.055, 0.05), "fluid")
    yield Layer(oval(x, y, 1.1 * r, 0.9 * r), "bone")
    yield Layer(oval(x, y, 1.1 * r, 0.9 * r) - 0.025, "marrow")
    yield Layer(oval(x + 0.05, y - 0.31, 0.062, 0.062), "vessel")
    yield Layer(oval(x - 0.11, y - 0.28, 0.075, 0.06), "vessel")


def draw(seed: int, index: int, domain: str, size: int) -> Example:
    """Draws an example as one scanner sees it: image (grey) and mask (liver, kidney, spleen)."""
    scene, scanner = draw_scene(seed, index), SCANNERS[domain]
    picture, owner = np.zeros((size, size), np.float32), np.zeros((size, size), np.uint8)
    body = np.zeros((size, size), np.float32)
    soft = max(0.012, 1.0 / size)
    for layer in lay_tissues(scene, size, stream(seed, index, "veins")):
        cover = step(layer.inside, soft)
        picture += cover * (np.float32(scanner.tissues[layer.tissue] + scene.phase[layer.tissue]) - picture)
        owner[layer.inside > 0] = layer.region
        body = np.maximum(body, cover)

    grid = lay_grid((0.0, 0.0), size)
    texture, view, noise = (stream(seed, index, name) for name in ("texture", "view", "noise"))
    pattern = 0.06 * clouds(texture, size, 5) + 0.045 * clouds(texture, size, 11) + 0.03 * ripples(texture, grid, 30.0)
    picture += np.float32(scanner.texture) * body * pattern
    picture *= 1 + np.float32(scanner.bias) * clouds(view, size, 2)
    picture += np.float32(scanner.noise) * (0.4 + 0.6 * body) * noise.standard_normal(picture.shape, np.float32)
    regions = np.arange(1, len(REGIONS) + 1, dtype=np.uint8)
    return {
        "image": to_bytes(np.broadcast_to(0.03 + 0.94 * picture, (3, size, size))),
        "mask": (owner[..., None] == regions).astype(np.uint8),
    }


def make(config: Config) -> Dataset:
    """Makes the splits; see ``domains.make``."""
    return domains.make(config, draw, name="organs", known=tuple(SCANNERS), regions=REGIONS)
