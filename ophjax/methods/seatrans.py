"""SeATrans: a segmentation net's multi-scale features steer a diagnosis net through SeA-blocks.

Wu et al., "SeATrans: Learning Segmentation-Assisted Diagnosis Model via Transformer", MICCAI 2022. Stage 1 trains
a segmenter on masks. Stage 2 freezes it and trains a diagnosis ResNet whose low-level features are each related to
all scales of the segmenter's features: an encoder embeds the diagnosis feature on the segmentation's tokens, a
decoder brings the embedding back. Only the abstract fixes this much; every width, schedule and pairing below is our
decision (BUILD_NOTES.md lists them).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ophjax.data.augment import flip, unit
from ophjax.errors import InputError, check_options
from ophjax.keys import at
from ophjax.losses.classification import sigmoid_cross_entropy, softmax_cross_entropy
from ophjax.losses.contrast import weighted_mean
from ophjax.losses.segmentation import binary_cross_entropy, soft_dice_loss
from ophjax.metrics import ranking, streaming
from ophjax.nets.assisted import AssistedResNet
from ophjax.nets.unet import ResUNet
from ophjax.transforms.bundling import bundle
from ophjax.transforms.controls import others
from ophjax.transforms.stepping import begin, descend
from ophjax.types import Batch, Key, Logs, Method, Outputs, Pairs, Stage, TrainState

PAPER = {
    "title": "SeATrans: Learning Segmentation-Assisted Diagnosis Model via Transformer",
    "authors": "Wu, Fang, Shang, Yang, Wang, Gao, Yang, Xu",
    "venue": "MICCAI 2022",
    "arxiv": "2206.05763",
}

# The data set where none is named.
DATA = "phantoms"

# Changes to Config: a net for two CPU cores, and one for tests that learns nothing.
DEMO: dict[str, Any] = dict(
    segmenter_depth=10, segmenter_width=16, decoder_width=16, depth=10, width=16, tokens=8,
    segmenter_lr=2e-3, lr=5e-4, schedule="cosine", segmenter_steps=400, steps=240,
)  # fmt: skip
SMOKE: dict[str, Any] = dict(
    segmenter_depth=10, segmenter_width=8, decoder_width=4, depth=10, width=8, tokens=4,
    low_level=(1,), segmenter_lr=3e-3, lr=1e-3, segmenter_steps=4, steps=4,
)  # fmt: skip

# Changes to the loop's configuration, by preset.
TRAIN: dict[str, dict[str, Any]] = {}

# What a comparison runs beside the method itself: changes to Config, and the networks taken over from its run.
VARIANTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "image-only": (dict(baseline="image-only"), ()),
    "mask-concat": (dict(baseline="mask-concat", segmenter_steps=0), ("segmenter",)),
    "same-scale": (dict(baseline="same-scale", segmenter_steps=0), ("segmenter",)),
    "single-attention": (dict(baseline="single-attention", segmenter_steps=0), ("segmenter",)),
    "features-shuffled": (dict(control="features", segmenter_steps=0), ("segmenter",)),
    "labels-shuffled": (dict(control="labels", segmenter_steps=0), ("segmenter",)),
}

# The scores of a comparison's table (patterns over names), the first of which is compared seed by seed.
SCORES = ("auc", "accuracy", "f1", "dice_*")

Baseline = Literal["none", "image-only", "mask-concat", "same-scale", "single-attention"]


@dataclasses.dataclass(frozen=True)
class Config:
    """SeATrans at the scale we take for the paper's."""

    baseline: Baseline = "none"
    """none: SeATrans. image-only: no segmenter. mask-concat: predicted masks as input channels. same-scale: each
    diagnosis feature meets the segmentation feature of its own stride only. single-attention: one cross-attention
    (queries diagnosis, keys and values segmentation) instead of encoder and decoder."""
    control: Literal["none", "features", "labels"] = "none"
    """Negative controls: shuffle the segmentation features, or the training labels, across the batch."""

    segmenter_depth: Literal[10, 18, 34, 50, 101] = 34
    """Layers of the segmenter's ResNet encoder."""
    segmenter_width: int = 64
    """Channels of the segmenter's first stage."""
    decoder_width: int = 128
    """Channels of each half of a decoder block; its output has twice as many."""
    segmenter_norm: Literal["batch", "group"] = "batch"
    """Normalisation of the segmenter."""
    depth: Literal[10, 18, 34, 50, 101] = 34
    """Layers of the diagnosis ResNet."""
    width: int = 64
    """Channels of the diagnosis ResNet's first stage."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """imagenet: 7x7 convolution of stride 2 and a max-pool. small: 3x3 convolution of stride 1."""
    norm: Literal["batch", "group"] = "batch"
    """Normalisation of the diagnosis net; group suits very small batches."""

    low_level: tuple[int, ...] = (1, 2)
    """Stages of the diagnosis ResNet (1 to 3) whose outputs are steered."""
    scales: tuple[int, ...] = (0, 1, 2, 3)
    """Segmentation features used, coarse to fine: 0 the bottleneck (stride 32), 1 to 3 the decoder's (16, 8, 4)."""
    tokens: int = 16
    """Each map becomes at most tokens x tokens tokens."""
    token_width: int | None = None
    """Channels of the tokens; None: those of the diagnosis stage."""
    heads: tuple[int, int, int] = (2, 4, 8)
    """Attention heads after stages 1, 2 and 3: 32 channels each at the paper's scale."""
    feed_forward_ratio: int = 3
    """Width of the feed-forward layers over that of the tokens."""
    encoder_query: Literal["seg", "diag"] = "seg"
    """Who asks in the encoder: segmentation tokens (default) or diagnosis tokens."""
    scale_fusion: Literal["sequential", "concat"] = "sequential"
    """sequential: one SeA-block per scale, coarse to fine. concat: one decoder over the tokens of all scales."""
    drop_path: float = 0.05
    """Probability of leaving a residual branch out, per example."""

    freeze_segmenter: bool = True
    """Stage 2 leaves the segmenter, its statistics included, as stage 1 left it. False: trained jointly."""
    segmentation_weight: float = 0.5
    """Weight of the segmentation loss in stage 2, where the segmenter is not frozen."""
    positive_weight: float = 2.0
    """Weight of the diseased class in the loss (two classes only)."""
    flip: bool = True
    """Horizontal flips of image and mask."""
    dice_weight: float = 1.0
    """Weight of the soft-Dice loss beside the cross-entropy of the masks."""
    balanced: bool = False
    """Stage 2 draws each class equally often (then set positive_weight to 1)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of the first and the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW)."""
    segmenter_lr: float = 1e-4
    """Adam's learning rate in stage 1."""
    lr: float = 1e-4
    """Adam's learning rate in stage 2."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over a stage; cosine ends at zero."""
    segmenter_steps: int = 6000
    """Batches in stage 1 (80 epochs of 1200 images at batch 16)."""
    steps: int = 6000
    """Batches in stage 2."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations; parameters, losses and statistics stay float32."""

    regions: tuple[str, ...] = ("disc", "cup")
    """Names of the mask's channels; filled in from the data set."""
    classes: tuple[str, ...] = ("healthy", "glaucoma")
    """Names of the classes; filled in from the data set."""


