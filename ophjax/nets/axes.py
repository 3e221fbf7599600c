"""Which axes of a parameter are which axes of what is computed from it.

A value that depends on parameters alone (a kernel cast, transposed, reshaped, normalised) has a ``Map`` for each
parameter in it: for each of its dimensions the parameter's axes that lie along it, slowest first. An axis that is
sliced, split or summed away lies nowhere any more, and after a product with other numbers none of them does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Path = tuple[str, ...]
Map = tuple[tuple[int, ...], ...]
Fixed = Mapping[Path, Map]
"""A value that does not depend on the input: its parameters; none in a constant."""


def follow(eqn: Any, out: Any, inputs: Sequence[Fixed], shapes: Mapping[Path, tuple[int, ...]]) -> dict[Path, Map]:
    """Maps the parameters of an equation's operands to one of its results."""
    found: dict[Path, Map] = {}
    for place, operand in enumerate(inputs):
        for path, axes in operand.items():
            new = _follow_one(eqn, place, axes, shapes[path], tuple(out.aval.shape))
            if path not in found or sum(map(len, new)) > sum(map(len, found[path])):
                found[path] = new
    return found


def whole(axes: Map, shape: Sequence[int], leaf: Sequence[int]) -> bool:
    """Says whether a value of a shape has all of a parameter in it, each axis along one of its dimensions."""
    seen = [axis for along in axes for axis in along if leaf[axis] > 1]
    sizes = all(math.prod(leaf[a] for a in along) == size for along, size in zip(axes, shape, strict=True) if along)
    return sizes and sorted(seen) == [axis for axis, size in enumerate(leaf) if size > 1]


def somewhere(axes: Map, leaf: Sequence[int]) -> bool:
    """Says whether any axis of a parameter can still be told, or it is a single number."""
    return any(axes) or math.prod(leaf) == 1


def filled(axes: Map, shape: Sequence[int], leaf: Sequence[int]) -> bool:
    """Says whether besides being ``whole`` the value is repeated along no dimension."""
    return whole(axes, shape, leaf) and math.prod(shape) == math.prod(leaf)


def _follow_one(eqn: Any, place: int, axes: Map, leaf: tuple[int, ...], target: tuple[int, ...]) -> Map:
    name, params, source = eqn.primitive.name, eqn.params, tuple(eqn.invars[place].aval.shape)
    if name == "transpose":
        return tuple(axes[i] for i in params["permutation"])
    if name == "squeeze":
        return tuple(along for i, along in enumerate(axes) if i not in params["dimensions"])
    if name == "reshape":
        return _regroup(axes, source, target, leaf)
    if name == "broadcast_in_dim":
        new: list[tuple[int, ...]] = [()] * len(target)
        for i, dimension in enumerate(params["broadcast_dimensions"]):
            if source[i] == target[dimension]:
                new[dimension] = axes[i]
        return tuple(new)
    if name == "dot_general":
        contracted, batched = params["dimension_numbers"]
        if math.prod(source[i] for i in contracted[place]) > 1:
            return ((),) * len(target)
        used = {*contracted[place], *batched[place]}
        mine = [axes[i] for i in batched[place]], [along for i, along in enumerate(axes) if i not in used]
        other = [()] * (len(target) - len(mine[0]) - len(mine[1]))
        return tuple([*mine[0], *mine[1], *other] if place == 0 else [*mine[0], *other, *mine[1]])
    if name.startswith("reduce_") and "axes" in params:
        return tuple(along for i, along in enumerate(axes) if i not in params["axes"])
    if name == "gather" and place == 0:
        numbers, new = params["dimension_numbers"], [()] * len(target)
        gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
        kept = [i for i in range(len(source)) if i not in gone]
        for dimension, i in zip(numbers.offset_dims, kept, strict=True):
            new[dimension] = axes[i] if source[i] == target[dimension] else ()
        return tuple(new)
    if len(source) == len(target) and not name.startswith("conv_"):
        return tuple(along if source[i] == target[i] else () for i, along in enumerate(axes))
    return ((),) * len(target)


def _regroup(axes: Map, source: tuple[int, ...], target: tuple[int, ...], leaf: tuple[int, ...]) -> Map:
    """Reshapes: each dimension is a product of axes (None: of something else), to be dealt out again in order."""
    factors: list[tuple[int | None, int]] = []
    for along, size in zip(axes, source, strict=True):
        known = math.prod(leaf[axis] for axis in along) == size
        factors += [(axis, leaf[axis]) for axis in along] if known else [(None, size)]
    factors = [one for one in factors if one[1] > 1][::-1]
    new: list[tuple[int, ...]] = []
    for size in target:
        taken: list[int | None] = []
        while size > 1 and factors:
            axis, length = factors.pop()
            if size % length == 0:
                taken.append(axis)
                size //= length
            elif length % size == 0:  # an axis is split
                taken.append(None)
                factors.append((None, length // size))
                size = 1
            else:
                return (*new, *[()] * (len(target) - len(new)))
        new.append(() if None in taken else tuple(axis for axis in taken if axis is not None))
    return tuple(new)
