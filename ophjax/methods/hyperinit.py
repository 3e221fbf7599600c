"""Hyper-initializer: one hypernetwork that predicts the starting parameters of any network for a kind of image.

Shang et al., "One Hyper-Initializer for All Network Architectures in Medical Image Analysis", arXiv:2206.03661. A graph
hypernetwork reads a network's graph and writes its parameters; it is trained once for each modality on a pool of
architectures, none of which is ever trained itself: the gradient of a child's loss goes through its predicted
parameters into the hypernetwork. Only the abstract could be read, and no code was released. The hypernetwork is that of
GHN-2 and GHN-3; objectives, pool and schedule are our decisions (BUILD_NOTES.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ophjax.data.augment import centred, flip, jitter, unit
from ophjax.data.crop import resized_crop
from ophjax.errors import check_options, unknown
from ophjax.keys import at
from ophjax.losses import contrast
from ophjax.losses.classification import softmax_cross_entropy
from ophjax.losses.segmentation import binary_cross_entropy, soft_dice_loss
from ophjax.metrics import ranking, streaming
from ophjax.nets.children import CLASSIFIERS, FAMILIES, NORMS, draw_pool
from ophjax.nets.features import GHNConfig
from ophjax.nets.hyperinit import Pool, make_pool, unit_bank
from ophjax.nets.hypernet import GHN
from ophjax.transforms.bundling import bundle
from ophjax.transforms.centroids import normalise
from ophjax.transforms.controls import others
from ophjax.transforms.generation import assemble, norm_penalty, staged_scan, tile
from ophjax.transforms.stepping import begin, descend
from ophjax.types import Batch, Key, Logs, Method, Outputs, Pairs, Stage, TrainState

PAPER = {
    "title": "One Hyper-Initializer for All Network Architectures in Medical Image Analysis",
    "authors": "Shang, Yang, Yang, Wu, Wang, Xu",
    "venue": "arXiv, 2022",
    "arxiv": "2206.03661",
}

# The data set where none is named.
DATA = "shapes"

# Changes to Config for two CPU cores, and for tests.
DEMO: dict[str, Any] = dict(
    width=48, heads=4, channels=16, side=5, pool=8, families=("plain", "residual", "dense", "vit", "unet"),
    norms=("batch", "group"), widest=32, meta_batch=2, lr=2e-3, steps=800,
)  # fmt: skip
SMOKE: dict[str, Any] = dict(
    width=16, layers=1, heads=2, channels=8, side=3, pool=2, families=("plain",), widest=8, meta_batch=2,
    steps=4,
)  # fmt: skip

# Changes to the loop's configuration, by preset.
TRAIN: dict[str, dict[str, Any]] = {"paper": dict(batch_size=64), "demo": dict(batch_size=32)}

# What a comparison runs beside the method itself: changes to Config, and the networks taken over from its run.
VARIANTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "gated": (dict(core="gated"), ()),
    "neighbours-only": (dict(cutoff=1), ()),
    "not-normalised": (dict(normalise=False), ()),
    "one-child": (dict(meta_batch=1), ()),
    "four-children": (dict(meta_batch=4), ()),
    "not-rescaled": (dict(rescale=False), ()),
    "labels-shuffled": (dict(control="labels"), ()),
}

# The scores of a comparison's table (patterns over names), the first of which is compared seed by seed.
SCORES = ("accuracy", "accuracy_*", "dice_*", "auc", "retrieval", "restored")


@dataclasses.dataclass(frozen=True)
class Config:
    """The hyper-initializer at the scale of GHN-3's smallest hypernetwork; what the paper uses is not known to us."""

    objective: Literal["supervised", "contrastive"] = "supervised"
    """What classifiers in the pool learn. supervised: cross-entropy. contrastive: two views of an image find each
    other among those of the batch, no labels needed (NT-Xent)."""
    dense_objective: Literal["supervised", "denoise"] = "supervised"
    """What U-Nets in the pool learn. supervised: cross-entropy and Dice with the masks. denoise: the image from a
    noisy one with patches blanked, no masks needed."""
    control: Literal["none", "labels"] = "none"
    """Negative control: shuffle the training labels and masks within each batch."""

    core: Literal["graphormer", "gated"] = "graphormer"
    """How nodes hear of each other. graphormer: transformer with distances as bias (GHN-3). gated: one sweep forth and
    back of a gated graph network (GHN-2)."""
    width: int = 64
    """Numbers that describe a node."""
    layers: int = 3
    """Layers of the graphormer."""
    heads: int = 8
    """Attention heads of the graphormer."""
    channels: int = 64
    """Input and output channels of a decoded block, repeated in larger layers."""
    side: int = 11
    """Side of the largest decoded kernel."""
    cutoff: int = 50
    """Longest path along which nodes hear of each other directly; 1: neighbours only (GHN-1)."""
    normalise: bool = True
    """Scale predicted kernels by their fan-in and keep norms and biases in range."""
    rescale: bool = True
    """Begin with decoded kernels of standard deviation 1."""

    pool: int = 48
    """Architectures that are trained on, each compiled once."""
    pool_seed: int = 0
    """Chooses the architectures."""
    families: tuple[str, ...] = FAMILIES
    """Families in the pool, in turn: plain, residual, dense, inverted, vit, unet. Those that the data cannot serve
    (without classes or masks) are left out."""
    norms: tuple[str, ...] = NORMS
    """Normalisations in the pool: batch, group, none. Nets without one learn from predicted parameters last."""
    widest: int = 64
    """Most channels of a child's layer."""
    meta_batch: int = 4
    """Architectures in each step, all on the same images."""

    penalty: float = 3e-5
    """Weight of the sum of the predicted tensors' norms."""
    temperature: float = 0.2
    """Cosines are divided by this (objective contrastive)."""
    projection: int = 64
    """Width of the contrast's projection, shared by all children (objective contrastive)."""
    noise: float = 0.25
    """Standard deviation of the noise that is to be removed, the image being -2 to 2 (dense-objective denoise)."""
    flip: bool = True
    """Horizontal flips."""
    lr: float = 1e-3
    """Highest learning rate of AdamW."""
    weight_decay: float = 1e-2
    """Decoupled weight decay."""
    warmup: float = 0.05
    """Share of training over which the learning rate rises; then it falls to zero as a cosine."""
    clip: float = 5.0
    """Greatest norm of the gradient."""
    steps: int = 20000
    """Batches."""

    classes: tuple[str, ...] = ("negative", "positive")
    """Names of the classes; filled in from the data set."""
    regions: tuple[str, ...] = ()
    """Names of the mask's regions; filled in from the data set."""


