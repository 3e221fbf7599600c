"""GAMMA: grade of glaucoma from fundus and OCT volume, the fovea, disc and cup, with baselines and stronger recipes.

Wu et al., "GAMMA challenge: Glaucoma grAding from Multi-Modality imAges", Medical Image Analysis 90:102938, 2023. Only
the abstract could be read; baselines, recipes and formats are those of public programs (GAMMA spec, sections (c) to
(g)). Each task has nets and stages of its own. Decisions and deviations stand in BUILD_NOTES.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from ophjax.errors import InputError, check_options
from ophjax.methods.gammatasks import Part, grading, locating, segmenting, write_submission
from ophjax.metrics import gamma
from ophjax.types import Batch, Key, Method, Outputs, Pairs, TrainState

PAPER = {
    "title": "GAMMA challenge: Glaucoma grAding from Multi-Modality imAges",
    "authors": "Wu, Fang, Li, Fu, et al.",
    "venue": "Medical Image Analysis 2023",
    "arxiv": "2202.06511",
}

# The data set where none is named.
DATA = "eyes"

# Changes to Config: nets for two CPU cores, and for tests that learn nothing.
DEMO: dict[str, Any] = dict(
    fusion="interaction", hidden=32, depth=10, width=8, stem="small", schedule="cosine", lr=2e-3, steps=400,
    locator_depth=10, locator_width=8, locator_lr=2e-3, locator_steps=900, segmenter="unet", segmenter_width=8,
    levels=3, segmenter_lr=5e-3, segmenter_steps=400, dice_weight=1.0,
)  # fmt: skip
SMOKE: dict[str, Any] = dict(
    task="all", depth=10, width=2, stem="small", locator_depth=10, locator_width=2, segmenter="unet", segmenter_width=2,
    levels=1, locator_dropout=0.0, flip=False, lr=1e-3, locator_lr=1e-3, steps=4, locator_steps=4, segmenter_steps=4,
)  # fmt: skip

# Changes to the loop's configuration.
TRAIN: dict[str, dict[str, Any]] = {"paper": dict(batch_size=4), "demo": dict(batch_size=16, eval_every=400)}

# What a comparison runs beside the method itself: changes to Config, and the networks taken over from its run.
VARIANTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "fundus-only": (dict(modality="fundus"), ()),
    "oct-only": (dict(modality="oct"), ()),
    "additive": (dict(fusion="linear"), ()),
    "auxiliary": (dict(auxiliary=True), ()),
    "volume": (dict(oct_branch="volume"), ()),
    "ordinal": (dict(head="ordinal"), ()),
    "flat": (dict(sharpness=0.5), ()),
    "views": (dict(test_flips=True, test_scales=(0.875, 1.0, 1.125)), ()),
    "labels-shuffled": (dict(control="labels"), ()),
}

# The scores of a comparison's table (patterns over names), the first of which is compared seed by seed.
SCORES = ("kappa", "accuracy", "auc", "score_*", "total", "dice_*", "cdr_error", "fovea_distance")

TASKS = ("grading", "fovea", "segmentation")


@dataclass(frozen=True)
class Config:
    """The baselines at their published scale."""

    task: Literal["grading", "fovea", "segmentation", "all"] = "grading"
    """Which of the three tasks is learned; each has its own net."""

    modality: Literal["both", "fundus", "oct"] = "both"
    """Grading from one modality alone, as a baseline."""
    oct_branch: Literal["slices", "volume"] = "slices"
    """slices: a 2-D net with the B-scans as channels, the baseline. volume: a 3-D net."""
    oct_slices: int = 0
    """B-scans that the net sees: every so many-th, from a random one in training and from the first at the test; 0:
    all. A published 3-D branch takes 16 of 256."""
    fusion: Literal["linear", "interaction"] = "linear"
    """linear: one layer on both branches' features, the baseline, which cannot show what only both together tell.
    interaction: a product of both and a hidden layer."""
    hidden: int = 128
    """Width of the interaction."""
    head: Literal["softmax", "ordinal"] = "softmax"
    """ordinal: is the grade at least 1, at least 2?"""
    auxiliary: bool = False
    """Heads for each modality alone beside the fused one."""
    test_heads: Literal["all", "fused"] = "all"
    """Whose predictions are averaged at the test, where there are auxiliary heads: a published recipe takes all."""
    fused_weight: float = 1.0
    """Weight of the fused head's loss beside those of the auxiliary heads."""
    agreement_weight: float = 0.1
    """Weight of the divergence of the fundus head from the OCT head; with the ordinal head, the mean over its
    questions of that of their answers."""
    sharpness: float = 0.0
    """Size of the ascent of sharpness-aware steps (adaptive); a published recipe has 0.5. 0: plain steps."""
    dropout: float = 0.0
    """Before the fused head."""
    control: Literal["none", "labels"] = "none"
    """Negative control: the grades shuffled across the batch."""
    depth: Literal[10, 18, 34, 50] = 34
    """Layers of both branches."""
    width: int = 64
    """Channels of their first stage."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """Stem of the fundus branch, the 3-D branch and the locator. small: stride 1, for small images."""
    norm: Literal["batch", "group"] = "batch"
    """Normalisation of all nets."""
    test_flips: bool = False
    """At the test, average over mirrored pictures and volumes."""
    test_scales: tuple[float, ...] = (1.0,)
    """At the test, average over these sizes of the picture."""
    test_power: float = 0.5
    """Views and heads are averaged as powers of their probabilities."""
    lr: float = 1e-4
    """Adam's learning rate in grading."""
    steps: int = 1000
    """Batches in grading."""

    locator_depth: Literal[10, 18, 34, 50, 101] = 50
    """Layers of the fovea's ResNet."""
    locator_width: int = 64
    """Channels of its first stage."""
    fine: float = 0.0
    """Side of a crop around the first guess, as a share of the picture's, in which a second net looks again; 0: none. A
    published recipe has one eighth."""
    locator_dropout: float = 0.2
    """Before the last layer."""
    legacy_point_loss: bool = False
    """The baseline's loss, whose distance has no gradient."""
    locator_lr: float = 1e-4
    """Adam's learning rate for the fovea."""
    locator_steps: int = 15_000
    """Batches for the fovea, and again for the second net."""

    segmenter: Literal["ushape", "unet"] = "ushape"
    """ushape: the baseline, without skips. unet: with skips."""
    segmenter_width: int = 32
    """Channels of the U-shape's stem, or of the U-Net at full resolution."""
    levels: int = 4
    """Halvings of the U-Net."""
    prior_weight: float = 0.0
    """Weight of the error of the regions' sizes; a published recipe has 0.1."""
    dice_weight: float = 0.0
    """Weight of a soft-Dice loss."""
    segmenter_lr: float = 1e-3
    """Adam's learning rate for disc and cup."""
    segmenter_steps: int = 40_000
    """Batches for disc and cup."""

    flip: bool = True
    """Horizontal flips: of picture, mask and fovea together, of volumes on their own."""
    flip_vertical: bool = False
    """Vertical flips in grading, of pictures and of volumes; the baseline has them."""
    rotate: float = 0.0
    """Greatest rotation of the picture in degrees in grading; the baseline has 30."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over a stage; cosine ends at zero."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations; parameters, losses and statistics stay float32."""

    regions: tuple[str, ...] = ("disc", "cup")
    """Names of the mask's channels; filled in from the data set."""
    classes: tuple[str, ...] = gamma.GRADES
    """Names of the grades; filled in from the data set."""


