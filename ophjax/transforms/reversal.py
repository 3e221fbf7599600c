"""Gradient reversal: the identity whose gradient points the other way (Ganin & Lempitsky, 2015), and its ramps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jax import Array
    from jax.typing import ArrayLike


def reverse_gradient(x: Any, scale: ArrayLike = 1.0) -> Any:
    """Returns ``x`` as it is; gradients that come back through it are multiplied by ``-scale``.

    Put it between features and a critic: one descent then trains the critic to tell domains apart and the features
    to hide them. Works under ``jit``, ``vmap``, ``grad`` and ``shard_map``, and any number of times in one graph (twice
    in a row gives ``+scale**2``). There is no forward-mode derivative.

    Args:
      x: an array or a tree of arrays.
      scale: the strength, a number or a traced scalar, so that a ramp compiles nothing again.

    Returns:
      ``x``, bit for bit; its gradients keep the type of each leaf (bfloat16 stays bfloat16).

    >>> import jax
    >>> jax.grad(lambda x: 3 * reverse_gradient(x, 0.5))(2.0).item()
    -1.5
    """
    return _reverse(x, jnp.asarray(scale, jnp.float32))


@jax.custom_vjp
def _reverse(x: Any, scale: Array) -> Any:
    del scale
    return x


def _forward(x: Any, scale: Array) -> tuple[Any, Array]:
    return x, scale


def _backward(scale: Array, gradient: Any) -> tuple[Any, Array]:
    def turn(leaf: Array) -> Array:
        if leaf.dtype == jax.dtypes.float0:  # an integer leaf has no gradient
            return leaf
        # float32 times bfloat16 would come back as float32.
        return (-scale * leaf).astype(leaf.dtype)

    return jax.tree.map(turn, gradient), jnp.zeros_like(scale)


_reverse.defvjp(_forward, _backward)


def sigmoid_ramp(progress: ArrayLike, *, steepness: float = 10.0) -> Array:
    """Computes 2 / (1 + exp(-steepness * progress)) - 1: from 0 to nearly 1 while progress goes from 0 to 1.

    >>> [round(sigmoid_ramp(p).item(), 3) for p in (0.0, 0.1, 0.25, 0.5)]
    [0.0, 0.462, 0.848, 0.987]
    """
    return jnp.tanh(0.5 * steepness * jnp.asarray(progress, jnp.float32))


def linear_ramp(progress: ArrayLike, *, end: float = 1.0) -> Array:
    """Rises from 0 to 1 while progress goes from 0 to ``end``, and stays there.

    >>> [linear_ramp(p, end=0.5).item() for p in (0.0, 0.25, 0.75)]
    [0.0, 0.5, 1.0]
    """
    return jnp.clip(jnp.asarray(progress, jnp.float32) / end, 0.0, 1.0)
