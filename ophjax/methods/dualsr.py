"""Dual regression: super-resolution in a closed loop, and its compression to a really smaller network.

Guo et al., "Closed-loop Matters: Dual Regression Networks for Single Image Super-Resolution", CVPR 2020, and "Towards
Lightweight Super-Resolution With Dual Regression Learning", IEEE TPAMI 2024. A primal network P enlarges an image, dual
networks D shrink it again, and both directions are learned. Compression first searches a channel number for every
prunable layer, then chooses that many channels by the gradient of the closed loop's loss, then tunes what is left.

Within a run the shapes of the state are fixed: channels that are gone are masked, and what is masked gets no gradient.
``compact`` takes them out of the finished state; the result is an ordinary smaller network with the same outputs, which
can be trained on in a run of its own (``inner``, ``--start-from``). Follows the released programs as told by the
dualsr spec; decisions are named in BUILD_NOTES.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ophjax.data.patches import random_patches
from ophjax.errors import InputError, check_options
from ophjax.keys import at
from ophjax.losses.restoration import dual_loss, primal_loss
from ophjax.methods.compression import Compression, Parts
from ophjax.metrics import ranking, streaming
from ophjax.metrics.restoration import luma, luma_scores, psnr, quantise
from ophjax.nets.superres import DRN, Dual, Restored, inner_of, units
from ophjax.transforms import pruning
from ophjax.transforms.bundling import bundle
from ophjax.transforms.resizing import matlab_matrix, resize
from ophjax.transforms.stepping import begin, descend
from ophjax.types import Batch, Key, Logs, Method, Outputs, Pairs, Stage, TrainState

PAPER = {
    "title": "Towards Lightweight Super-Resolution With Dual Regression Learning",
    "authors": "Guo, Tan, Deng, Wang, Chen, Cao, Xu, Chen",
    "venue": "IEEE TPAMI 2024",
    "arxiv": "2207.07929",
}

# The data set where none is named.
DATA = "textures"

# Changes to Config: a net for one CPU core (2x), and one for tests that learns nothing.
DEMO: dict[str, Any] = dict(
    blocks=3, width=12, patch=32, dual_width=16, dual_steps=3000, dual_lr=1e-2, lr=3e-3, steps=600, compress_patch=32,
    search_steps=100, search_lr=3e-4, numbers_lr=0.03, selection_batches=4, refit_lr=2e-5, tune_steps=150, tune_lr=3e-4,
)  # fmt: skip
SMOKE: dict[str, Any] = dict(
    blocks=2, width=8, patch=32, augment=False, dual_width=4, dual_steps=2, dual_lr=2e-4, lr=2e-4, steps=2, ratio=0.3,
    compress_patch=32, search_steps=2, search_lr=2e-4, numbers_lr=1e-3, selection_batches=1, selection_at_once=16,
    tune_steps=2, tune_lr=2e-4,
)  # fmt: skip

# Changes to the loop's configuration.
TRAIN: dict[str, dict[str, Any]] = {"paper": dict(batch_size=32), "demo": dict(batch_size=8)}

_SHORT: dict[str, Any] = dict(ratio=0.5, dual_steps=0, steps=0)
_EQUAL: dict[str, Any] = _SHORT | dict(widths="uniform")
_CHOICES: dict[str, dict[str, Any]] = {
    "guided": _EQUAL,
    **{name: _EQUAL | dict(selection=name) for name in ("magnitude", "magnitude-refit", "random")},
    "searched": _SHORT,
}
_TAKEN = ("primal", "dual")
# What a comparison runs beside the method itself: changes to Config, and the networks taken over from its run.
# "adapted" sees inputs without truth too (the data set's split "adapt"), its control "trained-on" pairs alone for as
# many batches; textures test on such inputs with --data.test-inputs nearest. Of each choice of channels: half of them
# taken out, the same without tuning, and 30 or 70 in a hundred taken out.
VARIANTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "primal-only": (dict(dual_weight=0.0), ()),
    "joint": (dict(dual_steps=0), ()),
    "frozen": (dict(freeze_dual=True), ()),
    "narrow": (dict(narrow=0.5), ()),
    "adapted": (dict(dual_steps=0, steps=0, adapt_steps=300), _TAKEN),
    "trained-on": (dict(dual_steps=0, steps=300), _TAKEN),
    **{name: (changes, _TAKEN) for name, changes in _CHOICES.items()},
    **{f"{name}-untuned": (changes | dict(tune_steps=0), _TAKEN) for name, changes in _CHOICES.items()},
    "guided-one-untuned": (_EQUAL | dict(tune_steps=0, selection_at_once=1), _TAKEN),
    **{
        f"{name}-{percent}": (changes | dict(ratio=percent / 100), _TAKEN)
        for percent in (30, 70)
        for name, changes in _CHOICES.items()
    },
}

# The scores of a comparison's table (patterns over names), the first of which is compared seed by seed.
SCORES = ("psnr", "ssim", "consistency", "psnr_bicubic")


@dataclasses.dataclass(frozen=True)
class Config:
    """Dual regression at the paper's scale: DRN-S at 4x."""

    blocks: int = 30
    """Residual blocks in each stage. DRN-S: 30. DRN-L: 40 at 4x, 36 at 8x."""
    width: int = 16
    """Base width. DRN-S: 16 at 4x, 8 at 8x. DRN-L: 20 and 10."""
    inner: tuple[int, ...] = ()
    """Channels of every prunable layer of a compact net, as experiments/compact.py writes them; none: the dense net."""
    narrow: float = 0.0
    """Baseline: a net whose prunable layers lack this share of their channels from the start."""
    learned_mean_shift: bool = False
    """Learn the shifts by the mean colour as 1x1 convolutions, as the released program does (24 parameters)."""
    dual_width: int = 0
    """Channels of the dual networks; 0: the base width."""

    dual_weight: float = 0.1
    """Weight of the dual loss; 0: no dual networks, plain super-resolution."""
    scale_weights: tuple[float, ...] = ()
    """Weights of the primal loss at each scale, the input's own first; none: 1 each."""
    dual_steps: int = 0
    """Batches on which the dual networks learn alone first, from true pairs; short trainings need it."""
    dual_lr: float = 1e-4
    """Adam's learning rate on these, falling by a cosine to a thousandth."""
    freeze_dual: bool = False
    """Leave the dual networks as they are afterwards."""
    patch: int = 384
    """Side of the random patches in high resolution."""
    augment: bool = True
    """Mirror and transpose patches; only where directions do not matter."""
    lr: float = 1e-4
    """Adam's learning rate, falling by a cosine to a thousandth."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of the first and the second moment."""
    steps: int = 1_000_000
    """Batches of the training; 0 where a trained net is taken over by --start-from."""
    adapt_steps: int = 0
    """Batches of the adaptation to inputs without truth (the data set's split "adapt"), after the training."""

    ratio: float = 0.0
    """Share of the channels to take out: 0.3, 0.5 or 0.7 in the paper; 0: no compression."""
    widths: Literal["search", "uniform"] = "search"
    """Channel numbers: searched for every layer, or the same share of each."""
    compress_patch: int = 192
    """Side of the patches while channels are searched and chosen."""
    search_steps: int = 2500
    """Batches of the search (100 epochs of 25)."""
    search_lr: float = 1e-4
    """Adam's rate of the weights in the search, and that of the step ahead by which numbers are judged."""
    numbers_lr: float = 3e-4
    """Adam's rate of the channel numbers' logits; their weight decay is 0.001."""
    repeats: bool = False
    """Give repeated candidates a logit each, as the released program does."""
    selection: Literal["dual", "magnitude", "random", "magnitude-refit"] = "dual"
    """How channels are chosen: greedily by the gradient of the loss, with refitting; by the consumer's L1 norm; by lot;
    or by the norm with the same refitting (control)."""
    selection_at_once: int = 2
    """Channels switched on in a round; as released, 1."""
    selection_batches: int = 10
    """Batches of gradients in a round, and as many of refitting."""
    selection_weights: tuple[float, float, float] = (1.0, 1.0, 0.1)
    """Weights of feature reconstruction, primal and dual loss while channels are chosen."""
    selection_score: Literal["outputs", "frobenius"] = "outputs"
    """Score of a channel: the 2-norm of its gradient for each output, summed; or that of the whole."""
    refit: bool = True
    """Refit the kernels of chosen channels."""
    refit_lr: float = 5e-5
    """SGD's rate of the refit."""
    tune_steps: int = 1_000_000
    """Batches of the tuning after the compression."""
    tune_lr: float = 1e-4
    """Adam's rate of the tuning, falling by a cosine to a thousandth."""
    distil_weight: float = 0.0
    """Weight of the distance between the channel means of the last features of this net and the dense one, in the
    tuning."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations; parameters, losses and images stay float32."""

    scale: int = 4
    """How many times larger the images become; filled in from the data set."""


