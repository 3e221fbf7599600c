"""The nodes of a network's graph and the parameters in them."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Mapping, Sequence

from ophjax.nets.axes import Path

OPS = (
    "input", "output", "sum", "concat", "gate", "msa", "other", "max_pool", "avg_pool", "glob_avg",
    "conv", "dil_conv", "dw_conv", "conv_t", "dense", "bias", "bn", "ln", "gn", "inorm", "embed", "scale",
)  # fmt: skip
"""Kinds of nodes; their place here is their number. ``dw_conv`` is any grouped convolution, ``msa`` a product of two
values that depend on the input (attention), ``scale`` a learned factor on features, ``gate`` a computed one."""

WEIGHTS = ("conv", "dil_conv", "dw_conv", "conv_t", "dense")
NORMS = ("bn", "ln", "gn", "inorm")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter tensor as one node uses it. Every axis is in exactly one of ``out``, ``fan``, ``space``.

    Attributes:
      path: in the tree of parameters.
      shape, dtype: of the tensor.
      role: "kernel"; "scale" (a norm's); "bias" (a norm's, a convolution's or a linear layer's); "embed" (positions,
        tokens); "gain" (layer scale and other factors on features).
      out: axes of output channels. All axes of vectors, norms and biases that are longer than 1.
      fan: axes summed over: input channels, within one group. Of embeddings all axes but the last.
      space: axes of kernel positions, in the kernel's order.
      groups: of a grouped convolution.
      use: 0 where the tensor is used for the first time, then 1, ...
    """

    path: Path
    shape: tuple[int, ...]
    dtype: str
    role: str
    out: tuple[int, ...]
    fan: tuple[int, ...]
    space: tuple[int, ...]
    groups: int = 1
    use: int = 0


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
      op: one of ``OPS``.
      scope: where in the module, for figures and messages only.
      size: (output channels, input channels within a group, kernel height, kernel width), of a kernel with three
        spatial axes the last two, of vectors (n, 1, 1, 1), of pools (1, 1, height, width); None without a shape.
      leaves: a norm's scale and bias; one for other nodes with a parameter. A weight node without any has a kernel
        computed from several tensors, which are in the graph's ``fallback``.
    """

    op: str
    scope: str
    size: tuple[int, int, int, int] | None = None
    leaves: tuple[Leaf, ...] = ()


def in_order(before: Mapping[int, Sequence[int]]) -> list[int]:
    """Sorts nodes, given those before each, topologically; the smallest number first where there is a choice."""
    waits = {i: len(sources) for i, sources in before.items()}
    after: dict[int, list[int]] = {i: [] for i in before}
    for i, sources in before.items():
        for source in sources:
            after[source].append(i)
    ready, order = [i for i, count in waits.items() if not count], []
    heapq.heapify(ready)
    while ready:
        order.append(heapq.heappop(ready))
        for i in after[order[-1]]:
            waits[i] -= 1
            if not waits[i]:
                heapq.heappush(ready, i)
    return order
