"""GOALS: layers of a circumpapillary OCT scan, and glaucoma, with the challenge's baselines and stronger recipes.

Fang et al., "Dataset and Evaluation Algorithm Design for GOALS Challenge", OMIA 2022 (MICCAI workshop). Only the
abstract could be read; baselines and formats are those of public programs (GOALS spec, sections (c) to (g)). Stage 1
learns the layers, stage 2 glaucoma with its own net. Decisions and deviations stand in BUILD_NOTES.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ophjax.data import challenges
from ophjax.data.augment import centred, flip, unit
from ophjax.data.scans import exclusive, warp
from ophjax.errors import InputError, check_options
from ophjax.keys import at
from ophjax.losses.boundaries import boundary_loss
from ophjax.losses.classification import softmax_cross_entropy, squashed_twice
from ophjax.losses.segmentation import soft_dice_loss
from ophjax.metrics import ranking, streaming
from ophjax.metrics.edges import edge_distance
from ophjax.metrics.goals import LAYER_WEIGHTS, LAYERS
from ophjax.metrics.greys import GOALS
from ophjax.nets.pooledresnet import PooledResNet
from ophjax.nets.unet import UNet
from ophjax.nets.ushape import UShape
from ophjax.transforms.boundaries import bands, edges_of, expected_edges, order_kept, thickness
from ophjax.transforms.bundling import bundle
from ophjax.transforms.controls import others
from ophjax.transforms.stepping import begin, descend
from ophjax.types import Batch, Key, Logs, Method, Outputs, Pairs, Stage, TrainState

PAPER = {
    "title": "Dataset and Evaluation Algorithm Design for GOALS Challenge",
    "authors": "Fang, Li, Fu, Wu, Zhang, Xu",
    "venue": "OMIA 2022",
    "arxiv": "2207.14447",
}

# The data set where none is named.
DATA = "bscans"

# Changes to Config: nets for two CPU cores, and for tests that learn nothing.
DEMO: dict[str, Any] = dict(
    segmenter="unet", segmenter_width=8, dice_weight=1.0, segmenter_lr=3e-3, segmenter_steps=200, classifier_depth=18,
    classifier_width=16, hidden=64, lr=1e-3, steps=600, schedule="cosine",
)  # fmt: skip
SMOKE: dict[str, Any] = dict(
    segmenter_width=2, levels=2, segmenter_lr=1e-3, segmenter_steps=4, classifier_depth=10, classifier_width=4,
    stem="small", hidden=8, lr=1e-3, steps=4,
)  # fmt: skip

# Changes to the loop's configuration.
TRAIN: dict[str, dict[str, Any]] = {"paper": dict(batch_size=8), "demo": dict(batch_size=8, eval_every=600)}

# What a comparison runs beside the method itself: changes to Config, and the networks taken over from its run.
VARIANTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "ushape": (dict(segmenter="ushape", segmenter_width=16, steps=0), ()),
    "ordered": (dict(segmenter="ordered", steps=0), ()),
    "unet-cross-entropy": (dict(segmenter="unet", dice_weight=0.0, steps=0), ()),
    "classifier-sees-layers": (dict(classifier_sees="layers", segmenter_steps=0), ("segmenter",)),
    "legacy-loss": (dict(legacy_loss=True, segmenter_steps=0), ("segmenter",)),
    "labels-shuffled": (dict(control="labels", segmenter_steps=0), ("segmenter",)),
}

# The scores of a comparison's table (patterns over names), the first of which is compared seed by seed.
SCORES = ("dice", "dice_*", "med_*", "ordered", "auc", "auc_thickness")


@dataclass(frozen=True)
class Config:
    """The baselines at their published scale."""

    segmenter: Literal["ushape", "unet", "ordered"] = "ushape"
    """ushape: the official baseline, without skips. unet: full resolution, with skips. ordered: the U-Net gives the
    rows of the layers' edges, which cannot cross."""
    segmenter_width: int = 32
    """Channels of the U-shape's stem, or of the U-Net at full resolution."""
    levels: int = 4
    """Halvings of the U-Net."""
    segmenter_norm: Literal["batch", "group"] = "batch"
    """Normalisation of the segmenter."""
    softness: float = 0.3
    """ordered: rows over which a layer's edge rises."""
    dice_weight: float = 0.0
    """Weight of the soft-Dice loss beside the cross-entropy (of pixels, or of the edges' rows); the baseline's is 0."""
    distance_weight: float = 0.1
    """ordered: weight of the edges' mean distance in rows."""

    classifier_depth: Literal[10, 18, 34, 50, 101] = 50
    """Layers of the classifier's ResNet."""
    classifier_width: int = 64
    """Channels of its first stage."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """imagenet: 7x7 convolution of stride 2 and a max-pool. small: 3x3 convolution of stride 1."""
    classifier_norm: Literal["batch", "group"] = "batch"
    """Normalisation of the classifier."""
    hidden: int = 1024
    """Width of the linear layer before the last, without an activation; 0: none."""
    classifier_sees: Literal["image", "layers"] = "image"
    """layers: the image with the predicted layers as further channels."""
    legacy_loss: bool = False
    """The baseline's loss: sigmoid cross-entropy of the softmax, which hardly trains."""
    control: Literal["none", "labels"] = "none"
    """Negative control: the glaucoma labels shuffled across the batch."""

    flip: bool = True
    """Horizontal flips in both stages; they exchange the eyes."""
    flip_vertical: bool = False
    """The baseline's vertical flips in stage 2; no scan looks like that."""
    rotate: float = 0.0
    """Greatest rotation in degrees in stage 2; the baseline has 30."""
    zoom: float = 0.0
    """Greatest relative zoom in stage 2; the baseline's random crops have about 0.05."""

    segmenter_lr: float = 1e-3
    """Adam's learning rate in stage 1."""
    lr: float = 1e-4
    """Adam's learning rate in stage 2; the baseline has 1e-6."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over a stage; cosine ends at zero."""
    segmenter_steps: int = 3000
    """Batches in stage 1; 0 leaves it out."""
    steps: int = 1000
    """Batches in stage 2, where the data set has classes; 0 leaves it out."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations; parameters, losses and statistics stay float32."""

    regions: tuple[str, ...] = LAYERS
    """Names of the layers from above to below; filled in from the data set."""
    classes: tuple[str, ...] = ("normal", "glaucoma")
    """Names of the classes; filled in from the data set. With none, stage 2 is left out."""


