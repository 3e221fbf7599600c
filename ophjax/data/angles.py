"""Angles: drawn anterior chamber angles as optical coherence tomography shows them, open or closed, by four devices.

Cornea and sclera lie above, the iris below; they meet at the recess on the left. The label is a rule on two numbers:

    closed = opening < THRESHOLD + SLOPE * vault

- ``opening`` is the angle between cornea and iris at the recess, in degrees: a local sign.
- ``vault``, from -1 to 1, says how far the iris bulges towards the cornea away from the recess. It is drawn apart from
  the label and tells nothing alone, but an opening that is wide enough before a flat iris is not before a bulging one.

No scene lies near the threshold: the opening keeps 6 degrees and more from it, so that it orders nearly all pairs of
scenes alone. Decoys: folds and crypts of the iris, a prominent line of Schwalbe at the cornea, thickness of both, tilt
and place of the recess, cells in the chamber. The source is ``device-a``; the targets keep the scene and differ in
brightness, contrast and gamma by more than pictures of one device do, and in resolution, speckle, haze and artefacts.
The experiment is the second one of the specification of M2DAN, with more to look at; all numbers are our own decisions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ophjax.data import domains
from ophjax.data.drawing import clouds, lay_grid, ripples, step, stream, to_bytes
from ophjax.data.sources import Dataset, Example

# Changes to Config for two CPU cores, and for tests.
DEMO: dict[str, Any] = dict(size=32)
SMOKE: dict[str, Any] = dict(size=32, train=16, val=8, test=8)

CLASSES = ("open", "closed")
THRESHOLD, SLOPE = 19.0, 8.0


class Device(NamedTuple):
    """How a device turns reflected light into grey levels."""

    blur: float
    """Standard deviation of its point spread, in half image sides."""
    speckle: float
    noise: float
    lift: float = 0.02
    contrast: float = 0.95
    gamma: float = 1.0
    haze: float = 0.0
    """Light scattered over the upper part of the picture."""
    reflex: float = 0.0
    """Strength of the bright column where a surface faces the beam."""
    shadows: float = 0.0
    """Strength of dark columns under lashes and vessels."""


DEVICES: dict[str, Device] = {
    "device-a": Device(blur=0.015, speckle=0.15, noise=0.02),
    "device-b": Device(blur=0.030, speckle=0.10, noise=0.02, lift=0.15, contrast=0.24, haze=0.20),
    "device-c": Device(blur=0.020, speckle=0.20, noise=0.05, gamma=1.3, contrast=0.45, shadows=0.3),
    "device-d": Device(
        blur=0.035, speckle=0.20, noise=0.04, lift=0.25, contrast=1.10, gamma=0.6, reflex=0.4, shadows=0.3
    ),
}


@dataclass(frozen=True)
class Config(domains.Config):
    """Drawn chamber angles from several devices; nothing is read from disk."""

    train: int = 600
    """Training pictures of each domain."""
    domains: tuple[str, ...] = tuple(DEVICES)
    """The devices: the source first, then the targets."""


class Scene(NamedTuple):
    """All that a picture shows. Lengths are in half image sides; the chamber's axes are turned by ``tilt``.

    Attributes:
      label: 1 for closed.
      opening: of the recess, in degrees.
      vault: from -1 (flat, deep chamber) to 1 (bulging, shallow).
      recess: x and y.
      tilt: of the whole eye, in radians.
      rise, curve: slope of the cornea's inner surface at the recess, and its bend.
      cornea, iris: thickness.
      pupil: distance of the iris's end from the recess.
      fold, crypt, line: distance from the recess, half width and height of a fold and a crypt of the iris and of the
        line of Schwalbe.
      cells: rows of (x, y, brightness) of cells in the chamber.
    """

    label: int
    opening: float
    vault: float
    recess: tuple[float, float]
    tilt: float
    rise: float
    curve: float
    cornea: float
    iris: float
    pupil: float
    fold: tuple[float, float, float]
    crypt: tuple[float, float, float]
    line: tuple[float, float, float]
    cells: np.ndarray


def diagnose(opening: float, vault: float) -> int:
    """Applies the label rule: 1 for closed."""
    return int(opening < THRESHOLD + SLOPE * vault)


def draw_scene(seed: int, index: int) -> Scene:
    """Draws the latent numbers of one example; the classes take turns."""
    rng = stream(seed, index, "scene")
    closed = index % 2
    vault = rng.uniform(-1, 1)
    # A margin on either side of the threshold, since nobody labels what nobody can see.
    away = -rng.uniform(6, 16) if closed else rng.uniform(6, 20)
    opening = max(THRESHOLD + SLOPE * vault + away, 0.5)
    return Scene(
        label=diagnose(opening, vault),
        opening=opening,
        vault=vault,
        recess=(rng.uniform(-0.76, -0.60), rng.uniform(0.18, 0.38)),
        tilt=math.radians(rng.uniform(-9, 9)),
        rise=math.tan(math.radians(rng.uniform(37, 42))),
        curve=rng.uniform(0.20, 0.25),
        cornea=rng.uniform(0.24, 0.32),
        iris=rng.uniform(0.13, 0.20),
        pupil=rng.uniform(1.25, 1.8),
        fold=(rng.uniform(0.35, 1.1), rng.uniform(0.05, 0.12), rng.uniform(0.0, 0.05)),
        crypt=(rng.uniform(0.35, 1.1), rng.uniform(0.03, 0.07), rng.uniform(0.0, 0.06)),
        line=(rng.uniform(0.18, 0.34), rng.uniform(0.03, 0.05), rng.uniform(0.0, 0.03)),
        cells=rng.uniform((0.2, 0.1, 0.2), (1.4, 0.9, 0.7), (int(rng.integers(0, 6)), 3)),
    )


def _hump(s: np.ndarray, hump: tuple[float, float, float]) -> np.ndarray:
    place, half_width, height = (np.float32(value) for value in hump)
    return height * np.exp(-0.5 * ((s - place) / half_width) ** 2)


def surfaces(scene: Scene, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gives the heights of the cornea's inner and the iris's front surface at distances ``s`` from the recess."""
    ahead = np.maximum(s, 0)
    back = np.float32(scene.rise) * s - np.float32(scene.curve) * ahead * ahead
    reach, far = 0.8, 1.5
    slope = math.tan(math.radians(scene.opening))
    near = slope * reach * (1 - np.exp(-ahead / np.float32(reach)))
    # Beyond the recess the gap tends to the depth of the chamber, whatever the opening.
    depth = 0.62 - 0.24 * scene.vault - slope * reach * (1 - math.exp(-far / reach))
    gap = near + np.float32(depth) * step(ahead - 0.5 * (far + 0.2), 0.5 * (far - 0.2))
    front = back - gap + _hump(s, scene.fold) - _hump(s, scene.crypt)
    return back - _hump(s, scene.line), np.minimum(front, back)