def check(config: Config) -> None:
    """Raises InputError for settings that no net can be built or trained from."""
    if config.scale == 1:
        raise InputError(
            "DRN needs pairs of low and high resolution, which this data set does not give. Choose --data textures, or "
            "--data superres --data.root FOLDER."
        )
    phases = config.scale.bit_length() - 1
    ones = ("blocks", "width", "patch", "compress_patch", "search_steps", "selection_at_once", "selection_batches")
    zeros = ("dual_width", "dual_weight", "dual_steps", "steps", "adapt_steps", "tune_steps", "distil_weight")
    rates = ("lr", "dual_lr", "search_lr", "numbers_lr", "refit_lr", "tune_lr")
    rules = {name: (getattr(config, name) >= 1, "at least 1") for name in ones}
    rules |= {name: (getattr(config, name) >= 0, "at least 0") for name in zeros}
    rules |= {name: (getattr(config, name) > 0, "above 0") for name in rates}
    rules |= {
        "narrow": (0 <= config.narrow < 1 and not (config.narrow and config.inner), "0 to 1, and no --method.inner"),
        "ratio": (0 <= config.ratio < 1, "at least 0 and below 1"),
        "scale_weights": (len(config.scale_weights) in (0, phases + 1), f"none, or {phases + 1} numbers"),
        "freeze_dual": (not config.freeze_dual or config.dual_weight > 0, "False where there are no dual networks"),
        "adapt_steps": (not config.adapt_steps or config.dual_weight > 0, "0 where there are no dual networks"),
        "betas": (all(0 <= beta < 1 for beta in config.betas), "two numbers of at least 0 and below 1"),
    }
    check_options(config, rules)
    if not (config.steps or config.dual_steps or config.adapt_steps or config.ratio):
        raise InputError("Nothing is to be done: --method.steps and --method.ratio are 0. Give one of them.")


