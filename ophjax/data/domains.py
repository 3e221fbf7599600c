"""Drawn data sets of several domains: the splits, and what a configuration must keep.

A domain is a way of taking pictures. It changes how a scene looks and never what it shows, so that a scene drawn in two
domains has one label and one mask. Yet no scene occurs twice in a data set: every split of every domain takes its
scenes from a range of indices of its own, as hospitals see patients of their own. The ranges belong to the domain's
name: which other domains are asked for, and how many examples, changes nothing.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from ophjax.data.sources import Cached, Dataset, Example, Joined, Source, Unlabelled
from ophjax.errors import InputError, unknown

SPLITS = ("train", "val", "test")
ROOM = 100_000


@dataclass(frozen=True)
class Config:
    """Drawn pictures of several domains; nothing is read from disk."""

    size: int = 64
    """Side of the square pictures in pixels, at least 32."""
    seed: int = 0
    """Chooses the scenes: each example of a seed is always the same."""
    train: int = 240
    """Training pictures of each domain."""
    val: int = 100
    """Validation pictures of each domain."""
    test: int = 400
    """Test pictures of each domain."""
    domains: tuple[str, ...] = ()
    """The domains: the source first, then the targets."""


class Draw(Protocol):
    """Draws one example: ``example = draw(seed, index, domain, size)``; the scene is given by seed and index."""

    def __call__(self, seed: int, index: int, domain: str, size: int) -> Example: ...

    def __hash__(self) -> int: ...


class Drawn:
    """Random access to a range of one domain's examples; nothing is kept between calls."""

    def __init__(self, draw: Draw, seed: int, size: int, domain: str, indices: range) -> None:
        self._draw = draw
        self._seed = seed
        self._size = size
        self.domain = domain
        self.indices = indices
        self.names = [f"{domain}-{index:07d}" for index in indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        i = operator.index(i)
        if not 0 <= i < len(self):
            raise IndexError(f"Example {i} of {len(self)}.")
        return self._draw(self._seed, self.indices[i], self.domain, self._size)


@lru_cache(maxsize=16)
def _part(draw: Draw, seed: int, size: int, domain: str, indices: range) -> Source:
    """Makes one domain's part of a split; kept, so that the runs of a comparison do not draw the same pictures anew."""
    return Cached(Drawn(draw, seed, size, domain, indices))


def make(
    config: Config,
    draw: Draw,
    *,
    name: str,
    known: tuple[str, ...],
    regions: tuple[str, ...] = (),
    classes: tuple[str, ...] = (),
) -> Dataset:
    """Makes the splits: ``train`` the source alone, ``val`` and ``test`` all domains.

    Where there are classes, ``domains`` holds the source's training pictures and those of each target without their
    labels, and ``labelled`` the same with them, for an upper bound. Where there are regions, ``masks`` is ``train``
    again.

    Args:
      config: of the data set.
      draw: of the data set.
      name: as in the registry.
      known: names of all domains that ``draw`` knows, in a fixed order.
      regions, classes: of the data set.

    Raises:
      InputError: a size, count or seed out of range; no, an unknown or a repeated domain.
    """
    _check(config, name, known)
    if config.train < len(classes):
        raise InputError(
            f"{config.train} training pictures cannot show each of the {len(classes)} classes of {name}. Set "
            f"--data.train to {len(classes)} or more."
        )

    def part(split: str, domain: str) -> Source:
        first = (len(SPLITS) * known.index(domain) + SPLITS.index(split)) * ROOM
        return _part(draw, config.seed, config.size, domain, range(first, first + getattr(config, split)))

    source, *targets = config.domains
    splits: dict[str, Source] = {"train": part("train", source)}
    if regions:
        splits["masks"] = splits["train"]
    if classes:
        parts = [part("train", target) for target in targets]
        splits["domains"] = Joined([splits["train"], *map(Unlabelled, parts)])
        splits["labelled"] = Joined([splits["train"], *parts])
    splits |= {split: Joined([part(split, domain) for domain in config.domains]) for split in ("val", "test")}
    return Dataset(
        name=name,
        regions=regions,
        classes=classes,
        splits=splits,
        note=f"Drawn from seed {config.seed}: every split of every domain has a range of scenes of its own.",
        domains=config.domains,
    )


def _check(config: Config, name: str, known: tuple[str, ...]) -> None:
    if config.size < 32:
        raise InputError(
            f"Pictures of size {config.size} were asked for; {name} need at least 32 pixels. "
            "Set --data.size to 32 or more, e.g. 64."
        )
    for split in SPLITS:
        count = getattr(config, split)
        if not 1 <= count <= ROOM:
            raise InputError(
                f"{count} pictures of each domain were asked for with --data.{split}; a split holds 1 to {ROOM}. "
                f"Set --data.{split} within that range."
            )
    if config.seed < 0:
        raise InputError(f"The seed of {name} is {config.seed}; it may not be negative. Set --data.seed to 0 or more.")
    if not config.domains:
        raise InputError(f"No domain was given for {name}. Name the source and then the targets: {', '.join(known)}.")
    for domain in config.domains:
        if domain not in known:
            raise unknown(f"domain of {name}", domain, known)
    twice = sorted({domain for domain in config.domains if config.domains.count(domain) > 1})
    if twice:
        raise InputError(
            f"--data.domains names {', '.join(twice)} more than once, so that source and target, or two targets, would "
            "be the same. Name each domain once."
        )
