"""Counting the arithmetic of a traced program, loops included."""

from __future__ import annotations

import math
from typing import Any

import jax


def count_flops(jaxpr: Any, *, loops: bool = True) -> int:
    """Counts the operations of matrix products and convolutions in a jaxpr (a multiply and an add are two).

    Args:
      jaxpr: as ``jax.make_jaxpr(f)(...)`` gives it, closed or open.
      loops: count the body of a ``scan`` as often as it runs. XLA's cost analysis counts it once, and the
        difference between the two counts is what it leaves out. Of a ``cond`` the dearest branch counts.
    """
    total = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * equation.outvars[0].aval.size * depth
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            outputs = kernel.shape[parameters["dimension_numbers"].rhs_spec[0]]
            total += 2 * equation.outvars[0].aval.size * kernel.size // outputs
        elif name == "cond":
            total += max(count_flops(branch, loops=loops) for branch in parameters["branches"])
        else:
            times = parameters["length"] if name == "scan" and loops else 1
            total += times * sum(count_flops(inner, loops=loops) for inner in _inner(parameters))
    return total


def _inner(parameters: dict[str, Any]) -> list[Any]:
    """The jaxprs that an equation holds (of a jit, a scan, a while, a custom derivative)."""
    leaves = jax.tree.leaves(list(parameters.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns"))
    return [leaf for leaf in leaves if hasattr(leaf, "eqns")]
