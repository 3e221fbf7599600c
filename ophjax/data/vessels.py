"""Grows retinal vessels as curves and measures each pixel's distance to them.

Lengths and angles as in ``fundus``: half image sides about the disc's centre, radians, y down.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

# Knots of a trunk, a branch and a twig.
_KNOTS = (40, 20, 12)
_FAR = np.float32(9.0)


class Curves(NamedTuple):
    """Curves as knots: places, headings and half widths [n, knots]."""

    x: np.ndarray
    y: np.ndarray
    heading: np.ndarray
    half_width: np.ndarray

    def at(self, curve: np.ndarray, knot: np.ndarray) -> tuple[np.ndarray, ...]:
        """Picks one knot of each curve named."""
        return tuple(values[curve, knot] for values in self)


def _grow(
    rng: np.random.Generator,
    x: np.ndarray,
    y: np.ndarray,
    heading: np.ndarray,
    turn: np.ndarray,
    length: np.ndarray,
    half_width: np.ndarray,
    knots: int,
) -> Curves:
    """Grows curves from their starts: each turns steadily, sways a little and tapers."""
    count = len(x)
    sway = rng.normal(0, 0.16, (2, count, 1))
    phase = rng.uniform(0, 2 * math.pi, (2, count, 1))
    t = np.linspace(0, 1, knots)[None, :]
    course = heading[:, None] + turn[:, None] * t
    # The sway starts from nothing, so that a vessel leaves in the direction that was asked for.
    course = course + t * (sway[0] * np.sin(5 * t + phase[0]) + sway[1] * np.sin(11 * t + phase[1])) * 2
    step = length[:, None] / knots
    along_x, along_y = np.cumsum(np.cos(course), 1) * step, np.cumsum(np.sin(course), 1) * step
    return Curves(x[:, None] + along_x, y[:, None] + along_y, course, half_width[:, None] * (1 - 0.45 * t))


def _branch(
    rng: np.random.Generator, parents: Curves, each: int, length: tuple[float, float], knots: int
) -> tuple[Curves, np.ndarray]:
    """Grows ``each`` branches from every parent, on alternate sides; also returns each branch's parent."""
    owner = np.repeat(np.arange(len(parents.x)), each)
    last = parents.x.shape[1]
    knot = rng.integers(int(0.22 * last), int(0.85 * last), owner.size)
    x, y, heading, half_width = parents.at(owner, knot)
    side = np.where((np.arange(owner.size) + rng.integers(2)) % 2, 1.0, -1.0)
    heading = heading + side * rng.uniform(0.45, 0.85, owner.size)
    turn = -side * rng.uniform(0.1, 0.7, owner.size)
    reach = rng.uniform(*length, owner.size)
    return _grow(rng, x, y, heading, turn, reach, half_width * rng.uniform(0.55, 0.75, owner.size), knots), owner


def grow_vessels(rng: np.random.Generator, temporal: int, radius: float) -> list[tuple[Curves, np.ndarray]]:
    """Grows two arcades, nasal and temporal vessels, their branches and twigs, about the disc's centre.

    Returns one pair for each generation: the curves, and for each curve whether it is an artery.
    """
    # Named for temporal = +1 and mirrored at the end: artery and vein of each arcade, then minor vessels.
    heading = np.array([-1.50, -1.72, 1.50, 1.72, -2.45, 2.5, -2.9, -0.45, 0.5]) + rng.normal(0, 0.13, 9)
    turn = np.array([1.1, 1.25, -1.1, -1.25, 0.3, -0.3, 0.1, 0.25, -0.25]) + rng.normal(0, 0.22, 9)
    length = np.array([1.9, 1.9, 1.9, 1.9, 1.5, 1.5, 1.2, 0.9, 0.9]) * rng.uniform(0.9, 1.1, 9)
    half_width = np.array([25, 33, 25, 33, 17, 20, 14, 9, 9]) * 1e-3 * rng.uniform(0.85, 1.15, 9)
    artery = np.array([1, 0, 1, 0, 1, 0, 1, 1, 0], bool)
    # Vessels enter on the nasal side of the disc, veins on the temporal side of arteries.
    x = radius * (-0.22 + 0.10 * ~artery + rng.normal(0, 0.03, 9))
    y = radius * (0.16 * np.sin(heading) + rng.normal(0, 0.03, 9))
    trunks = _grow(rng, x, y, heading, turn, length, half_width, _KNOTS[0])
    branches, owner = _branch(rng, trunks, 3, (0.45, 1.0), _KNOTS[1])
    twigs, parent = _branch(rng, branches, 1, (0.2, 0.5), _KNOTS[2])
    generations = ((trunks, artery), (branches, artery[owner]), (twigs, artery[owner][parent]))
    return [(curves._replace(x=curves.x * temporal), kind) for curves, kind in generations]


