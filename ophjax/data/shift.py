"""Data sets of several domains made of pictures: what they share, which example goes where, and what cannot be.

A builder lists the examples of each domain; ``assemble`` does the rest alike for all of them. The first domain is the
source, on which everything is learned. Methods that adapt see the training images of the targets without labels, all
others see the targets at the test only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ophjax.data import files, images, look
from ophjax.data.files import FileSource, Record, some
from ophjax.data.images import MaskCode
from ophjax.data.sources import Cached, Dataset, Example, Joined, Source, Subset, Unlabelled, patient_number
from ophjax.data.split import check_given, split
from ophjax.errors import InputError, unknown
from ophjax.metrics.domain_scores import check_names

CACHE_BYTES = 1 << 30
"""Decoded pictures of all domains of a data set that are kept in memory."""

UNKNOWN = ("", "-1")
"""What stands in a table of labels where the label is not known."""


@dataclass(frozen=True)
class Config:
    """Pictures of several domains."""

    size: int = 256
    """Side of the square that images and masks of all domains are stretched to, in pixels."""
    val_fraction: float = 0.15
    """Share of each domain's images drawn for validation where the split is not given."""
    test_fraction: float = 0.25
    """Share of each domain's images drawn for the test where the split is not given. Without classes no target is
    trained on, and all that validation leaves of a target is for the test."""
    split_seed: int = 0
    """Seed of the draw."""
    domains: tuple[str, ...] = ()
    """The domains: the source first, then the targets."""


class Domain(NamedTuple):
    """The examples of one domain, and what decides where each of them goes.

    Attributes:
      name: of the domain.
      source: the examples, of the same entries in all domains of a data set.
      labels: class of each, -1 where it is not known.
      groups: patient of each, who stays in one split; see ``assemble``.
      parts: ``train``, ``val`` or ``test``, empty where it is to be drawn.
      masked: whether each has a mask.
      pixels: of each file, where reading one may fail: so many are read at once that small sets are checked whole.
    """

    name: str
    source: Source
    labels: Sequence[int]
    groups: Sequence[str]
    parts: Sequence[str]
    masked: Sequence[bool]
    pixels: Sequence[int] = ()


class Pictures:
    """Images from files, without masks, decoded when they are asked for: ``image`` and ``label``.

    Attributes:
      names: one for each record.
      pixels: number of pixels of each file, taken to be that of the first one: a set may have too many to open all.
    """

    def __init__(self, records: Sequence[Record], *, size: int):
        self.names = [record.name for record in records]
        self._records = list(records)
        self._size = size
        width, height = images.image_size(records[0].image)
        self.pixels = [width * height] * len(records)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        record = self._records[index]
        return {
            "image": images.read_image(record.image, self._size),
            "label": np.asarray(record.label, np.int32),
            "patient": patient_number(record.group),
        }


def check(config: Config, *, known: tuple[str, ...] = ()) -> None:
    """Raises InputError for a size out of range, or fewer than two domains, or some repeated, misnamed or not known."""
    if not 16 <= config.size <= 4096:
        raise InputError(f"The image size is {config.size}; give a side between 16 and 4096 pixels.")
    for name in config.domains:
        if known and name not in known:
            raise unknown("domain", name, known)
        if not name or name in (".", "..") or set(name) & set("/\\"):
            raise InputError(f"--data.domains names {name!r}; a domain has a plain name, without any folder.")
    check_names("domain", config.domains)
    listed = f" Known: {', '.join(known)}." if known else ""
    if len(config.domains) < 2:
        raise InputError(
            f"--data.domains names {len(config.domains)} domain(s) ({', '.join(config.domains) or 'none'}). Give at "
            f"least two, the source first and then the targets, e.g. --data.domains clinic-a clinic-b.{listed}"
        )
    twice = [name for name, count in Counter(config.domains).items() if count > 1]
    if twice:
        raise InputError(f"--data.domains names {some(twice)} more than once. Name each domain once.")


