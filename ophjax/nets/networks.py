"""Which modules a method's parameters belong to, and what they were called with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax


class Network(NamedTuple):
    """A module as ``init`` called it.

    Attributes:
      module: not bound.
      args: what it was called with, arrays as ``ShapeDtypeStruct``.
      kwargs: keyword arguments, likewise.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def find_networks(init: Callable[..., Any], *args: Any) -> dict[str, Network]:
    """Finds the networks behind ``init(*args).params``, such as a method's ``init(key, batch)``.

    Each is named as its tree is: ``segmenter``, or ``dual/to2`` in a dictionary of several. Only shapes are computed.
    Parameters that no module's ``init`` gives as they are (those of many networks made by ``vmap``, plain arrays) are
    left out.
    """
    made: list[tuple[list[int], Network, Any]] = []
    found: dict[str, Network] = {}

    def note(call: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any], context: Any) -> Any:
        result, module = call(*given, **named), context.module
        if context.method_name == "__call__" and module.is_initializing() and not module.path:
            params = module.variables.get("params", {})
            network = Network(module.clone(parent=None), *jax.tree.map(_shape, (given, named)))
            # The arrays are kept, or another could get their number.
            made.append(([id(leaf) for leaf in jax.tree.leaves(params)], network, params))
        return result

    def search(tree: Any, name: str) -> None:
        leaves = [id(leaf) for leaf in jax.tree.leaves(tree)]
        network = next((network for own, network, _ in made if own and own == leaves), None)
        if network is not None:
            found[name] = network
        elif isinstance(tree, Mapping):
            for key, part in tree.items():
                search(part, f"{name}/{key}")

    def run(*args: Any) -> None:
        with nn.intercept_methods(note):
            for name, tree in init(*args).params.items():
                search(tree, name)

    jax.eval_shape(run, *args)
    return found


def _shape(leaf: Any) -> Any:
    traced = hasattr(leaf, "shape") and hasattr(leaf, "dtype")
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if traced else leaf
