"""Overlap and edges of two regions on the host, exact, at any size. NumPy, and SciPy for distances."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ophjax.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

    Region = Bool[np.ndarray, "h w"]


def same_size(found: Region, truth: Region) -> None:
    """Raises InputError where two masks have different sizes: nothing is stretched in silence."""
    if found.shape != truth.shape or found.ndim != 2:
        raise InputError(
            f"The predicted mask has {list(found.shape)} pixels (rows, columns) and the true one {list(truth.shape)}; "
            "both must have the size of the original image. Resize the prediction to it, by the nearest pixel."
        )


def dice(found: Region, truth: Region) -> float:
    """Computes 2 |A and B| / (|A| + |B|): 1 where both are empty, 0 where one is."""
    same_size(found, truth)
    sizes = int(found.sum()) + int(truth.sum())
    return 2.0 * int((found & truth).sum()) / sizes if sizes else 1.0


def height(region: Region) -> int:
    """Counts the rows from the first to the last that the region touches; 0 where it is empty."""
    rows = np.flatnonzero(region.any(1))
    return int(rows[-1] - rows[0]) + 1 if rows.size else 0


def edge(region: Region, *, border: bool = False) -> Int[np.ndarray, "n 2"]:
    """Finds the pixels of a region that have one of their four neighbours outside of it.

    Args:
      region: the mask.
      border: count what lies beyond the image as outside. By default it counts as inside: layers of a scan span its
        whole width, and its first and last column are not their edge (GOALS spec, section (h)).

    Returns:
      Rows and columns of the edge.
    """
    around = np.pad(region, 1, constant_values=not border)
    inner = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return np.argwhere(region & ~inner)


def edge_distance(found: Region, truth: Region, *, border: bool = False) -> float:
    """Computes the mean distance of the edge of ``found`` to the nearest edge pixel of ``truth``, in pixels.

    Directed: parts of the truth that were missed cost nothing. Both empty gives 0, one empty the image's diagonal. A
    region that fills the image has no edge, and then counts as its outermost pixels would.

    Args:
      found: the region whose edge is measured.
      truth: the region that it is measured against.
      border: see ``edge``.
    """
    from scipy.spatial import cKDTree

    same_size(found, truth)
    if not found.any() or not truth.any():
        return 0.0 if found.any() == truth.any() else math.hypot(*found.shape)
    ours, theirs = (
        points if len(points) else edge(region, border=True)
        for region in (found, truth)
        for points in [edge(region, border=border)]
    )
    return float(cKDTree(theirs).query(ours)[0].mean())
