"""Several optimiser steps on one batch, each round on what the round before it found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ophjax.keys import at
from ophjax.types import Batch, Key, Logs, Step, TrainState

CARRIED = "carried"
"""The entry of ``extra`` through which rounds hand on what they found; there only while a batch is at work."""


def recur(step: Step, begin: Callable[[TrainState, Batch], Any], *, rounds: int) -> Step:
    """Runs a step ``rounds`` times on one batch as a scan, so that the program holds it once.

    Before the first round ``state.extra["carried"]`` is ``begin(state, batch)``; every round finds there what the one
    before it left (a loss of ``descend`` returns it among the ``extra`` that change), and at the end it is gone. No
    gradient passes from round to round: each is an optimiser step of its own (selfcal spec, section (d)), which is
    another algorithm than one step on the sum of the losses.

    Each round has its own key; ``state.step`` stands still, since the loop counts batches. Logs are means over rounds.
    """
    if rounds < 1:
        raise ValueError(f"recur: rounds was {rounds}, expected at least 1.")

    def run(key: Key, state: TrainState, batch: Batch) -> tuple[TrainState, Logs]:
        def one(state: TrainState, number: jax.Array) -> tuple[TrainState, Logs]:
            state, logs = step(at(key, "round", number), state, batch)
            return state.replace(extra=jax.lax.stop_gradient(state.extra)), logs

        started = state.replace(extra=state.extra | {CARRIED: begin(state, batch)})
        ended, logs = jax.lax.scan(one, started, jnp.arange(rounds))
        extra = {name: value for name, value in ended.extra.items() if name != CARRIED}
        return ended.replace(extra=extra), {name: value.mean(0) for name, value in logs.items()}

    return run