def check(config: Config) -> None:
    """Raises InputError for settings that no net can be built or trained from."""
    ones = ("segmenter_width", "levels", "classifier_width")
    zeros = ("segmenter_steps", "steps", "hidden", "dice_weight", "distance_weight", "rotate")
    least = dict.fromkeys(ones, 1) | dict.fromkeys(zeros, 0)
    rules = {name: (getattr(config, name) >= bound, f"at least {bound}") for name, bound in least.items()}
    rules |= {name: (getattr(config, name) > 0, "above 0") for name in ("softness", "segmenter_lr", "lr")}
    rules["zoom"] = (0 <= config.zoom < 1, "at least 0 and below 1")
    check_options(config, rules)
    if not config.regions:
        raise InputError(
            "GOALS learns layers, but the data set has no masks. Give one that has, such as --data bscans."
        )
    if len(config.classes) == 1 or not (config.segmenter_steps or (config.classes and config.steps)):
        raise InputError(
            f"With the classes {config.classes}, --method.segmenter-steps {config.segmenter_steps} and --method.steps "
            f"{config.steps} there is nothing to learn. Give two classes, or none; and some steps."
        )


def make(config: Config) -> Method:
    """Builds the segmenter and, where there are classes, the classifier.

    Batches hold ``image`` uint8 [b, h, w, 3], ``mask`` uint8 [b, h, w, r], ``label`` int32 [b] (-1: not known),
    ``weight`` and ``mask_weight`` float32 [b] (0: padding, no mask) and ``index`` int32 [b]. Outputs are ``mask_probs``
    [b, h, w, r], ``thickness`` [b, r] (mean, in rows), ``profile_LAYER`` [b, w] (thickness in each column) and
    ``probs`` [b, k].

    Raises:
      InputError: the settings contradict each other, or there are no layers.
    """
    check(config)
    layers, dtype = len(config.regions), jnp.dtype(config.dtype)
    classes = len(config.classes) if config.steps else 0
    ordered, sees = config.segmenter == "ordered", config.classifier_sees == "layers"
    segmenter: Any = (
        UShape(1 + layers, config.segmenter_width, config.segmenter_norm, dtype)
        if config.segmenter == "ushape"
        else UNet(
            2 * layers if ordered else 1 + layers, config.segmenter_width, config.levels, config.segmenter_norm, dtype
        )
    )
    classifier = PooledResNet(
        outputs=max(classes, 1), hidden=(config.hidden,) if config.hidden else (), depth=config.classifier_depth,
        width=config.classifier_width, stem_kind=config.stem, norm=config.classifier_norm, dtype=dtype,
    )  # fmt: skip

    def optimiser(lr: float, steps: int) -> optax.GradientTransformation:
        return bundle(optax.adam(optax.cosine_decay_schedule(lr, steps) if config.schedule == "cosine" else lr))

    segmenter_tx = optimiser(config.segmenter_lr, max(config.segmenter_steps, 1))
    classifier_tx = optimiser(config.lr, max(config.steps, 1))

    def apply(net: Any, name: str, params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
        variables = {"params": params[name], "batch_stats": stats[name]}
        if not train:
            return net.apply(variables, x, train=False), stats
        found, new = net.apply(variables, x, train=True, mutable=["batch_stats"])
        return found, stats | {name: new.get("batch_stats", {})}

    def layer_probs(logits: jax.Array) -> jax.Array:
        if ordered:
            return bands(expected_edges(logits), logits.shape[1], softness=config.softness)
        return jax.nn.softmax(logits)[..., 1:]

    def learn_layers(key: Key, params: Any, extra: Any, batch: Batch) -> tuple[jax.Array, tuple[Any, Logs]]:
        batch = flip(at(key, "flip"), batch) if config.flip else batch
        logits, stats = apply(segmenter, "segmenter", params, extra["batch_stats"], unit(batch["image"]), train=True)
        truth = exclusive(batch["mask"])
        if ordered:
            entropy, apart = boundary_loss(logits, expected_edges(logits), *edges_of(truth[..., 1:]))
            each, logs = entropy + config.distance_weight * apart, {"edge_distance": apart.mean()}
        else:
            each, logs = optax.softmax_cross_entropy(logits, truth).mean((1, 2)), {}
        if config.dice_weight:
            each = each + config.dice_weight * soft_dice_loss(layer_probs(logits), truth[..., 1:]).mean(-1)
        weight = batch["mask_weight"]
        return (each * weight).sum() / jnp.maximum(weight.sum(), 1.0), ({"batch_stats": stats}, logs)

    def seen(params: Any, stats: Any, image: jax.Array) -> jax.Array:
        """What the classifier sees; the segmenter runs on its stored statistics."""
        if not sees:
            return centred(image)
        logits, _ = apply(segmenter, "segmenter", params, stats, image, train=False)
        return jnp.concatenate([centred(image), jax.lax.stop_gradient(layer_probs(logits))], -1)

    def view(key: Key, batch: Batch) -> jax.Array:
        image = unit((flip(at(key, "flip"), batch) if config.flip else batch)["image"])
        if config.flip_vertical:
            turned = jax.random.bernoulli(at(key, "vertical"), shape=(len(image), 1, 1, 1))
            image = jnp.where(turned, image[:, ::-1], image)
        if config.rotate or config.zoom:
            angle = config.rotate * np.pi / 180
            image, _ = warp(at(key, "warp"), image, batch["mask"], batch["index"], zoom=config.zoom, rotate=angle)
        return image

    def learn_labels(key: Key, params: Any, extra: Any, batch: Batch) -> tuple[jax.Array, tuple[Any, Logs]]:
        x = seen(params, extra["batch_stats"], view(key, batch))
        logits, stats = apply(classifier, "classifier", params, extra["batch_stats"], x, train=True)
        labels = batch["label"]
        if config.control == "labels":
            labels = labels[others(at(key, "labels"), labels >= 0)]
        known = labels >= 0
        paid = (squashed_twice if config.legacy_loss else softmax_cross_entropy)(logits, jnp.maximum(labels, 0))
        return (paid * known).sum() / jnp.maximum(known.sum(), 1), ({"batch_stats": stats}, {})

    def init(key: Key, batch: Batch) -> TrainState:
        image = unit(batch["image"])
        params, stats, opt = {}, {}, {}
        made = segmenter.init(at(key, "segmenter"), image, train=False)
        params["segmenter"], stats["segmenter"] = made["params"], made.get("batch_stats", {})
        if config.segmenter_steps:
            opt["segmenter"] = begin(segmenter_tx, params, ("segmenter",))
        if classes:
            made = classifier.init(at(key, "classifier"), seen(params, stats, image), train=False)
            params["classifier"], stats["classifier"] = made["params"], made.get("batch_stats", {})
            opt["classifier"] = begin(classifier_tx, params, ("classifier",))
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt=opt, extra={"batch_stats": stats})

    def chosen(probs: jax.Array) -> jax.Array:
        """The class of each pixel, the background where no layer is more probable: 0/1 masks of the layers."""
        best = jnp.concatenate([1 - probs.sum(-1, keepdims=True), probs], -1).argmax(-1)
        return jax.nn.one_hot(best, 1 + layers)[..., 1:]

    def predict(key: Key, state: TrainState, batch: Batch) -> Outputs:
        del key
        image, stats = unit(batch["image"]), state.extra["batch_stats"]
        logits, _ = apply(segmenter, "segmenter", state.params, stats, image, train=False)
        outputs: Outputs = {"mask_probs": layer_probs(logits)}
        profiles = thickness(chosen(outputs["mask_probs"]))
        outputs |= {f"profile_{name}": profiles[..., i] for i, name in enumerate(config.regions)}
        outputs["thickness"] = profiles.mean(1)
        if classes:
            x = seen(state.params, stats, image)
            logits, _ = apply(classifier, "classifier", state.params, stats, x, train=False)
            outputs["probs"] = jax.nn.softmax(logits)
        return outputs

    def metrics(outputs: Outputs, batch: Batch) -> Pairs:
        weight = batch["weight"] * batch["mask_weight"]
        found, truth = chosen(outputs["mask_probs"]), exclusive(batch["mask"])[..., 1:]
        overlap, apart, missed = streaming.dice(found, truth), edge_distance(found, truth), edge_distance(truth, found)
        pairs = {"ordered": streaming.pair(order_kept(found), weight)}
        for i, name in enumerate(config.regions):
            pairs[f"dice_{name}"] = streaming.pair(overlap[:, i], weight)
            pairs[f"med_{name}"] = streaming.pair(apart[:, i], weight)
            pairs[f"med_both_{name}"] = streaming.pair((apart[:, i] + missed[:, i]) / 2, weight)
        return pairs

    def scores(gathered: Mapping[str, np.ndarray]) -> dict[str, float]:
        weights = LAYER_WEIGHTS if config.regions == LAYERS else (1 / layers,) * layers
        rows = {name: gathered[name] for name in gathered if name.startswith(("dice_", "med_", "ordered"))}
        for kind in ("dice", "med"):
            rows[kind] = np.stack([rows[f"{kind}_{name}"] for name in config.regions], -1) @ np.array(weights)
        found = ranking.mean_scores(rows, clusters=ranking.patients(gathered))
        known = gathered["label"] >= 0 if classes else np.zeros(0, bool)
        if known.any():
            labels, clusters = gathered["label"][known], ranking.patients(gathered, known)
            found |= ranking.classification_scores(gathered["probs"][known], labels, clusters=clusters)
            if classes == 2 and len(np.unique(labels)) == 2:
                # How far the first layer alone tells: thin is glaucoma.
                found["auc_thickness"] = ranking.auc(-gathered["thickness"][known, 0], labels)
        return found

    def submit(folder: Path, examples: Iterable[tuple[str, Mapping[str, np.ndarray]]]) -> None:
        rows = []
        for name, example in examples:
            probs = example["mask_probs"].astype(np.float32)
            best = np.concatenate([1 - probs.sum(-1, keepdims=True), probs], -1).argmax(-1)
            size = tuple(example["size"].tolist()) if "size" in example else None
            challenges.write_mask(folder / challenges.LAYERS / f"{name}.png", best, GOALS, size)
            if classes == 2:
                rows.append((f"{name}.png", f"{example['probs'][1]:.6f}"))
        if rows:
            challenges.write_table(folder / f"{challenges.GLAUCOMA}.csv", ("ImgName", "GC_Pred"), rows)

    stages = []
    if config.segmenter_steps:
        step = descend(learn_layers, segmenter_tx, trains=("segmenter",), slot="segmenter")
        stages.append(Stage("segmenter", config.segmenter_steps, step, "masks", ("segmenter",)))
    if classes:
        step = descend(learn_labels, classifier_tx, trains=("classifier",), slot="classifier")
        stages.append(Stage("classifier", config.steps, step, "train", ("classifier",)))
    official = config.regions == LAYERS
    watch = "auc" if classes else "dice"
    return Method(
        init, tuple(stages), predict, metrics, scores, watch, submit=submit if official else None, exclusive=True
    )
