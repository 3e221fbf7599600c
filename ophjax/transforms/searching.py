"""Optimisation as a function: a whole descent that runs inside one step, for one image or, by vmap, for many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax


def search(
    objective: Callable[[Any], jax.Array], tx: optax.GradientTransformation, start: Any, *, steps: int
) -> tuple[Any, jax.Array]:
    """Minimises ``objective(parameters) -> []`` from ``start`` by a fixed number of an optimiser's steps (a scan).

    The optimiser begins afresh and is forgotten at the end. Under ``jax.vmap`` every instance has an optimiser of its
    own, so that none feels the others:

    >>> import jax.numpy as jnp
    >>> found, values = jax.vmap(lambda goal: search(lambda x: (x - goal) ** 2, optax.sgd(0.1), 0.0, steps=50))(
    ...     jnp.array([1.0, -2.0])
    ... )
    >>> [round(float(x), 3) for x in found], values.shape
    ([1.0, -2.0], (2, 50))

    Returns:
      The parameters after the last step, and the objective before each step [steps].
    """

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], jax.Array]:
        parameters, state = carry
        value, gradient = jax.value_and_grad(objective)(parameters)
        updates, state = tx.update(gradient, state, parameters)
        return (optax.apply_updates(parameters, updates), state), value

    (found, _), values = jax.lax.scan(step, (start, tx.init(start)), length=steps)
    return found, values
