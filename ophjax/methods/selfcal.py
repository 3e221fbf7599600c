"""Self-calibrated segmentation from many raters: ConM segments under an expertness map, DivM finds the map, in turns.

Wu et al., "Learning self-calibrated optic disc and cup segmentation from multi-rater annotations", MICCAI 2022. On
every batch the two run in recurrence, with one optimiser step for each round: ConM learns the raters' masks as DivM
weighed them in the round before, DivM simulates the raters and learns weights whose fused label agrees with ConM.
Inference needs no rater and starts from equal weights. The abstract and the released code could be read, the paper's
text could not; the losses are the code's, corrected (BUILD_NOTES.md lists all departures).
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
from ophjax.losses import agreement
from ophjax.losses.segmentation import binary_cross_entropy
from ophjax.metrics import raters as scoring
from ophjax.nets.consensus import ConM, DivM
from ophjax.transforms import fusion
from ophjax.transforms.bundling import bundle
from ophjax.transforms.recurrence import CARRIED, recur
from ophjax.transforms.stepping import begin, descend
from ophjax.types import Batch, Key, Logs, Method, Outputs, Pairs, Stage, TrainState

PAPER = {
    "title": "Learning self-calibrated optic disc and cup segmentation from multi-rater annotations",
    "authors": "Wu, Fang, Shang, Wang, Yang, Zhou, Yang, Xu",
    "venue": "MICCAI 2022",
    "arxiv": "2206.05092",
}

# The data set where none is named, and what is asked of it: six raters, three of whom are competent.
DATA = "phantoms"
NEEDS: dict[str, dict[str, Any]] = {
    "phantoms": dict(raters=6, roles=("competent", "over-segmenting")),
    "phantoms/demo": dict(size=32, masks=200, val=50, test=200),
}

# Changes to Config: nets for two CPU cores, and for tests that learn nothing.
DEMO: dict[str, Any] = dict(
    depth=10, width=8, decoder=8, heads=(4, 4, 2, 1), norm="group", tokens=16, divm_depth=2, stride=2, drop_path=0.0,
    keep_features=True, lr=3e-3, schedule="cosine", steps=200,
)  # fmt: skip
SMOKE: dict[str, Any] = dict(
    depth=10, width=8, decoder=4, heads=(2, 2, 1, 1), norm="group", tokens=4, stride=8, divm_width=4, divm_heads=2,
    divm_depth=2, train_rounds=2, rounds=2, scored_rounds=(1, 2), lr=3e-3, steps=4,
)  # fmt: skip

# Changes to the loop's configuration, by preset.
TRAIN: dict[str, dict[str, Any]] = {"demo": dict(batch_size=8)}

# What a comparison runs beside the method itself: changes to Config, and the networks taken over from its run.
VARIANTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "mean-label": (dict(label="mean"), ()),
    "majority-vote": (dict(label="vote"), ()),
    "random-rater": (dict(label="random"), ()),
    "staple": (dict(label="staple"), ()),
    "half-quadratic": (dict(label="half-quadratic"), ()),
    "mrnet": (dict(label="mrnet", condition="vector"), ()),
    "equal-weights": (dict(weighting="equal"), ()),
    "ratio": (dict(weighting="ratio"), ()),
    "ssim": (dict(loss="ssim"), ()),
    "bce-v0": (dict(loss="bce_v0"), ()),
    "no-shuffle": (dict(shuffle_weight=0.0), ()),
    "one-round": (dict(train_rounds=1), ()),
    "concat": (dict(condition="concat"), ()),
    "released-residual": (dict(keep_features=False), ()),
    "literal-sign": (dict(loss="ssim", control="literal-sign"), ()),
}

# The scores of a comparison's table (patterns over names), the first of which is compared seed by seed.
SCORES = ("soft_dice", "soft_dice_round*", "soft_dice_raters", "dice_cup", "soft_dice_fused", "weight_*")


@dataclasses.dataclass(frozen=True)
class Config:
    """ConM and DivM at the scale of the released code."""

    label: Literal["self", "mean", "vote", "random", "staple", "half-quadratic", "mrnet"] = "self"
    """self: the recurrence. Baselines train ConM alone, under equal weights, on one label: the mean of the raters,
    their majority vote, a rater drawn anew each time, STAPLE's posterior, or the half-quadratic fusion. mrnet: masks
    fused by random weights, which the net is told (use condition vector)."""
    control: Literal["none", "literal-sign"] = "none"
    """Negative control: minimise SSIM, as the released code is written, instead of 1 - SSIM."""

    depth: Literal[10, 18, 34, 50, 101] = 34
    """Layers of ConM's ResNet encoder."""
    width: int = 64
    """Channels of the encoder's first stage."""
    decoder: int = 128
    """Channels of each half of a decoder block; its attention stage has twice as many."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """imagenet: 7x7 convolution of stride 2 and a max-pool. small: 3x3 convolution of stride 1."""
    norm: Literal["batch", "group"] = "batch"
    """Normalisation of ConM; batch statistics see all rounds mixed."""
    heads: tuple[int, int, int, int] = (8, 4, 2, 1)
    """Attention heads of the decoder, coarse to fine."""
    condition: Literal["attention", "concat", "vector"] = "attention"
    """How ConM is told the map: as the query of attention, beside the features, or as a vector at the bottleneck."""
    keep_features: bool = False
    """The decoder's features join its stages' residual stream. As released, the image must pass through attention."""
    divm_width: int = 16
    """Channels of DivM."""
    divm_heads: int = 4
    """Attention heads of DivM's inner stages."""
    divm_depth: int = 4
    """Attention stages of DivM."""
    stride: int = 4
    """Pixels of the image for each of DivM's positions."""
    tokens: int = 32
    """Attention is over at most tokens x tokens positions: windows of ConM's maps, averages of DivM's."""
    feed_forward_ratio: float = 0.5
    """Width of the feed-forward layers over that of the stages."""
    drop_path: float = 0.05
    """Probability of leaving a residual branch out, per example."""

    weighting: Literal["softmax", "ratio", "equal"] = "softmax"
    """softmax: over expertness logits of their own. ratio: simulated masks over their sum, as released; it favours
    raters who mark much. equal: none, so that the rounds only show ConM the simulated masks (a control)."""
    told: Literal["sw", "w"] = "sw"
    """What ConM is told in later rounds: simulated masks times weights (as released), or weights."""
    loss: Literal["bce", "ssim", "bce_v0"] = "bce"
    """bce: cross-entropies. ssim: 1 - SSIM (the released code with its sign corrected). bce_v0: the older released set,
    in which ConM learns the label of the same round."""
    shuffle_weight: float = 0.3
    """Weight of the loss that has simulated masks meet other raters' weights."""
    entropy_weight: float = 0.0
    """Weight of a bonus for weights that stay spread over the raters."""
    fusion_temperature: float = 0.005
    """Of the half-quadratic label, as a share of the pixels."""
    train_rounds: int = 3
    """Rounds, hence optimiser steps, on each batch."""
    rounds: int = 3
    """Rounds at inference whose last one gives the prediction."""
    scored_rounds: tuple[int, ...] = (1, 2, 3, 8)
    """Rounds at inference that are scored beside it."""
    nested: bool = False
    """Predictions: no region exceeds the one before it (the cup the disc)."""

    flip: bool = False
    """Horizontal flips of image and masks."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of the first and the second moment."""
    lr: float = 1e-4
    """Adam's learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over training; cosine ends at zero."""
    steps: int = 6000
    """Batches (120 epochs of 800 images at batch 16)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations; parameters, losses and statistics stay float32."""

    regions: tuple[str, ...] = ("disc", "cup")
    """Names of the masks' channels; filled in from the data set."""
    raters: tuple[str, ...] = ("rater-1", "rater-2")
    """Names of the raters; filled in from the data set."""


