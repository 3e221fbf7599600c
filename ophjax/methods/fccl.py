"""FCCL: features are contrasted with moving class centroids, so that a classifier of one domain carries further.

Zhou et al., "Contrastive Centroid Supervision Alleviates Domain Shift in Medical Image Classification",
arXiv:2205.15658. Cross-entropy on one labelled source domain, and beside it a contrast of every instance's feature
with the centroids of all classes; no target image is used. Only the abstract fixes this much, and no code was
released: the loss, the centroids' update and all settings below are a reconstruction (BUILD_NOTES.md).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ophjax.data.augment import centred, flip, jitter, unit
from ophjax.data.crop import resized_crop
from ophjax.errors import InputError, check_options
from ophjax.keys import at
from ophjax.losses import contrast
from ophjax.losses.classification import softmax_cross_entropy
from ophjax.metrics import ranking
from ophjax.metrics.domain_scores import by_domain
from ophjax.nets.pooled import PooledClassifier
from ophjax.transforms import centroids
from ophjax.transforms.bundling import bundle
from ophjax.transforms.centroids import Centroids, ClassSums, normalise
from ophjax.transforms.controls import others
from ophjax.transforms.reversal import linear_ramp
from ophjax.transforms.stepping import begin, descend
from ophjax.types import Batch, Key, Logs, Method, Outputs, Pairs, Stage, TrainState

PAPER = {
    "title": "Contrastive Centroid Supervision Alleviates Domain Shift in Medical Image Classification",
    "authors": "Zhou, Yang, Wu, Yang, Wu, Wang, Wang, Huang, Xu",
    "venue": "arXiv, 2022",
    "arxiv": "2205.15658",
}

# The data set where none is named.
DATA = "lesions"

# Changes to Config: a net for two CPU cores (the experiment of the spec, section (k)), and one for tests that learns
# nothing, with a weight so small that the loss falls from the first step on, when there are no centroids yet.
DEMO: dict[str, Any] = dict(
    trunk="plain", width=16, crop=1.0, flip=False, jitter=0.0,
    lr=2e-3, weight_decay=1e-4, schedule="constant", steps=1200,
)  # fmt: skip
SMOKE: dict[str, Any] = dict(
    trunk="plain", width=8, crop=1.0, jitter=0.0, weight=0.1, lr=3e-3, schedule="constant", steps=4,
)  # fmt: skip

# Changes to the loop's configuration, by preset.
TRAIN: dict[str, dict[str, Any]] = {"paper": dict(batch_size=32), "demo": dict(batch_size=32)}

# The colour jitter at strength 1.
JITTER = {"brightness": 0.1, "contrast": 0.2, "gamma": 0.2}

# What a comparison runs beside the method itself: changes to Config, and the networks taken over from its run.
VARIANTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "erm": (dict(baseline="erm"), ()),
    "supcon": (dict(baseline="supcon"), ()),
    "center": (dict(baseline="center", weight=0.01), ()),
    "projection": (dict(projection=32), ()),
    "weight-0.3": (dict(weight=0.3), ()),
    "temperature-0.3": (dict(temperature=0.3), ()),
    "momentum-0.99": (dict(momentum=0.99), ()),
    "centroids-epoch": (dict(centroid_mode="epoch"), ()),
    "centroids-batch": (dict(centroid_mode="batch-gradient", temperature=0.3), ()),
    "centroids-learned": (dict(centroid_mode="learned", temperature=0.3), ()),
    "jitter": (dict(jitter=0.5), ()),
    "erm-jitter": (dict(baseline="erm", jitter=0.5), ()),
    "labels-shuffled": (dict(control="labels"), ()),
}

# The scores of a comparison's table (patterns over names), the first of which is compared seed by seed.
SCORES = ("accuracy", "accuracy_*", "auc")


@dataclasses.dataclass(frozen=True)
class Config:
    """FCCL at the scale we take for the paper's."""

    baseline: Literal["none", "erm", "supcon", "center"] = "none"
    """none: FCCL. erm: cross-entropy alone. supcon: instances against instances (supervised contrast, one view).
    center: pull towards the class's centre, features not scaled to length 1 (then set weight to about 0.01)."""
    control: Literal["none", "labels"] = "none"
    """Negative control: shuffle the training labels within each batch."""

    trunk: Literal["resnet", "plain", "vit"] = "resnet"
    """resnet; plain: three convolutions of stride 2 without norms, for small images; vit: a vision transformer (by the
    three options' defaults ViT-S/16), whose class token is the feature."""
    depth: Literal[10, 18, 34, 50, 101] = 50
    """Layers of the ResNet."""
    width: int = 64
    """Channels of the trunk's first stage."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """imagenet: 7x7 convolution of stride 2 and a max-pool. small: 3x3 convolution of stride 1."""
    norm: Literal["batch", "group"] = "batch"
    """Normalisation of the ResNet."""
    vit_patch: int = 16
    """Side of the vision transformer's patches, of which the image's sides must be multiples."""
    vit_width: int = 384
    """Its width: a multiple of 64, each of which is a head, or less for one head."""
    vit_depth: int = 12
    """Its blocks."""
    projection: int | None = None
    """The contrast sees the feature through a linear layer to this many numbers; None: the feature itself."""

    weight: float = 1.0
    """Weight of the contrast (or of the baseline's term) beside the cross-entropy."""
    ramp: float = 0.1
    """Share of training over which that weight rises from 0, in a straight line."""
    temperature: float = 0.1
    """Cosines are divided by this before the softmax."""
    momentum: float = 0.9
    """What a centroid keeps of itself in a step; 0.99 for large sets."""
    centroid_mode: Literal["ema", "epoch", "batch", "batch-gradient", "learned"] = "ema"
    """ema: moving average over steps. epoch: mean over the epoch before. batch: mean over the batch; batch-gradient:
    the same with the gradient through it. learned: free vectors, a cosine classifier beside the linear one, which then
    also serve as the centroids of the outputs."""
    examples: int = 2400
    """Training images, of which an epoch consists (centroid_mode epoch); filled in from the data set."""
    seed_steps: int = 0
    """Batches that are first passed through the untrained net to set the centroids; 0: set as the classes appear."""
    instance_negatives: bool = False
    """The examples of other classes in the batch count as negatives too."""
    class_balanced: bool = False
    """Average the contrast over each class first, then over the classes."""
    predict: Literal["head", "centroid"] = "head"
    """Who decides: the linear head, or the nearest centroid."""
    ordinal: bool = False
    """The classes are grades in rising order: adds the quadratic kappa to the scores."""

    crop: float = 0.7
    """Least share of the area that a random crop keeps; 1: no crops."""
    flip: bool = True
    """Horizontal flips."""
    jitter: float = 1.0
    """Strength of the colour jitter; 1: brightness 0.1, contrast 0.2, gamma 0.2; 0: none."""
    optimiser: Literal["adamw", "sgd"] = "adamw"
    """adamw, or sgd with the momentum betas[0] and the weight decay added to the gradient."""
    lr: float = 1e-4
    """Learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the first and the second moment."""
    weight_decay: float = 5e-4
    """Weight decay; decoupled for adamw."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate over training; cosine ends at zero."""
    steps: int = 6000
    """Batches (80 epochs of 2400 images at batch 32)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations; parameters, features, centroids, losses and statistics stay float32."""

    classes: tuple[str, ...] = ("negative", "positive")
    """Names of the classes; filled in from the data set."""
    domains: tuple[str, ...] = ()
    """Names of the domains, the source first; filled in from the data set. Used to score, never to train."""


def check(config: Config) -> None:
    """Raises InputError for settings that no net can be built or trained from."""
    contrasted = config.baseline in ("none", "supcon")
    even = config.trunk != "resnet" or (config.width >= 4 and config.width % 2 == 0)
    rules = {
        "width": (config.width >= 1 and even, "a positive number, for a ResNet an even one of at least 4"),
        "vit-patch": (config.vit_patch >= 1, "at least 1"),
        "vit-width": (
            0 < config.vit_width < 64 or (config.vit_width > 0 and config.vit_width % 64 == 0),
            "a multiple of 64, or less than 64",
        ),
        "vit-depth": (config.vit_depth >= 1, "at least 1"),
        "projection": (
            config.projection is None or (config.projection >= 1 and contrasted),
            "None, or with baseline none or supcon at least 1",
        ),
        "weight": (config.weight >= 0, "at least 0"),
        "ramp": (0 <= config.ramp <= 1, "a share from 0 to 1"),
        "temperature": (config.temperature > 0, "above 0"),
        "momentum": (0 <= config.momentum < 1, "at least 0 and below 1"),
        "examples": (config.examples >= 1, "at least 1"),
        "seed-steps": (config.seed_steps >= 0, "at least 0"),
        "centroid-mode": (config.centroid_mode == "ema" or config.baseline == "none", "ema where there is a baseline"),
        "crop": (0 < config.crop <= 1, "above 0 and at most 1"),
        "jitter": (0 <= config.jitter < 5, "at least 0 and below 5"),
        "lr": (config.lr > 0, "above 0"),
        "betas": (all(0 <= beta < 1 for beta in config.betas), "two numbers of at least 0 and below 1"),
        "weight-decay": (config.weight_decay >= 0, "at least 0"),
        "steps": (config.steps >= 1, "at least 1"),
    }
    check_options(config, rules)
    if len(config.classes) < 2:
        raise InputError(
            f"The data set has the classes {config.classes}; a classifier, and the contrast of a feature with the "
            "centroids of other classes, need at least two. Give a data set that has them."
        )


def optimiser(config: Config) -> optax.GradientTransformation:
    """Builds AdamW or SGD with momentum, with its learning rate over the steps."""
    rate = optax.cosine_decay_schedule(config.lr, config.steps) if config.schedule == "cosine" else config.lr
    if config.optimiser == "adamw":
        return bundle(optax.adamw(rate, *config.betas, weight_decay=config.weight_decay))
    return bundle(optax.chain(optax.add_decayed_weights(config.weight_decay), optax.sgd(rate, config.betas[0])))


def make(config: Config) -> Method:
    """Builds FCCL, or the baseline that the configuration names.

    Batches hold ``image`` uint8 [b, h, w, 3], ``label`` int32 [b] (-1: not known), ``weight`` float32 [b] (0: padding)
    and ``index`` int32 [b]; those that are scored may hold ``domain`` int32 [b]. Outputs are ``probs`` [b, k] and
    ``cosines`` [b, k], of the feature with each centroid (-1 where a class was never seen).

    The state keeps the centroids in ``extra["centroids"]``, whatever the baseline: they cost little and show how tight
    and how far apart the classes are.

    Raises:
      InputError: the settings contradict each other.
    """
    check(config)
    classes = len(config.classes)
    net = PooledClassifier(
        classes, config.trunk, config.depth, config.width, config.stem, config.norm,
        (config.vit_patch, config.vit_width, config.vit_depth), config.projection, dtype=jnp.dtype(config.dtype),
    )  # fmt: skip
    tx = optimiser(config)
    learned = config.centroid_mode == "learned"
    epoch = config.centroid_mode == "epoch"
    trained = ("classifier", "proxies") if learned else ("classifier",)

    def forward(params: Any, stats: Any, image: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array, Any]:
        """Logits, feature and batch statistics, which only training moves."""
        variables = {"params": params["classifier"], "batch_stats": stats["classifier"]}
        mutable = ["batch_stats"] if train else []
        (logits, feature), new = net.apply(variables, image, train=train, mutable=mutable)
        return logits, feature, {"classifier": new.get("batch_stats", {})} if train else stats

    def tracked(feature: jax.Array) -> jax.Array:
        """What the centroids are means of."""
        return feature if config.baseline == "center" else normalise(feature)

    def view(key: Key, batch: Batch) -> jax.Array:
        batch = flip(at(key, "flip"), batch) if config.flip else batch
        image = unit(batch["image"])
        if config.crop < 1:
            image = resized_crop(at(key, "crop"), image, batch["index"], least=config.crop)
        if config.jitter:
            strength = {name: config.jitter * full for name, full in JITTER.items()}
            image = jitter(at(key, "jitter"), image, batch["index"], **strength)
        return centred(image)

    def term(
        feature: jax.Array, labels: jax.Array, params: Any, known: Centroids, sums: ClassSums
    ) -> tuple[jax.Array, jax.Array]:
        """The loss beside the cross-entropy for each example, and which examples have one."""
        z = normalise(feature)
        if config.baseline == "supcon":
            each = contrast.supervised_contrast(z, labels, temperature=config.temperature)
            return each, (labels >= 0).astype(jnp.float32)
        if config.baseline == "center":
            each = contrast.center_loss(feature, labels, known.mean, seen=known.seen)
            return each, contrast.has_centroid(labels, known.seen).astype(jnp.float32)
        # The centroids of the step before: no example is compared with itself.
        mu, seen = directions_of(params, known)
        if config.centroid_mode.startswith("batch"):
            mu, seen = normalise(sums.mean), sums.number > 0
            mu = mu if config.centroid_mode == "batch-gradient" else jax.lax.stop_gradient(mu)
        each = contrast.contrast_centroids(
            z, labels, mu, seen=seen, temperature=config.temperature, instance_negatives=config.instance_negatives
        )
        return each, contrast.has_centroid(labels, seen).astype(jnp.float32)

    def directions_of(params: Any, known: Centroids) -> tuple[jax.Array, jax.Array]:
        """The centroids as unit vectors, and which there are."""
        if learned:
            return normalise(params["proxies"]["directions"]), jnp.ones((classes,), bool)
        return centroids.directions(known), known.seen

    def remember(extra: dict[str, Any], sums: ClassSums, rows: int) -> dict[str, Any]:
        """The centroids after a batch of so many rows."""
        if not epoch:
            return {"centroids": centroids.update(extra["centroids"], sums, momentum=config.momentum)}
        sums = jax.tree.map(jnp.add, extra["sums"], sums)
        looked = extra["looked"] + rows
        last = looked >= config.examples
        fresh = centroids.update(extra["centroids"], sums, momentum=0.0)
        return {
            "centroids": jax.tree.map(lambda new, old: jnp.where(last, new, old), fresh, extra["centroids"]),
            "sums": jax.tree.map(lambda total: jnp.where(last, 0.0, total), sums),
            "looked": jnp.where(last, 0, looked),
        }

    def loss(done: jax.Array, key: Key, params: Any, extra: Any, batch: Batch) -> tuple[jax.Array, tuple[Any, Logs]]:
        labels = batch["label"]
        if config.control == "labels":
            labels = labels[others(at(key, "labels"), labels >= 0)]
        logits, feature, stats = forward(params, extra["batch_stats"], view(key, batch), train=True)
        sums = centroids.class_sums(tracked(feature), labels, classes)
        new = remember(extra, sums, len(labels))
        paid = softmax_cross_entropy(logits, jnp.maximum(labels, 0))
        logs = {"cross_entropy": contrast.weighted_mean(paid, labels >= 0)} | geometry(new["centroids"])
        total = logs["cross_entropy"]
        if config.baseline != "erm":
            each, counted = term(feature, labels, params, extra["centroids"], sums)
            shares = contrast.class_shares(labels, classes) if config.class_balanced else 1.0
            logs["contrast"] = contrast.weighted_mean(each, counted * shares)
            if config.weight:
                risen = linear_ramp(done / config.steps, end=config.ramp) if config.ramp else 1.0
                total = total + config.weight * risen * logs["contrast"]
        return total, (new | {"batch_stats": stats}, logs)

    def learn(key: Key, state: TrainState, batch: Batch) -> tuple[TrainState, Logs]:
        done = state.step - config.seed_steps
        return descend(functools.partial(loss, done), tx, trains=trained, slot="classifier")(key, state, batch)

    def look(key: Key, state: TrainState, batch: Batch) -> tuple[TrainState, Logs]:
        """Adds a batch to what the centroids begin with; nothing is trained."""
        image = view(key, batch)
        _, feature, _ = forward(state.params, state.extra["batch_stats"], image, train=False)
        sums = centroids.class_sums(tracked(feature), batch["label"], classes)
        sums = jax.tree.map(jnp.add, state.extra["sums"], sums)
        return state.replace(extra=state.extra | {"sums": sums}), {"classes_seen": (sums.number > 0).sum()}

    def settle(key: Key, state: TrainState) -> TrainState:
        """Makes the centroids out of what was looked at."""
        del key
        if not config.seed_steps:
            return state
        known = centroids.update(state.extra["centroids"], state.extra["sums"], momentum=0.0)
        empty = jax.tree.map(jnp.zeros_like, state.extra["sums"])
        return state.replace(extra=state.extra | {"centroids": known, "sums": empty})

    def init(key: Key, batch: Batch) -> TrainState:
        image = centred(unit(batch["image"]))
        (_, feature), made = net.init_with_output(at(key, "classifier"), image, train=False)
        params = {"classifier": made["params"]}
        none = centroids.no_centroids(classes, feature.shape[1])
        if learned:
            params["proxies"] = {"directions": jax.random.normal(at(key, "proxies"), none.mean.shape)}
        extra: dict[str, Any] = {"batch_stats": {"classifier": made.get("batch_stats", {})}, "centroids": none}
        if epoch or config.seed_steps:
            extra["sums"] = ClassSums(total=none.mean, number=jnp.zeros((classes,), jnp.float32))
        if epoch:
            extra["looked"] = jnp.zeros((), jnp.int32)
        opt = {"classifier": begin(tx, params, trained)}
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt=opt, extra=extra)

    def predict(key: Key, state: TrainState, batch: Batch) -> Outputs:
        del key
        image = centred(unit(batch["image"]))
        logits, feature, _ = forward(state.params, state.extra["batch_stats"], image, train=False)
        mu, seen = directions_of(state.params, state.extra["centroids"])
        cosines = jnp.where(seen[None, :], contrast.cosines(normalise(feature), mu), -1.0)
        if config.predict == "centroid":
            logits = cosines / config.temperature
        return {"probs": jax.nn.softmax(logits), "cosines": cosines}

    def metrics(outputs: Outputs, batch: Batch) -> Pairs:
        del outputs, batch
        return {}

    def scores(gathered: Mapping[str, np.ndarray]) -> dict[str, float]:
        return by_domain(gathered, config.domains, functools.partial(score, ordinal=config.ordinal))

    stages = [Stage("classifier", config.steps, learn, "train", trained, enter=settle)]
    if config.seed_steps:
        stages.insert(0, Stage("centroids", config.seed_steps, look, "train", ()))
    watch = f"auc_{config.domains[0]}" if len(config.domains) > 1 else "auc"
    return Method(init, tuple(stages), predict, metrics, scores, watch=watch)