def build(config: Config) -> DRN:
    """Builds the primal network that a configuration describes."""
    net = DRN(
        config.scale, config.blocks, config.width, config.inner or None, config.learned_mean_shift,
        jnp.dtype(config.dtype),
    )  # fmt: skip
    if config.narrow:
        counts = pruning.uniform_counts(pruning.layout(units(net)), config.narrow)
        net = net.clone(inner=tuple(map(int, counts)))
    inner_of(net)  # raises where the numbers do not fit
    return net


def masked(config: Config, state: TrainState) -> Any:
    """The primal network's parameters with the channels that are gone set to zero, in the dense shapes."""
    primal = state.params["primal"]
    return pruning.scale_inputs(primal, units(build(config)), state.extra["mask"]) if config.ratio else primal


def compact(config: Config, state: TrainState) -> tuple[DRN, Any]:
    """Takes the masked channels out of a finished state: the smaller network and its parameters.

    Raises:
      InputError: the run compressed nothing, or has not chosen all channels yet.
    """
    net = build(config)
    if not config.ratio:
        raise InputError("This run did not compress: its --method.ratio is 0. Run it with a ratio, such as 0.5.")
    kept = pruning.kept_channels(np.asarray(state.extra["mask"]), units(net))
    if [len(channels) for channels in kept.values()] != np.asarray(state.extra["counts"]).tolist():
        raise InputError("This run has not chosen all its channels yet. Let it go on to its end: --resume.")
    params = pruning.prune(state.params["primal"], units(net), kept)
    return net.clone(inner=tuple(len(channels) for channels in kept.values())), params


