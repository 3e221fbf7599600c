"""The three tasks of GAMMA, each as the nets, stages and scores that ``gamma.make`` joins."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ophjax.data import challenges
from ophjax.data.augment import centred, unit
from ophjax.data.scans import exclusive, warp
from ophjax.keys import at
from ophjax.losses import grading as losses
from ophjax.losses.classification import softmax_cross_entropy
from ophjax.losses.segmentation import soft_dice_loss
from ophjax.metrics import gamma, ranking, streaming
from ophjax.metrics.greys import GAMMA
from ophjax.nets.grader import Grader
from ophjax.nets.pooledresnet import PooledResNet
from ophjax.nets.unet import UNet
from ophjax.nets.ushape import UShape
from ophjax.transforms.bundling import bundle
from ophjax.transforms.controls import others
from ophjax.transforms.sharpness import descend_flat
from ophjax.transforms.stepping import begin, descend
from ophjax.types import Batch, Key, Logs, Outputs, Pairs, Stage, TrainState

if TYPE_CHECKING:
    from ophjax.methods.gamma import Config


class Part(NamedTuple):
    """A task: what it needs of a batch, and its share of a method."""

    needs: tuple[str, ...]
    init: Callable[[Key, Batch], tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]
    stages: tuple[Stage, ...]
    predict: Callable[[TrainState, Batch], Outputs]
    metrics: Callable[[Outputs, Batch], Pairs]
    scores: Callable[[Mapping[str, np.ndarray]], dict[str, float]]


def optimiser(config: Config, lr: float, steps: int) -> optax.GradientTransformation:
    """Adam, the optimiser of all three baselines."""
    return bundle(optax.adam(optax.cosine_decay_schedule(lr, steps) if config.schedule == "cosine" else lr))


def bits(key: Key, name: str, batch: Batch) -> jax.Array:
    """A coin for each example, by the key and its ``index``: bool [b]."""
    return jax.vmap(lambda index: jax.random.bernoulli(at(key, name, index)))(batch["index"])


def mirror(x: jax.Array, turned: jax.Array, axis: int = 2) -> jax.Array:
    """Mirrors some of the examples, left to right unless another axis is given."""
    return jnp.where(turned.reshape(-1, *(1,) * (x.ndim - 1)), jnp.flip(x, axis), x)


def mean_known(values: jax.Array, known: jax.Array) -> jax.Array:
    """Averages over the examples that count."""
    return jnp.where(known > 0, values * known, 0).sum() / jnp.maximum(known.sum(), 1.0)


def grading(config: Config) -> Part:
    """Task 1: the grade (GAMMA spec, sections (c) C1, (d) D1 and D2, (f))."""
    ordinal, k, scans = config.head == "ordinal", len(config.classes), config.modality != "fundus"
    net = Grader(
        outputs=k - 1 if ordinal else k, modality=config.modality, oct_branch=config.oct_branch, fusion=config.fusion,
        hidden=config.hidden, auxiliary=config.auxiliary, dropout=config.dropout, depth=config.depth,
        width=config.width, stem_kind=config.stem, norm=config.norm, dtype=jnp.dtype(config.dtype),
    )  # fmt: skip
    tx = optimiser(config, config.lr, config.steps)

    def apply(
        params: Any, stats: Any, image: jax.Array, volume: jax.Array | None, *, key: Key | None = None
    ) -> tuple[Any, Any]:
        variables = {"params": params["grader"], "batch_stats": stats["grader"]}
        if key is None:
            return net.apply(variables, image, volume, train=False), stats
        found, new = net.apply(
            variables, image, volume, train=True, mutable=["batch_stats"], rngs={"dropout": at(key, "dropout")}
        )
        return found, stats | {"grader": new.get("batch_stats", {})}

    def sparse(volume: jax.Array, start: jax.Array | int = 0) -> jax.Array:
        """Every so many-th slice, from ``start`` on."""
        if not config.oct_slices or config.oct_slices >= volume.shape[-1]:
            return volume
        stride = volume.shape[-1] // config.oct_slices
        return jnp.take(volume, start + stride * jnp.arange(config.oct_slices), axis=-1)

    def turned(key: Key, name: str, batch: Batch, x: jax.Array) -> jax.Array:
        x = mirror(x, bits(key, name, batch)) if config.flip else x
        return mirror(x, bits(key, f"{name} down", batch), 1) if config.flip_vertical else x

    def view(key: Key, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
        image, volume = unit(turned(key, "picture", batch, batch["image"])), None
        if scans:
            volume = batch["volume"]
            if config.oct_slices:
                stride = max(volume.shape[-1] // config.oct_slices, 1)
                volume = sparse(volume, jax.random.randint(at(key, "slices"), (), 0, stride))
            volume = turned(key, "volume", batch, volume)
        if config.rotate:
            angle = config.rotate * np.pi / 180
            image, _ = warp(at(key, "warp"), image, image[..., :1], batch["index"], rotate=angle)
        return image, volume

    def each(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return (losses.ordinal_loss if ordinal else softmax_cross_entropy)(logits, labels)

    def loss(key: Key, params: Any, extra: Any, batch: Batch) -> tuple[jax.Array, tuple[Any, Logs]]:
        image, volume = view(key, batch)
        logits, stats = apply(params, extra["batch_stats"], centred(image), volume, key=at(key, "net"))
        labels = batch["label"]
        if config.control == "labels":
            labels = labels[others(at(key, "labels"), labels >= 0)]
        known, labels = (labels >= 0).astype(jnp.float32), jnp.maximum(labels, 0)
        value = config.fused_weight * mean_known(each(logits["fused"], labels), known)
        logs = {"fused_loss": value}
        if "oct" in logits:
            alone = each(logits["oct"], labels) + each(logits["fundus"], labels)
            # The answer to a question of the ordinal head is one of two classes.
            sides = [jnp.stack([x, 0 * x], -1) if ordinal else x for x in (logits["oct"], logits["fundus"])]
            logs["disagreement"] = losses.disagreement(*sides).mean()
            value = value + config.agreement_weight * logs["disagreement"]
            value = value + mean_known(alone, known)
        return value, ({"batch_stats": stats}, logs)

    def init(key: Key, batch: Batch) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        image = centred(unit(batch["image"]))
        made = net.init(at(key, "grader"), image, sparse(batch["volume"]) if scans else None, train=False)
        params = {"grader": made["params"]}
        return params, {"grader": made.get("batch_stats", {})}, {"grader": begin(tx, params, ("grader",))}

    def predict(state: TrainState, batch: Batch) -> Outputs:
        picture, volume = unit(batch["image"]), sparse(batch["volume"]) if scans else None
        probs, sides = [], (0, 1) if config.test_flips else (0,)
        height, width = picture.shape[1:3]
        for scale in config.test_scales:
            shape = (picture.shape[0], round(scale * height), round(scale * width), 3)
            image = centred(picture if scale == 1 else jax.image.resize(picture, shape, "linear"))
            for other, one in itertools.product(sides if scans else (0,), sides):
                logits, _ = apply(
                    state.params, state.extra["batch_stats"], image[:, :, ::-1] if one else image,
                    volume[:, :, ::-1] if volume is not None and other else volume,
                )  # fmt: skip
                to_probs = losses.ordinal_probs if ordinal else jax.nn.softmax
                probs += [to_probs(x) for name, x in logits.items() if name == "fused" or config.test_heads == "all"]
        many = len(probs) > 1
        return {"probs": losses.sharpened_mean(jnp.stack(probs), power=config.test_power) if many else probs[0]}

    def scores(gathered: Mapping[str, np.ndarray]) -> dict[str, float]:
        known = gathered["label"] >= 0
        if not known.any():
            return {}
        probs, labels = gathered["probs"][known], gathered["label"][known]
        clusters = ranking.patients(gathered, known)
        grades = ranking.choose_classes(probs, ordinal=ordinal)
        found = {"kappa": gamma.kappa(grades, labels, classes=k)}
        found["score_grading"] = gamma.grading_score(found["kappa"])
        found |= ranking.classification_scores(probs, labels, clusters=clusters)
        if ordinal:  # all but areas follow from the decision
            decided = ranking.classification_scores(np.eye(k)[grades], labels, clusters=clusters)
            found |= {name: value for name, value in decided.items() if not name.startswith("auc")}
        return found

    step = (
        descend_flat(loss, tx, trains=("grader",), slot="grader", rho=config.sharpness)
        if config.sharpness
        else descend(loss, tx, trains=("grader",), slot="grader")
    )
    stages = (Stage("grading", config.steps, step, "train", ("grader",)),)
    return Part(("volume", "label") if scans else ("label",), init, stages, predict, lambda outputs, batch: {}, scores)


def locating(config: Config) -> Part:
    """Task 2: the fovea, by one net, or by a second one that looks closer (GAMMA spec, sections (c) C2, (d), (f))."""
    net = PooledResNet(
        outputs=2, hidden=(512, 256), relu=True, dropout=config.locator_dropout, depth=config.locator_depth,
        width=config.locator_width, stem_kind=config.stem, norm=config.norm, dtype=jnp.dtype(config.dtype),
    )  # fmt: skip
    tx = optimiser(config, config.locator_lr, config.locator_steps)
    names = ("locator", "refiner") if config.fine else ("locator",)

    def apply(name: str, params: Any, stats: Any, image: jax.Array, *, key: Key | None = None) -> tuple[Any, Any]:
        variables = {"params": params[name], "batch_stats": stats[name]}
        if key is None:
            return jax.nn.sigmoid(net.apply(variables, centred(image), train=False)), stats  # type: ignore[arg-type]
        found: Any
        found, new = net.apply(
            variables, centred(image), train=True, mutable=["batch_stats"], rngs={"dropout": at(key, "dropout")}
        )
        return jax.nn.sigmoid(found), stats | {name: new.get("batch_stats", {})}

    def target(batch: Batch) -> tuple[jax.Array, jax.Array]:
        """The fovea as shares of what the image shows, and whether it is known and to be seen."""
        frame = batch["frame"].astype(jnp.float32)
        known = (batch["fovea"] >= 0).all(-1) & (batch["fovea"] > 0).any(-1)
        return (batch["fovea"] - frame[:, :2]) / frame[:, 2:], known.astype(jnp.float32)

    def crop(image: jax.Array, middle: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Cuts a window around a point given in shares, moved into the image; returns it and its corner in shares."""
        height, width = image.shape[1:3]
        side = max(round(config.fine * min(height, width)), 1)
        whole = jnp.array([[width, height]])
        corner = jnp.clip(jnp.round(middle * whole - side / 2).astype(jnp.int32), 0, whole - side)
        shape = (side, side, image.shape[-1])
        cut = jax.vmap(lambda one, place: jax.lax.dynamic_slice(one, (place[1], place[0], 0), shape))
        return cut(image, corner), corner / whole

    def extent(image: jax.Array) -> jax.Array:
        """Width and height of a window in shares."""
        side = max(round(config.fine * min(image.shape[1:3])), 1)
        return jnp.array([[side / image.shape[2], side / image.shape[1]]])

    def loss_of(name: str) -> Any:
        def loss(key: Key, params: Any, extra: Any, batch: Batch) -> tuple[jax.Array, tuple[Any, Logs]]:
            image, (truth, known) = unit(batch["image"]), target(batch)
            if config.flip:
                turned = bits(key, "picture", batch)
                image = mirror(image, turned)
                truth = jnp.stack([jnp.where(turned, 1 - truth[:, 0], truth[:, 0]), truth[:, 1]], -1)
            if name == "refiner":
                # The window lies where a first guess might have put it.
                away = jax.random.uniform(at(key, "window"), truth.shape, minval=-0.35, maxval=0.35) * extent(image)
                image, corner = crop(image, truth + away)
                truth = (truth - corner) / extent(batch["image"])
            found, stats = apply(name, params, extra["batch_stats"], image, key=at(key, "net"))
            paid = losses.point_loss(found, truth, legacy=config.legacy_point_loss)
            return mean_known(paid, known), ({"batch_stats": stats}, {})

        return loss

    def init(key: Key, batch: Batch) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        image = centred(unit(batch["image"]))
        made = {name: net.init(at(key, name), image, train=False) for name in names}
        params = {name: one["params"] for name, one in made.items()}
        stats = {name: one.get("batch_stats", {}) for name, one in made.items()}
        return params, stats, {name: begin(tx, params, (name,)) for name in names}

    def predict(state: TrainState, batch: Batch) -> Outputs:
        image, stats = unit(batch["image"]), state.extra["batch_stats"]
        found, _ = apply("locator", state.params, stats, image)
        if config.fine:
            window, corner = crop(image, found)
            inside, _ = apply("refiner", state.params, stats, window)
            found = corner + inside * extent(image)
        frame = batch["frame"].astype(jnp.float32)
        return {"fovea_found": frame[:, :2] + found * frame[:, 2:]}

    def metrics(outputs: Outputs, batch: Batch) -> Pairs:
        known = (batch["fovea"] >= 0).all(-1)
        off = (outputs["fovea_found"] - batch["fovea"]) / batch["size"]
        distance = jnp.sqrt(jnp.square(off).sum(-1))
        return {"fovea_distance": streaming.pair(distance, batch["weight"] * known)}

    def scores(gathered: Mapping[str, np.ndarray]) -> dict[str, float]:
        distance = {"fovea_distance": gathered["fovea_distance"]}
        found = ranking.mean_scores(distance, clusters=ranking.patients(gathered))
        if "fovea_distance" in found:
            found["score_fovea"] = gamma.fovea_score(found["fovea_distance"])
        return found

    stages = tuple(
        Stage(
            f"fovea-{name}",
            config.locator_steps,
            descend(loss_of(name), tx, trains=(name,), slot=name),
            "train",
            (name,),
        )
        for name in names
    )
    return Part(("fovea", "frame", "size"), init, stages, predict, metrics, scores)


