"""Greedy choice of channels, unit by unit, as a machine that takes one batch at a time (dualsr spec, (e.2)).

Of one unit after the other all channels are switched off. A round then gathers the gradient of the loss by the
consumer's kernel over some batches (the kernel is zero where channels are off, its gradient is not), switches on the
channels with the largest score, with the weights they had, and refits the kernel and its bias on as many batches.
The number of rounds depends on data; the number of steps they take at most does not, and what is left of it is idle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ophjax.transforms.pruning import Layout, Unit, by_channel, consumers, layout, rank, scale_inputs

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Float, Int

MOMENTUM = 0.9


class Plan(NamedTuple):
    """How channels are chosen.

    Attributes:
      units: of the network.
      at_once: channels switched on in a round; as released, 1.
      batches: batches of gradients in a round, and as many of refitting.
      refit: whether kernels are refitted; otherwise rounds are half as long.
      lr: of the refit's SGD (Nesterov momentum 0.9, begun anew in each round).
      reduce: makes the scores [in] of a consumer's gradient [k, k, in, out].
    """

    units: tuple[Unit, ...]
    at_once: int
    batches: int
    refit: bool
    lr: float
    reduce: Callable[[Array], Array]

    @property
    def round_steps(self) -> int:
        """Steps of a round."""
        return self.batches * (2 if self.refit else 1)

    def steps(self, counts: Sequence[int] | np.ndarray) -> int:
        """Steps that at most these numbers of channels take."""
        return self.round_steps * sum(math.ceil(count / self.at_once) for count in counts)


class Place(NamedTuple):
    """Where the machine stands: the mask float32 [n], the unit at work, the step in its round (int32)."""

    mask: Any
    unit: Any
    tick: Any


def start(plan: Plan) -> Place:
    """All channels on, but those of the first unit."""
    arrangement = layout(plan.units)
    # Two zeros, not one twice: a state holds no array in two places.
    unit, tick = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return Place(_switch_off(jnp.ones(len(arrangement.owner)), unit, arrangement), unit, tick)


def memory(params: Any, units: Sequence[Unit]) -> dict[str, Any]:
    """What the machine remembers beside its place: gathered gradients and momentum of the leaves it may change."""
    flat = flatten_dict(params, sep="/")
    zeros = {path: jnp.zeros_like(flat[path]) for path in _leaves(params, units)}
    return {"gradient": zeros, "momentum": {path: jnp.copy(value) for path, value in zeros.items()}}


def advance(
    plan: Plan,
    loss: Callable[[Any, Array], tuple[Array, Any]],
    params: Any,
    place: Place,
    memory: dict[str, Any],
    counts: Int[Array, " l"],
    given: Float[Array, " n"] | None = None,
) -> tuple[Any, Place, dict[str, Any], Array, Any]:
    """Takes one step on one batch.

    Args:
      plan: how channels are chosen.
      loss: ``value, aux = loss(masked params, one-hot unit)`` on this batch.
      params: of the dense network.
      place, memory: where the machine stands.
      counts: channels that each unit keeps.
      given: scores to choose by instead of those of the gradient (a control with the same budget).

    Returns:
      params, place and memory after the step, the loss and ``aux`` before it.
    """
    arrangement = layout(plan.units)
    own = arrangement.owner == place.unit
    whole = flatten_dict(scale_inputs(params, plan.units, place.mask), sep="/")
    names = _leaves(params, plan.units)

    def objective(free: dict[str, Any]) -> tuple[Array, Any]:
        one_hot = (jnp.arange(len(plan.units)) == place.unit).astype(jnp.float32)
        return loss(unflatten_dict(whole | free, sep="/"), one_hot)

    (value, aux), slope = jax.value_and_grad(objective, has_aux=True)({path: whole[path] for path in names})
    gathering = place.tick < plan.batches

    # The last step of the gathering switches on the best channels that are still off.
    gradient = {path: memory["gradient"][path] + jnp.where(gathering, slope[path], 0.0) for path in names}
    scores = by_channel(unflatten_dict(gradient, sep="/"), plan.units, plan.reduce) if given is None else given
    off = own & (place.mask == 0)
    left = jnp.minimum(counts[place.unit] - (own * place.mask).sum().astype(jnp.int32), plan.at_once)
    best = off & (rank(jnp.where(off, scores, -jnp.inf), arrangement) < left)
    mask = jnp.where(place.tick == plan.batches - 1, jnp.maximum(place.mask, best), place.mask)

    flat = dict(flatten_dict(params, sep="/"))
    momentum = memory["momentum"]
    if plan.refit:
        reach = _reach(params, plan.units, own * place.mask, place.unit)
        fresh = place.tick == plan.batches
        held = {path: slope[path] + MOMENTUM * jnp.where(fresh, 0.0, momentum[path]) for path in names}
        momentum = {path: jnp.where(gathering, momentum[path], held[path]) for path in names}
        for path in names:
            change = reach[path] * (slope[path] + MOMENTUM * held[path])
            flat[path] = flat[path] - plan.lr * jnp.where(gathering, 0.0, change)

    over = place.tick == plan.round_steps - 1
    full = over & ((own * mask).sum() >= counts[place.unit])
    unit = place.unit + full
    place = Place(jnp.where(full, _switch_off(mask, unit, arrangement), mask), unit, jnp.where(over, 0, place.tick + 1))
    gradient = {path: jnp.where(over, 0.0, value) for path, value in gradient.items()}
    return unflatten_dict(flat, sep="/"), place, {"gradient": gradient, "momentum": momentum}, value, aux


def _leaves(params: Any, units: Sequence[Unit]) -> list[str]:
    """The leaves that a refit changes: the consumers' kernels and biases."""
    return sorted({*consumers(params, units), *(unit.bias.path for unit in units if unit.bias)})


def _reach(params: Any, units: Sequence[Unit], mask: Array, unit: Array) -> dict[str, Array]:
    """What of the leaves a refit changes, as factors: the unit's channels that are on, and its consumer's bias."""
    flat = flatten_dict(params, sep="/")
    ones = unflatten_dict({path: jnp.ones_like(flat[path]) for path in consumers(params, units)}, sep="/")
    reach = dict(flatten_dict(scale_inputs(ones, units, mask), sep="/"))
    owners: dict[str, np.ndarray] = {}
    for number, one in enumerate(units):
        if one.bias:
            entries = owners.setdefault(one.bias.path, np.full(len(flat[one.bias.path]), -1))
            entries[one.bias.start : one.bias.start + one.bias.block] = number
    for path, entries in owners.items():
        shape = (-1,) + (1,) * (flat[path].ndim - 1)
        reach[path] = (jnp.asarray(entries) == unit).astype(flat[path].dtype).reshape(shape)
    return reach


def _switch_off(mask: Array, unit: Array, arrangement: Layout) -> Array:
    return jnp.where(arrangement.owner == unit, 0.0, mask)