def check(config: Config) -> None:
    """Raises InputError for settings that no hypernetwork or pool can be built from."""
    for family in config.families:
        if family not in FAMILIES:
            raise unknown("family", family, FAMILIES)
    for norm in config.norms:
        if norm not in NORMS:
            raise unknown("norm", norm, NORMS)
    rules = {
        "families": (bool(served(config)), "at least one that the data set can serve"),
        "norms": (bool(config.norms), "at least one"),
        "pool": (config.pool >= 1, "at least 1"),
        "widest": (config.widest >= 8 and config.widest % 8 == 0, "a multiple of 8"),
        "meta-batch": (1 <= config.meta_batch <= config.pool, "from 1 to the size of the pool"),
        "penalty": (config.penalty >= 0, "at least 0"),
        "temperature": (config.temperature > 0, "above 0"),
        "projection": (config.projection >= 1, "at least 1"),
        "noise": (config.noise > 0, "above 0"),
        "lr": (config.lr > 0, "above 0"),
        "weight-decay": (config.weight_decay >= 0, "at least 0"),
        "warmup": (0 <= config.warmup < 1, "a share from 0 to below 1"),
        "clip": (config.clip > 0, "above 0"),
        "steps": (config.steps >= 1, "at least 1"),
    }
    check_options(config, rules)


