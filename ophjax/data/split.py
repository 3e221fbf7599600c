"""Splits of a labelled set into parts: stratified by class, never dividing a group (a patient)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ophjax.errors import InputError


def split(
    labels: Sequence[int] | np.ndarray,
    groups: Sequence[str],
    *,
    fractions: Sequence[float],
    seed: int,
    settled: Mapping[str, int] | None = None,
) -> list[np.ndarray]:
    """Splits positions into parts, the classes in equal shares and each group within one part.

    Groups are taken in an order given by a hash of seed and group name, so that the result is the same on
    every machine and in every version, does not depend on the order of the input beyond numbering, and
    changes little when an image is added. Each group goes to the part that still lacks most of its classes.
    Where every group holds one image, the count of each class in each part is less than one away from its
    share, and at least one.

    Args:
      labels: [n] class of each position.
      groups: [n] name of the group of each position.
      fractions: share of each part; positive, summing to 1.
      seed: any integer that is not negative.
      settled: part of each group that is not to be drawn; such groups count in the shares.

    Returns:
      For each part a sorted int64 array of positions; together they hold each position once.

    Raises:
      InputError: where fractions or seed make no sense, or where a class cannot be had in every part.
    """
    labels = np.asarray(labels)
    shares = np.asarray(fractions, np.float64)
    if not ((shares > 0).all() and abs(float(shares.sum()) - 1) < 1e-6):
        raise InputError(
            f"The split fractions are {', '.join(f'{x:g}' for x in fractions)}, but each must be above 0 and "
            "together they must make 1: choose the validation and test fractions so that a positive rest "
            "remains for training."
        )
    if seed < 0:
        raise InputError(f"The split seed is {seed}; give an integer that is not negative.")
    if len(labels) != len(groups):
        raise ValueError(f"{len(labels)} labels, {len(groups)} groups")
    classes, codes = np.unique(labels, return_inverse=True)
    members: dict[str, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(group, []).append(position)
    counts = {group: np.bincount(codes[positions], minlength=len(classes)) for group, positions in members.items()}
    holders = sum((count > 0 for count in counts.values()), start=np.zeros(len(classes), int))
    for name, number in zip(classes.tolist(), np.atleast_1d(holders).tolist(), strict=True):
        if number < len(shares):
            raise InputError(
                f"Class {name} occurs in only {number} group(s) (images, or patients where these are "
                f"given), too few to have it in each of the {len(shares)} parts. Add examples, leave the "
                "class out, or give the split yourself."
            )

    totals = np.bincount(codes, minlength=len(classes)).astype(np.float64)
    lacking = np.maximum(shares[:, None] * totals, 1.0)
    # What the small parts were lifted by, the largest part gives.
    largest = int(shares.argmax())
    lacking[largest] += totals - lacking.sum(0)
    parts: list[list[int]] = [[] for _ in shares]
    settled = settled or {}
    for group in sorted(members, key=lambda name: (name not in settled, _order(seed, name))):
        # Divided by the class total, so that a rare class counts as much as a common one.
        part = settled[group] if group in settled else int((lacking * counts[group] / totals).sum(1).argmax())
        parts[part] += members[group]
        lacking[part] -= counts[group]
    for positions in parts:
        if len(np.unique(codes[positions])) < len(classes):
            raise InputError(
                f"With seed {seed} one of the {len(shares)} parts has no example of some class, because "
                "whole groups (patients) must stay together. Try another split seed or larger "
                "fractions, or give the split yourself."
            )
    return [np.asarray(sorted(part), np.int64) for part in parts]


def check_given(given: Iterable[tuple[str, str, str]]) -> None:
    """Raises InputError where a patient is given to two parts.

    Args:
      given: domain, patient and part of each example; an empty part is none.
    """
    homes: dict[str, tuple[str, str]] = {}
    for domain, patient, part in given:
        first, where = homes.setdefault(patient, (part, domain)) if part else (part, domain)
        if first != part:
            whole = f"domain {where!r}" if where == domain else f"domains {where!r} and {domain!r}"
            raise InputError(
                f"Patient {patient!r} of {whole} has images in the {first} and in the {part} split. Put all images of "
                "a patient into one split; different patients need different names."
            )


def _order(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