def draw_light(scene: Scene, size: int, texture: np.random.Generator) -> np.ndarray:
    """Draws what reflects light: float32 [size, size], about 0 to 1."""
    grid = lay_grid(scene.recess, size)
    dx, dy = grid.x - np.float32(scene.recess[0]), grid.y - np.float32(scene.recess[1])
    cos, sin = math.cos(scene.tilt), math.sin(scene.tilt)
    s, t = cos * dx + sin * dy, sin * dx - cos * dy
    back, front = surfaces(scene, s)
    soft = max(0.02, 1.0 / size)
    grain = 0.6 * clouds(texture, size, 14) + 0.3 * ripples(texture, grid, 45.0)
    light = np.zeros_like(s)

    def lay(cover: np.ndarray, value: np.ndarray | float) -> None:
        nonlocal light
        light = light + cover * (value - light)

    # Ciliary body and the root of the iris, fading with depth.
    below = back - t
    body = step(below, soft) * step(0.10 - s - 0.35 * below, 0.10)
    lay(body, 0.46 * np.exp(-np.maximum(below, 0) / 0.40) * (1 + 0.35 * grain))

    # Iris: bright front, stroma, bright pigment behind, a blunt end at the pupil.
    thick = (
        np.float32(scene.iris)
        * (0.55 + 0.45 * step(s - 0.25, 0.3))
        * np.sqrt(np.clip((np.float32(scene.pupil) - s) / 0.12, 0, 1))
    )
    inside = front - t
    iris = step(inside, soft) * step(thick - inside, soft) * (s > -0.12) * (s < scene.pupil)
    lay(iris, (0.50 + 0.14 * np.exp(-np.maximum(inside, 0) / 0.04)) * (1 + 0.30 * grain))
    lay(iris * step(inside - thick + 0.03, 0.03), 0.72)

    # Cornea with its two bright surfaces, which turns into sclera beyond the limbus.
    above = t - back
    sclera = step(0.02 - s + 0.25 * above, 0.22)
    thick = np.float32(scene.cornea) * (1 + 0.12 * sclera)
    shell = step(above, soft) * step(thick - above, soft)
    lamellae = np.sin(above * 60 + 3 * grain)
    lay(shell, 0.36 + 0.40 * sclera + (0.05 + 0.02 * sclera) * lamellae + 0.08 * grain)
    lay(shell * step(0.035 - np.abs(thick - 0.02 - above), 0.03), 0.82)
    lay(shell * step(0.025 - np.abs(above - 0.02), 0.025) * (1 - sclera), 0.62)

    for x, y, bright in scene.cells:
        x, y = scene.recess[0] + x, scene.recess[1] - y
        chamber = step(back - 0.03 - t, 0.02) * step(t - front - 0.03, 0.02)
        spot = np.exp(-((grid.x - x) ** 2 + (grid.y - y) ** 2) / (2 * max(0.012, 0.6 / size) ** 2))
        light = light + np.float32(bright) * chamber * spot
    # What lies below gets the light that the tissue above lets through.
    passed = np.exp(-0.55 * np.cumsum(light, 0) * (2 / size))
    return light * passed


