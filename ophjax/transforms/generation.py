"""Parameters made by another network: from a bank of generated numbers to the tree of any module.

A hypernetwork writes one row of a bank for each parameter tensor: a square block of kernels, or two short vectors. What
stands here turns rows into tensors (tiling, layout, normalisation), all of it differentiable in the bank and without
a network of its own. The hyper-initializer (``ophjax.nets.hypernet``) is built on it. Sections are those of its spec.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ophjax.errors import unknown
from ophjax.keys import at
from ophjax.types import Key

Bank = Mapping[str, jax.Array]
Path = tuple[str, ...]

VECTOR = "vector"
"""The bank's entry of norms and biases; kernels lie under their size, such as ``3x3``."""
SPREADS = ("predicted", "he")
POSITION_SCALE = 0.02
"""Learned positions are predicted as they are, times this (our decision; the sources leave them as predicted)."""


class Piece(NamedTuple):
    """Where one parameter tensor lies in a bank, and how it is laid out.

    Attributes:
      path, shape, dtype: of the tensor in the module's parameters.
      kind: ``kernel``, ``position``, ``scale`` (of a norm) or ``bias``; ``head`` and ``head_bias`` for the last layer
        of a classifier, whose rows have one entry for each class.
      group, row: the bank's entry and the row in it.
      out, fan, space: the tensor's axes by role (output channels; inputs; kernel positions), each axis in one of them.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: str
    kind: str
    group: str
    row: int
    out: tuple[int, ...] = (0,)
    fan: tuple[int, ...] = ()
    space: tuple[int, ...] = ()


def tile(x: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Takes ``x[i mod n0, j mod n1, ...]`` for all i, j, ... below ``sizes``, along the leading axes.

    A gather by ``arange(size) % n`` gives the same; whole blocks and slices have a faster gradient on CPUs, where a
    scatter-add goes number by number.

    >>> tile(jnp.array([1, 2, 3]), (5,)).tolist()
    [1, 2, 3, 1, 2]
    """
    for axis, size in enumerate(sizes):
        times = -(-size // x.shape[axis])
        x = jnp.concatenate([x] * times, axis) if times > 1 else x
        x = jax.lax.slice_in_dim(x, 0, size, axis=axis)
    return x


def kernel_gain(fan: int, space: Sequence[int]) -> float:
    """``sqrt(beta / fan_in)``: beta is 2, or 1 where a kernel has one input channel or is wider than high (c.6).

    ``fan`` counts the input channels of one output channel, ``space`` the kernel's sides.
    """
    wide = len(space) > 1 and space[-2] < space[-1]
    beta = 1.0 if fan == 1 or wide else 2.0
    return math.sqrt(beta / (fan * math.prod(space)))


def cut(piece: Piece, bank: Bank, *, normalise: bool = True) -> jax.Array:
    """Makes a parameter tensor from its row of the bank: tiled, normalised, in the tensor's own layout and type.

    Kernels are multiplied by ``kernel_gain``; a norm's scale is ``2 sigmoid(p / 2)`` and a bias ``tanh(0.2 p)``, so
    that they are 1 and 0 at p = 0 (c.6). A 2-D kernel is repeated along the depth of a 3-D one (f.2). With
    ``normalise`` off (an ablation) the numbers are taken as they are.
    """
    row = bank[piece.group][piece.row]
    if piece.kind in ("scale", "bias", "head_bias"):
        if piece.kind != "head_bias":
            row = row[0 if piece.kind == "scale" else 1]
        flat = tile(row, (math.prod(piece.shape),))
        if normalise:
            flat = 2 * jax.nn.sigmoid(flat / 2) if piece.kind == "scale" else jnp.tanh(0.2 * flat)
        return flat.reshape(piece.shape).astype(piece.dtype)

    def sizes(axes: tuple[int, ...]) -> list[int]:
        return [piece.shape[axis] for axis in axes]

    out, fan, space = math.prod(sizes(piece.out)), math.prod(sizes(piece.fan)), sizes(piece.space)
    block = tile(row, (out, fan))
    if piece.kind == "position":
        block = block * POSITION_SCALE
    elif normalise:
        block = block * kernel_gain(fan, space)
    # The block is [out, fan, height, width]; the tensor may have fewer kernel axes, or a depth before them.
    depth, sides = space[:-2], space[-2:]
    block = block.reshape(out, fan, *[1] * len(depth), *sides)
    block = jnp.broadcast_to(block, (out, fan, *depth, *sides))
    axes = (*piece.out, *piece.fan, *piece.space)
    block = block.reshape(*sizes(piece.out), *sizes(piece.fan), *space)
    return block.transpose(*(axes.index(axis) for axis in range(len(axes)))).astype(piece.dtype)


def assemble(pieces: Sequence[Piece], bank: Bank, *, normalise: bool = True) -> dict[Path, jax.Array]:
    """Makes all tensors that the pieces name, by path."""
    return {piece.path: cut(piece, bank, normalise=normalise) for piece in pieces}


def norm_penalty(tensors: Mapping[Path, jax.Array]) -> jax.Array:
    """Sums the Frobenius norms of generated tensors, not squared (spec, section (d))."""
    # The square root of zero has no gradient; a norm this small is nothing to be pulled down.
    return sum((jnp.sqrt(jnp.sum(jnp.square(x)) + 1e-12) for x in tensors.values()), start=jnp.zeros(()))


def postprocess(
    key: Key,
    tensors: Mapping[Path, jax.Array],
    pieces: Sequence[Piece],
    *,
    noise: float = 1e-5,
    orth_from: int | None = None,
    spread: str = "predicted",
) -> dict[Path, jax.Array]:
    """Breaks the symmetry of tiled blocks, which gradient descent alone cannot (c.7), and sets kernels' spread.

    Kernels get ``noise * std(corr(W)) * N(0, 1)``, W being the kernel as a matrix with one row for each output channel
    and corr the correlation of its rows. From the kernel of place ``orth_from`` on, the last one excepted, a kernel's
    matrix is made orthonormal (QR of the tall form, signs from the diagonal of R) and keeps its norm. With
    ``spread="he"`` every kernel is scaled to the standard deviation ``kernel_gain`` first (our decision): behind a norm
    layer the scale of a kernel means nothing, so that a hypernetwork trained on nets with norms leaves it
    anywhere, while learning rates, and nets without norms, depend on it.
    """
    if spread not in SPREADS:
        raise unknown("spread", spread, SPREADS)
    made = dict(tensors)
    kernels = [piece for piece in pieces if piece.kind in ("kernel", "head")]
    for place, piece in enumerate(kernels):
        x = made[piece.path].astype(jnp.float32)
        order = (*piece.out, *piece.fan, *piece.space)
        rows = math.prod(piece.shape[axis] for axis in piece.out)
        laid = x.transpose(order)
        matrix = laid.reshape(rows, -1)
        if spread == "he":
            fan, space = (math.prod(piece.shape[a] for a in piece.fan), [piece.shape[a] for a in piece.space])
            matrix = matrix * (kernel_gain(fan, space) / jnp.maximum(jnp.std(matrix), 1e-12))
        if orth_from is not None and orth_from <= place < len(kernels) - 1:
            matrix = _orthonormal(matrix) * (jnp.linalg.norm(matrix) / math.sqrt(min(matrix.shape)))
        if noise:
            strength = noise * _spread_of_correlation(matrix)
            matrix = matrix + strength * jax.random.normal(at(key, "/".join(piece.path)), matrix.shape)
        x = matrix.reshape(laid.shape).transpose(*(order.index(axis) for axis in range(len(order))))
        made[piece.path] = x.astype(piece.dtype)
    return made


def _orthonormal(matrix: jax.Array) -> jax.Array:
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    q, r = jnp.linalg.qr(tall)
    signs = jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0)
    q = q * signs[None, :]
    return q if matrix.shape[0] >= matrix.shape[1] else q.T


