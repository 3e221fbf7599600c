"""Finds the Flax modules that a function initialises, so that they can be started in another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax


class Call(NamedTuple):
    """A module as it was initialised.

    Attributes:
      module: unbound.
      args, kwargs: what it was called with, arrays as shapes.
      method: name of the method that was called.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    method: str


def calls_of(function: Callable[..., Any], *args: Any) -> tuple[Any, list[Call]]:
    """Runs a function on shapes and returns its result's shapes and the calls of whole modules that it initialised.

    Nothing is computed: arguments may be ``jax.ShapeDtypeStruct``.
    """
    found: list[Call] = []

    def shape(x: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, "dtype") and hasattr(x, "shape") else x

    def intercept(following: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        outermost = module.scope is not None and not module.scope.path and module.is_initializing()
        if outermost and context.method_name != "setup" and not any(call.module is module for call in held):
            held.append(Call(module, args, kwargs, context.method_name))
            found.append(
                Call(
                    module.clone(parent=None),
                    jax.tree.map(shape, args),
                    jax.tree.map(shape, kwargs),
                    context.method_name,
                )
            )
        return following(*args, **kwargs)

    held: list[Call] = []
    with nn.intercept_methods(intercept):
        result = jax.eval_shape(function, *args)
    return result, found