def check(config: Config) -> None:
    """Raises InputError for settings that no net can be built or trained from."""
    counted = ("width", "decoder", "divm-width", "divm-heads", "divm-depth", "stride", "tokens", "train-rounds",
               "rounds", "steps")  # fmt: skip
    least = {name: (getattr(config, name.replace("-", "_")) >= 1, "at least 1") for name in counted}
    rules = least | {
        "heads": (
            min(config.heads) >= 1 and all(2 * config.decoder % count == 0 for count in config.heads),
            "four numbers that divide twice --method.decoder",
        ),
        "divm-heads": (
            config.divm_heads >= 1 and config.divm_width % config.divm_heads == 0,
            "a number that divides --method.divm-width",
        ),
        "feed-forward-ratio": (config.feed_forward_ratio > 0, "above 0"),
        "drop-path": (0 <= config.drop_path < 1, "at least 0 and below 1"),
        "shuffle-weight": (config.shuffle_weight >= 0, "at least 0"),
        "entropy-weight": (config.entropy_weight >= 0, "at least 0"),
        "fusion-temperature": (config.fusion_temperature > 0, "above 0"),
        "scored-rounds": (min(config.scored_rounds, default=1) >= 1, "numbers of at least 1"),
        "control": (
            config.control == "none" or (config.loss == "ssim" and config.label == "self"),
            "none unless --method.loss is ssim and --method.label is self",
        ),
        "betas": (all(0 <= beta < 1 for beta in config.betas), "two numbers of at least 0 and below 1"),
        "lr": (config.lr > 0, "above 0"),
    }
    check_options(config, rules)
    if not config.raters:
        raise InputError(
            "This method learns from the masks of several raters, but the data set names none. Choose one that has "
            "some: --data phantoms --data.raters 6, --data bubil, qubiq, riga, refuge7 or papila."
        )