def bend_vessels(curves: Curves, cup: np.ndarray, bend: float) -> Curves:
    """Turns what lies inside the cup about the disc's centre, so that vessels kink where they cross its edge."""
    radius, theta = np.hypot(curves.x, curves.y), np.arctan2(curves.y, curves.x)
    place = np.rint(theta * (len(cup) / (2 * math.pi))).astype(int) % len(cup)
    inside = 1 / (1 + np.exp(np.clip((radius - cup[place]) / 0.02, -30, 30)))
    # Up and down turn in opposite senses: both kinks point to the nasal side.
    theta = theta + bend * np.sign(np.sin(theta)) * inside
    return curves._replace(x=radius * np.cos(theta), y=radius * np.sin(theta))


def _stamp(distance: np.ndarray, size: int, curves: Curves, layer: np.ndarray, margin: float) -> None:
    """Lowers ``distance`` [2 * size * size + 1] to the signed distance from the curves' edges, near them."""
    per_pixel = size / 2.0
    # Pixel coordinates in which pixel i has its centre at i.
    x, y = ((v + 1) * per_pixel - 0.5 for v in (curves.x, curves.y))
    half_width = curves.half_width * per_pixel
    middle_x, middle_y = 0.5 * (x[:, 1:] + x[:, :-1]), 0.5 * (y[:, 1:] + y[:, :-1])
    half_x, half_y = 0.5 * np.diff(x, axis=1), 0.5 * np.diff(y, axis=1)
    half_length = np.hypot(half_x, half_y)
    reach = math.ceil(float((half_width[:, 1:] + half_length).max()) + margin * per_pixel)
    seen = np.maximum(np.abs(middle_x - 0.5 * size), np.abs(middle_y - 0.5 * size)) < 0.5 * size + reach
    # One row for each piece of curve in sight: its middle, half its length, its direction, half its width.
    first = np.broadcast_to(layer[:, None] * size, seen.shape)[seen]
    middle_width = 0.5 * (half_width[:, 1:] + half_width[:, :-1])
    column, row, half, unit_x, unit_y, width = (
        v[seen].astype(np.float32)[:, None]
        for v in (middle_x, middle_y, half_length, half_x / half_length, half_y / half_length, middle_width)
    )

    around = np.arange(-reach, reach + 1)
    columns, rows = (np.rint(v).astype(np.intp) + around for v in (column, row))
    dx, dy = (columns - column).astype(np.float32), (rows - row).astype(np.float32)
    along = (dy * unit_y)[:, :, None] + (dx * unit_x)[:, None, :]
    across = (dy * unit_x)[:, :, None] - (dx * unit_y)[:, None, :]
    past = np.maximum(np.abs(along) - half[:, :, None], 0)
    value = np.sqrt(across * across + past * past) - width[:, :, None]
    # Pixels outside the picture go to a spare cell at the end.
    inside = ((rows >= 0) & (rows < size))[:, :, None] & ((columns >= 0) & (columns < size))[:, None, :]
    place = (first[:, None] + rows)[:, :, None] * size + columns[:, None, :]
    index = np.where(inside, place, 2 * size * size)
    np.minimum.at(distance, index.ravel(), value.ravel())


def trace(
    generations: list[tuple[Curves, np.ndarray]],
    centre: tuple[float, float],
    cup: np.ndarray,
    *,
    bend: float,
    size: int,
    margin: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Measures the signed distance to the edges of arteries and of veins: float32 [size, size] each.

    Negative inside a vessel; right up to ``margin`` outside and large beyond it. ``cup`` is the cup's contour
    and ``bend`` the angle by which vessels turn inside it.
    """
    distance = np.full(2 * size * size + 1, _FAR * size, np.float32)
    for curves, is_artery in generations:
        curves = bend_vessels(curves, cup, bend)
        curves = curves._replace(x=curves.x + centre[0], y=curves.y + centre[1])
        _stamp(distance, size, curves, np.where(is_artery, 0, 1), margin)
    arteries, veins = (distance[:-1] * np.float32(2 / size)).reshape(2, size, size)
    return arteries, veins
