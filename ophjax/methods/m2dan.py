"""M2DAN: multi-scale, multi-target domain adversarial classification, after the published abstract.

Qiu et al., "Multi-Scale Multi-Target Domain Adaptation for Angle Closure Classification", MICCAI 2022. One labelled
source and several unlabelled targets (devices) are seen in every batch. A multi-scale module gives a fused feature and
one of each scale; a critic on each tells the domains apart, and gradient reversal makes them alike. Only the abstract
could be read: every width, loss and schedule below is our decision (BUILD_NOTES.md lists them), and no number of the
paper is claimed.
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
from ophjax.errors import InputError, check_options
from ophjax.keys import at
from ophjax.losses.classification import softmax_cross_entropy
from ophjax.losses.critics import balanced_mean, critic_outputs, domain_loss
from ophjax.metrics import ranking
from ophjax.metrics.domain_scores import by_domain, proxy_distance
from ophjax.nets.multiscale import Critics, LabelHead, MultiScaleNet
from ophjax.transforms.bundling import bundle
from ophjax.transforms.controls import others
from ophjax.transforms.reversal import reverse_gradient, sigmoid_ramp
from ophjax.transforms.stepping import begin, descend
from ophjax.types import Batch, Key, Logs, Method, Outputs, Pairs, Stage, TrainState

PAPER = {
    "title": "Multi-Scale Multi-Target Domain Adaptation for Angle Closure Classification",
    "authors": "Qiu, Zhang, Li, Zhang, Xu, Tan",
    "venue": "MICCAI 2022",
    "arxiv": "2208.12157",
}

# The data set where none is named.
DATA = "angles"

# Changes to Config: a net for two CPU cores, and one for tests that learns nothing.
DEMO: dict[str, Any] = dict(
    trunk="plain", width=8, levels=2, norm="none", branch_width=8, features=32, critic_width=64,
    conditional=True, warmup=0.3, optimiser="adam", lr=2e-3, weight_decay=0.0, steps=1200,
)  # fmt: skip
SMOKE: dict[str, Any] = dict(
    depth=10, width=4, stem="small", levels=2, kernels=(1, 3), branch_width=4, features=8, critic_width=8,
    jitter=False, optimiser="adam", lr=1e-3, steps=4,
)  # fmt: skip

# Changes to the loop's configuration: 32 images of each of four domains, and 16.
TRAIN: dict[str, dict[str, Any]] = {"paper": dict(batch_size=128), "demo": dict(batch_size=64, eval_every=600)}

# What a comparison runs beside the method itself: changes to Config, and the networks taken over from its run.
VARIANTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "source-only": (dict(baseline="source-only"), ()),
    "oracle": (dict(baseline="oracle"), ()),
    "merged": (dict(critic="merged"), ()),
    "merged-dann": (dict(critic="merged", align="fused", conditional=False), ()),
    "pairwise": (dict(critic="pairwise"), ()),
    "unconditional": (dict(conditional=False), ()),
    "fused-only": (dict(align="fused"), ()),
    "single-scale": (dict(single_scale=True), ()),
    "no-layernorm": (dict(layer_norm=False), ()),
    "no-jitter": (dict(jitter=False), ()),
    "source-only-no-jitter": (dict(baseline="source-only", jitter=False), ()),
    "labels-shuffled": (dict(control="labels"), ()),
}

# The scores of a comparison's table (patterns over names), the first of which is compared seed by seed.
SCORES = ("accuracy", "accuracy_*", "auc", "auc_*", "proxy_distance")


@dataclasses.dataclass(frozen=True)
class Config:
    """M2DAN at the scale we take for the paper's."""

    baseline: Literal["none", "source-only", "oracle"] = "none"
    """source-only: no critic and no target images. oracle: no critic, and the labels of all domains, as an upper bound
    (the data set must give them in a split "labelled")."""
    control: Literal["none", "labels"] = "none"
    """Negative control: shuffle the source labels across the batch."""

    trunk: Literal["resnet", "plain"] = "resnet"
    """resnet, or plain: convolutions of stride 2 without norms, for small images."""
    depth: Literal[10, 18, 34, 50, 101] = 18
    """Layers of the ResNet."""
    width: int = 64
    """Channels of the trunk's first stage."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """imagenet: 7x7 convolution of stride 2 and a max-pool. small: 3x3 convolution of stride 1."""
    levels: Literal[1, 2, 3, 4] = 4
    """Stages of the trunk in use; small images need fewer."""
    norm: Literal["batch", "group", "none"] = "batch"
    """batch: statistics over the whole batch, all domains together."""

    kernels: tuple[int, ...] = (3, 5, 7)
    """Sides of the parallel convolutions, one for each scale; odd numbers."""
    single_scale: bool = False
    """Ablation: one branch, of the first kernel, with the channels of all branches together."""
    pyramid: bool = False
    """The scales are the outputs of the trunk's last stages instead of the same map."""
    branch_width: int = 256
    """Channels of a branch."""
    features: int = 256
    """Length of the fused feature."""
    fusion: Literal["concat", "sum", "attention"] = "concat"
    """How the branches are joined before a 1x1 convolution."""
    squeeze: bool = False
    """Squeeze-and-excitation on each branch."""
    layer_norm: bool = True
    """LayerNorm without parameters on every vector that enters the label head or a critic."""

    critic: Literal["multiclass", "pairwise", "merged"] = "multiclass"
    """multiclass: which of the domains. pairwise: source or target k, for each k. merged: source or any target."""
    align: Literal["both", "fused", "branches"] = "both"
    """What is made alike across domains: the fused feature, that of every branch, or both."""
    critic_width: int = 1024
    """Width of the critics' two hidden layers."""
    conditional: bool = False
    """The fused critic sees the feature times the predicted probabilities (CDAN)."""
    domain_loss: Literal["cross-entropy", "least-squares"] = "cross-entropy"
    """least-squares needs a pairwise or merged critic."""
    domain_weight: float = 0.3
    """Weight of the critics' loss beside the classification loss."""
    steepness: float = 10.0
    """Gradient reversal grows as 2 / (1 + exp(-steepness * progress)) - 1."""
    warmup: float = 0.0
    """Share of the steps before that: there the critics learn and nothing is reversed, while the source is learned."""
    entropy_weight: float = 0.0
    """Weight of the entropy of the targets' predictions."""
    focal_gamma: float = 0.0
    """Focal loss: cross-entropy times (1 - p)^gamma."""

    flip: bool = False
    """Horizontal flips; only where left and right do not matter."""
    jitter: bool = True
    """Mild changes of brightness, contrast and gamma, drawn alike for every domain."""
    optimiser: Literal["sgd", "adam"] = "sgd"
    """sgd: with Nesterov momentum 0.9 and lr * (1 + 0.001 step)^-0.75. adam: constant rate."""
    lr: float = 0.01
    """Learning rate."""
    weight_decay: float = 1e-3
    """Added to the gradient (sgd) or decoupled (adam)."""
    steps: int = 20_000
    """Batches."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations; parameters, losses and statistics stay float32."""

    classes: tuple[str, ...] = ("open", "closed")
    """Names of the classes; filled in from the data set."""
    domains: tuple[str, ...] = ("device-a", "device-b")
    """Names of the domains, the source first; filled in from the data set."""