def served(config: Config) -> tuple[str, ...]:
    """The families that learn something from this data set with these objectives."""
    classify = config.objective == "contrastive" or len(config.classes) > 1
    segment = config.dense_objective == "denoise" or bool(config.regions)
    return tuple(name for name in config.families if (classify if name in CLASSIFIERS else segment))


def ghn_config(config: Config) -> GHNConfig:
    """The hypernetwork that a run of this configuration trains."""
    classes = len(config.classes) if config.objective == "supervised" and set(served(config)) & set(CLASSIFIERS) else 0
    return GHNConfig(
        config.width, config.layers, config.heads, config.core, config.channels, config.side, config.cutoff, classes,
        config.normalise,
    )  # fmt: skip


def optimiser(config: Config) -> optax.GradientTransformation:
    """AdamW with a linear rise, a cosine to zero, and gradients clipped by their global norm."""
    rise = int(config.warmup * config.steps)
    rate = optax.warmup_cosine_decay_schedule(config.lr / 100 if rise else config.lr, config.lr, rise, config.steps)
    return bundle(
        optax.chain(optax.clip_by_global_norm(config.clip), optax.adamw(rate, weight_decay=config.weight_decay))
    )


def make(config: Config) -> Method:
    """Builds the training of a hypernetwork on a pool of architectures.

    Batches hold ``image`` uint8 [b, h, w, 3], ``label`` int32 [b], ``mask`` uint8 [b, h, w, c] with ``mask_weight`` [b]
    where the data set has regions, ``weight`` float32 [b] (0: padding) and ``index`` int32 [b]. Outputs are ``probs``
    [b, k], the mean over the pool's classifiers, and ``child_probs`` [b, n * k], those of each of them in turn;
    ``mask_probs`` [b, h, w, c], the mean over the U-Nets; ``views`` [b, 2, n * projection] (contrastive); ``error``
    [b, n], the squared error of each U-Net (denoise). Every child answers with predicted parameters, never trained.

    The state keeps the running batch statistics of each child in ``extra["batch_stats"]``, for evaluation.

    Raises:
      InputError: the settings contradict each other, or the data set has nothing to learn from.
    """
    check(config)
    ghn = GHN(ghn_config(config))
    tx = optimiser(config)
    contrastive, denoise = config.objective == "contrastive", config.dense_objective == "denoise"
    archs = draw_pool(config.pool_seed, config.pool, served(config), norms=config.norms, widest=config.widest)
    # plain1, plain2, ...: short enough for the legend of a chart.
    names = [f"{arch.family}{sum(a.family == arch.family for a in archs[: i + 1])}" for i, arch in enumerate(archs)]
    classifiers = [i for i, arch in enumerate(archs) if not arch.dense]
    unets = [i for i, arch in enumerate(archs) if arch.dense]
    trained = ("hyper", "projection") if contrastive and classifiers else ("hyper",)

    def pool_for(batch: Batch) -> Pool:
        image = batch["image"].shape[1:]
        return make_pool(
            archs, image, ghn.config, classes=max(2, len(config.classes)),
            regions=image[-1] if denoise else len(config.regions), head="predict",
        )  # fmt: skip

    def project(projection: Any, feature: jax.Array) -> jax.Array:
        """Features of any width are repeated or cut to one width, which all children share."""
        wide = tile(feature.T, (config.projection,)).T
        return normalise(jax.nn.relu(wide @ projection["first"]) @ projection["second"])

    def two_views(key: Key, batch: Batch, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        def view(name: str) -> jax.Array:
            cropped = resized_crop(at(key, name, "crop"), image, batch["index"], least=0.5)
            return centred(jitter(at(key, name, "jitter"), cropped, batch["index"]))

        return view("one"), view("two")

    def spoil(key: Key, image: jax.Array) -> jax.Array:
        """Adds noise and blanks one patch in eight, of 4 x 4 pixels."""
        grid = (image.shape[0], -(-image.shape[1] // 4), -(-image.shape[2] // 4), 1)
        kept = jax.random.bernoulli(at(key, "patches"), 7 / 8, grid).repeat(4, 1).repeat(4, 2)
        noisy = image + config.noise * jax.random.normal(at(key, "noise"), image.shape)
        return noisy * kept[:, : image.shape[1], : image.shape[2]]

    def branch(pool: Pool, child: int) -> Callable[..., tuple[jax.Array, Any]]:
        """The loss of one child: of its bank (and the projection), the batch statistics of all, and the images."""
        arch, module, name = archs[child], pool.modules[child], f"child{child}"

        def loss(x: Any, every: Any, turn: jax.Array, key: Key, batch: Batch) -> tuple[jax.Array, Any]:
            key = at(key, turn)
            tensors = assemble(pool.pieces[child], x["bank"], normalise=config.normalise)
            params = pool.tree_of(child, tensors)
            weight = batch["weight"]
            image = unit(batch["image"])

            def run(images: jax.Array, method: str = "__call__") -> tuple[jax.Array, Any]:
                variables = {"params": params, "batch_stats": every[name]}
                out, new = module.apply(variables, images, train=True, mutable=["batch_stats"], method=method)
                return out.astype(jnp.float32), every | {name: new.get("batch_stats", {})}

            if arch.dense and denoise:
                clean = centred(image)
                logits, stats = run(spoil(key, clean))
                each = jnp.square(logits - clean).mean((1, 2, 3))
            elif arch.dense:
                logits, stats = run(centred(image))
                weight = weight * batch["mask_weight"]
                each = binary_cross_entropy(logits, batch["mask"]).mean(1)
                each = each + soft_dice_loss(jax.nn.sigmoid(logits), batch["mask"]).mean(1)
            elif contrastive:
                first, second = two_views(key, batch, image)
                feature, stats = run(jnp.concatenate([first, second]), "features")
                twice = jnp.tile(jnp.arange(len(image)), 2)
                each = contrast.supervised_contrast(
                    project(x["projection"], feature), twice, temperature=config.temperature
                )
                weight = jnp.tile(weight, 2)
            else:
                logits, stats = run(centred(image))
                weight = weight * (batch["label"] >= 0)
                each = softmax_cross_entropy(logits, batch["label"])
            value = contrast.weighted_mean(each, weight)
            return value + config.penalty * norm_penalty(tensors), (stats, value)

        return loss

    def loss(key: Key, params: Any, extra: Any, batch: Batch) -> tuple[jax.Array, tuple[Any, Logs]]:
        pool = pool_for(batch)
        if config.flip:
            batch = flip(at(key, "flip"), batch)
        if config.control == "labels":
            order = others(at(key, "labels"), jnp.ones(len(batch["label"]), bool))
            batch = dict(batch) | {
                name: batch[name][order] for name in ("label", "mask", "mask_weight") if name in batch
            }
        picks = jax.random.choice(at(key, "children"), config.pool, (config.meta_batch,), replace=False)
        shared = params.get("projection", {})
        xs = {
            "bank": pool.banks(ghn, params["hyper"], picks),
            "projection": jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(picks), *leaf.shape)), shared),
        }
        children = staged_scan([branch(pool, child) for child in range(config.pool)])
        stats, (totals, values) = children(picks, xs, extra["batch_stats"], at(key, "child"), batch)
        return totals.mean(), ({"batch_stats": stats}, {"child_loss": values.mean(), "worst_child": values.max()})

    def init(key: Key, batch: Batch) -> TrainState:
        pool = pool_for(batch)
        first = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), pool.features)
        hyper = ghn.init(at(key, "hyper"), first)["params"]
        if config.rescale:
            hyper = unit_bank(ghn, hyper, max(pool.graphs, key=lambda graph: len(graph.nodes)))
        params: dict[str, Any] = {"hyper": hyper}
        if "projection" in trained:
            shape, start = (config.projection, config.projection), jax.nn.initializers.he_normal()
            params["projection"] = {name: start(at(key, name), shape) for name in ("first", "second")}
        stats = {f"child{i}": pool.statistics(i) for i in range(config.pool)}
        opt = {"hyper": begin(tx, params, trained)}
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt=opt, extra={"batch_stats": stats})

    def predict(key: Key, state: TrainState, batch: Batch) -> Outputs:
        pool = pool_for(batch)
        banks = pool.banks(ghn, state.params["hyper"])
        image = centred(unit(batch["image"]))

        def run(child: int, images: jax.Array, method: str = "__call__") -> jax.Array:
            bank = {group: values[child] for group, values in banks.items()}
            params = pool.tree_of(child, assemble(pool.pieces[child], bank, normalise=config.normalise))
            variables = {"params": params, "batch_stats": state.extra["batch_stats"][f"child{child}"]}
            answer: Any = pool.modules[child].apply(variables, images, train=False, method=method)
            return answer.astype(jnp.float32)

        outputs: Outputs = {}
        if classifiers and contrastive:
            views = two_views(key, batch, unit(batch["image"]))
            found = [
                [project(state.params["projection"], run(i, view, "features")) for i in classifiers] for view in views
            ]
            outputs["views"] = jnp.stack([jnp.concatenate(each, -1) for each in found], 1)
        elif classifiers:
            probs = [jax.nn.softmax(run(i, image)) for i in classifiers]
            outputs |= {"probs": jnp.stack(probs).mean(0), "child_probs": jnp.concatenate(probs, -1)}
        if unets and denoise:
            noisy = jax.vmap(lambda index, one: spoil(at(key, index), one[None])[0])(batch["index"], image)
            errors = [jnp.square(run(i, noisy) - image).mean((1, 2, 3)) for i in unets]
            outputs["error"] = jnp.stack(errors, 1)
        elif unets:
            outputs["mask_probs"] = jnp.stack([jax.nn.sigmoid(run(i, image)) for i in unets]).mean(0)
        return outputs

    def metrics(outputs: Outputs, batch: Batch) -> Pairs:
        found: Pairs = {}
        if "mask_probs" in outputs:
            weight = batch["weight"] * batch["mask_weight"]
            found |= streaming.region_metrics(outputs["mask_probs"], batch["mask"], config.regions, weight=weight)
        if "views" in outputs:
            alike = jnp.einsum("bd,cd->bc", outputs["views"][:, 0], outputs["views"][:, 1])
            alike = jnp.where(batch["weight"][None, :] > 0, alike, -jnp.inf)
            hit = alike.argmax(1) == jnp.arange(len(alike))
            found["retrieval"] = streaming.pair(hit, batch["weight"])
        if "error" in outputs:
            found["restored"] = streaming.pair(-outputs["error"].mean(1), batch["weight"])
        return found

    def scores(gathered: Mapping[str, np.ndarray]) -> dict[str, float]:
        known = ("dice", "iou", "soft", "retrieval", "restored")
        rows = {name: v for name, v in gathered.items() if name.split("_")[0] in known}
        found = ranking.mean_scores(rows, clusters=ranking.patients(gathered))
        labelled = gathered["label"] >= 0 if "child_probs" in gathered else np.zeros(0, bool)
        if labelled.any():
            label, probs, children = (gathered[name][labelled] for name in ("label", "probs", "child_probs"))
            right = (children.reshape(len(label), len(classifiers), -1).argmax(-1) == label[:, None]).mean(0)
            of_mean = ranking.classification_scores(probs, label, clusters=ranking.patients(gathered, labelled))
            found |= {f"ensemble_{name}" if name.startswith("accuracy") else name: v for name, v in of_mean.items()}
            found |= {"accuracy": float(right.mean()), "accuracy_least": float(right.min())}
            found |= {f"accuracy_{names[i]}": float(v) for i, v in zip(classifiers, right, strict=True)}
        return found

    watch = "retrieval" if contrastive else "accuracy"
    if not classifiers:
        watch = "restored" if denoise else f"dice_{config.regions[0]}"
    stage = Stage("pool", config.steps, descend(loss, tx, trains=trained, slot="hyper"), "train", trained)
    return Method(init, (stage,), predict, metrics, scores, watch=watch, own=("views",))
