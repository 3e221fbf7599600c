"""Textures: drawn eye grounds full of vessels, as pairs of low and high resolution; nothing is read from disk.

The pictures are the phantoms' (optic disc, vessels, nerve fibres, sensor noise) drawn at twice the size and shrunk, so
that vessels are one to three pixels wide and little of the noise is left. Inputs are made by MATLAB's bicubic rule,
those of ``unpaired`` (and, where asked, of the test) by taking every n-th pixel: another camera, of which no truth is
known to the training.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, Literal

from ophjax.data import phantoms
from ophjax.data.pairs import halves, input_only, pyramid, steps, subsampled, with_inputs
from ophjax.data.sources import Cached, Dataset, Example, Source
from ophjax.errors import InputError
from ophjax.transforms.resizing import resize_bytes

# Changes to Config for the paper's scale, for two CPU cores, and for tests.
PAPER: dict[str, Any] = dict(size=480)
DEMO: dict[str, Any] = dict(size=96, scale=2)
SMOKE: dict[str, Any] = dict(size=32, scale=2, train=16, val=8, test=8, unpaired=8)

_ROOM = 100_000
_FIRST = {"train": 0, "val": _ROOM, "test": 2 * _ROOM, "unpaired": 3 * _ROOM}
_CAMERAS = ("clinic", "cool")


@dataclass(frozen=True)
class Config:
    """Drawn eye grounds in low and high resolution; nothing is read from disk."""

    size: int = 96
    """Side of the square pictures in high resolution, a multiple of the scale, at least 32."""
    scale: int = 4
    """How many times smaller the inputs are: 2, 4 or 8."""
    seed: int = 0
    """Chooses the scenes: example i of a seed is always the same."""
    train: int = 200
    """Training pictures."""
    val: int = 20
    """Validation pictures."""
    test: int = 60
    """Test pictures."""
    unpaired: int = 100
    """Inputs of another kind, without truth, for the adaptation."""
    test_inputs: Literal["bicubic", "nearest"] = "bicubic"
    """How the test inputs are made: as those of the training, or as those without truth, by taking every n-th pixel."""


class Textures:
    """Random access to a range of examples; nothing is kept between calls."""

    def __init__(self, config: Config, part: str) -> None:
        self.config = config
        self.part = part
        self.names = [f"texture-{_FIRST[part] + i:06d}" for i in range(getattr(config, part))]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Example:
        i = operator.index(i)
        if not 0 <= i < len(self):
            raise IndexError(f"Example {i} of {len(self)}.")
        config, index = self.config, _FIRST[self.part] + i
        scene, _ = phantoms.draw_scene(config.seed, index, _CAMERAS)
        target = resize_bytes(phantoms.draw_image(scene, config.seed, index, 2 * config.size), 2)
        if self.part == "unpaired":
            return input_only(subsampled(target, config.scale)["image"], config.scale)
        if self.part == "test" and config.test_inputs == "nearest":
            return subsampled(target, config.scale)
        return pyramid(target, config.scale)


def make(config: Config) -> Dataset:
    """Makes the splits: ``train``, ``search`` (its halves in turn), ``adapt`` (mixed with ``unpaired``), val and test.

    Raises:
      InputError: a size, scale, count or seed that cannot be.
    """
    steps(config.scale)
    if config.size < 32 or config.size % config.scale:
        raise InputError(
            f"Textures of size {config.size} at scale {config.scale} were asked for. Give --data.size a multiple of "
            "the scale, at least 32."
        )
    counts = {part: getattr(config, part) for part in _FIRST}
    if min(counts.values()) < 1 or max(counts.values()) > _ROOM or config.seed < 0:
        listed = ", ".join(f"{part} {count}" for part, count in counts.items())
        raise InputError(
            f"Textures were asked for with {listed} and seed {config.seed}. Each split holds 1 to {_ROOM} pictures, "
            "and the seed is not negative."
        )
    parts: dict[str, Source] = {part: Cached(Textures(config, part)) for part in _FIRST}
    unpaired = parts.pop("unpaired")
    parts["search"] = halves(parts["train"])
    if len(parts["train"]) >= 7 and len(unpaired) >= 3:
        parts["adapt"] = with_inputs(parts["train"], unpaired)
    return Dataset(
        name="textures",
        regions=(),
        classes=(),
        splits=parts,
        note=f"Drawn from seed {config.seed} at {config.scale}x; each split has a range of scenes of its own."
        + (" Test inputs take every n-th pixel." if config.test_inputs == "nearest" else ""),
        scale=config.scale,
    )
