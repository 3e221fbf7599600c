"""Evaluation over a split: one compiled program, padded batches, scores on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ophjax.keys import at
from ophjax.train import mesh as meshes
from ophjax.types import Batch, Key, Method, Outputs, TrainState

Forward = Callable[[Key, TrainState, Batch], tuple[Outputs, Outputs]]


def compile_forward(method: Method, mesh: Mesh, shardings: Any) -> Forward:
    """Compiles prediction and metrics together: ``rows, maps = forward(key, state, batch)``.

    ``rows`` holds what a whole split is scored by, small and replicated: outputs and batch entries of rank at
    most 2, and each metric as its value and its count under ``metric/NAME``. ``maps`` holds the larger outputs,
    left where they are.
    """

    def forward(key: Key, state: TrainState, batch: Batch) -> tuple[Outputs, Outputs]:
        outputs = method.predict(key, state, batch)
        pairs = {f"metric/{name}": jnp.stack(pair, -1) for name, pair in method.metrics(outputs, batch).items()}
        rows = {name: value for name, value in (dict(batch) | outputs).items() if value.ndim <= 2}
        maps = {name: value for name, value in outputs.items() if value.ndim > 2}
        return rows | pairs, maps

    whole, split = meshes.replicated(mesh), meshes.split_rows(mesh)
    return jax.jit(forward, in_shardings=(whole, shardings, split), out_shardings=(whole, split))


def gather(
    forward: Forward,
    key: Key,
    state: TrainState,
    batches: Iterable[Mapping[str, np.ndarray]],
    mesh: Mesh,
    *,
    check: Callable[[dict[str, float]], None] = lambda sums: None,
) -> dict[str, np.ndarray]:
    """Runs a split through ``forward`` and returns its rows in the order of the source, padding dropped.

    Metrics come back as ``{name: value / count}``, NaN where an example does not count.

    Args:
      check: given the sum of every row that is no metric, may raise where one is NaN: the net has diverged.
    """
    found: list[dict[str, np.ndarray]] = []
    pending = None
    for number, batch in enumerate(batches):
        rows, _ = forward(at(key, number), state, meshes.place(batch, mesh))
        if pending is not None:  # one batch behind, so that the device works while the host waits
            found.append({name: np.asarray(value) for name, value in pending.items()})
        pending = rows
    if pending is not None:
        found.append({name: np.asarray(value) for name, value in pending.items()})
    table = {name: np.concatenate([rows[name] for rows in found]) for name in found[0]}
    real = table["weight"] > 0
    order = np.argsort(table["index"][real], kind="stable")
    table = {name: value[real][order] for name, value in table.items()}
    check({name: float(value.sum()) for name, value in table.items() if not name.startswith("metric/")})
    return {name.removeprefix("metric/"): ratio(value) if name.startswith("metric/") else value
            for name, value in table.items()}  # fmt: skip


def ratio(pairs: np.ndarray) -> np.ndarray:
    """Divides (value, count) pairs [n, 2]; NaN where the count is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return pairs[:, 0] / pairs[:, 1]