def check(config: Config) -> tuple[str, ...]:
    """Returns the tasks; raises InputError for settings that no net can be built or trained from."""
    ones = (
        "hidden",
        "width",
        "locator_width",
        "segmenter_width",
        "levels",
        "steps",
        "locator_steps",
        "segmenter_steps",
    )
    zeros = ("oct_slices", "fused_weight", "agreement_weight", "sharpness", "prior_weight", "dice_weight", "rotate")
    least = dict.fromkeys(ones, 1) | dict.fromkeys(zeros, 0)
    rules = {name: (getattr(config, name) >= bound, f"at least {bound}") for name, bound in least.items()}
    rules |= {
        name: (getattr(config, name) > 0, "above 0") for name in ("lr", "locator_lr", "segmenter_lr", "test_power")
    }
    rules |= {
        name: (0 <= getattr(config, name) < 1, "at least 0 and below 1")
        for name in ("dropout", "locator_dropout", "fine")
    }
    scales = config.test_scales
    rules["test_scales"] = (bool(scales) and all(scale > 0 for scale in scales), "one or more numbers above 0")
    rules["auxiliary"] = (config.modality == "both" or not config.auxiliary, "False where there is one modality alone")
    rules["depth"] = (config.oct_branch == "slices" or config.depth <= 34, "at most 34 for a 3-D branch")
    check_options(config, rules)
    tasks = TASKS if config.task == "all" else (config.task,)
    if "grading" in tasks and len(config.classes) < 2:
        raise InputError(
            f"The data set has the classes {config.classes}; grading needs at least two. Choose another --method.task."
        )
    if "segmentation" in tasks and config.regions != ("disc", "cup"):
        raise InputError(
            f"The data set has the regions {config.regions}; segmentation needs disc and cup. Choose another "
            "--method.task."
        )
    return tasks


