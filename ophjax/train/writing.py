"""Writes predictions as files: masks, overlays, maps, arrays, a table. What an output is tells its name and shape."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ophjax.data.incoming import Case, to_mask
from ophjax.metrics.ranking import choose_classes
from ophjax.train.results import write_pictures
from ophjax.train.runfolder import write_whole

# Okabe and Ito's palette, which all common kinds of colour blindness tell apart.
COLOURS = ((86, 180, 233), (230, 159, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66), (213, 94, 0), (0, 114, 178))
LISTED = 16
"""Vectors up to this length become columns of the table; longer ones are in the arrays only."""

Levels = tuple[int, tuple[int, ...]]


class Writer:
    """Writes the predictions of one run into a folder.

    ``masks/NAME.png`` (one file, the data set's pixel values, the image's own size), ``overlays/NAME.png`` (outlines),
    ``maps/OUTPUT/NAME.png`` (other maps [h, w] in [0, 1], such as attention), ``pictures/NAME.png`` (images),
    ``arrays/NAME.npz`` (all outputs; maps as float16, in the network's resolution) and ``predictions.csv``.

    Args:
      out: the folder.
      classes: names of the classes.
      regions: names of the regions.
      levels: pixel values of background and regions.
      exclusive, ordinal: see ``Method``.
      overlays, arrays: whether these are written.
    """

    def __init__(
        self,
        out: Path,
        *,
        classes: Sequence[str],
        regions: Sequence[str],
        levels: Levels,
        exclusive: bool | Literal["nested"],
        ordinal: bool = False,
        overlays: bool = True,
        arrays: bool = True,
    ):
        self._out, self._classes, self._regions = out, list(classes), list(regions)
        self._levels, self._exclusive, self._ordinal = levels, exclusive, ordinal
        self._overlays, self._arrays = overlays, arrays
        self.rows: list[dict[str, Any]] = []

    def write(self, file: Path, case: Case, outputs: Mapping[str, np.ndarray]) -> None:
        """Writes the files of one image and keeps its row of the table."""
        row: dict[str, Any] = {"name": case.name, "file": file.name}
        for name, value in sorted(outputs.items(), key=lambda item: (item[0] != "probs", item[0])):
            if name == "probs":
                row |= self._chosen(value)
            elif name == "mask_probs":
                row |= self._mask(case, value)
            elif value.ndim == 3 and value.dtype == np.uint8:
                save_picture(self._path("pictures", case.name), value)
            elif value.ndim <= 1 and value.size <= LISTED:
                flat = value.reshape(-1)
                names = [name] if value.ndim == 0 else [f"{name}_{i}" for i in range(len(flat))]
                row |= {key: f"{number:.6g}" for key, number in zip(names, flat.tolist(), strict=True)}
            elif value.ndim == 2:
                folder = self._path(f"maps/{name}", case.name).parent
                write_pictures(folder, [Path(case.name).name], value[None])
        if self._arrays:
            floats = {
                name: value.astype(np.float16 if value.ndim > 1 else np.float32)
                for name, value in outputs.items()
                if value.dtype.kind == "f" or value.dtype.name == "bfloat16"
            }
            stream = io.BytesIO()
            np.savez_compressed(stream, allow_pickle=False, **floats)
            write_whole(self._path("arrays", case.name, ".npz"), stream.getvalue())
        self.rows.append(row)

    def finish(self) -> Path:
        """Writes the table."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row)) or ["name", "file"]
        stream = io.StringIO()
        table = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        write_whole(self._out / "predictions.csv", stream.getvalue().encode())
        return self._out / "predictions.csv"

    def _chosen(self, probs: np.ndarray) -> dict[str, Any]:
        names = self._classes if len(self._classes) == len(probs) else [str(k) for k in range(len(probs))]
        columns: dict[str, Any] = {f"prob_{k}": f"{p:.6f}" for k, p in zip(names, probs.tolist(), strict=True)}
        return columns | {"predicted": names[choose_classes(probs[None], ordinal=self._ordinal)[0]]}

    def _mask(self, case: Case, probs: np.ndarray) -> dict[str, Any]:
        mask = to_mask(probs, case.size, case.frame, self._levels, exclusive=self._exclusive)
        save_picture(self._path("masks", case.name), mask)
        if self._overlays:
            save_picture(self._path("overlays", case.name), self._drawn(case, mask))
        # Where regions may lie within others, each is counted whole; where each is alone, of what the network sees.
        shares = [np.isin(mask, part).mean() if self._exclusive else (probs[..., i] > 0.5).mean()
                  for i, part in enumerate(self._parts())]  # fmt: skip
        return {f"share_{name}": f"{share:.6f}" for name, share in zip(self._regions, shares, strict=True)}

    def _drawn(self, case: Case, mask: np.ndarray) -> np.ndarray:
        return draw_outlines(case.picture, mask, self._parts())

    def _parts(self) -> list[tuple[int, ...]]:
        """The pixel values of each region."""
        values = self._levels[1]
        return [values[i : i + 1] if self._exclusive is True else values[i:] for i in range(len(values))]

    def _path(self, folder: str, name: str, suffix: str = ".png") -> Path:
        path = self._out / folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def save_picture(path: Path, pixels: np.ndarray) -> None:
    """Writes a PNG whole or not at all."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    write_whole(path, stream.getvalue())


def draw_outlines(picture: np.ndarray, mask: np.ndarray, regions: Sequence[Sequence[int]]) -> np.ndarray:
    """Draws the outlines of regions over a picture uint8 [i, j, 3], each inside its region.

    Args:
      picture: drawn on a copy of it.
      mask: of the same frame, of any size.
      regions: the pixel values that make each region: its own and those of regions within it, drawn over it.
    """
    from PIL import Image

    height, width = picture.shape[:2]
    small = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    drawn, thick = picture.copy(), max(round(max(height, width) / 400), 1)
    for i, values in enumerate(regions):
        inside = np.isin(small, values)
        core = inside
        for _ in range(thick):
            padded = np.pad(core, 1, mode="edge")
            core = core & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        drawn[inside & ~core] = COLOURS[i % len(COLOURS)]
    return drawn
