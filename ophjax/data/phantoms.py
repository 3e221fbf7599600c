"""Phantoms: an endless data set of drawn optic nerve heads with masks, raters and a glaucoma label.

The label is a rule on latent numbers, made so that neither the masks nor the picture alone are a short cut:

    positive = cdr > HIGH  or  (cdr > LOW  and  (defect or rim pallor))

- ``cdr`` is the vertical cup-to-disc ratio of the true masks. The cup edge is faint and mostly blue; the
  brightest region is a pale disc whose size tells nothing about the cup.
- ``defect`` is a notch in the rim *with* a dark nerve-fibre wedge that starts at the disc edge at the notch's
  clock position. Decoys: a notch alone, a rooted wedge without a notch, a wedge that starts away from the disc,
  narrow shadows beside vessels.
- ``rim pallor`` is a pale sector between cup edge and disc edge. Decoys: a pale sector within the cup,
  peripapillary atrophy (outside the disc edge), pale patches on the retina.

Each sign must thus be placed relative to disc and cup. With rule ``ratio`` the label hangs on the cup alone, positive =
cdr > MIDDLE, and every sign is a decoy: all that a reader needs is a true mask. Scenes do not depend on the size of the
picture, on the camera or on how many examples are asked for. Every example carries its label; training on few labels
means reading the labels of ``train`` alone. All numbers here are our own decisions.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ophjax.data import fundus
from ophjax.data.drawing import THETA, TURN, lay_grid, stream, wave
from ophjax.data.sources import Cached, Dataset, Source, Subset
from ophjax.errors import InputError, unknown

# Changes to Config for two CPU cores, and for tests.
DEMO: dict[str, Any] = dict(size=64)
SMOKE: dict[str, Any] = dict(size=32, masks=16, labelled=16, val=16, test=16)

LOW, MIDDLE, HIGH = 0.50, 0.60, 0.69

ROLES = ("competent", "over-segmenting", "decoy-following", "noisy", "generous")

# Splits take their examples from ranges of indices that cannot meet.
_ROOM = 100_000
_FIRST = {"masks": 0, "val": _ROOM, "test": 2 * _ROOM}


@dataclass(frozen=True)
class Config:
    """Drawn optic nerve heads; nothing is read from disk."""

    size: int = 64
    """Side of the square pictures in pixels, at least 32."""
    rule: Literal["signs", "ratio"] = "signs"
    """What makes the label: the cup-to-disc ratio together with the signs, or the ratio alone."""
    seed: int = 0
    """Chooses the scenes: example i of a seed is always the same."""
    masks: int = 260
    """Training pictures with masks, for the segmentation net."""
    labelled: int = 120
    """Training pictures with a label, for the diagnosis net: the first of the same pool, which grows at need."""
    val: int = 100
    """Validation pictures."""
    test: int = 400
    """Test pictures."""
    raters: int = 0
    """Human-like raters whose masks come with each example as ``raters``; the mask stays the truth, for scores."""
    roles: tuple[str, ...] = ROLES[:4]
    """Roles that the raters play in turn, the same in every example, see ``rate``."""
    missing: float = 0.0
    """Share of the annotations left out (``rater_weight`` 0), by chance; of each example at least one stays."""
    cameras: tuple[str, ...] = tuple(fundus.CAMERAS)
    """Cameras the pictures are taken with. Other cameras leave scenes, masks and labels as they are."""


class Findings(NamedTuple):
    """What the label is made of, and the decoys.

    Attributes:
      label: 1 for glaucoma.
      cdr: height of the cup over height of the disc, notch included.
      defect: a notch with its wedge.
      rim_pallor: a pale sector of the rim.
      lone_notch, lone_wedge, floating_wedge, shadow: decoys of a defect.
      cup_pallor, atrophy, patch: decoys of rim pallor.
      pale_ratio: height of the pale disc over height of the disc, a decoy of ``cdr``.
    """

    label: int
    cdr: float
    defect: bool
    rim_pallor: bool
    lone_notch: bool
    lone_wedge: bool
    floating_wedge: bool
    cup_pallor: bool
    atrophy: bool
    patch: bool
    shadow: bool
    pale_ratio: float


def diagnose(cdr: float, defect: bool, rim_pallor: bool, rule: str = "signs") -> int:
    """Applies the label rule: 1 for glaucoma."""
    if rule == "ratio":
        return int(cdr > MIDDLE)
    return int(cdr > HIGH or (cdr > LOW and (defect or rim_pallor)))


def _arcuate(rng: np.random.Generator, temporal: int, below: bool) -> float:
    """Draws a direction in the upper or lower temporal arc, where notches and wedges are found."""
    angle = 0.5 * math.pi - rng.uniform(0.35, 0.95)
    angle = angle if below else -angle
    return angle if temporal > 0 else math.pi - angle


def draw_scene(seed: int, index: int, cameras: tuple[str, ...], rule: str = "signs") -> tuple[fundus.Scene, Findings]:
    """Draws the latent numbers of one example; the rule changes nothing but the label."""
    rng = stream(seed, index, "scene")
    temporal = 1 if rng.random() < 0.5 else -1
    below = bool(rng.random() < 0.5)

    # Signs and decoys first: each is drawn on its own, so that no decoy tells about the label.
    defect = bool(rng.random() < 0.25)
    rim_pallor = bool(rng.random() < 0.22)
    lone_notch = bool(rng.random() < 0.28) and not defect
    stray = rng.random()
    lone_wedge, floating_wedge = bool(stray < 0.15), bool(0.15 <= stray < 0.32)
    cup_pallor, atrophy, patch, shadow = (bool(rng.random() < p) for p in (0.2, 0.25, 0.25, 0.25))

    # Contours about the disc's centre: an ellipse higher than wide, with a ripple.
    centre = (float(-0.08 * temporal + rng.uniform(-0.09, 0.09)), float(rng.uniform(-0.09, 0.09)))
    radius, tall = rng.uniform(0.42, 0.52), rng.uniform(0.02, 0.07)
    double = np.cos(2 * THETA + rng.normal(0, 0.25)).astype(np.float32)
    disc = np.float32(radius) * (1 - np.float32(tall) * double) * (1 + wave(rng, 0.010))
    ratio = rng.uniform(0.37, 0.755)
    shift = np.cos(THETA - rng.normal(0, 0.8) - (0 if temporal > 0 else math.pi)).astype(np.float32)
    cup = disc * np.float32(ratio) * (1 + wave(rng, 0.025))
    cup = cup * (1 + np.float32(rng.uniform(0, 0.10)) * shift)
    notch_angle = _arcuate(rng, temporal, below)
    if defect or lone_notch:
        depth = np.float32(rng.uniform(0.55, 0.8))
        cup = cup + depth * (disc - cup) * fundus.bump(notch_angle, rng.uniform(0.2, 0.26))
    cup = np.minimum(cup, 0.95 * disc)
    cdr = fundus.height(cup) / fundus.height(disc)

    wedges = []
    if defect:
        wedges.append(_wedge(rng, notch_angle + rng.normal(0, 0.04), 0.0))
    # A lone rooted wedge never meets a notch: it lies in the other arc. A floating one may point at a lone notch.
    other_arc = _arcuate(rng, temporal, not below)
    stray_angle = notch_angle if floating_wedge and lone_notch else other_arc
    stray_wedge = _wedge(rng, stray_angle, float(rng.uniform(0.24, 0.34)) if floating_wedge else 0.0)
    if lone_wedge or floating_wedge:
        wedges.append(stray_wedge)
    around = rng.uniform(0, TURN)
    apart = around + rng.uniform(2.0, 4.2)
    sectors = []
    if rim_pallor:
        sectors.append(fundus.Sector(around, rng.uniform(0.6, 0.9), False, rng.uniform(0.75, 0.95)))
    if cup_pallor:
        sectors.append(fundus.Sector(apart, rng.uniform(0.6, 0.9), True, rng.uniform(0.75, 0.95)))
    spot_angle, spot_far = rng.uniform(0, TURN), radius + rng.uniform(0.2, 0.4)
    spot = fundus.Spot(
        centre[0] + spot_far * math.cos(spot_angle),
        centre[1] + spot_far * math.sin(spot_angle),
        rng.uniform(0.08, 0.14),
        rng.uniform(0.4, 0.65),
    )
    side = (0.0 if temporal > 0 else math.pi) + rng.normal(0, 0.5)
    crescent = fundus.Crescent(side, rng.uniform(0.8, 1.4), rng.uniform(0.07, 0.15), rng.uniform(0.4, 0.7))
    shadow_angle = _arcuate(rng, temporal, bool(rng.random() < 0.5)) + rng.normal(0, 0.3)
    pale = float(radius) * rng.uniform(0.28, 0.72)
    off = rng.normal(0, 0.05 * radius, 2)
    pallor = fundus.Spot(centre[0] + off[0], centre[1] + off[1], pale, rng.uniform(0.6, 0.85))

    view = stream(seed, index, "camera")
    camera = cameras[int(view.random() * len(cameras))]
    field = (*view.normal(0, 0.06, 2), fundus.CAMERAS[camera].field * view.uniform(0.95, 1.08))
    scene = fundus.Scene(
        temporal=temporal,
        centre=centre,
        disc=disc,
        cup=cup,
        pallor=pallor,
        wedges=tuple(wedges),
        sectors=tuple(sectors),
        spots=(spot,) if patch else (),
        crescents=(crescent,) if atrophy else (),
        shadows=(shadow_angle,) if shadow else (),
        bend=rng.uniform(0.18, 0.4) * temporal,
        pigment=rng.uniform(0.15, 1.0),
        light=(view.uniform(0, TURN), view.uniform(0.0, 0.16)),
        field=field,
        exposure=view.uniform(0.9, 1.06),
        camera=camera,
    )
    findings = Findings(
        diagnose(cdr, defect, rim_pallor, rule),
        cdr,
        defect,
        rim_pallor,
        lone_notch,
        lone_wedge,
        floating_wedge,
        cup_pallor,
        atrophy,
        patch,
        shadow,
        2 * pale / fundus.height(disc),
    )
    return scene, findings


def _wedge(rng: np.random.Generator, angle: float, gap: float) -> fundus.Wedge:
    """Draws the rest of a wedge; all kinds look alike but for where they start."""
    curl = -math.copysign(rng.uniform(0.1, 0.45), math.sin(angle)) * math.copysign(1, math.cos(angle))
    return fundus.Wedge(angle, rng.uniform(0.22, 0.32), gap, rng.uniform(0.75, 1.0), curl)


def rate(rng: np.random.Generator, role: str, scene: fundus.Scene) -> tuple[np.ndarray, np.ndarray]:
    """Draws the contours (disc, cup) that a rater of some role would give, cup within disc.

    Competent: a small tremor. Over-segmenting: cup 1.3 times too wide, disc 1.06 times. Decoy-following: the
    edge of the pale disc instead of the cup. Noisy: errors of about a fifth that change from picture to picture.
    Generous: cup 1.1 to 1.9 times too wide, disc 1.03 to 1.31 times, by another amount in each picture.
    """
    disc, cup = scene.disc, scene.cup
    spread, ripple = (0.16, 0.08) if role == "noisy" else (0.02, 0.02)
    if role == "over-segmenting":
        disc, cup = disc * np.float32(1.06), cup * np.float32(1.3)
    elif role == "decoy-following":
        cup = _circle(scene)
    elif role == "generous":
        beyond = np.float32(rng.uniform(0.1, 0.9))
        disc, cup = disc * (1 + np.float32(0.35) * beyond), cup * (1 + beyond)
    disc = disc * np.float32(math.exp(0.3 * spread * rng.normal())) * (1 + wave(rng, 0.3 * ripple))
    cup = cup * np.float32(math.exp(spread * rng.normal())) * (1 + wave(rng, ripple))
    return disc, np.minimum(cup, 0.96 * disc)


def name_raters(roles: Sequence[str]) -> tuple[str, ...]:
    """Names raters by their roles, those of one role numbered from 1.

    >>> name_raters(["competent", "noisy", "competent"])
    ('competent-1', 'noisy-1', 'competent-2')
    """
    return tuple(f"{role}-{list(roles[: r + 1]).count(role)}" for r, role in enumerate(roles))


def _circle(scene: fundus.Scene) -> np.ndarray:
    """Gives the edge of the pale disc as a contour about the disc's centre."""
    x, y = scene.pallor.x - scene.centre[0], scene.pallor.y - scene.centre[1]
    along = x * np.cos(THETA) + y * np.sin(THETA)
    return (along + np.sqrt(along**2 + scene.pallor.radius**2 - x * x - y * y)).astype(np.float32)