def make(config: Config) -> Method:
    """Builds dual regression with the stages that the configuration asks for.

    Batches hold pairs (see ``data.pairs``): ``image`` uint8 [b, h, w, 3], ``target`` uint8 [b, s h, s w, 3], what lies
    between for scales above 2, ``target_weight`` and ``weight`` float32 [b], ``index`` int32 [b]. The output is
    ``restored`` uint8 [b, s h, s w, 3].

    Raises:
      InputError: the settings contradict each other, or the data set has no pairs.
    """
    check(config)
    net, phases = build(config), config.scale.bit_length() - 1
    dual = Dual(config.dual_width or config.width, jnp.dtype(config.dtype))
    closed = config.dual_weight > 0
    trained = ("primal", "dual") if closed and not config.freeze_dual else ("primal",)
    scale_weights = config.scale_weights or None

    def forward(primal: Any, image: jax.Array, probe: jax.Array | None = None) -> Restored:
        found: Any = net.apply({"params": primal}, image, probe)
        return found

    def duals(params: Any) -> list[Any]:
        return [lambda image, i=i: dual.apply({"params": params[f"to{2**i}"]}, image) for i in range(phases)]

    def losses(restored: Restored, dual_params: Any, images: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
        own = primal_loss(restored.images, images, scale_weights).mean()
        back = dual_loss(restored.images, images, duals(dual_params)).mean() if closed else jnp.zeros(())
        return own, back

    def cut(key: Key, batch: Batch, size: int = config.patch) -> list[jax.Array]:
        return random_patches(key, batch, scale=config.scale, size=size, augment=config.augment)

    parts = Parts(net, forward, losses, lambda key, batch: cut(key, batch, config.compress_patch))
    compression = Compression(config, parts) if config.ratio else None

    def optimiser(lr: float, steps: int) -> optax.GradientTransformation:
        return bundle(optax.adam(optax.cosine_decay_schedule(lr, max(steps, 1), alpha=1e-3), *config.betas))

    def learn_dual(key: Key, params: Any, extra: Any, batch: Batch) -> tuple[jax.Array, tuple[Any, Logs]]:
        """The dual networks on true pairs."""
        images = cut(at(key, "patches"), batch)
        return dual_loss(images, images, duals(params["dual"])).mean(), ({}, {})

    def learner(teach: bool) -> Callable[..., tuple[jax.Array, tuple[Any, Logs]]]:
        """The closed loop; after the compression with masks, and ``teach`` by the dense network (spec, (e.3))."""

        def learn(key: Key, params: Any, extra: Any, batch: Batch) -> tuple[jax.Array, tuple[Any, Logs]]:
            images, primal = cut(at(key, "patches"), batch), params["primal"]
            if compression:
                primal = pruning.scale_inputs(primal, units(net), extra["mask"])
            restored = forward(primal, images[0])
            own, back = losses(restored, params.get("dual"), images)
            value, logs = own + config.dual_weight * back, {"primal_loss": own, "dual_loss": back}
            if teach:
                taught = jax.lax.stop_gradient(forward(extra["dense"]["primal"], images[0]).last)
                ours, theirs = (last.astype(jnp.float32).mean(-1) for last in (restored.last, taught))
                logs["distillation"] = jnp.square(ours - theirs).mean()
                value = value + config.distil_weight * logs["distillation"]
            return value, ({}, logs)

        return learn

    def adapt(key: Key, params: Any, extra: Any, batch: Batch) -> tuple[jax.Array, tuple[Any, Logs]]:
        """The closed loop where only some rows have a truth (spec, (d)): the others pay the dual loss of the first
        doubling, and the dual networks learn from the rows with a truth only."""
        images, paired = cut(at(key, "patches"), batch), batch["target_weight"]
        restored = forward(params["primal"], images[0]).images
        fixed = duals(jax.lax.stop_gradient(params["dual"]))[:1]
        own = (paired * primal_loss(restored, images, scale_weights)).mean()
        back = (paired * dual_loss(restored, images, duals(params["dual"]))).mean()
        alone = ((1 - paired) * dual_loss(restored[:2], images[:2], fixed)).mean()
        value = own + config.dual_weight * (back + alone)
        return value, ({}, {"primal_loss": own, "dual_loss": back, "unpaired_loss": alone})

    # Name, steps, loss, split, networks, rate: the stages around the compression, in their order.
    before = [
        ("dual", config.dual_steps if closed else 0, learn_dual, "train", ("dual",), config.dual_lr),
        ("training", config.steps, learner(teach=False), "train", trained, config.lr),
        ("adaptation", config.adapt_steps, adapt, "adapt", trained, config.lr),
    ]
    tuned = learner(teach=config.distil_weight > 0)
    after = [("tuning", config.tune_steps if compression else 0, tuned, "train", trained, config.tune_lr)]

    def ordinary(rows: list[Any]) -> list[Stage]:
        return [
            Stage(name, steps, descend(loss, optimiser(lr, steps), trains=nets, slot=name), split, nets)
            for name, steps, loss, split, nets, lr in rows
            if steps
        ]

    stages = [*ordinary(before), *(compression.stages() if compression else []), *ordinary(after)]

    def init(key: Key, batch: Batch) -> TrainState:
        image = batch["image"][:1].astype(jnp.float32)
        params: dict[str, Any] = {"primal": net.init(at(key, "primal"), image)["params"]}
        if closed:
            params["dual"] = {
                f"to{2**i}": dual.init(at(key, "dual", i), batch["target"][:1].astype(jnp.float32))["params"]
                for i in range(phases)
            }
        opt = {
            name: begin(optimiser(lr, steps), params, nets) for name, steps, _, _, nets, lr in before + after if steps
        }
        extra: dict[str, Any] = {}
        if compression:
            jax.eval_shape(parts.cut, key, batch)  # a patch that is too large is refused now, not after the training
            networks, slots, extra = compression.begin(key, params)
            params, opt = params | networks, opt | slots
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt=opt, extra=extra)

    def predict(key: Key, state: TrainState, batch: Batch) -> Outputs:
        del key
        restored = forward(masked(config, state), batch["image"].astype(jnp.float32))
        return {"restored": quantise(restored.images[-1]).astype(jnp.uint8)}

    def metrics(outputs: Outputs, batch: Batch) -> Pairs:
        """Scores on luma without a border of the scale's width; consistency: what MATLAB's shrinking makes of the
        result, against the input; bicubic: MATLAB's enlargement instead of the network."""
        image, target = (batch[name].astype(jnp.float32) for name in ("image", "target"))
        restored, weight = outputs["restored"].astype(jnp.float32), batch["weight"] * batch["target_weight"]

        def resized(image: jax.Array, up: bool) -> jax.Array:
            rows, columns = (matlab_matrix(n, config.scale, up) for n in image.shape[1:3])
            return quantise(resize(image, rows, columns))

        found = dict(zip(("psnr", "ssim"), luma_scores(restored, target, config.scale), strict=True))
        found["consistency"] = psnr(luma(resized(restored, False)), luma(image))
        plain = luma_scores(resized(image, True), target, config.scale)
        found |= dict(zip(("psnr_bicubic", "ssim_bicubic"), plain, strict=True))
        return {name: streaming.pair(value, weight) for name, value in found.items()}

    def scores(gathered: Mapping[str, np.ndarray]) -> dict[str, float]:
        names = ("psnr", "ssim", "consistency", "psnr_bicubic", "ssim_bicubic")
        return ranking.mean_scores({name: gathered[name] for name in names}, clusters=ranking.patients(gathered))

    return Method(init, tuple(stages), predict, metrics, scores, watch="psnr")
