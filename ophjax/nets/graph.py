"""The graph of any Flax module: operations as nodes, with the parameters in them and how their axes are used.

``trace_graph(module, *example_inputs)`` reads it from the jaxpr of one call (hyperinit spec, sections (c.1), (f.1));
nothing is computed and no memory is taken.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from ophjax.errors import InputError
from ophjax.nets import conv
from ophjax.nets.axes import Path
from ophjax.nets.nodes import NORMS, OPS, WEIGHTS, Leaf, Node, in_order
from ophjax.nets.tracing import Tracer

__all__ = ["NORMS", "OPS", "WEIGHTS", "Leaf", "ModuleGraph", "Node", "call_options", "trace_graph"]


@dataclasses.dataclass(frozen=True)
class ModuleGraph:
    """A network as a directed graph without cycles; static and hashable.

    Attributes:
      nodes: in topological order (as traced; ``relabelled`` graphs are in any order).
      edges: (source, target), sorted.
      fallback: (path, reason) of every tensor that keeps the module's own initialiser. Some of them have a node all the
        same: factors on features, class tokens, complex ones.
      head: paths of the last weight before each end of the graph, and of its bias.
      shapes: (path, shape, dtype) of all parameters in tree order.
      statistics: the same of the running batch statistics.
    """

    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]
    fallback: tuple[tuple[Path, str], ...]
    head: tuple[Path, ...]
    shapes: tuple[tuple[Path, tuple[int, ...], str], ...]
    statistics: tuple[tuple[Path, tuple[int, ...], str], ...]

    def first_uses(self) -> dict[Path, tuple[int, Leaf]]:
        """Where each predicted tensor is decoded from: its node and leaf; together with ``fallback`` all tensors."""
        own = {path for path, _ in self.fallback}
        uses = {leaf.path: (i, leaf) for i, node in enumerate(self.nodes) for leaf in node.leaves if leaf.use == 0}
        return {path: uses[path] for path, _, _ in self.shapes if path not in own}

    def distances(self, cutoff: int = 50) -> np.ndarray:
        """Shortest directed paths, int32 [n, n] from row to column; 0: none, or longer than ``cutoff``."""
        count, far = len(self.nodes), np.iinfo(np.int32).max // 2
        found = np.full((count, count), far, np.int32)
        np.fill_diagonal(found, 0)
        after = _neighbours(count, self.edges)
        before = _neighbours(count, [(b, a) for a, b in self.edges])
        for i in reversed(in_order(dict(enumerate(before)))):
            if after[i]:
                np.minimum(found[i], found[after[i]].min(0) + 1, out=found[i])
        return np.where(found > cutoff, 0, found).astype(np.int32)

    def levels(self) -> np.ndarray:
        """Shortest distance of every node from the input, int32 [n]."""
        start = next(i for i, node in enumerate(self.nodes) if node.op == "input")
        return self.distances(cutoff=len(self.nodes))[start]

    def relabelled(self, order: Sequence[int]) -> ModuleGraph:
        """The same graph with its nodes in another order: node ``order[i]`` becomes node i."""
        if sorted(order) != list(range(len(self.nodes))):
            raise InputError(f"The order of {len(self.nodes)} nodes must name each of 0 to {len(self.nodes) - 1} once.")
        new = {old: i for i, old in enumerate(order)}
        edges = tuple(sorted((new[a], new[b]) for a, b in self.edges))
        return dataclasses.replace(self, nodes=tuple(self.nodes[i] for i in order), edges=edges)

    def counts(self) -> dict[str, int]:
        """How many nodes there are of each kind, in the order of ``OPS``."""
        found = Counter(node.op for node in self.nodes)
        return {op: found[op] for op in OPS if found[op]}

    def describe(self) -> str:
        """A table: kinds of nodes, how many tensors and numbers are predicted, and the others with their reasons."""
        numbers = {path: math.prod(shape) for path, shape, _ in self.shapes}
        own = sum(numbers[path] for path, _ in self.fallback)
        total = sum(numbers.values())
        lines = [
            f"{len(self.nodes)} nodes, {len(self.edges)} edges: "
            + ", ".join(f"{count} {op}" for op, count in self.counts().items()),
            f"predicted: {len(numbers) - len(self.fallback)} of {len(numbers)} tensors, {total - own:,} of {total:,} "
            "numbers",
            f"head: {', '.join('/'.join(path) for path in self.head) or 'none'}",
        ]
        why: dict[str, list[Path]] = {}
        for path, reason in self.fallback:
            why.setdefault(reason, []).append(path)
        for reason, paths in why.items():
            some = ", ".join("/".join(path) for path in paths[:4]) + (", ..." if len(paths) > 4 else "")
            tensors = "1 tensor" if len(paths) == 1 else f"{len(paths)} tensors"
            lines.append(f"own initialiser: {tensors}, {sum(numbers[p] for p in paths):,} numbers: {reason}: {some}")
        return "\n".join(lines)

    __str__ = describe


def call_options(module: nn.Module, *, train: bool) -> dict[str, Any]:
    """``{"train": train}`` where the module's call asks for it."""
    return {"train": train} if "train" in inspect.signature(type(module).__call__).parameters else {}


