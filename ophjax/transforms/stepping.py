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
from ophjax.transforms.recurrence import CARRIED
from ophjax.types import Batch, Key, Logs, Step, TrainState

in_slices = jax.make_user_context(default_value=(1, 1))
"""Under ``with in_slices((n, ways))`` every ``gradient`` that is traced takes a batch in n slices, each of which has an
equal part of every one of ``ways`` blocks of rows (the devices' shares: no row moves to another device)."""


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

    Under ``in_slices`` the slices go through the loss one after the other (``lax.scan``), each with a key of its own
    and with the ``extra`` that the one before it left, and one update is made of the mean of their gradients. For a
    loss that is a mean over rows of equal weight this is the whole batch's gradient. Whatever looks across rows (batch
    statistics, contrasts, moving centroids, a mean over weighted rows) sees a slice.
    """

    def step(key: Key, state: TrainState, batch: Batch) -> tuple[TrainState, Logs]:
        trained = {name: state.params[name] for name in trains}
        grads, extra, logs = gradient(loss, key, state, trained, batch)
        updates, opt = tx.update(grads, state.opt[slot], trained)
        state = state.replace(
            params=state.params | optax.apply_updates(trained, updates),
            opt=state.opt | {slot: opt},
            extra=extra,
        )
        return state, logs | {"grad_norm": optax.tree.norm(grads)}

    return step


def gradient(
    loss: Loss, key: Key, state: TrainState, trained: dict[str, Any], batch: Batch
) -> tuple[dict[str, Any], dict[str, Any], Logs]:
    """Computes the gradient at ``trained``, networks in place of the state's own; by slices under ``in_slices``.

    Returns:
      The gradient, the whole ``extra`` as the loss leaves it, and its logs with ``loss``.
    """

    def found(key: Key, extra: dict[str, Any], batch: Batch) -> tuple[Any, dict[str, Any], Logs]:
        def objective(trained: dict[str, Any]) -> tuple[jax.Array, tuple[dict[str, Any], Logs]]:
            return loss(key, state.params | trained, extra, batch)

        (value, (new, logs)), grads = jax.value_and_grad(objective, has_aux=True)(trained)
        return grads, extra | new, logs | {"loss": value}

    def one(sums: tuple[Any, dict[str, Any]], part: tuple[jax.Array, Batch, Any]) -> tuple[Any, tuple[Logs, Any]]:
        number, rows, carried = part
        grads, extra, logs = found(at(key, "slice", number), sums[1] | carried, rows)
        carried = {name: extra.pop(name) for name in carried}
        return (jax.tree.map(jnp.add, sums[0], grads), extra), (logs, carried)

    slices, ways = in_slices.value
    if slices == 1:
        return found(key, state.extra, batch)
    # Of what is in extra, only what rounds hand on has rows.
    rows = {CARRIED: state.extra[CARRIED]} if CARRIED in state.extra else {}
    start = jax.tree.map(jnp.zeros_like, trained), {k: v for k, v in state.extra.items() if k not in rows}
    batch, carried = jax.tree.map(lambda leaf: cut(leaf, slices, ways), (dict(batch), rows))
    (grads, extra), (logs, carried) = jax.lax.scan(one, start, (jnp.arange(slices), batch, carried))
    grads, logs = jax.tree.map(lambda g: g / slices, grads), {name: log.mean(0) for name, log in logs.items()}
    return grads, extra | jax.tree.map(lambda leaf: join(leaf, ways), carried), logs


def cut(rows: jax.Array, slices: int, ways: int) -> jax.Array:
    """Cuts [b, ...] into [slices, b / slices, ...]: each slice has an equal part of each of ``ways`` blocks of rows."""
    blocks = rows.reshape(ways, slices, -1, *rows.shape[1:])
    return jnp.moveaxis(blocks, 1, 0).reshape(slices, -1, *rows.shape[1:])


def join(parts: jax.Array, ways: int) -> jax.Array:
    """Puts together what ``cut`` cut."""
    slices = parts.shape[0]
    blocks = parts.reshape(slices, ways, -1, *parts.shape[2:])
    return jnp.moveaxis(blocks, 0, 1).reshape(-1, *parts.shape[2:])


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
