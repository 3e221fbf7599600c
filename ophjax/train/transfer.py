"""Few-shot transfer: networks started in several ways, fine-tuned on little data, each at its own best learning rate.

What a hypernetwork is for (spec of hyperinit, checks 16 and 17): on architectures that it never saw and a new task
with few labels, does its start learn faster and end better than He's? The controls are a hypernetwork that was never
trained and a trained one that reads a graph with its operations shuffled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ophjax.data.augment import centred, unit
from ophjax.data.sources import Dataset, Source
from ophjax.errors import InputError
from ophjax.keys import at
from ophjax.losses.classification import softmax_cross_entropy
from ophjax.losses.segmentation import binary_cross_entropy, soft_dice_loss
from ophjax.metrics.streaming import dice
from ophjax.nets.children import UNSEEN
from ophjax.nets.features import featurise, lay_out
from ophjax.nets.graph import ModuleGraph, call_options, trace_graph
from ophjax.nets.hyperinit import graft, hyper_init, recalibrate, unit_bank
from ophjax.nets.hypernet import GHN
from ophjax.types import Key

STARTS = ("he", "hyper", "untrained", "shuffled")
"""He's normal initialiser; a trained hypernetwork; one never trained; a trained one with the operations of the
graph shuffled among its nodes."""


class Shots(NamedTuple):
    """Arrays of one split: ``image`` uint8 [n, h, w, c], ``label`` int32 [n], ``mask`` uint8 [n, h, w, r] or None."""

    image: np.ndarray
    label: np.ndarray
    mask: np.ndarray | None


class Trial(NamedTuple):
    """One fine-tuning: which, and what came out. ``score`` is accuracy, or the mean Dice of the regions."""

    net: str
    shots: int
    seed: int
    start: str
    rate: float
    losses: list[float]
    val: float
    test: float

    @property
    def loss(self) -> float:
        """Mean training loss over all steps: the area under its curve."""
        return sum(self.losses) / len(self.losses)


def read(source: Source, indices: Sequence[int] | None = None) -> Shots:
    """Reads examples of a source into memory."""
    examples = [source[int(i)] for i in (range(len(source)) if indices is None else indices)]
    masks = np.stack([example["mask"] for example in examples]) if "mask" in examples[0] else None
    labels = [example.get("label", np.zeros((), np.int32)) for example in examples]
    return Shots(np.stack([example["image"] for example in examples]), np.stack(labels), masks)


def draw_shots(source: Source, labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Draws ``shots`` examples of each class; a seed always gives the same.

    Raises:
      InputError: a class has fewer.
    """
    rng = np.random.default_rng([seed, shots])
    chosen = []
    for label in np.unique(labels[labels >= 0]):
        members = np.flatnonzero(labels == label)
        if len(members) < shots:
            raise InputError(
                f"Class {label} has {len(members)} training images, fewer than --shots {shots}. Ask for fewer."
            )
        chosen.append(rng.choice(members, shots, replace=False))
    return np.concatenate(chosen)


def he_start(key: Key, module: Any, image: jax.ShapeDtypeStruct, graph: ModuleGraph) -> dict[str, Any]:
    """``module.init`` with every kernel but the head's drawn anew from N(0, 2 / fan_in) (He et al., 2015)."""
    variables = dict(
        module.init(at(key, "module"), jnp.zeros(image.shape, image.dtype), **call_options(module, train=False))
    )
    drawn = {}
    for path, (_, leaf) in graph.first_uses().items():
        if leaf.role == "kernel" and path not in graph.head:
            fan = math.prod(leaf.shape[axis] for axis in (*leaf.fan, *leaf.space))
            noise = jax.random.normal(at(key, "/".join(path)), leaf.shape)
            drawn[path] = (noise * math.sqrt(2 / fan)).astype(leaf.dtype)
    return variables | {"params": graft(variables["params"], drawn)}


def untrained(ghn: GHN, key: Key, graph: ModuleGraph) -> Any:
    """A hypernetwork as training begins with it."""
    _, rows = lay_out(graph, ghn.config, head="predict" if ghn.config.classes else "fresh")
    return unit_bank(ghn, ghn.init(key, featurise(graph, ghn.config, rows))["params"], graph)