def trace_graph(module: nn.Module, *example_args: Any, train_kwargs: Mapping[str, Any] | None = None) -> ModuleGraph:
    """Reads the graph of a module from one call; only shapes and dtypes of the arrays in the arguments matter.

    Args:
      module: any Linen module that is not bound.
      example_args: what it is called with; arrays, ``ShapeDtypeStruct`` or trees of them. What is neither (numbers,
        strings) is passed on as it is.
      train_kwargs: keyword arguments of the call; by default ``train=True`` where it has such an argument, so that
        batch statistics are computed.

    Raises:
      InputError: the call fails with such arguments, or the module has no parameters.
    """
    kind = type(module).__name__
    if not isinstance(module, nn.Module):
        raise InputError(
            f"A graph was asked of {module!r}; expected an instance of a flax.linen module, for example ResNet(2)."
        )
    if train_kwargs is None:
        train_kwargs = call_options(module, train=True)
    flat, structure = jax.tree.flatten((example_args, dict(train_kwargs)))
    places = [i for i, leaf in enumerate(flat) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]
    arrays = [jax.ShapeDtypeStruct(flat[i].shape, flat[i].dtype) for i in places]

    def call(function: Any, given: Sequence[Any], **options: Any) -> Any:
        mixed = dict(enumerate(flat)) | dict(zip(places, given, strict=True))
        args, kwargs = jax.tree.unflatten(structure, [mixed[i] for i in range(len(flat))])
        return function(*args, **kwargs, **options)

    def init(given: Sequence[Any]) -> Any:
        return nn.unbox(call(lambda *a, **k: module.init(jax.random.key(0), *a, **k), given))

    def apply(params: Any, rest: Any, given: Sequence[Any]) -> Any:
        rngs, variables = {"params": jax.random.key(0)}, {"params": params, **rest}
        return call(lambda *a, **k: module.apply(variables, *a, rngs=rngs, mutable=[*rest], **k)[0], given)

    try:
        with conv.as_lax(True):
            variables = dict(jax.eval_shape(init, arrays))
            params = variables.pop("params", {})
            jaxpr = jax.make_jaxpr(apply)(params, variables, arrays).jaxpr
    except InputError:
        raise
    except Exception as error:
        given = ", ".join(f"{a.dtype}{list(a.shape)}" for a in arrays) or "no arrays"
        raise InputError(
            f"{kind} could not be called with {given} and {dict(train_kwargs)}: {type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else 'no message'} Give example inputs as in "
            "module.init, and keyword arguments as train_kwargs."
        ) from error

    leaves = {_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    if not leaves:
        raise InputError(f"{kind} has no parameters with such inputs; there is nothing to initialise.")
    stats = {_path(path): x for path, x in jax.tree_util.tree_leaves_with_path(variables.get("batch_stats", {}))}
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    tracer = Tracer(shapes, {path: str(leaf.dtype) for path, leaf in leaves.items()}, {path[:-1] for path in stats})
    own: list[Any] = [{path: tuple((i,) for i in range(len(shape)))} for path, shape in shapes.items()]
    constants: list[Any] = [{}] * len(jax.tree.leaves(variables))
    nodes, edges, reasons = tracer.run_all(jaxpr, [*own, *constants], len(arrays))
    return ModuleGraph(
        tuple(nodes),
        tuple(edges),
        tuple(reasons.items()),
        _head(nodes, edges),
        *(tuple((path, tuple(x.shape), str(x.dtype)) for path, x in some.items()) for some in (leaves, stats)),
    )


def _path(path: tuple[Any, ...]) -> Path:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _neighbours(count: int, edges: Sequence[tuple[int, int]]) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in range(count)]
    for source, target in edges:
        found[source].append(target)
    return found


def _head(nodes: Sequence[Node], edges: Sequence[tuple[int, int]]) -> tuple[Path, ...]:
    """Walks back from each end through biases and pools to a weight; where anything else comes first there is none."""
    before = _neighbours(len(nodes), [(b, a) for a, b in edges])
    found: dict[Path, None] = {}
    ends = set(range(len(nodes))) - {a for a, _ in edges}
    for end in [*ends, *(i for e in ends if nodes[e].op == "output" for i in before[e])]:
        passed, i = [], end
        while nodes[i].op in ("bias", "glob_avg", "avg_pool", "max_pool") and len(before[i]) == 1:
            passed.append(i)
            i = before[i][0]
        if nodes[i].op in WEIGHTS and nodes[i].leaves and nodes[i].leaves[0].use == 0:
            for node in (i, *(p for p in reversed(passed) if nodes[p].op == "bias")):
                found.update({leaf.path: None for leaf in nodes[node].leaves})
    return tuple(found)
