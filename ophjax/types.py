"""The contract between methods and the train loop. Everything else in ophjax is built on these three."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import flax.struct
import jax
import numpy as np

Key = jax.Array
Batch = Mapping[str, jax.Array]
Logs = dict[str, jax.Array]
Outputs = dict[str, jax.Array]
Pairs = dict[str, tuple[jax.Array, jax.Array]]


class TrainState(flax.struct.PyTreeNode):
    """All that a run remembers, as arrays only; whatever is not here is recomputed.

    Attributes:
      step: int32 [], batches seen over all stages; the loop alone counts it.
      params: one tree for each network, by name.
      opt: one optimiser state for each optimiser, by name.
      extra: anything else that must survive a restart: ``batch_stats``, ``ema``, ``centroids``, ``masks``, ...
    """

    step: jax.Array
    params: dict[str, Any]
    opt: dict[str, Any]
    extra: dict[str, Any]


class Step(Protocol):
    """One batch of training: ``state, logs = step(key, state, batch)``; logs are float32 scalars."""

    def __call__(self, key: Key, state: TrainState, batch: Batch) -> tuple[TrainState, Logs]: ...


def keep(key: Key, state: TrainState) -> TrainState:
    """Enters a stage without touching the state."""
    del key
    return state


class Stage(NamedTuple):
    """A part of training with one compiled step.

    Attributes:
      name: shown in logs and used to derive random keys, unique within the method.
      steps: number of batches; 0 with ``passes``.
      step: the compiled unit.
      data: name of the data stream whose batches it takes (a split of the data set).
      trains: names of the networks that it changes; the others stay as they are, bit for bit.
      balanced: whether the classes take turns in the batches, however rare one of them is.
      enter: run once before the first step; not run when a run resumes inside the stage.
      passes: passes over the stream instead of a number of batches: the loop, which knows the batch size, makes as many
        steps of it as reach every example so often.
      multiple: what the batch size must be a multiple of.
    """

    name: str
    steps: int
    step: Step
    data: str
    trains: tuple[str, ...]
    balanced: bool = False
    enter: Callable[[Key, TrainState], TrainState] = keep
    passes: int = 0
    multiple: int = 1


class Method(NamedTuple):
    """A published system as a value made of pure functions.

    Attributes:
      init: ``init(key, batch) -> state``; traceable, so that shapes are known before memory is used.
      stages: run in order.
      predict: ``predict(key, state, batch) -> {name: array [b, ...]}``; uses no truth from the batch.
      metrics: ``metrics(outputs, batch) -> {name: (value [b], count [b])}`` for each example; a mean over
        a split is sum(value) / sum(count), and rows with weight 0 (padding) have value 0 and count 0.
      scores: ``scores(gathered) -> {name: float}`` on the host, over a whole split at once. ``gathered``
        holds, as NumPy arrays without padding rows, every output and batch entry of rank at most 2 and
        every metric as value / count.
      watch: the score by which the best checkpoint is kept, larger being better.
      export: ``export(key, state, batch) -> {name: array [b, h, w] or [b, h, w, r], in [0, 1]}``: maps that a run
        leaves as pictures of every training image (split ``train``); None where there are none.
      submit: ``submit(folder, examples)`` writes the answers to the test split in a challenge's official files, on the
        host; ``examples`` gives the name of each with its outputs and what else is known of it.
      exclusive: the regions of the output ``mask_probs`` exclude each other, so that a pixel belongs to the most
        probable of them and the background; with "nested", of the parts of each that lie in no later one; else each
        region has what it holds with more than one half.
      ordinal: classes are grades of an ordinal head, which decides on how many of P(grade >= k) are above one half, not
        on the most probable.
      own: outputs in coordinates of the net's own, such as features: those of several nets are laid side by side along
        the last axis, where other outputs are averaged.
    """

    init: Callable[[Key, Batch], TrainState]
    stages: tuple[Stage, ...]
    predict: Callable[[Key, TrainState, Batch], Outputs]
    metrics: Callable[[Outputs, Batch], Pairs]
    scores: Callable[[Mapping[str, np.ndarray]], dict[str, float]]
    watch: str
    export: Callable[[Key, TrainState, Batch], Outputs] | None = None
    submit: Callable[[Path, Iterable[tuple[str, Mapping[str, np.ndarray]]]], None] | None = None
    exclusive: bool | Literal["nested"] = False
    ordinal: bool = False
    own: tuple[str, ...] = ()
