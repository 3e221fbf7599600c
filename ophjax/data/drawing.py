"""Pieces that all drawn data sets are made of: random numbers by purpose, soft edges, clouds, contours.

Lengths are in half image sides (a picture spans -1 to 1, x to the right, y down) and angles in radians from the x axis
towards y, so that one scene gives the same picture at any size.
"""

from __future__ import annotations

import math
import zlib
from functools import lru_cache
from typing import NamedTuple

import numpy as np

# Contours are tables of radius over ANGLES equal steps of angle, read by linear interpolation.
ANGLES = 256
TURN = 2.0 * math.pi
THETA = np.arange(ANGLES, dtype=np.float32) * (TURN / ANGLES)


def stream(seed: int, index: int, *names: str | int) -> np.random.Generator:
    """Makes the random numbers of one purpose in one example."""
    words = [zlib.crc32(name.encode()) if isinstance(name, str) else name for name in names]
    return np.random.default_rng([seed, index, *words])


class Grid(NamedTuple):
    """Where each pixel lies: picture and polar coordinates, float32 [size, size]."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    theta: np.ndarray

    def read(self, table: np.ndarray) -> np.ndarray:
        """Reads a table over angles at each pixel."""
        place = self.theta * np.float32(ANGLES / TURN)
        low = np.floor(place)
        fraction = place - low
        index = low.astype(np.int32)
        left = np.take(table, index, mode="wrap")
        return left + fraction * (np.take(table, index + 1, mode="wrap") - left)

    def turn(self, angle: float | np.ndarray) -> np.ndarray:
        """Gives the angle between each pixel's direction and ``angle``, in [-pi, pi]."""
        apart = self.theta - angle
        return apart - np.float32(TURN) * np.rint(apart * np.float32(1 / TURN))


def lay_grid(centre: tuple[float, float], size: int) -> Grid:
    """Computes the coordinates of the pixel centres of a square picture about a centre."""
    line = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / size) - 1
    x, y = np.broadcast_to(line[None, :], (size, size)), np.broadcast_to(line[:, None], (size, size))
    dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
    return Grid(x, y, np.sqrt(dx * dx + dy * dy), np.arctan2(dy, dx))


def wave(rng: np.random.Generator, amplitude: float) -> np.ndarray:
    """Draws a smooth closed ripple over angles with zero mean: float32 [ANGLES], rms about ``amplitude``."""
    order = np.arange(2, 6)
    size, phase = rng.normal(0, 1, order.size) / order, rng.uniform(0, TURN, order.size)
    ripple = (size[:, None] * np.cos(order[:, None] * THETA + phase[:, None])).sum(0)
    return (amplitude * ripple / math.sqrt(0.5 * (1.0 / order**2).sum())).astype(np.float32)


def step(value: np.ndarray, width: float) -> np.ndarray:
    """Rises smoothly from 0 to 1 as ``value`` goes from -width to width."""
    t = np.clip(value * np.float32(0.5 / width) + np.float32(0.5), 0, 1)
    return t * t * (3 - 2 * t)


def lay(picture: np.ndarray, colour: tuple[float, ...] | float, cover: np.ndarray) -> None:
    """Covers a picture [channels, size, size] with a colour, in place; ``cover`` is 0 to 1."""
    picture += cover * (np.array(colour, np.float32).reshape(-1, 1, 1) - picture)


@lru_cache(maxsize=64)
def weights(size: int, cells: int) -> np.ndarray:
    """Cosine interpolation from ``cells + 1`` knots to pixel centres, as a matrix [size, cells + 1]."""
    place = (np.arange(size) + 0.5) * (cells / size)
    low = np.minimum(place.astype(int), cells - 1)
    part = 0.5 - 0.5 * np.cos(np.pi * (place - low))
    matrix = np.zeros((size, cells + 1), np.float32)
    matrix[np.arange(size), low] = 1 - part
    matrix[np.arange(size), low + 1] = part
    return matrix


def clouds(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Draws smooth noise with the same pattern at any size: float32 [size, size], values about -1 to 1."""
    matrix = weights(size, cells)
    return matrix @ rng.normal(0, 0.5, (cells + 1, cells + 1)).astype(np.float32) @ matrix.T


def ripples(rng: np.random.Generator, grid: Grid, pitch: float, count: int = 9) -> np.ndarray:
    """Draws noise of one scale that prefers no direction: float32 [size, size], mean 0, variance about 1.

    Plane waves of ``pitch`` radians per half image side, from all directions. Its zeros make a net of loops.
    """
    course, phase = rng.uniform(0, TURN, (2, count, 1)).astype(np.float32)
    # exp(i k.x) is a product of a function of x and one of y, so that the sum is a matrix product.
    x, y = grid.x[0] * np.float32(pitch), grid.y[:, 0] * np.float32(pitch)
    rows, columns = np.exp(1j * y * np.sin(course)), np.exp(1j * (x * np.cos(course) + phase))
    return (rows.T @ columns).real * np.float32(math.sqrt(2 / count))


def to_bytes(picture: np.ndarray) -> np.ndarray:
    """Turns a picture [3, size, size] of values 0 to 1 into uint8 [size, size, 3]."""
    return np.ascontiguousarray(np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0))