def heights(mask: jax.Array) -> jax.Array:
    """Counts the rows from the first to the last that each region touches, [b, c]; 0 where it is empty."""
    rows = (mask > 0).any(2)
    first, last = rows.argmax(1), mask.shape[1] - 1 - rows[:, ::-1].argmax(1)
    return jnp.where(rows.any(1), last - first + 1, 0).astype(jnp.float32)


def segmenting(config: Config) -> Part:
    """Task 3: disc and cup as background, rim and cup (GAMMA spec, sections (c) C3, (d) D4)."""
    dtype = jnp.dtype(config.dtype)
    net: Any = (
        UShape(3, config.segmenter_width, config.norm, dtype)
        if config.segmenter == "ushape"
        else UNet(3, config.segmenter_width, config.levels, config.norm, dtype)
    )
    tx = optimiser(config, config.segmenter_lr, config.segmenter_steps)

    def loss(key: Key, params: Any, extra: Any, batch: Batch) -> tuple[jax.Array, tuple[Any, Logs]]:
        image, mask = unit(batch["image"]), batch["mask"]
        if config.flip:
            turned = bits(key, "picture", batch)
            image, mask = mirror(image, turned), mirror(mask, turned)
        variables = {"params": params["segmenter"], "batch_stats": extra["batch_stats"]["segmenter"]}
        logits, new = net.apply(variables, image, train=True, mutable=["batch_stats"])
        truth = exclusive(mask)
        paid = optax.softmax_cross_entropy(logits, truth).mean((1, 2))
        if config.prior_weight:
            paid = paid + config.prior_weight * losses.size_prior(logits, truth)
        if config.dice_weight:
            paid = paid + config.dice_weight * soft_dice_loss(jax.nn.softmax(logits), truth).mean(-1)
        stats = extra["batch_stats"] | {"segmenter": new.get("batch_stats", {})}
        return mean_known(paid, batch["mask_weight"]), ({"batch_stats": stats}, {})

    def init(key: Key, batch: Batch) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        made = net.init(at(key, "segmenter"), unit(batch["image"]), train=False)
        params = {"segmenter": made["params"]}
        return params, {"segmenter": made.get("batch_stats", {})}, {"segmenter": begin(tx, params, ("segmenter",))}

    def predict(state: TrainState, batch: Batch) -> Outputs:
        variables = {"params": state.params["segmenter"], "batch_stats": state.extra["batch_stats"]["segmenter"]}
        probs = jax.nn.softmax(net.apply(variables, unit(batch["image"]), train=False))
        return {"mask_probs": jnp.stack([probs[..., 1] + probs[..., 2], probs[..., 2]], -1)}

    def metrics(outputs: Outputs, batch: Batch) -> Pairs:
        classes = chosen(outputs["mask_probs"])
        found = jnp.stack([classes > 0, classes == 2], -1)
        weight = batch["weight"] * batch["mask_weight"]
        overlap, ours, theirs = streaming.dice(found, batch["mask"]), heights(found), heights(batch["mask"])
        ratios = [one[:, 1] / jnp.maximum(one[:, 0], 1) for one in (ours, theirs)]
        pairs = {f"dice_{name}": streaming.pair(overlap[:, i], weight) for i, name in enumerate(("disc", "cup"))}
        return pairs | {"cdr_error": streaming.pair(jnp.abs(ratios[0] - ratios[1]), weight)}

    def scores(gathered: Mapping[str, np.ndarray]) -> dict[str, float]:
        rows = {name: gathered[name] for name in ("dice_disc", "dice_cup", "cdr_error")}
        found = ranking.mean_scores(rows, clusters=ranking.patients(gathered))
        if "dice_cup" in found:
            found["score_segmentation"] = gamma.segmentation_score(
                found["dice_cup"], found["dice_disc"], found["cdr_error"]
            )
        return found

    step = descend(loss, tx, trains=("segmenter",), slot="segmenter")
    stages = (Stage("segmentation", config.segmenter_steps, step, "masks", ("segmenter",)),)
    return Part(("mask",), init, stages, predict, metrics, scores)