def domain_of(name: str, records: Sequence[Record], *, size: int, code: MaskCode | None = None) -> Domain:
    """Makes a domain of image files, and mask files where there is a mask code; its name goes before theirs."""
    if not records:
        raise InputError(f"Domain {name!r} has no images. Add some, or leave it out of --data.domains.")
    records = sorted((record._replace(name=f"{name}-{record.name}") for record in records), key=lambda one: one.name)
    source = Pictures(records, size=size) if code is None else FileSource(records, size=size, code=code)
    return Domain(
        name,
        source,
        labels=[record.label for record in records],
        groups=[record.group for record in records],
        parts=[record.part for record in records],
        masked=[record.mask is not None for record in records],
        pixels=source.pixels,
    )


def name_classes(labels: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """Finds the classes: the labels of the source, in numerical order where all are integers.

    Args:
      labels: of each domain as they are written, the source first; see ``UNKNOWN``.

    Returns:
      The classes, none where no domain has labels.

    Raises:
      InputError: where a target has a class that the source has not.
    """
    found = {name: set(given).difference(UNKNOWN) for name, given in labels.items()}
    source, *targets = found
    for target in targets:
        strange = sorted(found[target] - found[source])
        if strange:
            raise InputError(
                f"Domain {target!r} has the label(s) {some(strange)}, which the source {source!r} has not "
                f"({some(sorted(found[source])) or 'it has no labels'}), so that they could not be learned. Write "
                "labels alike in all domains, add images to the source or name another, or leave these labels empty."
            )
    try:
        return tuple(sorted(found[source], key=int))
    except ValueError:
        return tuple(sorted(found[source]))


def class_index(label: str, classes: Sequence[str]) -> int:
    """Looks up a label as it is written; -1 where it is not known."""
    return -1 if label in UNKNOWN else classes.index(label)


def assemble(
    name: str,
    domains: Sequence[Domain],
    *,
    config: Config,
    regions: Sequence[str] = (),
    classes: Sequence[str] = (),
    shared: bool = False,
) -> Dataset:
    """Builds the data set out of its domains: checks, splits, reading with a cache.

    Where a domain says its split, it is kept; a split that it does not give is drawn by seed, stratified by label,
    patients kept whole: within a domain, or where they are ``shared`` over all domains. Where there are classes,
    ``val`` and ``test`` hold the labelled images of all domains, a target's images without label being in ``domains``
    only; else they hold all images with masks. A target of which nothing can be scored keeps its number among the
    domains.

    Returns:
      A data set with the splits ``train``, ``val``, ``test``; ``masks`` where there are regions; ``domains`` where
      there are classes, and ``labelled``, the same with labels, where all targets have them.

    Raises:
      InputError: where the source lacks labels, masks, a class or enough patients; a labelled target has one class
        only; a patient is divided between splits; a region is in the masks of some domains and not of others; a file
        is bad.
    """
    source, *targets = domains
    if not regions and not classes:
        raise InputError(
            f"The source {source.name!r} has neither labels nor masks, so that nothing can be learned from it. Add "
            "them, or name a labelled domain first in --data.domains."
        )
    _check_labels(source, targets, classes)
    if regions and not any(source.masked):
        raise InputError(
            f"The source {source.name!r} has no masks, but {some(one.name for one in targets if any(one.masked))} has. "
            "Segmentation is learned from the source alone: add its masks, name another domain first, or remove masks."
        )
    parts = _place(domains, config, classes, shared=shared)
    for domain, placed in zip(domains, parts, strict=True):
        _check_parts(domain, placed, classes, target=domain is not source)
    reading: list[Source] = [
        Cached(domain.source, limit_bytes=CACHE_BYTES // len(domains)) if domain.pixels else domain.source
        for domain in domains
    ]
    _read_first(domains, reading, regions)

    def pick(part: str) -> list[Source]:
        return [Subset(whole, placed[part]) for whole, placed in zip(reading, parts, strict=True)]

    train, *others = pick("train")
    splits: dict[str, Source] = {"train": train}
    if regions:
        masked = [i for i in parts[0]["train"] if source.masked[i]]
        splits["masks"] = train if len(masked) == len(train) else Subset(reading[0], masked)
    if classes:
        splits["domains"] = Joined([train, *(Unlabelled(other) for other in others)])
        if all(one.labels[i] >= 0 for one, placed in zip(targets, parts[1:], strict=True) for i in placed["train"]):
            splits["labelled"] = Joined([train, *others])
    splits |= {part: Joined(pick(part)) for part in ("val", "test")}
    return Dataset(
        name,
        tuple(regions),
        tuple(classes),
        splits,
        _describe(domains, parts, config, bool(classes), shared),
        tuple(domain.name for domain in domains),
    )


def _check_labels(source: Domain, targets: Sequence[Domain], classes: Sequence[str]) -> None:
    bare = [name for name, label in zip(source.source.names, source.labels, strict=True) if label < 0]
    if classes and bare:
        raise InputError(
            f"The source {source.name!r} has {len(bare)} image(s) without a label: {some(bare)}. The source must be "
            "labelled throughout; targets need not be. Add labels, remove the images, or name another domain first."
        )
    for domain in (source, *targets):
        found = set(domain.labels) - {-1}
        if len(found) == 1 and classes:
            raise InputError(
                f"All labelled images of domain {domain.name!r} are of class {classes[found.pop()]!r}. At least two "
                "classes are needed to train and to score: check its labels, or leave those of a target empty."
            )


def _place(
    domains: Sequence[Domain], config: Config, classes: Sequence[str], *, shared: bool
) -> list[dict[str, list[int]]]:
    """Says which examples of each domain are in which split."""
    placed = []
    for same in [domains] if shared else [[domain] for domain in domains]:
        check_given((one.name, *pair) for one in same for pair in zip(one.groups, one.parts, strict=True))
        homes: dict[str, str] = {}
        for domain in same:
            homes |= _draw(domain, same, homes, config, classes, target=domain is not domains[0])
        for domain in same:
            parts: dict[str, list[int]] = {part: [] for part in files.PARTS}
            for i, (group, scored) in enumerate(zip(domain.groups, _scored(domain, classes), strict=True)):
                part = homes.get(group, "train")
                # What has no truth can be scored nowhere, and without classes it teaches nothing either.
                if scored or (part == "train" and classes):
                    parts[part].append(i)
            placed.append(parts)
    return placed


def _scored(domain: Domain, classes: Sequence[str]) -> list[bool]:
    return [label >= 0 for label in domain.labels] if classes else list(domain.masked)


def _drawn(domain: Domain) -> list[str]:
    return [part for part in ("val", "test") if part not in domain.parts]


def _draw(
    domain: Domain,
    same: Sequence[Domain],
    homes: dict[str, str],
    config: Config,
    classes: Sequence[str],
    *,
    target: bool,
) -> dict[str, str]:
    """Says in which split a domain's patients are, as far as it is given or can be drawn.

    ``same`` are all domains of the same patients, this one too, and ``homes`` those of them who are drawn already.
    """
    drawn, own = _drawn(domain), set(domain.groups)
    given: dict[str, str] = {}
    for other in same:
        # Who is given for training may be drawn where that domain lacks the same splits.
        free = ("", "train") if set(drawn) <= set(_drawn(other)) else ("",)
        given |= {group: part for group, part in zip(other.groups, other.parts, strict=True) if part not in free}
    settled = {group: part for group, part in (given | homes).items() if group in own}
    fractions = {"val": config.val_fraction, "test": config.test_fraction}
    shares = {"train": 1 - sum(fractions[part] for part in drawn)} | {part: fractions[part] for part in drawn}
    spare = target and not classes and len(drawn) == 2
    if spare:
        shares = {"val": config.val_fraction, "test": 1 - config.val_fraction}
    scored = _scored(domain, classes)
    pool = [i for i, group in enumerate(domain.groups) if scored[i] and settled.get(group) in (None, *shares)]
    groups = [domain.groups[i] for i in pool]
    patients = set(groups)
    if not drawn or patients <= settled.keys():
        return settled
    if spare and len(patients) == 1:
        shares = {"test": 1.0}
    if not classes and len(patients) < len(shares):
        raise InputError(
            f"Domain {domain.name!r} has images with masks of only {len(patients)} patient(s), but they must be "
            f"divided into {len(shares)} parts ({', '.join(shares)}). Add images, or name another domain first."
        )
    labels = np.array([classes[domain.labels[i]] if classes else "" for i in pool])
    number = {part: k for k, part in enumerate(shares)}
    known = {group: number[settled[group]] for group in patients & settled.keys()}
    try:
        chosen = split(labels, groups, fractions=list(shares.values()), seed=config.split_seed, settled=known)
    except InputError as error:
        raise InputError(f"Domain {domain.name!r} cannot be divided. {error}") from error
    return settled | {groups[i]: part for part, rows in zip(shares, chosen, strict=True) for i in rows}


def _check_parts(domain: Domain, placed: dict[str, list[int]], classes: Sequence[str], *, target: bool) -> None:
    for part, chosen in placed.items():
        if not chosen and not target:
            raise InputError(f"The {part} split of the source {domain.name!r} is empty. Put examples into it.")
        found = {domain.labels[i] for i in chosen}
        if classes and chosen and part != "train" and len(found) < 2:
            raise InputError(
                f"The {part} split of domain {domain.name!r} has {len(chosen)} example(s), all of class "
                f"{classes[found.pop()]!r}, so that it cannot be scored. Give it at least two classes."
            )
    absent = set(range(len(classes))) - {domain.labels[i] for i in placed["train"]}
    if absent and not target:
        raise InputError(
            f"The train split of the source {domain.name!r} has no example of class {classes[min(absent)]!r}, which "
            "could not be learned. Put some into it, or leave the class out."
        )


def _read_first(domains: Sequence[Domain], reading: Sequence[Source], regions: Sequence[str]) -> None:
    """Reads small sets whole and large ones in part, so that bad files and masks show now and not at the test.

    What is read stays in the cache, where there is room: for a small set this is no extra work.
    """
    seen: dict[str, np.ndarray] = {}
    for domain, source in zip(domains, reading, strict=True):
        affordable = np.flatnonzero(np.cumsum(domain.pixels) <= files.CHECKED_PIXELS // len(domains)).tolist()

        def regions_at(index: int, source: Source = source) -> np.ndarray:
            mask = source[index].get("mask")
            return np.asarray(False if mask is None else mask.any((0, 1)))

        found = [one for one in look.each(regions_at, affordable) if not isinstance(one, InputError)]
        if regions and any(domain.masked) and len(found) == len(source):
            seen[domain.name] = np.any(found, axis=0)
    for c, region in enumerate(regions):
        has, lacks = ([name for name, found in seen.items() if found[c] == value] for value in (True, False))
        if has and lacks:
            raise InputError(
                f"No mask of domain {lacks[0]!r} holds the region {region!r}, which those of {some(has)} hold. All "
                "domains must have the same regions in the same pixel values: correct the masks, or leave the region "
                "out of the mask code."
            )


def _describe(
    domains: Sequence[Domain], parts: Sequence[dict[str, list[int]]], config: Config, classified: bool, shared: bool
) -> str:
    sizes = []
    for number, (domain, placed) in enumerate(zip(domains, parts, strict=True)):
        role = "target" if number else "source"
        counts = ", ".join(f"{len(chosen)} {part}" for part, chosen in placed.items() if chosen)
        sizes.append(f"{role} {domain.name} {counts or 'nothing to score'}")
    told = [
        domain.name
        for domain, placed in zip(domains[1:], parts[1:], strict=True)
        if classified and any(domain.labels[i] >= 0 for i in placed["train"])
    ]
    silent = [domain.name for domain, placed in zip(domains[1:], parts[1:], strict=True) if not placed["test"]]
    note = "; ".join(sizes) + f". Images of any size are stretched to {config.size} x {config.size} pixels."
    if told:
        note += f" The training images of {some(told)} carry labels, which are not used in training."
    if silent:
        note += f" {some(silent)} cannot be scored: the truth is not known."
    if any(part not in domain.parts for domain in domains for part in ("val", "test")):
        note += f" Splits that were not given are drawn by seed {config.split_seed}, patients kept whole "
        note += "over all domains." if shared else "within a domain."
    return note
