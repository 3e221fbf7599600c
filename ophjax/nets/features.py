"""What a hypernetwork reads and writes of a graph: node features as arrays, and each parameter's place in its bank."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ophjax.errors import unknown
from ophjax.nets.graph import OPS, ModuleGraph
from ophjax.nets.nodes import in_order
from ophjax.transforms.generation import VECTOR, Piece

# Sizes that have an embedding of their own; others take the nearest. Row 0 is for nodes without a shape.
CHANNELS = (1, 3, *range(8, 65, 8), *range(80, 4097, 16), *range(4128, 8193, 32))
SIDES = (1, 3, 5, 7, 9, 11, 14, 16)
DEGREES, LEVELS = 100, 1000


@dataclasses.dataclass(frozen=True)
class GHNConfig:
    """Size of a hypernetwork. The defaults are GHN-3's smallest, with 64 channels in a block."""

    width: int = 64
    """Numbers that describe a node."""
    layers: int = 3
    """Layers of the graphormer core."""
    heads: int = 8
    """Attention heads of the graphormer core."""
    core: str = "graphormer"
    """graphormer, or gated: one sweep forth and one back over the nodes in order."""
    channels: int = 64
    """Input and output channels of a decoded block; larger tensors repeat it."""
    side: int = 11
    """Side of the largest decoded kernel; larger ones are enlarged from it."""
    cutoff: int = 50
    """Longest path along which nodes hear of each other directly; 1: neighbours only."""
    classes: int = 0
    """Classes of the heads that are predicted too; 0: no head is."""
    normalise: bool = True
    """Scale predicted kernels by their fan-in and keep norms and biases in range; off for an ablation."""


class Features(NamedTuple):
    """A graph as arrays; a leading axis may stack several graphs that are padded alike.

    Attributes:
      op: int32 [n]; size: int32 [n, 4], places in ``CHANNELS`` and ``SIDES`` plus 1, 0 for none.
      distance: int32 [n, n], shortest path from row to column, 0 for none or above the cut-off.
      inward, outward, level: int32 [n], neighbours before and after; steps from the input.
      order: int32 [n], a topological order; real: bool [n], False for padding.
      rows: for each entry of the bank int32 [r], the node that each row is decoded from.
    """

    op: Any
    size: Any
    distance: Any
    inward: Any
    outward: Any
    level: Any
    order: Any
    real: Any
    rows: dict[str, Any]


def nearest(value: int, known: Sequence[int]) -> int:
    """The place of the nearest known value (the larger one of two equally near), plus 1."""
    return min(range(len(known)), key=lambda i: (abs(known[i] - value), -known[i])) + 1


def lay_out(
    graph: ModuleGraph, config: GHNConfig, *, head: str = "fresh"
) -> tuple[tuple[Piece, ...], dict[str, tuple[int, ...]]]:
    """Gives each parameter that the hypernetwork predicts a row in the bank.

    Args:
      head: ``fresh`` leaves the head's parameters out, ``predict`` predicts them: those of a classifier with
        ``config.classes`` classes by the decoder's class layer, others like any kernel.

    Returns:
      the pieces in the order of the nodes, and for each entry of the bank the node of each row.
    """
    if head not in ("fresh", "predict"):
        raise unknown("head", head, ("fresh", "predict"))
    last = set(graph.head)
    pieces: list[Piece] = []
    rows: dict[str, list[int]] = {}
    vectors: dict[tuple[int, str], int] = {}
    for path, (node, leaf) in sorted(graph.first_uses().items(), key=lambda item: item[1][0]):
        if path in last and head == "fresh":
            continue
        classes = math.prod(leaf.shape[axis] for axis in leaf.out)
        of_class = path in last and classes == config.classes
        if leaf.role in ("scale", "bias"):
            kind, group = ("head_bias", "head_bias") if of_class and leaf.role == "bias" else (leaf.role, VECTOR)
        elif leaf.role in ("kernel", "embed"):
            position = leaf.role == "embed"
            sides = () if position else leaf.space[-2:]
            high, wide = (1, 1, *(leaf.shape[axis] for axis in sides))[-2:]
            of_class = of_class and high == wide == 1 and not position
            kind = "position" if position else "head" if of_class else "kernel"
            group = "head" if of_class else f"{high}x{wide}"
        else:
            continue
        owners = rows.setdefault(group, [])
        place = vectors.get((node, leaf.role)) if group == VECTOR else None
        if place is None:  # a norm's scale and bias share one row
            place = len(owners)
            owners.append(node)
            if group == VECTOR:
                vectors[node, "bias" if leaf.role == "scale" else "scale"] = place
        fan, space = (leaf.fan + leaf.space, ()) if kind == "position" else (leaf.fan, leaf.space)
        pieces.append(Piece(path, leaf.shape, leaf.dtype, kind, group, place, leaf.out, fan, space))
    return tuple(pieces), {group: tuple(owners) for group, owners in rows.items()}


def featurise(
    graph: ModuleGraph,
    config: GHNConfig,
    rows: Mapping[str, Sequence[int]],
    *,
    nodes: int | None = None,
    most: Mapping[str, int] | None = None,
    seed: int | None = None,
) -> Features:
    """Turns a graph into arrays of NumPy.

    Args:
      rows: from ``lay_out``.
      nodes: pads to so many nodes; most: pads the rows of each entry to so many (of node 0).
      seed: permutes the operations among the nodes, a control for whether the graph matters.
    """
    count = len(graph.nodes)
    nodes = nodes or count
    op = np.array([OPS.index(node.op) for node in graph.nodes], np.int32)
    size = np.zeros((count, 4), np.int32)
    heads = {graph.first_uses()[path][0] for path in graph.head if path in graph.first_uses()}
    for i, node in enumerate(graph.nodes):
        if node.size is not None:
            out, fan, high, wide = node.size
            if i in heads and config.classes:
                out = config.classes  # keeps a new task's head among what was seen in training
            size[i] = [nearest(out, CHANNELS), nearest(fan, CHANNELS), nearest(high, SIDES), nearest(wide, SIDES)]
    if seed is not None:
        shuffled = np.random.default_rng(seed).permutation(count)
        op, size = op[shuffled], size[shuffled]
    distance = graph.distances(config.cutoff).astype(np.int32)
    sources: dict[int, list[int]] = {i: [] for i in range(count)}
    for source, target in graph.edges:
        sources[target].append(source)
    before = np.array([len(sources[i]) for i in range(count)], np.int32)
    after = np.bincount([source for source, _ in graph.edges], minlength=count).astype(np.int32)

    order = np.array([*in_order(sources), *range(count, nodes)], np.int32)
    most = most or {group: len(owners) for group, owners in rows.items()}
    owners = {
        group: np.array([*rows.get(group, ()), *[0] * (number - len(rows.get(group, ())))], np.int32)
        for group, number in most.items()
    }
    return Features(
        op=np.pad(op, (0, nodes - count)),
        size=np.pad(size, ((0, nodes - count), (0, 0))),
        distance=np.pad(distance, (0, nodes - count)),
        inward=np.pad(np.minimum(before, DEGREES), (0, nodes - count)),
        outward=np.pad(np.minimum(after, DEGREES), (0, nodes - count)),
        level=np.pad(np.minimum(graph.levels(), LEVELS).astype(np.int32), (0, nodes - count)),
        order=order,
        real=np.arange(nodes) < count,
        rows=owners,
    )
