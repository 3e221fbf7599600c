"""DiFF: masks of many raters fused for the diagnosis, and a Take-and-Give net that learns to draw the fused mask.

Wu et al., "Opinions Vary? Diagnosis First!", MICCAI 2022, and "Calibrate the inter-observer segmentation uncertainty
via diagnosis-first principle", IEEE TMI 2024. Stage 1 trains a diagnosis net on image and mask. Stage 2 freezes it and
searches, for each training image, the expertness maps under which the raters' fused mask (DF-GT) serves the known
diagnosis best; a coordinate network of that image makes the maps (ExpG). Stage 3 trains the segmenter on fused masks.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from ophjax.data.augment import unit
from ophjax.errors import InputError, check_options
from ophjax.keys import at
from ophjax.losses.classification import sigmoid_cross_entropy
from ophjax.losses.segmentation import binary_cross_entropy
from ophjax.metrics import streaming
from ophjax.metrics.rating import disputed_weights, nothing_found, rater_skill, search_means, serving_scores
from ophjax.metrics.ratios import region_ratios
from ophjax.metrics.spectrum import high_frequency_share
from ophjax.nets.expertness import make_maps
from ophjax.nets.resnet import ResNet
from ophjax.nets.takegive import TakeAndGiveNet
from ophjax.nets.unet import ResUNet
from ophjax.transforms import expertise
from ophjax.transforms.bundling import bundle
from ophjax.transforms.fusion import mean_of_raters, random_rater
from ophjax.transforms.searching import search
from ophjax.transforms.stepping import begin, descend
from ophjax.trees import take_fitting
from ophjax.types import Batch, Key, Logs, Method, Outputs, Pairs, Stage, TrainState, keep

PAPER = {
    "title": "Opinions Vary? Diagnosis First!",
    "authors": "Wu, Fang, Yang, Wang, Zhou, Shang, Yang, Xu",
    "venue": "MICCAI 2022",
    "arxiv": "2202.06505",
}

CAUTION = (
    "Fused masks (DF-GT) are made with the labels of their images, so any diagnosis from them is circular: an AUC near "
    "1 on training images says nothing. What counts are the scores of the masks that the segmenter draws on test "
    "images, whose labels and raters it has never seen; train_* are sanity checks on training images."
)

# The data set where none is named, and what is asked of it: two raters follow the cup, five the edge of the pale disc.
DATA = "phantoms"
NEEDS: dict[str, dict[str, Any]] = {
    "phantoms": dict(raters=7, roles=("competent", "competent", *("decoy-following",) * 5)),
    "phantoms/demo": dict(size=32),
}

# Changes to Config: a net for two CPU cores, and one for tests that learns nothing.
DEMO: dict[str, Any] = dict(
    hidden=12, diagnosis_depth=10, diagnosis_width=6, depth=10, width=8, decoder=8, tokens=8,
    diagnosis_lr=1e-3, diagnosis_steps=160, lr=2e-3, steps=300,
)  # fmt: skip
SMOKE: dict[str, Any] = dict(
    hidden=4, diagnosis_depth=10, diagnosis_width=4, segmenter="unet", depth=10, width=8, decoder=4, tokens=4,
    diagnosis_lr=1e-3, lr=1e-3, diagnosis_steps=4, search_steps=4, steps=4,
)  # fmt: skip

# Changes to the loop's configuration, by preset.
TRAIN: dict[str, dict[str, Any]] = {}

_JUDGED, _KNOWN = ("diagnosis", "judge"), ("diagnosis", "judge", "unseen")

# What a comparison runs beside the method itself: changes to Config, and the networks taken over from its run.
VARIANTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "majority-vote": (dict(target="majority", diagnosis_steps=0), _JUDGED),
    "random-rater": (dict(target="random", diagnosis_steps=0), _JUDGED),
    "truth": (dict(target="truth", diagnosis_steps=0), _JUDGED),
    "pixel-fast": (dict(parametrisation="pixel", search_lr=0.05, diagnosis_steps=0), _KNOWN),
    **{name: (dict(parametrisation=name, diagnosis_steps=0), _KNOWN) for name in ("pixel", "fourier")},
    "bce": (dict(objective="bce", diagnosis_steps=0), _KNOWN),
    "sharp": (dict(temperature=3.0, diagnosis_steps=0), _KNOWN),
    "reverse": (dict(reverse=True, diagnosis_steps=0), _KNOWN),
    **{name: (dict(segmenter=name, diagnosis_steps=0), _KNOWN) for name in ("no-give", "no-take", "unet")},
    "convex": (dict(diagnosis_mask="convex"), ()),
    "labels-shuffled": (dict(control="labels"), ()),
}

# The scores of a comparison's table (patterns over names), the first of which is compared seed by seed.
SCORES = ("cdr_auc", "auc", "dice_*", "train_*")


@dataclasses.dataclass(frozen=True)
class Config:
    """DiFF at the scale we take for the paper's."""

    target: Literal["dfgt", "majority", "random", "truth"] = "dfgt"
    """What the segmenter learns to draw: dfgt: the masks fused for the diagnosis. Baselines: the mean of the raters
    (majority vote), or a rater drawn anew at each step; upper bound: the data set's own mask."""
    segmenter: Literal["take-and-give", "no-give", "no-take", "unet"] = "take-and-give"
    """The segmentation network; its ablations, and a plain U-Net on the same encoder."""
    control: Literal["none", "labels"] = "none"
    """Negative control: coin flips, one for each training image, in place of the labels. The judge keeps the labels."""
    reverse: bool = False
    """Negative control: fuse the masks against the diagnosis."""

    parametrisation: Literal["expg", "pixel", "fourier"] = "expg"
    """Of the expertness maps: a coordinate network, or, for ablation, a free number for each pixel or frequency."""
    hidden: int = 24
    """Width of the coordinate network's layers."""
    temperature: float = 1.0
    """Weights are softmax(temperature * sigmoid): one rater outweighs another at most exp(temperature) times."""
    objective: Literal["logit", "bce"] = "logit"
    """What the search raises: the logit of the true class, or its log-likelihood, which saturates."""
    search_steps: int = 120
    """Adam steps for each image."""
    search_lr: float = 5e-3
    """Adam's learning rate in the search."""

    diagnosis_depth: Literal[10, 18, 34, 50, 101] = 34
    """Layers of the diagnosis ResNet."""
    diagnosis_width: int = 64
    """Channels of its first stage."""
    diagnosis_mask: Literal["majority", "convex"] = "majority"
    """The mask it learns with: the mean of the raters, or for half of the images a random convex combination."""
    positive_weight: float = 2.0
    """Weight of the diseased class in its loss."""
    diagnosis_lr: float = 1e-4
    """Adam's learning rate in stage 1."""
    diagnosis_steps: int = 3000
    """Batches in stage 1 (120 epochs of 400 images at batch 16)."""

    depth: Literal[10, 18, 34, 50, 101] = 34
    """Layers of the segmenter's ResNets (encoder and diagnosis branch)."""
    width: int = 64
    """Channels of their first stage."""
    decoder: int = 128
    """Channels of each half of a decoder block."""
    tokens: int = 32
    """Attention sees at most tokens x tokens positions of a map."""
    drop_path: float = 0.05
    """Probability of leaving a residual branch of an attention stage out, per example."""
    norm: Literal["batch", "group"] = "batch"
    """Normalisation of all networks."""
    inherit: bool = True
    """The diagnosis branch begins with those weights of the diagnosis net that fit (the same depth and width)."""
    clip: float = 0.1
    """Each component of the gradient is cut at this size in stage 3."""
    lr: float = 1e-4
    """Adam's learning rate in stage 3."""
    eps: float = 1e-4
    """Adam's epsilon in stage 3."""
    steps: int = 3000
    """Batches in stage 3."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations; parameters, losses and statistics stay float32."""

    examples: int = 400
    """Training images, each with expertness maps of its own; filled in from the data set."""
    regions: tuple[str, ...] = ("disc", "cup")
    """Names of the mask's channels, each within the one before; filled in from the data set."""
    classes: tuple[str, ...] = ("healthy", "glaucoma")
    """Names of the classes; filled in from the data set."""
    raters: tuple[str, ...] = ()
    """Names of the raters; filled in from the data set."""