def make(config: Config) -> Method:
    """Builds the recurrence, or the baseline that the configuration names.

    Batches hold ``image`` uint8 [b, h, w, 3], ``raters`` uint8 [b, r, h, w, c], ``rater_weight`` float32 [b, r] (0:
    missing), ``weight`` float32 [b] and ``index`` int32 [b]; ``mask`` and ``mask_weight``, the truth, are scored
    against and never learned from. Outputs are ``mask_probs`` [b, h, w, c], ``round_probs`` [b, k, h, w, c] of the
    scored rounds, ``round_change`` [b, t] the mean change of the probabilities from each round to the next and, with
    DivM, ``rater_maps`` [b, r, h, w, c]: the expertness, which sums to 1 over raters.

    Raises:
      InputError: the settings contradict each other, or there are no raters.
    """
    check(config)
    count, regions, recurrent = len(config.raters), len(config.regions), config.label == "self"
    dtype = jnp.dtype(config.dtype)
    settings: dict[str, Any] = dict(
        tokens=config.tokens, ratio=config.feed_forward_ratio, drop_path=config.drop_path, dtype=dtype
    )
    conm = ConM(
        regions, config.depth, config.width, config.decoder, config.stem, config.norm, config.heads, config.condition,
        keep_features=config.keep_features, **settings,
    )  # fmt: skip
    divm = DivM(
        count, regions, config.divm_width, config.divm_heads, config.divm_depth, config.stride,
        separate=config.weighting == "softmax", **settings,
    )  # fmt: skip
    trained = ("conm", "divm") if recurrent else ("conm",)
    rate = optax.cosine_decay_schedule(config.lr, config.steps * config.train_rounds)
    tx = bundle(optax.adam(rate if config.schedule == "cosine" else config.lr, *config.betas))

    def segment(key: Key, params: Any, stats: Any, image: jax.Array, told: jax.Array, *, train: bool) -> Any:
        variables = {"params": params["conm"], "batch_stats": stats["conm"]}
        if not train:
            return *conm.apply(variables, image, told, train=False), stats["conm"]
        rngs = {"drop_path": at(key, "conm")}
        found, new = conm.apply(variables, image, told, train=True, mutable=["batch_stats"], rngs=rngs)
        return *found, new.get("batch_stats", {})

    def judge(
        key: Key, params: Any, image: jax.Array, logits: jax.Array, present: jax.Array, *, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """The raters' simulated masks and their weights, each [b, r, h, w, c]."""
        logits = jax.lax.stop_gradient(logits)
        found: Any = divm.apply(
            {"params": params["divm"]}, image, logits, train=train, rngs={"drop_path": at(key, "divm")}
        )
        masks, trust = found
        probs = jax.nn.sigmoid(masks)
        if config.weighting == "softmax":
            return probs, agreement.softmax_weights(trust, present)
        weigh = agreement.ratio_weights if config.weighting == "ratio" else agreement.uniform_weights
        return probs, weigh(probs, present)

    def as_map(values: jax.Array) -> jax.Array:
        """[b, r, h, w, c] as channels of a map."""
        batch, _, height, width, _ = values.shape
        return values.transpose(0, 2, 3, 1, 4).reshape(batch, height, width, -1)

    def condition(probs: jax.Array, weights: jax.Array) -> jax.Array:
        return as_map(jax.lax.stop_gradient(probs * weights if config.told == "sw" else weights))

    def equal(image: jax.Array) -> jax.Array:
        return jnp.full((*image.shape[:3], count * regions), 1 / count)

    def distance(logits: jax.Array, probs: jax.Array, target: jax.Array) -> jax.Array:
        """[b]: how far ConM's answer is from a label, over all regions."""
        if config.loss != "ssim":
            return binary_cross_entropy(logits, target).sum(-1)
        likeness = agreement.ssim(probs, target).sum(-1)
        return likeness if config.control == "literal-sign" else regions - likeness

    def mean(values: jax.Array, present: jax.Array) -> jax.Array:
        """Over the images that have a rater at all."""
        drawn = (present.max(1) > 0).astype(jnp.float32)
        return (values * drawn).sum() / jnp.maximum(drawn.sum(), 1)

    def one_round(key: Key, params: Any, extra: Any, batch: Batch) -> tuple[jax.Array, tuple[Any, Logs]]:
        told, label = extra[CARRIED]
        image, raters, present = unit(batch["image"]), batch["raters"].astype(jnp.float32), batch["rater_weight"]
        logits, _, stats = segment(key, params, extra["batch_stats"], image, told, train=True)
        probs = jax.nn.sigmoid(logits)
        fixed = jax.lax.stop_gradient(probs)
        simulated, weights = judge(key, params, image, logits, present, train=True)
        fused = agreement.fuse(raters, weights)
        order = jax.random.permutation(at(key, "order"), count)
        if config.loss == "bce_v0":
            target = jax.lax.stop_gradient(fused)
            apart = agreement.probs_cross_entropy(agreement.fuse(simulated, weights), target).sum(-1)
            learned = distance(logits, probs, target)
            shown = [as_map(one[:, order] * weights) for one in (simulated, raters)]
            ours, theirs = (
                segment(at(key, name), params, extra["batch_stats"], image, one, train=True)[1]
                for name, one in zip(("simulated", "real"), shown, strict=True)
            )
            shuffled = 1 - optax.cosine_similarity(ours, jax.lax.stop_gradient(theirs), epsilon=1e-6).mean((1, 2))
        else:
            learned = distance(logits, probs, label)
            if config.loss == "ssim":
                likeness = agreement.ssim(fused, fixed).sum(-1)
                apart = likeness if config.control == "literal-sign" else regions - likeness
            else:
                apart = agreement.probs_cross_entropy(fused, fixed).sum(-1)
            shuffled = agreement.shuffle_loss(order, simulated, weights, raters, present)
        logs = {
            "conm_loss": mean(learned, present),
            "divm_loss": mean(apart, present),
            "shuffle_loss": mean(shuffled, present),
            "weight_entropy": mean(agreement.weight_entropy(weights), present),
        }
        total = logs["conm_loss"] + logs["divm_loss"] + config.shuffle_weight * logs["shuffle_loss"]
        total = total - config.entropy_weight * logs["weight_entropy"]
        carried = (condition(simulated, weights), jax.lax.stop_gradient(fused))
        return total, ({"batch_stats": {"conm": stats}, CARRIED: carried}, logs)

    def fixed_round(key: Key, params: Any, extra: Any, batch: Batch) -> tuple[jax.Array, tuple[Any, Logs]]:
        told, label = extra[CARRIED]
        logits, _, stats = segment(key, params, extra["batch_stats"], unit(batch["image"]), told, train=True)
        value = mean(distance(logits, jax.nn.sigmoid(logits), label), batch["rater_weight"])
        return value, ({"batch_stats": {"conm": stats}}, {})

    def random_weights_round(key: Key, params: Any, extra: Any, batch: Batch) -> tuple[jax.Array, tuple[Any, Logs]]:
        """MRNet's three conditionings as one loss: equal weights 3, random ones 2, a single rater 1, of 6."""
        image, raters, present = unit(batch["image"]), batch["raters"].astype(jnp.float32), batch["rater_weight"]
        draws = jax.random.exponential(at(key, "random"), (2, *present.shape)) * present[None]
        single = jax.nn.one_hot(draws[1].argmax(1), count) * present
        value, stats = jnp.zeros(()), extra["batch_stats"]
        for name, share, drawn in (("equal", 3, present), ("random", 2, draws[0]), ("single", 1, single)):
            shares = drawn / jnp.maximum(drawn.sum(1, keepdims=True), agreement.TINY)
            weights = jnp.broadcast_to(shares[:, :, None, None, None], raters.shape)
            told = equal(image) if name == "equal" else as_map(weights)
            logits, _, new = segment(at(key, name), params, stats, image, told, train=True)
            stats = {"conm": new}
            apart = distance(logits, jax.nn.sigmoid(logits), agreement.fuse(raters, weights))
            value = value + share / 6 * mean(apart, present)
        return value, ({"batch_stats": stats}, {})

    def first(key: Key, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """What the first round of training is told, and the label it learns."""
        kind = config.label if config.label in fusion.LABELS else "mean"
        given = (batch["raters"], batch["rater_weight"], batch["index"])
        return equal(batch["image"]), fusion.label(
            at(key, "label"), kind, *given, temperature=config.fusion_temperature
        )

    def learn(key: Key, state: TrainState, batch: Batch) -> tuple[TrainState, Logs]:
        batch = flip(at(key, "flip"), batch) if config.flip else batch
        loss = {"self": one_round, "mrnet": random_weights_round}.get(config.label, fixed_round)
        step = descend(loss, tx, trains=trained, slot="all")
        return recur(step, lambda _, batch: first(key, batch), rounds=config.train_rounds)(key, state, batch)

    def init(key: Key, batch: Batch) -> TrainState:
        image = unit(batch["image"])
        made = conm.init(at(key, "conm"), image, equal(image), train=False)
        params, stats = {"conm": made["params"]}, {"conm": made.get("batch_stats", {})}
        if recurrent:
            logits = jnp.zeros((*image.shape[:3], regions))
            params["divm"] = divm.init(at(key, "divm"), image, logits, train=False)["params"]
        opt = {"all": begin(tx, params, trained)}
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt=opt, extra={"batch_stats": stats})

    def predict(key: Key, state: TrainState, batch: Batch) -> Outputs:
        image, stats = unit(batch["image"]), state.extra["batch_stats"]
        everyone = jnp.ones((image.shape[0], count))

        def one(carry: tuple[jax.Array, jax.Array], number: jax.Array) -> tuple[Any, jax.Array]:
            told, kept = carry
            logits, _, _ = segment(key, state.params, stats, image, told, train=False)
            if recurrent:
                simulated, weights = judge(key, state.params, image, logits, everyone, train=False)
                told = condition(simulated, weights)
                kept = jnp.where(number + 1 == config.rounds, weights, kept)
            probs = jax.nn.sigmoid(logits)
            return (told, kept), jax.lax.cummin(probs, axis=3) if config.nested else probs

        empty = jnp.zeros((image.shape[0], count, *image.shape[1:3], regions)) if recurrent else jnp.zeros(())
        # Without DivM nothing changes from round to round.
        last = max((config.rounds, *config.scored_rounds)) if recurrent else 1
        (_, maps), probs = jax.lax.scan(one, (equal(image), empty), jnp.arange(last))
        if not recurrent:
            return {"mask_probs": probs[0]}
        found = {"mask_probs": probs[config.rounds - 1], "rater_maps": maps}
        if config.scored_rounds:
            found["round_probs"] = jnp.stack([probs[number - 1] for number in config.scored_rounds], 1)
        return found | {"round_change": jnp.abs(probs[1:] - probs[:-1]).mean((2, 3, 4)).T}

    def metrics(outputs: Outputs, batch: Batch) -> Pairs:
        return scoring.rater_metrics(outputs, batch, config.regions, config.raters, config.scored_rounds)

    def scores(gathered: Mapping[str, np.ndarray]) -> dict[str, float]:
        return scoring.rater_scores(gathered, config.raters)

    stage = Stage("recurrence" if recurrent else config.label, config.steps, learn, "masks", trained)
    return Method(init, (stage,), predict, metrics, scores, watch="soft_dice_raters")