def check(config: Config) -> None:
    """Raises InputError for settings that no net can be built or trained from."""
    rules = {
        "kernels": (
            bool(config.kernels) and all(size >= 1 and size % 2 for size in config.kernels),
            "one or more odd numbers",
        ),
        "pyramid": (
            not config.pyramid or (config.trunk == "resnet" and len(config.kernels) <= config.levels),
            "False, or a ResNet trunk and no more kernels than --method.levels",
        ),
        "width": (config.width >= 1, "at least 1"),
        "branch-width": (config.branch_width >= 1, "at least 1"),
        "features": (config.features >= 2, "at least 2"),
        "critic-width": (config.critic_width >= 1, "at least 1"),
        "domain-loss": (
            config.domain_loss == "cross-entropy" or config.critic != "multiclass",
            "cross-entropy where the critic is multiclass",
        ),
        "conditional": (
            not config.conditional or config.align != "branches",
            "False where no critic sees the fused feature",
        ),
        "domain-weight": (config.domain_weight >= 0, "at least 0"),
        "steepness": (config.steepness > 0, "above 0"),
        "warmup": (0 <= config.warmup < 1, "at least 0 and below 1"),
        "entropy-weight": (config.entropy_weight >= 0, "at least 0"),
        "focal-gamma": (config.focal_gamma >= 0, "at least 0"),
        "lr": (config.lr > 0, "above 0"),
        "weight-decay": (config.weight_decay >= 0, "at least 0"),
        "steps": (config.steps >= 1, "at least 1"),
    }
    check_options(config, rules)
    if len(config.classes) < 2:
        raise InputError(f"The data set has the classes {config.classes}; M2DAN needs at least two.")
    if len(config.domains) < 2:
        raise InputError(
            f"M2DAN adapts a labelled source to unlabelled targets, but the data set has {len(config.domains) or 'no'} "
            "domain(s). Choose one with several, such as --data angles, or a folder for each domain: --data domains."
        )