class Bench:
    """One unseen network on one data set: its compiled fine-tuning, and its starts.

    Args:
      name: in ``UNSEEN``.
      data: the data set of the downstream task.
      steps: of SGD with momentum 0.9, its rate falling to zero as a cosine.
      batch_size: images of a step, all of them where there are fewer.
    """

    def __init__(self, name: str, data: Dataset, *, steps: int, batch_size: int) -> None:
        self.name, self.dense = name, name == "unet"
        if self.dense and not data.regions:
            raise InputError(f"The network {name} needs masks and {data.name} has none. Leave it out of --nets.")
        if not self.dense and len(data.classes) < 2:
            raise InputError(f"The network {name} needs classes and {data.name} has none. Leave it out of --nets.")
        self.module = UNSEEN[name](max(2, len(data.classes)), max(1, len(data.regions)))
        example = data.splits["train"][0]["image"]
        self.image = jax.ShapeDtypeStruct((2, *example.shape), jnp.float32)
        self.graph = trace_graph(self.module, self.image)
        self.tune = jax.jit(self._tune, static_argnames=("steps", "batch_size"))
        self.steps, self.batch_size = steps, batch_size
        self.answer = jax.jit(self._answer)

    def start(
        self, kind: str, key: Key, ghn: GHN, ghn_params: Any, *, seed: int, noise: float = 0.1, spread: str = "he"
    ) -> dict[str, Any]:
        """The variables that a start gives; heads are always fresh and the same for all starts of a seed."""
        if kind == "he":
            return jax.jit(lambda key: he_start(key, self.module, self.image, self.graph))(key)
        params = untrained(ghn, at(key, "untrained"), self.graph) if kind == "untrained" else ghn_params
        make = hyper_init(
            params, self.module, self.image, ghn=ghn, graph=self.graph, noise=noise, spread=spread,
            shuffled=seed if kind == "shuffled" else None,
        )  # fmt: skip
        return jax.jit(make)(key)

    def untuned(self, ghn: GHN, ghn_params: Any, few: Shots, test: Shots) -> float:
        """The score on the hypernetwork's own task of what it predicts, heads included, without any training; batch
        statistics come from the images of ``few``."""
        make = hyper_init(
            ghn_params, self.module, self.image, ghn=ghn, graph=self.graph, head="predict", noise=0, spread="predicted"
        )
        images = centred(unit(jnp.asarray(few.image)))
        return self.score(jax.jit(lambda key: recalibrate(self.module, make(key), [images]))(jax.random.key(0)), test)

    def _loss(self, variables: Any, image: jax.Array, target: jax.Array) -> tuple[jax.Array, Any]:
        logits, new = self.module.apply(
            variables, centred(unit(image)), **call_options(self.module, train=True), mutable=["batch_stats"]
        )
        if self.dense:
            each = binary_cross_entropy(logits, target) + soft_dice_loss(jax.nn.sigmoid(logits), target)
        else:
            each = softmax_cross_entropy(logits, target)
        return each.mean(), new.get("batch_stats", {})

    def _tune(
        self,
        key: Key,
        variables: Any,
        rate: jax.Array,
        image: jax.Array,
        target: jax.Array,
        *,
        steps: int,
        batch_size: int,
    ) -> tuple[Any, jax.Array]:
        tx = optax.sgd(lambda count: rate * 0.5 * (1 + jnp.cos(jnp.pi * count / steps)), momentum=0.9)

        def step(carry: Any, number: jax.Array) -> tuple[Any, jax.Array]:
            params, stats, opt = carry
            rows = jax.random.permutation(jax.random.fold_in(key, number), len(image))[:batch_size]

            def loss(params: Any) -> tuple[jax.Array, Any]:
                return self._loss({"params": params, "batch_stats": stats}, image[rows], target[rows])

            (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
            updates, opt = tx.update(grads, opt)
            return (optax.apply_updates(params, updates), stats, opt), value

        params = variables["params"]
        carry = (params, variables.get("batch_stats", {}), tx.init(params))
        (params, stats, _), losses = jax.lax.scan(step, carry, jnp.arange(steps))
        return {"params": params, "batch_stats": stats}, losses

    def _answer(self, variables: Any, image: jax.Array) -> jax.Array:
        logits: Any = self.module.apply(variables, centred(unit(image)), **call_options(self.module, train=False))
        return logits

    def score(self, variables: Any, split: Shots) -> float:
        """Accuracy over images whose label is known, or the mean Dice over images and regions; by batches of 100."""
        found = []
        for first in range(0, len(split.image), 100):
            rows = slice(first, first + 100)
            image = split.image[rows]
            short = 100 - len(image) if len(split.image) > 100 else 0
            padded = np.concatenate([image, np.zeros((short, *image.shape[1:]), image.dtype)])
            logits = self.answer(variables, padded)[: len(image)]
            if self.dense:
                found.append(np.asarray(dice(jax.nn.sigmoid(logits), jnp.asarray(split.mask[rows])).mean(1)))  # type: ignore[index]
            else:
                known = split.label[rows] >= 0
                found.append((np.asarray(logits.argmax(-1)) == split.label[rows])[known])
        return float(np.concatenate(found).mean())

    def trial(
        self, start: str, shots: int, seed: int, rate: float, variables: Any, few: Shots, val: Shots, test: Shots
    ) -> Trial:
        """Fine-tunes once. A net whose loss is no longer a number scores as it answers then."""
        target = few.mask if self.dense else few.label
        tuned, losses = self.tune(
            at(jax.random.key(seed), "order"), variables, jnp.float32(rate), jnp.asarray(few.image),
            jnp.asarray(target), steps=self.steps, batch_size=min(self.batch_size, len(few.image)),
        )  # fmt: skip
        curve = [float(x) if math.isfinite(x) else 1e9 for x in np.asarray(losses)]
        return Trial(self.name, shots, seed, start, rate, curve, self.score(tuned, val), self.score(tuned, test))


def best_rates(trials: Sequence[Trial]) -> dict[tuple[str, int, str], float]:
    """For each network, number of shots and start: the rate with the best mean validation score over the seeds; of
    equal ones that with the lower loss."""
    table: dict[tuple[str, int, str], dict[float, list[Trial]]] = {}
    for trial in trials:
        table.setdefault((trial.net, trial.shots, trial.start), {}).setdefault(trial.rate, []).append(trial)

    def worth(found: list[Trial]) -> tuple[float, float]:
        return round(float(np.mean([t.val for t in found])), 6), -float(np.mean([t.loss for t in found]))

    return {key: max(rates, key=lambda rate: worth(rates[rate])) for key, rates in table.items()}


def chosen(trials: Sequence[Trial]) -> dict[tuple[str, int, str], list[Trial]]:
    """The trials of each network, number of shots and start at its own best rate, seed by seed."""
    rates = best_rates(trials)
    found: dict[tuple[str, int, str], list[Trial]] = {key: [] for key in rates}
    for trial in sorted(trials, key=lambda t: t.seed):
        key = (trial.net, trial.shots, trial.start)
        if trial.rate == rates[key]:
            found[key].append(trial)
    return found


def table(trials: Sequence[Trial]) -> str:
    """The Markdown table: each start at its best rate, and the hypernetwork's start against it, seed by seed."""

    def spread(values: Sequence[float]) -> str:
        return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")

    lines = [
        "| network | shots | start | best rate | mean loss | score | hyper minus this: loss | score | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    best = chosen(trials)
    for (net, shots, start), found in best.items():
        gains = ["", ""]
        hyper = {t.seed: t for t in best.get((net, shots, "hyper"), ())}
        pairs = [(hyper[t.seed], t) for t in found if t.seed in hyper]
        if start != "hyper" and pairs:
            gains = [spread([a.loss - b.loss for a, b in pairs]), spread([a.test - b.test for a, b in pairs])]
        cells = [spread([t.loss for t in found]), spread([t.test for t in found])]
        lines.append(
            f"| {net} | {shots} | {start} | {found[0].rate:g} | {' | '.join([*cells, *gains])} | {len(found)} |"
        )
    return "\n".join(lines)


def draw(trials: Sequence[Trial], path: Any) -> None:
    """Draws the mean training loss of each start at its best rate: networks down, shots across; the band is one
    standard deviation over seeds."""
    from matplotlib.figure import Figure

    from ophjax.train.report.style import LIGHT

    best = chosen(trials)
    nets, numbers = (list(dict.fromkeys(getattr(t, name) for t in trials)) for name in ("net", "shots"))
    figure = Figure(figsize=(4.2 * len(numbers), 2.8 * len(nets)), layout="constrained")
    axes = figure.subplots(len(nets), len(numbers), squeeze=False, sharex=True)
    for i, net in enumerate(nets):
        for j, shots in enumerate(numbers):
            for colour, start in zip(LIGHT, STARTS, strict=False):
                found = best.get((net, shots, start), [])
                if not found:
                    continue
                curves = np.array([t.losses for t in found])
                mean, wide = curves.mean(0), curves.std(0)
                label = f"{start} ({np.mean([t.test for t in found]):.3f})"
                axes[i, j].plot(np.arange(1, len(mean) + 1), mean, color=colour, label=label, lw=1.6)
                axes[i, j].fill_between(np.arange(1, len(mean) + 1), mean - wide, mean + wide, color=colour, alpha=0.15)
            axes[i, j].set_title(f"{net}, {shots} images a class", fontsize=10)
            axes[i, j].legend(fontsize=8, title="start (test score)", title_fontsize=8)
            axes[i, j].set_ylim(bottom=0)
    for row in axes:
        row[0].set_ylabel("training loss")
    for one in axes[-1]:
        one.set_xlabel("step")
    figure.savefig(path, dpi=130)