def check(config: Config) -> None:
    """Raises InputError for settings that no net can be built or trained from."""
    positive = ("temperature", "search_lr", "positive_weight", "diagnosis_lr", "clip", "lr", "eps")
    counted = ("search_steps", "hidden", "diagnosis_width", "width", "tokens", "steps", "examples")
    rules = {name.replace("_", "-"): (getattr(config, name) > 0, "above 0") for name in positive}
    rules |= {name.replace("_", "-"): (getattr(config, name) >= 1, "at least 1") for name in counted}
    rules |= {
        "diagnosis-steps": (config.diagnosis_steps >= 0, "at least 0 (nets of another run, by --start-from)"),
        "decoder": (config.decoder >= 4 and config.decoder % 4 == 0, "a multiple of 4, for the eight heads of Give"),
        "drop-path": (0 <= config.drop_path < 1, "at least 0 and below 1"),
        "reverse": (not config.reverse or config.target == "dfgt", "False where no masks are fused"),
    }
    check_options(config, rules)
    if len(config.classes) != 2 or not config.regions:
        raise InputError(
            f"The data set has the classes {config.classes} and the regions {config.regions}; DiFF fuses masks for a "
            "diagnosis of two classes, the second being the disease. Choose a data set with masks and two classes."
        )


def make(config: Config) -> Method:
    """Builds DiFF, or the baseline that the configuration names.

    Batches hold ``image`` uint8 [b, h, w, 3], ``raters`` uint8 [b, r, h, w, c] and ``rater_weight`` float32 [b, r]
    (without them ``mask`` is the single rater), ``mask`` uint8 [b, h, w, c] (for scores and the judge, who is no part
    of the system), ``label`` int32 [b] (-1: not known, then the raters stay equal), ``weight`` and ``mask_weight``
    float32 [b], and ``index`` int32 [b], the image's place among the training images.

    Outputs are ``mask_probs`` [b, h, w, c], ``probs`` [b, 2] (what the judge, a net that sees nothing but masks and
    learned from the data set's own, says of the drawn mask), ``cdr`` and ``vertical_cdr`` [b] of the drawn mask, and
    ``image_and_mask`` [b] (what the diagnosis net says of both).

    Raises:
      InputError: the settings contradict each other.
    """
    check(config)
    fuses, dtype = config.target == "dfgt", jnp.dtype(config.dtype)
    classifiers = ("diagnosis", "unseen", "judge") if fuses else ("diagnosis", "judge")
    classifier = ResNet(1, config.diagnosis_depth, config.diagnosis_width, "small", config.norm, dtype=dtype)
    sizes: dict[str, Any] = dict(depth=config.depth, width=config.width, decoder=config.decoder, norm=config.norm)
    attends: dict[str, Any] = dict(
        take=config.segmenter != "no-take", give=config.segmenter != "no-give", tokens=config.tokens,
        drop_path=config.drop_path,
    )  # fmt: skip
    unet = config.segmenter == "unet"
    maps = functools.partial(make_maps, config.parametrisation, hidden=config.hidden)
    segmenter: Any = (ResUNet if unet else TakeAndGiveNet)(
        len(config.regions), **sizes, **({} if unet else attends), dtype=dtype
    )
    diagnosis_tx = bundle(optax.adam(config.diagnosis_lr))
    segmenter_tx = bundle(optax.chain(optax.clip(config.clip), optax.adam(config.lr, eps=config.eps)))

    def run(net: Any, name: str, params: Any, stats: Any, seen: jax.Array, *, key: Key | None = None) -> Any:
        """Outputs of a network and the statistics after it; it trains where a key is given."""
        variables = {"params": params[name], "batch_stats": stats[name]}
        if key is None:
            return net.apply(variables, seen, train=False), stats
        rngs = {"drop_path": at(key, "drop_path")}
        found, new = net.apply(variables, seen, train=True, mutable=["batch_stats"], rngs=rngs)
        return found, stats | {name: new.get("batch_stats", {})}

    def diagnose(state: TrainState, name: str, image: jax.Array, mask: jax.Array) -> jax.Array:
        """Logits [b] of a frozen classifier; the judge does not look at the image."""
        seen = mask[..., None] if name == "judge" else jnp.concatenate([image, mask[..., None]], -1)
        return run(classifier, name, state.params, state.extra["batch_stats"], seen)[0][:, 0]

    def weigh(own: Any, present: jax.Array, size: tuple[int, ...]) -> jax.Array:
        """Weights [h, w, r] of one image's raters."""
        raw: Any = maps(len(present)).apply({"params": own}, *size)
        return expertise.expertness(raw, present, temperature=config.temperature)

    def fuse_by(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Fused masks [b, h, w, c] and weights [b, h, w, r] as they were found for the training images of a batch."""
        masks, present = expertise.read_raters(batch)
        own = jax.tree.map(lambda leaf: leaf[batch["index"]], params["expertness"])
        weights = jax.vmap(lambda one, there: weigh(one, there, masks.shape[2:4]))(own, present)
        return expertise.fuse(weights, masks), weights

    def labels_of(batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Labels of 0 and 1, and whether they are known."""
        labels = batch["label"] == 1
        if config.control == "labels":
            labels = jax.vmap(lambda i: jax.random.bernoulli(at(jax.random.key(0), "coin", i)))(batch["index"])
        return labels.astype(jnp.float32), (batch["label"] >= 0).astype(jnp.float32)

    def learn_labels(key: Key, params: Any, extra: Any, batch: Batch) -> tuple[jax.Array, tuple[Any, Logs]]:
        """Each classifier by itself: the gradient takes the sum of their losses apart."""
        masks, present = expertise.read_raters(batch)
        mask, stats, (labels, known) = mean_of_raters(masks, present), extra["batch_stats"], labels_of(batch)
        if config.diagnosis_mask == "convex":
            mask = expertise.mix_raters(key, batch["index"], masks, present)
        # The judge learns from the data set's own masks and labels, whatever the variant.
        judged = (expertise.encode(batch["mask"])[..., None], batch["label"] == 1, known * batch["mask_weight"])
        seen = jnp.concatenate([unit(batch["image"]), expertise.encode(mask)[..., None]], -1)
        given = (seen, labels, known * expertise.drawn(present))
        loss, logs = jnp.zeros(()), {}
        for name in classifiers:
            seen, truth, weight = judged if name == "judge" else given
            logits, stats = run(classifier, name, params, stats, seen, key=key)
            each = sigmoid_cross_entropy(logits[:, 0], truth, positive_weight=config.positive_weight)
            logs[f"{name}_loss"] = (each * weight).sum() / jnp.maximum(weight.sum(), 1.0)
            loss = loss + logs[f"{name}_loss"]
        return loss, ({"batch_stats": stats}, logs)

    def find(key: Key, state: TrainState, batch: Batch) -> tuple[TrainState, Logs]:
        """Searches the expertness of a batch's images, each by an Adam of its own (diff spec, section (c)3).

        An image that comes again, when the last batch goes on with the next pass over the data, keeps what was found.
        """
        del key
        rows, size, image = batch["index"], batch["image"].shape[1:3], unit(batch["image"])
        (masks, present), (labels, known) = expertise.read_raters(batch), labels_of(batch)
        sign = (2 * labels - 1) * known

        def one(start: Any, image: jax.Array, masks: jax.Array, present: jax.Array, sign: jax.Array) -> Any:
            encoded = expertise.encode(masks)[..., None]

            def objective(own: Any) -> jax.Array:
                fused = expertise.fuse(weigh(own, present, size), encoded)[..., 0]
                gain = sign * diagnose(state, "diagnosis", image[None], fused[None])[0]
                return jax.nn.softplus(-gain) if config.objective == "bce" else -gain

            return search(objective, bundle(optax.adam(config.search_lr)), start, steps=config.search_steps)

        start = jax.tree.map(lambda leaf: leaf[rows], state.params["expertness"])
        towards = -sign if config.reverse else sign
        found, values = jax.vmap(one)(start, image, masks, present, towards)
        fresh = state.opt["expertness"][rows] == 0
        found = jax.tree.map(lambda new, old: jax.vmap(jnp.where)(fresh, new, old), found, start)
        table = jax.tree.map(lambda all, new: all.at[rows].set(new), state.params["expertness"], found)
        params = state.params | {"expertness": table}
        fused, weights = fuse_by(params, batch)
        seen = [expertise.encode(mask) for mask in (fused, mean_of_raters(masks, present))]
        nets = {"gain": "diagnosis", "gain_unseen": "unseen"}
        noted = {k: sign * jnp.subtract(*(diagnose(state, net, image, m) for m in seen)) for k, net in nets.items()}
        logs = {"loss": values[:, 0].mean(), "improved": (noted["gain"] > 0).mean()}
        logs |= {name: gain.mean() for name, gain in noted.items()}
        noted["roughness"] = high_frequency_share(weights)
        noted["weights"] = jnp.where(present > 0, disputed_weights(weights, masks, present), -1)
        noted["skill"] = jnp.where(present * batch["mask_weight"][:, None] > 0, rater_skill(masks, batch["mask"]), -1)
        opt = state.opt | {"expertness": state.opt["expertness"].at[rows].set(config.search_steps)}
        kept = {name: state.extra["found"][name].at[rows].set(value) for name, value in noted.items()}
        return state.replace(params=params, opt=opt, extra=state.extra | {"found": kept}), logs

    def target_of(key: Key, params: Any, batch: Batch) -> jax.Array:
        """The regions that the segmenter is to draw, soft [b, h, w, c]."""
        masks, present = expertise.read_raters(batch)
        if config.target == "truth":
            return expertise.nest(batch["mask"])
        if config.target == "majority":
            return mean_of_raters(masks, present)
        if config.target == "random":
            return random_rater(key, masks, present, batch["index"])
        return fuse_by(params, batch)[0]

    def learn_masks(key: Key, params: Any, extra: Any, batch: Batch) -> tuple[jax.Array, tuple[Any, Logs]]:
        target, stats = target_of(key, params, batch), extra["batch_stats"]
        (logits, coarse), stats = run(segmenter, "segmenter", params, stats, unit(batch["image"]), key=key)
        each = {"mask_loss": binary_cross_entropy(logits, target).mean(-1)}
        if not unet:
            each["coarse_loss"] = binary_cross_entropy(coarse, expertise.encode(target)[..., None]).mean(-1)
        weight = batch["mask_weight"] if config.target == "truth" else expertise.drawn(expertise.read_raters(batch)[1])
        logs = {name: (loss * weight).sum() / jnp.maximum(weight.sum(), 1.0) for name, loss in each.items()}
        return jnp.stack([*logs.values()]).sum(), ({"batch_stats": stats}, logs)

    def begin_branch(key: Key, state: TrainState) -> TrainState:
        """The diagnosis branch begins with what fits of the diagnosis net: all but the stem's kernel, sizes alike."""
        del key

        def inherit(trees: Any) -> Any:
            own = trees["segmenter"]
            if "branch" in own:  # else statistics, of a norm that has none
                own = own | {"branch": take_fitting(own["branch"], trees["diagnosis"])}
            return trees | {"segmenter": own}

        stats = {"batch_stats": inherit(state.extra["batch_stats"])}
        return state.replace(params=inherit(state.params), extra=state.extra | stats)

    def init(key: Key, batch: Batch) -> TrainState:
        image, (masks, present) = unit(batch["image"]), expertise.read_raters(batch)
        raters, size = present.shape[1], image.shape[1:3]
        one = masks[:, 0, ..., :1]
        nets = {name: (classifier, jnp.concatenate([image, one], -1)) for name in classifiers}
        nets |= {"judge": (classifier, one), "segmenter": (segmenter, image)}
        made = {name: net.init(at(key, name), seen, train=False) for name, (net, seen) in nets.items()}
        params = {name: one["params"] for name, one in made.items()}
        extra: dict[str, Any] = {"batch_stats": {name: one.get("batch_stats", {}) for name, one in made.items()}}
        opt: dict[str, Any] = {"segmenter": begin(segmenter_tx, params, ("segmenter",))}
        if config.diagnosis_steps:
            opt["diagnosis"] = begin(diagnosis_tx, params, classifiers)
        if fuses:
            keys = jax.random.split(at(key, "expertness"), config.examples)
            params["expertness"] = jax.vmap(lambda one: maps(raters).init(one, *size)["params"])(keys)
            # All that outlasts a search of its optimiser: the steps that each image has had.
            opt["expertness"] = jnp.zeros(config.examples, jnp.int32)
            extra["found"] = nothing_found(config.examples, raters)
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt=opt, extra=extra)

    def predict(key: Key, state: TrainState, batch: Batch) -> Outputs:
        del key
        image = unit(batch["image"])
        probs = jax.nn.sigmoid(run(segmenter, "segmenter", state.params, state.extra["batch_stats"], image)[0][0])
        # The judge has seen sharp masks only, and gets them.
        judged = diagnose(state, "judge", image, expertise.encode(probs > 0.5))
        outputs = {"mask_probs": probs, "probs": jax.nn.sigmoid(jnp.stack([-judged, judged], -1))}
        outputs["image_and_mask"] = jax.nn.sigmoid(diagnose(state, "diagnosis", image, expertise.encode(probs)))
        if fuses:  # what the search did on the training images, the same beside every image
            means = search_means(state.extra["found"])
            outputs |= {name: jnp.broadcast_to(mean, (image.shape[0], *mean.shape)) for name, mean in means.items()}
        return outputs | region_ratios(probs)

    def metrics(outputs: Outputs, batch: Batch) -> Pairs:
        weight = batch["weight"] * batch["mask_weight"]
        return streaming.region_metrics(outputs["mask_probs"], batch["mask"], config.regions, weight=weight)

    def export(key: Key, state: TrainState, batch: Batch) -> Outputs:
        del key
        fused, weights = fuse_by(state.params, batch)
        vote = mean_of_raters(*expertise.read_raters(batch))
        return {"majority": expertise.encode(vote), "dfgt": expertise.encode(fused), "expertness": weights}

    stages = []
    if config.diagnosis_steps:
        learn = descend(learn_labels, diagnosis_tx, trains=classifiers, slot="diagnosis")
        stages.append(Stage("diagnosis", config.diagnosis_steps, learn, "train", classifiers))
    if fuses:
        stages.append(Stage("search", 0, find, "train", ("expertness",), passes=1))
    learn = descend(learn_masks, segmenter_tx, trains=("segmenter",), slot="segmenter")
    enter = begin_branch if config.inherit and not unet and config.segmenter != "no-take" else keep
    stages.append(Stage("segmentation", config.steps, learn, "train", ("segmenter",), enter=enter))
    scores = functools.partial(serving_scores, raters=config.raters)
    return Method(init, tuple(stages), predict, metrics, scores, watch="cdr_auc", export=export if fuses else None)