def chosen(probs: Any) -> Any:
    """The most probable class of each pixel, 0 background, 1 rim, 2 cup, from the probabilities of disc and cup."""
    disc, cup = probs[..., 0], probs[..., 1]
    stack = np.stack if isinstance(probs, np.ndarray) else jnp.stack
    return stack([1 - disc, disc - cup, cup], -1).argmax(-1)


def write_submission(
    folder: Path, examples: Iterable[tuple[str, Mapping[str, np.ndarray]]], *, ordinal: bool = False
) -> None:
    """Writes the official files of what was predicted; masks at the original size, background around the frame.

    Grades other than the official three are left out. ``ordinal``: see ``metrics.ranking.choose_classes``.
    """
    grades, foveas = [], []
    for name, example in examples:
        if "probs" in example and len(example["probs"]) == len(gamma.GRADES):
            best = ranking.choose_classes(example["probs"][None], ordinal=ordinal)[0]
            grades.append((name, *(int(i == best) for i in range(len(gamma.GRADES)))))
        if "fovea_found" in example:
            point = example["fovea_found"]
            point = point + example.get("origin", 0) * (point != 0).any()  # (0, 0) has no origin: not to be seen
            foveas.append((name, *(f"{value:.4f}" for value in point)))
        if "mask_probs" in example:
            classes = chosen(example["mask_probs"].astype(np.float32)).astype(np.uint8)
            if "frame" in example:
                classes = challenges.put_back(classes, example["frame"].tolist(), example["size"].tolist())
            challenges.write_mask(folder / challenges.DISC_CUP / f"{name}.bmp", classes, GAMMA)
    if grades:
        challenges.write_table(folder / f"{challenges.GRADING}.csv", ("data", *gamma.GRADES), grades)
    if foveas:
        challenges.write_table(folder / f"{challenges.FOVEA}.csv", ("data", "Fovea_X", "Fovea_Y"), foveas)