def draw_image(scene: fundus.Scene, seed: int, index: int, size: int) -> np.ndarray:
    """Draws the picture of an example's scene, or of a changed one with the same vessels, texture and noise."""
    grown, texture, noise = (stream(seed, index, name) for name in ("vessels", "texture", "noise"))
    return fundus.draw_picture(scene, size, grown, texture, noise)


class Phantoms:
    """Random access to a range of examples; nothing is kept between calls."""

    def __init__(self, config: Config, first: int, count: int) -> None:
        self.config = config
        self.first = first
        self.names = [f"phantom-{first + i:06d}" for i in range(count)]

    def __len__(self) -> int:
        return len(self.names)

    def _index(self, i: int) -> int:
        i = operator.index(i)
        if not 0 <= i < len(self):
            raise IndexError(f"Example {i} of {len(self)}.")
        return self.first + i

    def describe(self, i: int) -> dict[str, Any]:
        """Tells what example ``i`` shows: its findings and decoys, camera and eye, as plain values."""
        scene, findings = draw_scene(self.config.seed, self._index(i), self.config.cameras, self.config.rule)
        return {**findings._asdict(), "camera": scene.camera, "eye": "left" if scene.temporal > 0 else "right"}

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        """Draws example ``i``: image, mask (disc, cup), label and, where the config asks, raters and their weights."""
        index, config = self._index(i), self.config
        scene, findings = draw_scene(config.seed, index, config.cameras, config.rule)
        grid = lay_grid(scene.centre, config.size)
        example = {
            "image": draw_image(scene, config.seed, index, config.size),
            "mask": fundus.draw_mask(grid, scene.disc, scene.cup),
            "label": np.asarray(findings.label, np.int32),
        }
        if config.raters:
            contours = [
                rate(stream(config.seed, index, "rater", r), config.roles[r % len(config.roles)], scene)
                for r in range(config.raters)
            ]
            there = stream(config.seed, index, "missing").random(config.raters) >= config.missing
            there[index % config.raters] |= not there.any()
            masks = [fundus.draw_mask(grid, disc, cup) for disc, cup in contours]
            example["raters"] = np.stack(masks) * there.astype(np.uint8)[:, None, None, None]
            example["rater_weight"] = there.astype(np.float32)
        return example


