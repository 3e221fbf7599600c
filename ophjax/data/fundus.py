"""Draws a fundus-like picture of the optic nerve head from a description in numbers.

Lengths are in half image sides (the picture spans -1 to 1, x to the right, y down) and angles in
radians from the x axis towards y, seen from the centre of the disc, so one scene gives the same picture at
any size. Everything here is our own drawing, made to look like a fundus photograph; nothing is fitted to patients.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ophjax.data import vessels
from ophjax.data.drawing import ANGLES, THETA, TURN, Grid, clouds, lay, lay_grid, step, to_bytes, weights

# Colours as linear red, green, blue before the camera.
_RETINA = (0.70, 0.285, 0.115)
_CHOROID = (0.50, 0.165, 0.065)
_RIM = (0.90, 0.535, 0.265)
_PALE = (0.985, 0.80, 0.54)
_CHALK = (0.97, 0.90, 0.80)
_VEIN = (0.40, 0.085, 0.05)
_ARTERY = (0.60, 0.16, 0.075)
# What the cup adds to the colour under it: nearly all of it in blue, where the eye sees least.
_CUP = (0.0, 0.035, 0.15)
# What a nerve-fibre defect takes away: the fibres shine in green and blue.
_WEDGE = (0.34, 0.56, 0.50)


class Camera(NamedTuple):
    """How one make of camera turns light into numbers."""

    gain: tuple[float, float, float]
    gamma: float
    blur: float
    vignette: float
    noise: float
    field: float
    """Mean radius of the round field of view; outside it the picture is black."""


CAMERAS: dict[str, Camera] = {
    "clinic": Camera((1.00, 1.00, 1.00), 0.95, 0.020, 0.16, 0.020, 1.55),
    "warm": Camera((1.05, 0.90, 0.80), 0.94, 0.028, 0.22, 0.024, 1.45),
    "cool": Camera((0.90, 0.98, 1.16), 0.92, 0.024, 0.20, 0.022, 1.50),
    "film": Camera((0.99, 1.00, 0.90), 1.12, 0.036, 0.28, 0.032, 1.40),
    "handheld": Camera((0.97, 0.92, 0.90), 0.88, 0.042, 0.38, 0.028, 1.16),
}


class Wedge(NamedTuple):
    """A dark fan in the nerve-fibre layer; ``gap`` is its distance from the disc edge, 0 when rooted there."""

    angle: float
    half_width: float
    gap: float
    strength: float
    curl: float


class Sector(NamedTuple):
    """A pale sector: from the cup edge to the disc edge (``inside`` false) or within the cup (true)."""

    angle: float
    half_width: float
    inside: bool
    strength: float


class Spot(NamedTuple):
    """A round pale patch in picture coordinates."""

    x: float
    y: float
    radius: float
    strength: float


class Crescent(NamedTuple):
    """Peripapillary atrophy: a pale crescent that touches the disc from outside."""

    angle: float
    half_width: float
    thickness: float
    strength: float


class Scene(NamedTuple):
    """All that a picture shows.

    Attributes:
      temporal: +1 where the temple is on the right (left eye), -1 where it is on the left.
      centre: x and y of the disc's centre.
      disc, cup: contours, radius float32 [ANGLES] about ``centre``; cup < disc everywhere.
      pallor: the pale disc that does not follow the cup.
      wedges, sectors, spots, crescents: signs and their decoys.
      shadows: angles of narrow dark streaks beside vessels, which do not fan out.
      bend: radians by which vessels turn where they cross the cup edge.
      pigment: 0 (light fundus) to 1 (dark).
      light: direction and strength of the illumination gradient.
      field: x, y and radius of the field of view.
      exposure: factor on the light.
      camera: key of ``CAMERAS``.
    """

    temporal: int
    centre: tuple[float, float]
    disc: np.ndarray
    cup: np.ndarray
    pallor: Spot
    wedges: tuple[Wedge, ...]
    sectors: tuple[Sector, ...]
    spots: tuple[Spot, ...]
    crescents: tuple[Crescent, ...]
    shadows: tuple[float, ...]
    bend: float
    pigment: float
    light: tuple[float, float]
    field: tuple[float, float, float]
    exposure: float
    camera: str


def draw_mask(grid: Grid, disc: np.ndarray, cup: np.ndarray) -> np.ndarray:
    """Fills two contours: uint8 [size, size, 2] of 0 and 1, disc then cup; a pixel counts by its centre."""
    return np.stack([grid.radius < grid.read(disc), grid.radius < grid.read(cup)], -1).astype(np.uint8)


def height(contour: np.ndarray) -> float:
    """Measures the vertical extent of a contour in half image sides."""
    y = contour * np.sin(THETA)
    return float(y.max() - y.min())


def bump(angle: float, half_width: float) -> np.ndarray:
    """Makes a Gaussian bump of height 1 over angles: float32 [ANGLES]."""
    apart = THETA - angle
    apart = apart - TURN * np.rint(apart / TURN)
    return np.exp(-0.5 * (apart / half_width) ** 2).astype(np.float32)


def _wedge_cover(grid: Grid, beyond: np.ndarray, wedge: Wedge, soft: float) -> np.ndarray:
    """How much of the fibre layer a wedge takes away, 0 to 1; ``beyond`` is the distance past the disc edge."""
    # Fibres arch towards the horizontal, so the fan turns as it leaves the disc.
    apart = np.abs(grid.turn(wedge.angle + np.float32(wedge.curl) * beyond))
    fan = step(wedge.half_width - apart, 0.07)
    return wedge.strength * fan * step(beyond - wedge.gap, soft + 0.02) * np.exp(-0.55 * np.maximum(beyond, 0))


def draw_picture(
    scene: Scene, size: int, grown: np.random.Generator, texture: np.random.Generator, noise: np.random.Generator
) -> np.ndarray:
    """Draws a scene: uint8 [size, size, 3].

    The generators give the vessels (``grown``) and the patterns (``texture``), which are the same at each size,
    and the sensor's ``noise``, independent for each pixel.
    """
    grid, camera = lay_grid(scene.centre, size), CAMERAS[scene.camera]
    # Edges are drawn as soft as the camera blurs them, but never sharper than a pixel.
    soft = max(camera.blur, 1.0 / size)
    disc, cup = grid.read(scene.disc), grid.read(scene.cup)
    beyond = grid.radius - disc
    in_disc, in_cup = step(-beyond, soft + 0.02), step(cup - grid.radius, soft + 0.03)

    # Retina: pigment, choroid and the fine shine of nerve fibres that run away from the disc.
    coarse, middle = clouds(texture, size, 4), clouds(texture, size, 12)
    stripes = weights(ANGLES, 96) @ texture.normal(0, 0.3, 97).astype(np.float32)
    picture = np.empty((3, size, size), np.float32)
    picture[:] = np.array(_RETINA, np.float32)[:, None, None]
    dark = np.clip(scene.pigment * (0.45 + 0.35 * coarse + 0.42 * np.abs(middle)), 0, 0.9)
    lay(picture, _CHOROID, dark)
    shine = np.exp(-1.6 * np.maximum(beyond, 0)) * (0.6 + 0.4 * np.abs(np.sin(grid.theta)))
    picture *= 1 + np.array((0.05, 0.16, 0.12), np.float32)[:, None, None] * (
        shine * (1 + grid.read(stripes)) + 0.25 * coarse
    )
    fovea = (grid.x - (scene.centre[0] + 1.45 * scene.temporal)) ** 2 + (grid.y - scene.centre[1] - 0.12) ** 2
    picture *= 1 - np.array((0.22, 0.30, 0.25), np.float32)[:, None, None] * np.exp(-fovea * 4.0)

    lost = np.zeros_like(beyond)
    for wedge in scene.wedges:
        lost = np.maximum(lost, _wedge_cover(grid, beyond, wedge, soft))
    for angle in scene.shadows:
        apart = grid.turn(angle)
        streak = step(0.035 - np.abs(grid.radius * np.sin(apart)), soft + 0.02) * (np.abs(apart) < 1.5)
        lost = np.maximum(lost, 0.75 * streak * step(beyond, soft) * np.exp(-1.2 * np.maximum(beyond, 0)))
    picture *= 1 - np.array(_WEDGE, np.float32)[:, None, None] * lost

    for mark in scene.crescents:
        apart = grid.turn(mark.angle) / mark.half_width
        edge = mark.thickness * np.sqrt(np.maximum(1 - apart * apart, 0)) * (1 + 0.25 * middle)
        lay(picture, _CHALK, mark.strength * step(edge - beyond, soft + 0.02) * (edge > 0))
    for spot in scene.spots:
        apart = np.sqrt((grid.x - spot.x) ** 2 + (grid.y - spot.y) ** 2)
        lay(picture, _CHALK, spot.strength * step(spot.radius * (1 + 0.2 * middle) - apart, soft + 0.03))

    # Disc: rim, then the pale disc, then the faint cup, then pale sectors of rim or cup.
    lay(picture, _RIM, in_disc)
    picture *= 1 + 0.10 * in_disc * (coarse - 0.5 * scene.temporal * (scene.centre[0] - grid.x))
    pale = np.sqrt((grid.x - scene.pallor.x) ** 2 + (grid.y - scene.pallor.y) ** 2)
    lay(picture, _PALE, scene.pallor.strength * in_disc * step(scene.pallor.radius - pale, 0.5 * soft + 0.06))
    picture += np.array(_CUP, np.float32)[:, None, None] * in_cup
    for sector in scene.sectors:
        where = in_cup if sector.inside else in_disc * (1 - in_cup)
        side = step(sector.half_width - np.abs(grid.turn(sector.angle)), 0.12)
        lay(picture, _CHALK, sector.strength * where * side)

    generations = vessels.grow_vessels(grown, scene.temporal, float(scene.disc.mean()))
    arteries, veins = vessels.trace(generations, scene.centre, scene.cup, bend=scene.bend, size=size, margin=soft)
    deep = 1 - 0.45 * in_cup
    lay(picture, _VEIN, 0.92 * deep * step(-veins, soft))
    lay(picture, _ARTERY, 0.80 * deep * step(-arteries, soft))
    lay(picture, _RIM, 0.30 * deep * step(-arteries - 0.016, 0.012))
    return _photograph(scene, camera, picture, grid, noise)


def _photograph(
    scene: Scene, camera: Camera, picture: np.ndarray, grid: Grid, noise: np.random.Generator
) -> np.ndarray:
    """Passes light [3, size, size] through a camera: uint8 [size, size, 3]."""
    angle, strength = scene.light
    x, y, radius = scene.field
    off = (grid.x - np.float32(x)) ** 2 + (grid.y - np.float32(y)) ** 2
    light = 1 + strength * (math.cos(angle) * grid.x + math.sin(angle) * grid.y)
    light = scene.exposure * light * (1 - camera.vignette * off / (radius * radius))
    picture *= np.array(camera.gain, np.float32)[:, None, None] * light
    picture = np.clip(picture, 0, 1) ** np.float32(camera.gamma)
    sensor = noise.standard_normal(picture.shape, np.float32)
    # Photon noise grows with the light; the blue sensor of a fundus camera is the noisiest.
    picture += camera.noise * np.array((0.8, 0.8, 1.0), np.float32)[:, None, None] * (0.5 + 0.6 * picture) * sensor
    picture *= step(radius - np.sqrt(off), 0.02)
    return to_bytes(picture)