def pairing(config: Config) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Says which diagnosis stage meets which segmentation scales: asymmetric, one to many, by default."""
    if config.baseline in ("image-only", "mask-concat"):
        return ()
    if config.baseline == "same-scale":
        # Diagnosis stage l has stride 2^(l+1) and segmentation scale k 2^(5-k); with the small stem both a quarter.
        return tuple((level, (4 - level,)) for level in config.low_level)
    return tuple((level, config.scales) for level in config.low_level)


def rising(chosen: tuple[int, ...], allowed: tuple[int, ...]) -> bool:
    """Whether the chosen are some of the allowed, in their order, and none twice."""
    return bool(chosen) and chosen == tuple(one for one in allowed if one in chosen)


def check(config: Config) -> None:
    """Raises InputError for settings that no net can be built or trained from."""
    rules = {
        "low-level": (rising(config.low_level, (1, 2, 3)), "stages out of 1, 2, 3 in rising order"),
        "scales": (rising(config.scales, (0, 1, 2, 3)), "scales out of 0 (coarsest) to 3 in rising order"),
        "segmenter-steps": (config.segmenter_steps >= 0, "at least 0 (an untrained segmenter, as a control)"),
        "steps": (config.steps >= 1, "at least 1"),
        "tokens": (config.tokens >= 1, "at least 1"),
        "width": (config.width >= 4 and config.width % 2 == 0, "an even number of at least 4"),
        "segmenter-width": (config.segmenter_width >= 1, "at least 1"),
        "decoder-width": (config.decoder_width >= 1, "at least 1"),
        "drop-path": (0 <= config.drop_path < 1, "at least 0 and below 1"),
        "token-width": (config.token_width is None or config.token_width >= 1, "at least 1"),
        "heads": (min(config.heads) >= 1, "three positive numbers that divide the width of the tokens"),
        "feed-forward-ratio": (config.feed_forward_ratio >= 1, "at least 1"),
        "dice-weight": (config.dice_weight >= 0, "at least 0"),
        "segmentation-weight": (config.segmentation_weight >= 0, "at least 0"),
        "positive-weight": (config.positive_weight > 0, "above 0"),
        "betas": (all(0 <= beta < 1 for beta in config.betas), "two numbers of at least 0 and below 1"),
        "weight-decay": (config.weight_decay >= 0, "at least 0"),
        "segmenter-lr": (config.segmenter_lr > 0, "above 0"),
        "lr": (config.lr > 0, "above 0"),
        "balanced": (
            not config.balanced or config.control != "labels",
            "False with --method.control labels: in a balanced batch another image is of another class more often",
        ),
        "control": (
            config.control != "features" or config.baseline != "image-only",
            "a baseline that has segmentation features to shuffle",
        ),
    }
    check_options(config, rules)
    if len(config.classes) < 2:
        raise InputError(f"The data set has the classes {config.classes}; a diagnosis needs at least two.")


def attention_maps(found: Mapping[str, jax.Array], size: tuple[int, ...]) -> Outputs:
    """Resizes the attention of each steered stage to the image and scales its peak to 1: [b, h, w] each."""
    maps = {name: jax.image.resize(looked, (looked.shape[0], *size), "bilinear") for name, looked in found.items()}
    return {f"attention_{name}": looked / looked.max((1, 2), keepdims=True) for name, looked in maps.items()}


def make(config: Config) -> Method:
    """Builds SeATrans, or the baseline that the configuration names.

    Batches hold ``image`` uint8 [b, h, w, 3], ``mask`` uint8 [b, h, w, c], ``label`` int32 [b] (-1: not known),
    ``weight`` and ``mask_weight`` float32 [b] (0: padding, no mask) and ``index`` int32 [b]. Outputs are ``probs``
    [b, k] and, where the variant has a segmenter, ``mask_probs`` [b, h, w, c], and for each stage whose queries are the
    segmentation's ``attention_stageL`` [b, h, w].

    Raises:
      InputError: the settings contradict each other.
    """
    check(config)
    binary = len(config.classes) == 2
    assisted = config.baseline != "image-only"
    dtype = jnp.dtype(config.dtype)
    segmenter = ResUNet(
        regions=len(config.regions),
        depth=config.segmenter_depth,
        width=config.segmenter_width,
        decoder=config.decoder_width,
        stem_kind=config.stem,
        norm=config.segmenter_norm,
        dtype=dtype,
    )
    diagnosis = AssistedResNet(
        outputs=1 if binary else len(config.classes),
        depth=config.depth,
        width=config.width,
        stem_kind=config.stem,
        norm=config.norm,
        pairing=pairing(config),
        block="single" if config.baseline == "single-attention" else "sea",
        heads=config.heads,
        token_width=config.token_width,
        tokens=config.tokens,
        ratio=config.feed_forward_ratio,
        encoder_query=config.encoder_query,
        scale_fusion=config.scale_fusion,
        drop_path=config.drop_path,
        dtype=dtype,
    )
    joint = assisted and not config.freeze_segmenter
    trained = ("segmenter", "diagnosis") if joint else ("diagnosis",)

    def optimiser(lr: float, steps: int) -> optax.GradientTransformation:
        rate = optax.cosine_decay_schedule(lr, steps) if config.schedule == "cosine" else lr
        return bundle(optax.adamw(rate, *config.betas, weight_decay=config.weight_decay))

    segmenter_tx = optimiser(config.segmenter_lr, max(config.segmenter_steps, 1))
    diagnosis_tx = optimiser(config.lr, config.steps)

    def segment(params: Any, stats: Any, image: jax.Array, *, train: bool) -> tuple[jax.Array, Any, Any]:
        variables = {"params": params["segmenter"], "batch_stats": stats["segmenter"]}
        if train:
            (logits, taps), new = segmenter.apply(variables, image, train=True, mutable=["batch_stats"])
            return logits, taps, new.get("batch_stats", {})
        logits, taps = segmenter.apply(variables, image, train=False)
        return logits, taps, stats["segmenter"]

    def diagnosis_inputs(logits: jax.Array, taps: Any, image: jax.Array, order: Any) -> tuple[jax.Array, Any]:
        """What the diagnosis net sees of the segmenter; ``order`` shuffles it across the batch (control)."""
        if config.control == "features":
            logits, taps = jax.tree.map(lambda x: x[order], (logits, taps))
        if config.baseline == "mask-concat":
            image = jnp.concatenate([image, jax.nn.sigmoid(logits).astype(image.dtype)], -1)
        return image, taps

    def view(key: Key, batch: Batch) -> Batch:
        return flip(at(key, "flip"), batch) if config.flip else batch

    def segmentation_loss(logits: jax.Array, batch: Batch) -> jax.Array:
        target = batch["mask"].astype(jnp.float32)
        dice = soft_dice_loss(jax.nn.sigmoid(logits), target)
        both = binary_cross_entropy(logits, target) + config.dice_weight * dice
        # Images without a mask do not count.
        return (both.sum(-1) * batch["mask_weight"]).sum() / jnp.maximum(batch["mask_weight"].sum(), 1.0)

    def diagnosis_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        known, labels = labels >= 0, jnp.maximum(labels, 0)
        if binary:
            each = sigmoid_cross_entropy(logits[:, 0], labels, positive_weight=config.positive_weight)
        else:
            each = softmax_cross_entropy(logits, labels)
        return weighted_mean(each, known)

    def learn_masks(key: Key, params: Any, extra: Any, batch: Batch) -> tuple[jax.Array, tuple[Any, Logs]]:
        batch = view(key, batch)
        logits, _, stats = segment(params, extra["batch_stats"], unit(batch["image"]), train=True)
        loss = segmentation_loss(logits, batch)
        return loss, ({"batch_stats": extra["batch_stats"] | {"segmenter": stats}}, {})

    def learn_labels(key: Key, params: Any, extra: Any, batch: Batch) -> tuple[jax.Array, tuple[Any, Logs]]:
        batch, stats = view(key, batch), extra["batch_stats"]
        image, taps, labels = unit(batch["image"]), (), batch["label"]
        loss, logs = jnp.zeros(()), {}
        if assisted:
            logits, taps, fresh = segment(params, stats, image, train=joint)
            if joint:
                logs["segmentation_loss"] = segmentation_loss(logits, batch)
                loss = config.segmentation_weight * logs["segmentation_loss"]
                stats = stats | {"segmenter": fresh}
            order = others(at(key, "features"), jnp.ones(len(labels), bool))
            image, taps = diagnosis_inputs(logits, taps, image, order)
        if config.control == "labels":
            labels = labels[others(at(key, "labels"), labels >= 0)]
        (outputs, _), new = diagnosis.apply(
            {"params": params["diagnosis"], "batch_stats": stats["diagnosis"]},
            image,
            taps,
            train=True,
            mutable=["batch_stats"],
            rngs={"drop_path": at(key, "drop_path")},
        )
        logs["diagnosis_loss"] = diagnosis_loss(outputs, labels)
        stats = stats | {"diagnosis": new.get("batch_stats", {})}
        return loss + logs["diagnosis_loss"], ({"batch_stats": stats}, logs)

    def init(key: Key, batch: Batch) -> TrainState:
        image, taps = unit(batch["image"]), ()
        params, stats, opt = {}, {}, {}
        if assisted:
            made = segmenter.init(at(key, "segmenter"), image, train=False)
            params["segmenter"], stats["segmenter"] = made["params"], made.get("batch_stats", {})
            opt["segmenter"] = begin(segmenter_tx, params, ("segmenter",))
            logits, taps, _ = segment(params, stats, image, train=False)
            image, taps = diagnosis_inputs(logits, taps, image, jnp.arange(len(image)))
        made = diagnosis.init(at(key, "diagnosis"), image, taps, train=False)
        params["diagnosis"], stats["diagnosis"] = made["params"], made.get("batch_stats", {})
        opt["diagnosis"] = begin(diagnosis_tx, params, trained)
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt=opt, extra={"batch_stats": stats})

    def predict(key: Key, state: TrainState, batch: Batch) -> Outputs:
        image, taps, stats = unit(batch["image"]), (), state.extra["batch_stats"]
        outputs: Outputs = {}
        if assisted:
            logits, taps, _ = segment(state.params, stats, image, train=False)
            outputs["mask_probs"] = jax.nn.sigmoid(logits.astype(jnp.float32))
            order = others(key, jnp.ones(len(image), bool)) if config.control == "features" else None
            image, taps = diagnosis_inputs(logits, taps, image, order)
        variables = {"params": state.params["diagnosis"], "batch_stats": stats["diagnosis"]}
        logits, attention = diagnosis.apply(variables, image, taps, train=False)
        logits = logits.astype(jnp.float32)
        if binary:
            outputs["probs"] = jax.nn.sigmoid(jnp.concatenate([-logits, logits], -1))
        else:
            outputs["probs"] = jax.nn.softmax(logits)
        return outputs | attention_maps(dict(attention), image.shape[1:3])

    def metrics(outputs: Outputs, batch: Batch) -> Pairs:
        if not assisted:
            return {}
        weight = batch["weight"] * batch["mask_weight"]
        return streaming.region_metrics(outputs["mask_probs"], batch["mask"], config.regions, weight=weight)

    def scores(gathered: Mapping[str, np.ndarray]) -> dict[str, float]:
        overlaps = {name: v for name, v in gathered.items() if name.split("_")[0] in ("dice", "iou", "soft")}
        known, found = gathered["label"] >= 0, ranking.mean_scores(overlaps, clusters=ranking.patients(gathered))
        if not known.any():
            return found
        probs, clusters = gathered["probs"][known], ranking.patients(gathered, known)
        probs = probs[:, 1] if binary else probs
        return ranking.classification_scores(probs, gathered["label"][known], clusters=clusters) | found

    learn = descend(learn_masks, segmenter_tx, trains=("segmenter",), slot="segmenter")
    stages = []
    if assisted and config.segmenter_steps:
        stages.append(Stage("segmenter", config.segmenter_steps, learn, "masks", ("segmenter",)))
    learn = descend(learn_labels, diagnosis_tx, trains=trained, slot="diagnosis")
    stages.append(Stage("diagnosis", config.steps, learn, "train", trained, balanced=config.balanced))
    return Method(init, tuple(stages), predict, metrics, scores, watch="auc")