def _spread_of_correlation(matrix: jax.Array) -> jax.Array:
    """Standard deviation of the entries of the rows' correlation matrix; 1 for a single row or column."""
    if min(matrix.shape) < 2:
        return jnp.ones(())
    away = matrix - matrix.mean(1, keepdims=True)
    unit = away / jnp.maximum(jnp.linalg.norm(away, axis=1, keepdims=True), 1e-12)
    return jnp.std(unit @ unit.T)


def staged_scan(branches: Sequence[Callable[..., tuple[jax.Array, Any]]]) -> Callable[..., tuple[Any, Any]]:
    """Goes through losses one after the other, each chosen by number and differentiated within itself.

    ``carry, (values, aux) = staged(picks, xs, carry, *rest)``: turn ``i`` is ``branches[picks[i]](xs[i], carry, i,
    *rest) = (value, (carry, aux))``, ``value`` a scalar; ``xs``, ``values`` and ``aux`` are stacked along their first
    axis. Values have their gradient in ``xs``; nothing else has one.

    Reverse mode through ``lax.switch`` would store the intermediate values of all branches side by side, and what made
    ``xs`` would be differentiated inside each of them. Here only the gradient in ``xs`` leaves a branch, is computed
    with the value, and is pulled back once: exact reverse mode in stages (section (e)). The scan lies within, so that
    JAX, which looks for what a scan must differentiate again and again, reads every branch once.

    >>> branches = [lambda x, carry, i: ((x * x).sum(), (carry, i)), lambda x, carry, i: (x.sum(), (carry, i))]
    >>> staged = staged_scan(branches)
    >>> picks, xs = jnp.array([1, 0]), jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> jax.grad(lambda xs: staged(picks, xs, ())[1][0].sum())(xs).tolist()
    [[1.0, 1.0], [6.0, 8.0]]
    """

    def turns(branches: Sequence[Callable[..., Any]], picks: jax.Array, xs: Any, carry: Any, rest: Any) -> Any:
        def turn(carry: Any, given: Any) -> Any:
            number, pick, x = given
            found, gradient = jax.lax.switch(pick, branches, x, carry, number, *rest)
            value, (carry, aux) = found
            return carry, (value, aux, gradient)

        carry, (values, aux, gradients) = jax.lax.scan(turn, carry, (jnp.arange(len(picks)), picks, xs))
        return (carry, (values, aux)), gradients

    @jax.custom_vjp
    def staged(picks: jax.Array, xs: Any, carry: Any, rest: tuple[Any, ...]) -> tuple[Any, Any]:
        return turns([lambda *given, b=branch: (b(*given), ()) for branch in branches], picks, xs, carry, rest)[0]

    def forward(picks: jax.Array, xs: Any, carry: Any, rest: tuple[Any, ...]) -> tuple[tuple[Any, Any], Any]:
        return turns([jax.value_and_grad(branch, has_aux=True) for branch in branches], picks, xs, carry, rest)

    def backward(gradients: Any, cotangents: tuple[Any, Any]) -> tuple[None, Any, None, None]:
        values = cotangents[1][0]
        pulled = jax.tree.map(
            lambda leaf: (values.reshape(-1, *[1] * (leaf.ndim - 1)) * leaf).astype(leaf.dtype), gradients
        )
        return None, pulled, None, None

    staged.defvjp(forward, backward)
    return lambda picks, xs, carry, *rest: staged(picks, xs, carry, rest)