def make(config: Config) -> Method:
    """Builds the nets of the tasks asked for.

    Batches hold ``image`` uint8 [b, h, w, 3], ``index`` int32 [b] and ``weight`` float32 [b] (0: padding); for grading
    ``volume`` uint8 [b, i, j, d], unless by the fundus alone, and ``label`` int32 [b] (-1: not known); for the fovea
    ``fovea`` float32 [b, 2] in pixels of the original (-1: not known; (0, 0), not to be seen, is scored and not
    learned), ``frame`` int32 [b, 4] (left, top, width, height of what the image shows) and ``size`` int32 [b, 2] (of
    the original); for segmentation ``mask`` uint8 [b, h, w, 2] and ``mask_weight`` float32 [b]. Outputs are ``probs``
    [b, k]; ``fovea_found`` [b, 2] in pixels; ``mask_probs`` [b, h, w, 2].

    Raises:
      InputError: the settings contradict each other, or the data set lacks what a task needs.
    """
    tasks = check(config)
    build = {"grading": grading, "fovea": locating, "segmentation": segmenting}
    parts: dict[str, Part] = {task: build[task](config) for task in tasks}

    def init(key: Key, batch: Batch) -> TrainState:
        params: dict[str, Any] = {}
        stats: dict[str, Any] = {}
        opt: dict[str, Any] = {}
        for task, part in parts.items():
            lacking = [name for name in part.needs if name not in batch]
            if lacking:
                raise InputError(
                    f"The data set has no {lacking[0]}, which the task {task} needs. Choose another one, such as "
                    "--data eyes, or another --method.task."
                )
            for found, made in zip((params, stats, opt), part.init(key, batch), strict=True):
                found.update(made)
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt=opt, extra={"batch_stats": stats})

    def predict(key: Key, state: TrainState, batch: Batch) -> Outputs:
        del key
        outputs: Outputs = {}
        for part in parts.values():
            outputs |= part.predict(state, batch)
        return outputs

    def metrics(outputs: Outputs, batch: Batch) -> Pairs:
        pairs: Pairs = {}
        for part in parts.values():
            pairs |= part.metrics(outputs, batch)
        return pairs

    def scores(gathered: Mapping[str, np.ndarray]) -> dict[str, float]:
        found: dict[str, float] = {}
        for part in parts.values():
            found |= part.scores(gathered)
        values = [found.get(f"score_{task}") for task in TASKS]
        if None not in values:
            found["total"] = gamma.total_score(*values)  # type: ignore[arg-type]
        return found

    stages = tuple(stage for part in parts.values() for stage in part.stages)
    ordinal = config.head == "ordinal" and "grading" in tasks
    submit = partial(write_submission, ordinal=ordinal)
    watch = "total" if len(tasks) == len(TASKS) else {"grading": "kappa"}.get(tasks[0], f"score_{tasks[0]}")
    return Method(
        init, stages, predict, metrics, scores, watch, submit=submit, exclusive="nested", ordinal=ordinal
    )  # fmt: skip
