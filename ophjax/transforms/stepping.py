"""Three combinators from which nearly every train step is built.

``descend`` makes a gradient step for some of the networks, ``in_turn`` runs several steps on one batch,
``every`` runs a step once in a while. They close over pure functions and give a ``Step`` back, so they nest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from ophjax.keys import at
from ophjax.types import Batch, Key, Logs, Step, TrainState


class Loss(Protocol):
    """``value, (extra, logs) = loss(key, params, extra, batch)``.

    ``params`` holds every network, trained or not; ``value`` is a float32 scalar; the returned ``extra``
    holds only the entries of ``state.extra`` that change (new batch statistics, for example).
    """

    def __call__(
        self, key: Key, params: dict[str, Any], extra: dict[str, Any], batch: Batch
    ) -> tuple[jax.Array, tuple[dict[str, Any], Logs]]: ...


def descend(loss: Loss, tx: optax.GradientTransformation, *, trains: Sequence[str], slot: str) -> Step:
    """Makes the ordinary gradient step on the networks named in ``trains``.

    Gradients are taken with respect to those networks only: a frozen network costs no backward pass,
    which a masked optimiser would still pay for. The optimiser state lives in ``state.opt[slot]``.
    The logs gain ``loss`` and ``grad_norm`` (global L2 norm), both checked for NaN by the loop.
    """

    def step(key: Key, state: TrainState, batch: Batch) -> tuple[TrainState, Logs]:
        def objective(trained: dict[str, Any]) -> tuple[jax.Array, tuple[dict[str, Any], Logs]]:
            return loss(key, state.params | trained, state.extra, batch)

        trained = {name: state.params[name] for name in trains}
        (value, (extra, logs)), grads = jax.value_and_grad(objective, has_aux=True)(trained)
        updates, opt = tx.update(grads, state.opt[slot], trained)
        state = state.replace(
            params=state.params | optax.apply_updates(trained, updates),
            opt=state.opt | {slot: opt},
            extra=state.extra | extra,
        )
        return state, logs | {"loss": value, "grad_norm": optax.tree.norm(grads)}

    return step


def begin(tx: optax.GradientTransformation, params: dict[str, Any], trains: Sequence[str]) -> Any:
    """Makes the optimiser state that ``descend(..., trains=trains)`` expects in its slot."""
    return tx.init({name: params[name] for name in trains})


def in_turn(*steps: tuple[str, Step]) -> Step:
    """Runs several named steps on one batch, in order, each on the state the one before it left.

    Each step gets its own key, derived from its name, and its logs get the name as a prefix.
    """

    def step(key: Key, state: TrainState, batch: Batch) -> tuple[TrainState, Logs]:
        logs: Logs = {}
        for name, inner in steps:
            state, found = inner(at(key, name), state, batch)
            logs |= {f"{name}/{entry}": value for entry, value in found.items()}
        return state, logs

    return step


def every(period: int, step: Step, otherwise: Step | None = None) -> Step:
    """Runs ``step`` when ``state.step`` is a multiple of ``period``, else ``otherwise`` (default: nothing).

    One program holds both branches (``lax.cond``), so nothing is compiled again. Log entries that only one
    branch makes are zero when the other runs.
    """
    if period < 1:
        raise ValueError(f"every: period was {period}, expected at least 1.")

    def idle(key: Key, state: TrainState, batch: Batch) -> tuple[TrainState, Logs]:
        del key, batch
        return state, {}

    second = otherwise or idle

    def chosen(key: Key, state: TrainState, batch: Batch) -> tuple[TrainState, Logs]:
        names: dict[str, jax.ShapeDtypeStruct] = {}
        for branch in (step, second):
            names |= jax.eval_shape(branch, key, state, batch)[1]
        empty = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in names.items()}

        def padded(branch: Step) -> Step:
            def run(key: Key, state: TrainState, batch: Batch) -> tuple[TrainState, Logs]:
                state, logs = branch(key, state, batch)
                return state, empty | logs

            return run

        return jax.lax.cond(state.step % period == 0, padded(step), padded(second), key, state, batch)

    return chosen