def make(config: Config) -> Dataset:
    """Makes the splits: ``masks`` and ``train`` begin at the same example, ``val`` and ``test`` lie apart."""
    if config.size < 32:
        raise InputError(
            f"Phantoms of size {config.size} were asked for; disc and cup need at least 32 pixels. "
            "Set --data.size to 32 or more, e.g. 64."
        )
    for name, value in (
        ("masks", config.masks),
        ("labelled", config.labelled),
        ("val", config.val),
        ("test", config.test),
    ):
        if not 1 <= value <= _ROOM:
            raise InputError(
                f"{value} phantoms were asked for with --data.{name}; a split holds 1 to {_ROOM}. "
                f"Set --data.{name} within that range."
            )
    if config.seed < 0 or config.raters < 0:
        raise InputError(
            f"The phantoms' seed is {config.seed} and their number of raters {config.raters}; neither "
            "may be negative. Set --data.seed and --data.raters to 0 or more."
        )
    if not config.roles or not 0 <= config.missing < 1:
        raise InputError(
            f"The phantoms' raters have the roles {config.roles} and {config.missing} of their masks are missing. Name "
            f"one or more of {', '.join(ROLES)} with --data.roles, and give --data.missing at least 0 and below 1."
        )
    for role in config.roles:
        if role not in ROLES:
            raise unknown("role of a rater", role, ROLES)
    if not config.cameras:
        raise InputError(f"No camera was given for the phantoms. Name one or more of: {', '.join(fundus.CAMERAS)}.")
    for camera in config.cameras:
        if camera not in fundus.CAMERAS:
            raise unknown("camera", camera, tuple(fundus.CAMERAS))
    counts = {"masks": config.masks, "train": config.labelled, "val": config.val, "test": config.test}
    pool = Cached(Phantoms(config, _FIRST["masks"], max(config.masks, config.labelled)))
    splits: dict[str, Source] = {name: Subset(pool, range(counts[name])) for name in ("masks", "train")}
    splits |= {name: Cached(Phantoms(config, _FIRST[name], counts[name])) for name in ("val", "test")}
    return Dataset(
        name="phantoms",
        regions=("disc", "cup"),
        classes=("healthy", "glaucoma"),
        splits=splits,
        note=f"Drawn from seed {config.seed}: masks and train are prefixes of one range of indices, val and test "
        "come from ranges of their own.",
        raters=name_raters([config.roles[r % len(config.roles)] for r in range(config.raters)]),
    )