def optimiser(config: Config) -> optax.GradientTransformation:
    """The optimiser of all networks; the schedule of sgd is that of common DANN code (M2DAN spec, section (e))."""
    if config.optimiser == "adam":
        return bundle(optax.adamw(config.lr, weight_decay=config.weight_decay))

    def rate(step: jax.Array) -> jax.Array:
        return config.lr * (1 + 0.001 * step) ** -0.75

    return bundle(
        optax.chain(optax.add_decayed_weights(config.weight_decay), optax.sgd(rate, momentum=0.9, nesterov=True))
    )


def make(config: Config) -> Method:
    """Builds M2DAN, or the baseline that the configuration names.

    Batches hold ``image`` uint8 [b, h, w, 3], ``label`` int32 [b] (-1 for targets, never read there), ``domain`` int32
    [b], ``weight`` float32 [b] and ``index`` int32 [b]. Outputs are ``probs`` [b, k] and ``features`` [b, f].

    Raises:
      InputError: the settings contradict each other, or there are no targets.
    """
    check(config)
    adapts, domains = config.baseline == "none", len(config.domains)
    kernels, branch_width = config.kernels, config.branch_width
    if config.single_scale:
        kernels, branch_width = kernels[:1], branch_width * len(kernels)
    extractor = MultiScaleNet(
        trunk=config.trunk,
        depth=config.depth,
        width=config.width,
        stem_kind=config.stem,
        levels=config.levels,
        norm=config.norm,
        kernels=kernels,
        branch_width=branch_width,
        features=config.features,
        fusion=config.fusion,
        squeeze=config.squeeze,
        pyramid=config.pyramid,
        normalised=config.layer_norm,
        dtype=jnp.dtype(config.dtype),
    )
    head = LabelHead(len(config.classes))
    critics = Critics(critic_outputs(config.critic, domains), config.align, config.critic_width)
    trained = ("extractor", "head", "critics") if adapts else ("extractor", "head")
    tx = optimiser(config)

    def extract(params: Any, stats: Any, image: jax.Array, *, train: bool) -> tuple[Any, Any]:
        variables = {"params": params["extractor"], "batch_stats": stats["extractor"]}
        if not train:
            return extractor.apply(variables, image, train=False), stats["extractor"]
        found, new = extractor.apply(variables, image, train=True, mutable=["batch_stats"])
        return found, new.get("batch_stats", {})

    def classify(params: Any, features: jax.Array) -> Any:
        return head.apply({"params": params["head"]}, features)

    def view(key: Key, batch: Batch) -> jax.Array:
        batch = flip(at(key, "flip"), batch) if config.flip else batch
        image = unit(batch["image"])
        return centred(jitter(at(key, "jitter"), image, batch["index"]) if config.jitter else image)

    def what_critics_see(features: jax.Array, logits: jax.Array) -> jax.Array:
        if not config.conditional:
            return features
        probs = jax.lax.stop_gradient(jax.nn.softmax(logits))
        return (features[:, :, None] * probs[:, None]).reshape(len(features), -1)

    def classification_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        each = softmax_cross_entropy(logits, labels)
        # From a little above 0 on: below 1 the power would have an infinite slope where the loss is 0.
        return each * jnp.maximum(-jnp.expm1(-each), 1e-6) ** config.focal_gamma if config.focal_gamma else each

    def loss(
        key: Key, params: Any, extra: Any, batch: Batch, *, strength: jax.Array
    ) -> tuple[jax.Array, tuple[Any, Logs]]:
        if config.baseline == "source-only":
            # As many source images as there are in a batch of all domains.
            batch = {name: value[: max(len(value) // domains, 1)] for name, value in batch.items()}
        source = batch["domain"] == 0 if adapts else jnp.ones(len(batch["label"]), bool)
        known = source & (batch["label"] >= 0)
        labels = jnp.where(known, batch["label"], 0)
        if config.control == "labels":
            labels = labels[others(at(key, "labels"), known)]
        (features, branches), stats = extract(params, extra["batch_stats"], view(key, batch), train=True)
        logits = classify(params, features)
        share = known / jnp.maximum(known.sum(), 1)
        value = (classification_loss(logits, labels) * share).sum()
        logs = {"classification_loss": value}
        if adapts:
            seen = reverse_gradient((what_critics_see(features, logits), branches), strength)
            guesses: Any = critics.apply({"params": params["critics"]}, *seen)
            squares = config.domain_loss == "least-squares"
            paid = [domain_loss(one, batch["domain"], critic=config.critic, squares=squares) for one in guesses]
            fooled = jnp.stack([balanced_mean(one, batch["domain"], critic=config.critic) for one in paid]).mean()
            value = value + config.domain_weight * fooled
            logs |= {"domain_loss": fooled, "reversal": strength}
            if config.critic == "multiclass":
                logs["critic_accuracy"] = (guesses.argmax(-1) == batch["domain"][None]).mean()
            if config.entropy_weight:
                entropy = -(jax.nn.softmax(logits) * jax.nn.log_softmax(logits)).sum(-1)
                logs["target_entropy"] = (entropy * ~source).sum() / jnp.maximum((~source).sum(), 1)
                value = value + config.entropy_weight * logs["target_entropy"]
        return value, ({"batch_stats": extra["batch_stats"] | {"extractor": stats}}, logs)

    def learn(key: Key, state: TrainState, batch: Batch) -> tuple[TrainState, Logs]:
        progress = (state.step / config.steps - config.warmup) / (1 - config.warmup)
        strength = sigmoid_ramp(jnp.maximum(progress, 0.0), steepness=config.steepness)
        ramped = functools.partial(loss, strength=strength)
        return descend(ramped, tx, trains=trained, slot="all")(key, state, batch)

    def init(key: Key, batch: Batch) -> TrainState:
        image = centred(unit(batch["image"]))
        made = extractor.init(at(key, "extractor"), image, train=False)
        stats = {"extractor": made.get("batch_stats", {})}
        params = {"extractor": made["params"]}
        (features, branches), _ = extract(params, stats, image, train=False)
        params["head"] = head.init(at(key, "head"), features)["params"]
        if adapts:
            seen = what_critics_see(features, classify(params, features))
            params["critics"] = critics.init(at(key, "critics"), seen, branches)["params"]
        opt = {"all": begin(tx, params, trained)}
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt=opt, extra={"batch_stats": stats})

    def predict(key: Key, state: TrainState, batch: Batch) -> Outputs:
        del key
        image = centred(unit(batch["image"]))
        (features, _), _ = extract(state.params, state.extra["batch_stats"], image, train=False)
        logits = classify(state.params, features)
        return {"probs": jax.nn.softmax(logits), "features": features}

    def metrics(outputs: Outputs, batch: Batch) -> Pairs:
        del outputs, batch
        return {}

    def scores(gathered: Mapping[str, np.ndarray]) -> dict[str, float]:
        found = by_domain(gathered, config.domains, score)
        return found | {"proxy_distance": proxy_distance(gathered["features"], gathered["domain"])}

    stream = {"none": "domains", "source-only": "train", "oracle": "labelled"}[config.baseline]
    stage = Stage("adaptation" if adapts else "plain", config.steps, learn, stream, trained)
    return Method(init, (stage,), predict, metrics, scores, watch=f"auc_{config.domains[0]}", own=("features",))


def score(rows: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Scores one domain's images whose label is known; ``balanced_accuracy`` is the mean over classes of the share of
    each that is found."""
    known = rows["label"] >= 0
    if not known.any():
        return {}
    probs, labels = rows["probs"][known], rows["label"][known]
    right = probs.argmax(1) == labels
    found = [right[labels == label].mean() for label in np.unique(labels)]
    ranked = ranking.classification_scores(probs, labels, clusters=ranking.patients(rows, known))
    return ranked | {"balanced_accuracy": float(np.mean(found))}
