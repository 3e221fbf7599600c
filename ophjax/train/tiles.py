"""Images of any size through a network tile by tile, so that memory does not grow with them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def places(size: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along an axis: all inside, each sharing at least ``overlap`` with the next."""
    if size <= tile:
        return [0]
    count = -(-(size - overlap) // (tile - overlap))
    return [round(i * (size - tile) / (count - 1)) for i in range(count)]


def upscale(
    enlarge: Callable[[np.ndarray], np.ndarray], image: np.ndarray, *, scale: int, tile: int, overlap: int
) -> np.ndarray:
    """Enlarges an image tile by tile; where tiles overlap, each gives its half.

    Args:
      enlarge: of float32 [h, w, 3] to [s h, s w, 3]; called with one shape only where the image is larger than a tile.
      image: uint8 [h, w, 3].
      scale: s.
      tile: side of the tiles; a shorter side of the image is taken whole.
      overlap: pixels that neighbours share, below the tile's side.

    Returns:
      uint8 [s h, s w, 3].
    """
    height, width, _ = image.shape
    found = np.empty((scale * height, scale * width, 3), np.uint8)
    rows, columns = places(height, tile, overlap), places(width, tile, overlap)
    for i, top in enumerate(rows):
        # The half of what is shared with the tile before and with the one behind.
        first = (rows[i - 1] + tile + top + 1) // 2 if i else 0
        last = (top + tile + rows[i + 1] + 1) // 2 if i + 1 < len(rows) else height
        for j, left in enumerate(columns):
            start = (columns[j - 1] + tile + left + 1) // 2 if j else 0
            stop = (left + tile + columns[j + 1] + 1) // 2 if j + 1 < len(columns) else width
            part = enlarge(image[top : top + tile, left : left + tile].astype(np.float32))
            part = np.clip(np.round(part), 0, 255).astype(np.uint8)
            y, x = scale * (first - top), scale * (start - left)
            found[scale * first : scale * last, scale * start : scale * stop] = part[
                y : y + scale * (last - first), x : x + scale * (stop - start)
            ]
    return found
