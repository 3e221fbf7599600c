"""Structured pruning of convolutions as pure functions on parameter trees.

A network says which of its channels can go by a list of units, made from its configuration alone. A unit is a group of
channels between a producer (which loses outputs) and a consumer (which loses inputs). All units' channels one after
the other make one vector of length n: masks, scores and ranks are such vectors, traced or not, and a masked network
is the dense one whose consumers' kernels are multiplied by the mask along their input axis. ``prune`` then takes the
masked channels out of the tree: the result is an ordinary smaller network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ophjax.errors import InputError

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Bool, Float, Int

SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Candidates of the channel-number search, as shares of what the ratio leaves (dualsr spec, (e.1))."""


class Site(NamedTuple):
    """Where a unit's channels lie in a tree.

    Attributes:
      path: of the leaf, its names joined by ``/``.
      axis: of the leaf.
      start: first entry on that axis that belongs to the unit; other units may lie beside it.
      block: entries for each channel, one after the other (4 before a pixel shuffle by 2).
    """

    path: str
    axis: int
    start: int = 0
    block: int = 1

    def entries(self, channels: np.ndarray) -> np.ndarray:
        """Expands channels of the unit to entries on the axis."""
        return (self.start + self.block * channels[:, None] + np.arange(self.block)).ravel()


class Unit(NamedTuple):
    """Channels that can be taken out.

    Attributes:
      name: unique in the network.
      width: number of channels.
      outputs: the producer's leaves.
      inputs: the consumer's kernel.
      bias: the consumer's bias where it has one: a site on axis 0 whose block is the whole bias.
    """

    name: str
    width: int
    outputs: tuple[Site, ...]
    inputs: Site
    bias: Site | None = None


class Layout(NamedTuple):
    """The vector of all units' channels: widths and starts int [l], the unit of each channel int [n]."""

    widths: np.ndarray
    starts: np.ndarray
    owner: np.ndarray


def layout(units: Sequence[Unit]) -> Layout:
    """Lays the channels of all units one after the other."""
    widths = np.array([unit.width for unit in units])
    return Layout(widths, np.cumsum(widths) - widths, np.repeat(np.arange(len(units)), widths))


def consumers(params: Any, units: Sequence[Unit]) -> dict[str, tuple[int, np.ndarray]]:
    """Finds the consumers' kernels: path to (axis, place in the vector of channels of each entry of that axis)."""
    flat, starts = flatten_dict(params, sep="/"), layout(units).starts
    found: dict[str, tuple[int, np.ndarray]] = {}
    for unit, start in zip(units, starts, strict=True):
        site = unit.inputs
        empty = np.full(flat[site.path].shape[site.axis], -1)
        _, places = found.setdefault(site.path, (site.axis, empty))
        places[site.entries(np.arange(unit.width))] = np.repeat(start + np.arange(unit.width), site.block)
    partial = [path for path, (_, places) in found.items() if (places < 0).any()]
    if partial:
        raise ValueError(f"units cover only a part of {partial}")
    return found


def scale_inputs(params: Any, units: Sequence[Unit], factors: Float[Array, " n"]) -> Any:
    """Multiplies every consumer's kernel by a factor for each input channel: a mask, or a mixture of masks."""
    flat = dict(flatten_dict(params, sep="/"))
    for path, (axis, places) in consumers(params, units).items():
        shape = [1] * flat[path].ndim
        shape[axis] = -1
        flat[path] = flat[path] * factors[places].reshape(shape).astype(flat[path].dtype)
    return unflatten_dict(flat, sep="/")


def by_channel(
    params: Any, units: Sequence[Unit], reduce: Callable[[Array], Array] = lambda kernel: jnp.abs(kernel).sum((0, 1, 3))
) -> Float[Array, " n"]:
    """Computes one number for each channel from its consumer's kernel [k, k, in, out]; by default its L1 norm.

    Args:
      reduce: of a kernel (or its gradient) to [in].
    """
    flat = flatten_dict(params, sep="/")
    found = jnp.zeros(len(layout(units).owner))
    for path, (_, places) in consumers(params, units).items():
        found = found.at[places].add(reduce(flat[path]))
    return found


def spatial_norms(kernel: Float[Array, "k k i o"]) -> Float[Array, " i"]:
    """Sums, over outputs, the 2-norms over the kernel's positions: the score of dualsr spec, (e.2)."""
    return jnp.sqrt((kernel**2).sum((0, 1))).sum(-1)


def frobenius_norms(kernel: Float[Array, "k k i o"]) -> Float[Array, " i"]:
    """The 2-norm of all that belongs to an input channel."""
    return jnp.sqrt((kernel**2).sum((0, 1, 3)))


def rank(scores: Float[Array, " n"], plan: Layout) -> Int[Array, " n"]:
    """Ranks channels within their unit, the highest score 0; equal ones in their order."""
    order = jnp.lexsort((-scores, plan.owner))
    return jnp.zeros(len(plan.owner), jnp.int32).at[order].set(jnp.arange(len(plan.owner)) - plan.starts[plan.owner])