@lru_cache(maxsize=32)
def _spread(size: int, blur: float) -> np.ndarray:
    """Gaussian blur along one side as a matrix [size, size] whose rows sum to 1."""
    apart = np.subtract.outer(np.arange(size), np.arange(size)) * (2 / size)
    matrix = np.exp(-0.5 * (apart / blur) ** 2)
    return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)


def take(device: Device, light: np.ndarray, view: np.random.Generator, noise: np.random.Generator) -> np.ndarray:
    """Passes light through a device: uint8 [size, size, 3], grey."""
    size = len(light)
    grid = lay_grid((0.0, 0.0), size)
    # Every device draws the same numbers, so that none depends on which artefacts the others have.
    columns, widths, depth = view.uniform(-0.9, 1.0, 3), view.uniform(0.03, 0.09, 3), view.uniform(0.4, 1.0, 3)
    haze, bright = clouds(view, size, 3), view.uniform(0.2, 0.9)
    picture = light + np.float32(device.haze) * (0.5 - 0.5 * grid.y) * (0.8 + 0.4 * haze)
    for x, width, strength in zip(columns, widths, depth, strict=True):
        picture = picture * (1 - np.float32(device.shadows * strength) * step(width - np.abs(grid.x - x), 0.05))
    glare = np.exp(-np.abs(grid.x - bright) / 0.03) * (0.6 + 0.4 * haze)
    picture = picture + np.float32(device.reflex) * glare
    spread = _spread(size, device.blur)
    picture = spread @ picture.astype(np.float32) @ spread.T
    grains, dark = noise.standard_normal((2, size, size), np.float32)
    picture = np.clip(picture * (1 + np.float32(device.speckle) * grains), 0, None) ** np.float32(device.gamma)
    picture = device.lift + device.contrast * picture + np.float32(device.noise) * dark
    return to_bytes(np.broadcast_to(picture, (3, size, size)))


def draw(seed: int, index: int, domain: str, size: int) -> Example:
    """Draws an example as one device sees it: image and label."""
    scene = draw_scene(seed, index)
    light = draw_light(scene, size, stream(seed, index, "texture"))
    return {
        "image": take(DEVICES[domain], light, stream(seed, index, "view"), stream(seed, index, "noise")),
        "label": np.asarray(scene.label, np.int32),
    }


def make(config: Config) -> Dataset:
    """Makes the splits; see ``domains.make``."""
    return domains.make(config, draw, name="angles", known=tuple(DEVICES), classes=CLASSES)