def geometry(known: Centroids) -> Logs:
    """Logs of the centroids: how alike two of them are, and how tight the classes (their mean length)."""
    mu, seen = centroids.directions(known), known.seen.astype(jnp.float32)
    pairs = seen[:, None] * seen[None, :] * (1.0 - jnp.eye(len(seen)))
    alike = (contrast.cosines(mu, mu) * pairs).sum() / jnp.maximum(pairs.sum(), 1.0)
    length = contrast.weighted_mean(jnp.linalg.norm(known.mean, axis=1), seen)
    return {"centroid_cosine": alike, "centroid_length": length, "classes_seen": seen.sum()}


def score(rows: Mapping[str, np.ndarray], *, ordinal: bool) -> dict[str, float]:
    """Scores one domain: the classifier; cosines with the own and the other centroids; how often the nearest agrees."""
    known = rows["label"] >= 0
    if not known.any():
        return {}
    probs, cosines, labels = (rows[name][known] for name in ("probs", "cosines", "label"))
    found = ranking.classification_scores(probs, labels, clusters=ranking.patients(rows, known))
    if ordinal:
        kappa = ranking.quadratic_kappa(probs.argmax(1), labels, probs.shape[1])
        found |= {"kappa": kappa} if np.isfinite(kappa) else {}
    own = cosines[np.arange(len(labels)), labels]
    other = (cosines.sum(1) - own) / (cosines.shape[1] - 1)
    agreement = (cosines.argmax(1) == probs.argmax(1)).mean()
    return found | {"own_cosine": float(own.mean()), "other_cosine": float(other.mean()), "agreement": float(agreement)}