def keep_best(scores: Float[Array, " n"], counts: Int[Array, " l"], plan: Layout) -> Float[Array, " n"]:
    """Masks all but the best ``counts`` channels of each unit."""
    return (rank(scores, plan) < counts[plan.owner]).astype(jnp.float32)


def candidates(width: int, ratio: float) -> list[int]:
    """Lists the channel numbers that the search may give a unit (dualsr spec, (e.1)), as released: with repeats.

    Multiples of 4 near the shares of ``width * (1 - ratio)``, at least 4 and at most the width (all of it where it is
    below 4).

    >>> candidates(64, 0.5)
    [16, 20, 20, 24, 28, 32]
    """
    found = []
    for share in SHARES:
        count = int(width * (1 - ratio) * share)
        rest = count % 4
        count += 4 - rest if 2 * rest > 4 else -rest
        found.append(min(max(count, 4), width))
    return found


def uniform_counts(plan: Layout, ratio: float) -> np.ndarray:
    """The same share of every unit: ``floor(width * (1 - ratio))``, at least 1."""
    return np.maximum(np.floor(plan.widths * (1 - ratio) + 1e-9).astype(int), 1)


class Choices(NamedTuple):
    """What the search chooses from: numbers int [l, k] and which of them are there bool [l, k]."""

    counts: np.ndarray
    real: np.ndarray


def choices(plan: Layout, ratio: float, *, repeats: bool = False) -> Choices:
    """Collects the candidates of every unit, each number once; with ``repeats`` as released."""
    lists = [candidates(int(width), ratio) for width in plan.widths]
    lists = lists if repeats else [sorted(set(numbers)) for numbers in lists]
    longest = max(map(len, lists))
    counts = np.array([[*numbers, *[numbers[-1]] * (longest - len(numbers))] for numbers in lists])
    return Choices(counts, np.array([np.arange(longest) < len(numbers) for numbers in lists]))


def choice_probs(logits: Float[Array, "l k"], among: Choices) -> Float[Array, "l k"]:
    """The softmax over the candidates that are there."""
    return jax.nn.softmax(jnp.where(jnp.asarray(among.real), logits, -jnp.inf))


def mixture(logits: Float[Array, "l k"], among: Choices, ranks: Int[Array, " n"], plan: Layout) -> Float[Array, " n"]:
    """Mixes the masks of all candidates by their probabilities: channel of rank j gets sum_k p_k [j < c_k]."""
    within: Bool[Array, "n k"] = ranks[:, None] < among.counts[plan.owner]
    return (within * choice_probs(logits, among)[plan.owner]).sum(-1)


def choose(logits: Float[Array, "l k"], among: Choices) -> Int[Array, " l"]:
    """The most probable number of each unit."""
    best = choice_probs(logits, among).argmax(-1)
    return jnp.take_along_axis(jnp.asarray(among.counts), best[:, None], 1)[:, 0]


def kept_channels(mask: np.ndarray, units: Sequence[Unit]) -> dict[str, np.ndarray]:
    """Reads a 0/1 mask as the sorted channels that every unit keeps."""
    parts = np.split(np.asarray(mask), layout(units).starts[1:])
    return {unit.name: np.flatnonzero(part > 0.5) for unit, part in zip(units, parts, strict=True)}


def prune(params: Any, units: Sequence[Unit], kept: Mapping[str, np.ndarray]) -> Any:
    """Takes channels out of a tree; runs on the host, since the shapes depend on the values of ``kept``.

    Args:
      params: nested dictionaries of arrays. Optimiser moments have the same form and can be pruned alike.
      units: of the network.
      kept: for each unit's name its channels that stay, sorted.

    Raises:
      InputError: a unit is missing or would lose all channels, or its channels are not sorted, unique and in range.
    """
    flat = dict(flatten_dict(params, sep="/"))
    gone: dict[tuple[str, int], list[np.ndarray]] = {}
    for unit in units:
        channels = np.asarray(kept.get(unit.name, ()))
        inside = len(channels) and channels.min() >= 0 and channels.max() < unit.width
        if not inside or (np.diff(channels) <= 0).any():
            raise InputError(
                f"Unit {unit.name} is to keep the channels {channels.tolist()}; expected at least one, in order, each "
                f"once, from 0 to {unit.width - 1}."
            )
        lost = np.setdiff1d(np.arange(unit.width), channels)
        for site in (*unit.outputs, unit.inputs):
            gone.setdefault((site.path, site.axis), []).append(site.entries(lost))
    for (path, axis), parts in gone.items():
        left = np.setdiff1d(np.arange(flat[path].shape[axis]), np.concatenate(parts))
        flat[path] = jnp.take(flat[path], left, axis=axis)
    return unflatten_dict(flat, sep="/")
