"""Optimisers over several networks: small parameters bundled into one vector, a rate of its own for a network."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

SMALL = 2**14
"""Leaves up to this size are bundled: biases, norms, narrow kernels. Larger ones may be sharded and stay apart."""


def bundle(tx: optax.GradientTransformation, *, small: int = SMALL) -> optax.GradientTransformation:
    """Runs an elementwise optimiser on one vector of all leaves of at most ``small`` numbers, and on the rest.

    The numbers are those of ``tx`` itself, but a network of hundreds of biases and norms then costs a handful
    of operations instead of dozens for each leaf: it compiles in a fraction of the time and steps with fewer
    kernel launches. Only for optimisers that treat every number alone, or all together (Adam, SGD, clipping by
    global norm), not for those that look at a leaf's shape.

    >>> import jax.numpy as jnp, optax
    >>> tx, params = bundle(optax.adam(0.1)), {"a": jnp.ones(2), "b": jnp.ones((3, 4))}
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> updates["b"].shape
    (3, 4)
    """

    def pack(tree: Any) -> dict[str, Any]:
        leaves = jax.tree.leaves(tree)
        bundled = [leaf.ravel() for leaf in leaves if leaf.size <= small]
        apart = [leaf for leaf in leaves if leaf.size > small]
        return {"bundle": jnp.concatenate(bundled)} | {"apart": apart} if bundled else {"apart": apart}

    def unpack(packed: dict[str, Any], like: Any) -> Any:
        leaves, structure = jax.tree.flatten(like)
        apart, start, found = iter(packed["apart"]), 0, []
        for leaf in leaves:
            if leaf.size > small:
                found.append(next(apart))
            else:
                found.append(packed["bundle"][start : start + leaf.size].reshape(leaf.shape).astype(leaf.dtype))
                start += leaf.size
        return jax.tree.unflatten(structure, found)

    def init(params: Any) -> Any:
        return tx.init(pack(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        packed, state = tx.update(pack(updates), state, None if params is None else pack(params))
        return unpack(packed, updates), state

    return optax.GradientTransformation(init, update)


def scale_networks(**rates: float) -> optax.GradientTransformation:
    """Multiplies the updates of the networks named by their rates and leaves the others; chained behind an optimiser.

    >>> import jax.numpy as jnp
    >>> updates, _ = scale_networks(critic=0.5).update({"critic": jnp.ones(2), "net": jnp.ones(1)}, None)
    >>> [float(updates["critic"][0]), float(updates["net"][0])]
    [0.5, 1.0]
    """

    def scale(updates: Any, params: Any) -> Any:
        del params
        return updates | {name: optax.tree.scale(rate, updates[name]) for name, rate in rates.items()}

    return optax.stateless(scale)
