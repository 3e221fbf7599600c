"""Sharpness-aware steps: the gradient is taken where a small ascent leads (Foret et al., ICLR 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ophjax.transforms.stepping import Loss, gradient
from ophjax.types import Batch, Key, Logs, Step, TrainState


def ascend(params: Any, grads: Any, *, rho: float, adaptive: bool = True) -> Any:
    """Moves parameters uphill by ``rho``.

    ``adaptive`` measures each parameter by its own size: w + rho w^2 g / ||w g|| (Kwon et al., ICML 2021); else
    w + rho g / ||g||.
    """
    scaled = jax.tree.map(lambda w, g: jnp.abs(w) * g if adaptive else g, params, grads)
    length = rho / jnp.maximum(optax.tree.norm(scaled), 1e-12)
    return jax.tree.map(lambda w, s: w + (length * (jnp.abs(w) * s if adaptive else s)).astype(w.dtype), params, scaled)


def descend_flat(
    loss: Loss, tx: optax.GradientTransformation, *, trains: Sequence[str], slot: str, rho: float, adaptive: bool = True
) -> Step:
    """Like ``descend``, with the gradient of the place that ``ascend`` leads to.

    Both passes see the same batch and draws, in slices where ``descend`` takes such; batch statistics, loss and logs
    are those of the first.
    """

    def step(key: Key, state: TrainState, batch: Batch) -> tuple[TrainState, Logs]:
        trained = {name: state.params[name] for name in trains}
        grads, extra, logs = gradient(loss, key, state, trained, batch)
        sharp, _, _ = gradient(loss, key, state, ascend(trained, grads, rho=rho, adaptive=adaptive), batch)
        updates, opt = tx.update(sharp, state.opt[slot], trained)
        state = state.replace(
            params=state.params | optax.apply_updates(trained, updates),
            opt=state.opt | {slot: opt},
            extra=extra,
        )
        return state, logs | {"grad_norm": optax.tree.norm(sharp)}

    return step
