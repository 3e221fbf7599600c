"""Reads the graph of a network from its jaxpr: data flow, and which parameter meets it where.

Nothing is guessed from classes or names of modules. A parameter belongs to the equation where a value computed from
parameters alone meets one that depends on the input; that equation's dimension numbers say which of its axes are
output channels, input channels and kernel positions (hyperinit spec, section (f.1)). The names of parameters are used
for two things only: a norm's parameters are called ``scale`` and ``bias``, and a ``bias`` may have several axes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from ophjax.nets.axes import Fixed, Map, Path, filled, follow, somewhere, whole
from ophjax.nets.nodes import NORMS, WEIGHTS, Leaf, Node, in_order

_LOOPS = ("scan", "while", "cond")
_JOINS = {"add": "sum", "sub": "sum", "add_any": "sum", "mul": "gate", "div": "gate", "concatenate": "concat"}
_PARTIAL: Any = "partial"

Traced = tuple[list[Node], list[tuple[int, int]], dict[Path, str]]


@dataclasses.dataclass(frozen=True)
class _Pool:
    """A reduction that has not been met by anything else: its kind, axes and the shape they are axes of."""

    kind: str
    axes: tuple[int, ...]
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Fed:
    """A value that depends on the input.

    A mean is a pool where it goes on as it is, and part of a normalisation where it meets what it was taken of again
    (softmax, norms). So reductions stay pending until either happens.

    Attributes:
      node: that it comes from.
      pools: pending reductions of that node's value.
      stat: the reduction by which it was normalised.
    """

    node: int
    pools: tuple[_Pool, ...] = ()
    stat: _Pool | None = None


class Tracer:
    """Walks a jaxpr. ``shapes`` and ``dtypes`` describe all parameters; ``stats`` are modules with batch statistics."""

    def __init__(self, shapes: dict[Path, tuple[int, ...]], dtypes: dict[Path, str], stats: set[Path]) -> None:
        self.shapes, self.dtypes, self.stats = shapes, dtypes, stats
        self.nodes: list[Node] = [Node("input", "")]
        self.before: list[list[int]] = [[]]
        self.seen: set[Path] = set()  # leaves that a node has
        self.own: dict[Path, str] = {}  # those among them that keep their own initialiser, and why
        self.lost: dict[Path, str] = {}  # where no node could take a leaf, and why
        self.pooled: dict[tuple[int, _Pool], int] = {}
        self.sources: dict[int, tuple[int, tuple[_Pool, ...]]] = {}  # what a norm normalises
        self.normed: dict[Any, int] = {}
        names: dict[Path, set[str]] = {}
        for path in shapes:
            names.setdefault(path[:-1], set()).add(path[-1])
        # Modules that own a scale and at most a bias are norms if what meets the scale was normalised.
        self.norms = {m for m, own in names.items() if own <= {"scale", "bias"} and ("scale" in own or m in stats)}

    def run_all(self, jaxpr: Any, fixed: Sequence[Fixed], inputs: int) -> Traced:
        """Walks a whole jaxpr whose last arguments are the input; nodes in topological order, edges, reasons."""
        return self.finish(self.run(jaxpr, [*fixed, *[_Fed(0)] * inputs]))

    def run(self, jaxpr: Any, inputs: Sequence[Any], scope: str = "") -> list[Any]:
        """Walks equations, those of called functions in their place; values are ``_Fed`` or ``Fixed``."""
        values: dict[Any, Any] = dict(zip(jaxpr.invars, inputs, strict=True))
        values |= {variable: {} for variable in jaxpr.constvars}

        def read(atom: Any) -> Any:
            return {} if hasattr(atom, "val") else values[atom]

        for eqn in jaxpr.eqns:
            given = [read(atom) for atom in eqn.invars]
            here = "/".join(part for part in (scope, str(eqn.source_info.name_stack)) if part)
            if (inner := _called(eqn)) is not None:
                results = self.run(inner, given, here)
            elif any(isinstance(value, _Fed) for value in given):
                results = [self.apply(eqn, given, here)] * len(eqn.outvars)
            else:
                results = [follow(eqn, out, given, self.shapes) for out in eqn.outvars]
            values.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def apply(self, eqn: Any, given: Sequence[Any], scope: str) -> _Fed:
        """Applies one equation, some of whose operands depend on the input."""
        name, params = eqn.primitive.name, eqn.params
        fed = [value for value in given if isinstance(value, _Fed)]
        fixed: dict[Path, Map] = {}
        shape: tuple[int, ...] = ()
        for atom, value in zip(eqn.invars, given, strict=True):
            if not isinstance(value, _Fed) and value:
                fixed, shape = {**fixed, **value}, tuple(atom.aval.shape)
        if name in _LOOPS:
            self.refuse(fixed, f"used inside a loop or branch (lax.{name})")
            return _Fed(self.add("other", fed, scope))
        if name == "dot_general" and len(fed) == 2:
            return _Fed(self.attend(fed, scope))
        x = self.join(_JOINS.get(name, "other"), fed, scope)
        if name.startswith("reduce_window"):
            window = (1, 1, *params["window_dimensions"])[:-1]
            pool = "max_pool" if name.endswith("max") else "avg_pool"
            return _Fed(self.add(pool, [x], scope, (1, 1, window[-2], window[-1])))
        if name.startswith("reduce_") and "axes" in params:
            pending = _Pool("max" if name.endswith("max") else "avg", tuple(params["axes"]), eqn.invars[0].aval.shape)
            return dataclasses.replace(x, pools=(*x.pools, pending), stat=None)
        if not fixed:
            return x
        if name == "conv_general_dilated" and isinstance(given[0], _Fed):
            return self.convolve(params, x, fixed, shape, scope)
        if name == "dot_general":
            place = 0 if isinstance(given[1], _Fed) else 1
            contracted, batched = (set(dims[place]) for dims in params["dimension_numbers"])
            out = [i for i in range(len(shape)) if i not in contracted]
            groups = math.prod(shape[i] for i in batched)
            return self.weigh("dense", x, fixed, shape, out, sorted(contracted), [], groups, scope)
        if name in ("add", "sub", "add_any"):
            return self.shift(x, fixed, shape, scope)
        if name in ("mul", "div"):
            return self.scale(x, fixed, shape, scope)
        if name == "concatenate":
            return self.embed(x, fixed, shape, scope, "a token joined to the input's (a class token)")
        if name in ("gather", "dynamic_slice") and not isinstance(given[0], _Fed):
            return self.embed(x, fixed, shape, scope)
        self.refuse(fixed, f"meets the input in lax.{name}")
        return _Fed(self.add("other", [x], scope))

    # Values that meet

    def join(self, op: str, fed: Sequence[_Fed], scope: str) -> _Fed:
        """Joins values: those of one source stay as they are, others meet in a node."""
        apart: list[_Fed] = []
        for one in fed:
            for i, other in enumerate(apart):
                if (met := self.meet(one, other)) is not None:
                    apart[i] = met
                    break
            else:
                apart.append(one)
        return apart[0] if len(apart) == 1 else _Fed(self.add(op, apart, scope))

    def meet(self, a: _Fed, b: _Fed) -> _Fed | None:
        """What two values of one source make; None where they have two."""
        a, b = (b, a) if len(a.pools) < len(b.pools) else (a, b)
        if a.pools == (_PARTIAL,) and self.sources[a.node] == (b.node, b.pools):
            return _Fed(a.node)
        if a.node != b.node or a.pools[: len(b.pools)] != b.pools:
            return None
        return dataclasses.replace(b, stat=a.pools[len(b.pools)] if len(a.pools) > len(b.pools) else b.stat or a.stat)

    def settle(self, x: _Fed) -> int:
        """The node of a value; its pending reductions are pools after all."""
        node = x.node
        for pool in x.pools if x.pools != (_PARTIAL,) else ():
            places = range(1, len(pool.shape) - 1)
            left = math.prod(pool.shape[i] for i in places if i not in pool.axes)
            sides = (1, *(pool.shape[i] for i in pool.axes))[-2:]
            if left > 1 and max(sides) == 1:
                continue  # windows of one position
            if (node, pool) not in self.pooled:
                if 0 in pool.axes or not places or not set(places) & set(pool.axes):
                    new = Node("other", "")
                elif left == 1:
                    new = Node("glob_avg" if pool.kind == "avg" else "max_pool", "")
                else:
                    new = Node(f"{pool.kind}_pool", "", (1, 1, sides[0], sides[1]))
                self.pooled[node, pool] = self.append(new, [node])
            node = self.pooled[node, pool]
        return node

    def attend(self, fed: Sequence[_Fed], scope: str) -> int:
        """A product of two values; queries, keys and values of one attention meet in one node."""
        nodes = [self.settle(x) for x in fed]
        for node, other in (nodes, nodes[::-1]):
            if self.nodes[node].op == "msa" and other != node and node not in self.ancestors([other]):
                self.before[node] = sorted({*self.before[node], other})
                return node
        return self.append(Node("msa", scope), nodes)

    # Parameters that meet a value

    def convolve(self, params: Any, x: _Fed, fixed: Fixed, shape: tuple[int, ...], scope: str) -> _Fed:
        """A convolution by a kernel of parameters."""
        out, fan, *space = params["dimension_numbers"].rhs_spec
        groups = params["feature_group_count"]
        op = "dw_conv" if groups > 1 else "conv"
        spread = zip(params["rhs_dilation"], space, strict=True)
        op = "dil_conv" if any(dilation > 1 and shape[i] > 1 for dilation, i in spread) else op
        op = "conv_t" if max((1, *params["lhs_dilation"])) > 1 else op
        return self.weigh(op, x, fixed, shape, [out], [fan], space, groups, scope)

    def weigh(
        self, op: str, x: _Fed, fixed: Fixed, shape: tuple[int, ...], out: Sequence[int], fan: Sequence[int],
        space: Sequence[int], groups: int, scope: str,
    ) -> _Fed:  # fmt: skip
        """A node with a kernel, given which dimensions of the kernel as it is used are which."""
        kernels = [path for path, axes in fixed.items() if filled(axes, shape, self.shapes[path])]
        leaves: tuple[Leaf, ...] = ()
        if len(kernels) == 1:
            axes = fixed[kernels[0]]
            roles = [[axis for i in dims for axis in axes[i]] for dims in (out, fan, space)]
            known = {axis for role in roles for axis in role}
            rest = [axis for axis in range(len(self.shapes[kernels[0]])) if axis not in known]
            leaves = (self.leaf(kernels[0], "kernel", roles[0], roles[1], roles[2] + rest, groups),)
        for path in fixed:
            if path not in kernels[: len(leaves)]:
                self.refuse([path], "one of several tensors, or a part of one, from which a kernel is computed")
        sides = (1, 1, *(shape[i] for i in space))[-2:]
        size = (math.prod(shape[i] for i in out), math.prod(shape[i] for i in fan), *sides)
        return _Fed(self.add(op, [x], scope, size, leaves))

    def scale(self, x: _Fed, fixed: Fixed, shape: tuple[int, ...], scope: str) -> _Fed:
        """A factor: a norm's, or a gain."""
        for path in fixed:
            module, batch = path[:-1], path[:-1] in self.stats
            pending = x.pools if x.pools != (_PARTIAL,) else ()
            if module in self.norms and path[-1] == "scale" and (x.stat or pending or batch):
                # The scale meets either the statistics or what they have already normalised.
                partial = bool(pending) and x.stat is None and (not batch or 0 in pending[-1].axes)
                stat = pending[-1] if partial else x.stat
                x = self.norm(path, _Fed(x.node, pending[:-1] if partial else pending), stat, scope)
                x = dataclasses.replace(x, pools=(_PARTIAL,) if partial else ())
            elif not somewhere(fixed[path], self.shapes[path]):
                self.refuse([path], "mixed with other numbers before it meets the input")
            else:
                leaf = self.vector(path, "gain", "a factor on features (layer scale)")
                x = _Fed(self.add("scale", [x], scope, _size(leaf), (leaf,)))
        return x

    def norm(self, path: Path, source: _Fed, stat: _Pool | None, scope: str) -> _Fed:
        """The norm node that a scale or bias belongs to; one for each value that is normalised."""
        module = path[:-1]
        key = (module, source.node, source.pools)
        leaf = self.vector(path, path[-1])
        if key not in self.normed:
            op = "bn" if module in self.stats else _norm_kind(stat, math.prod(leaf.shape))
            self.normed[key] = self.add(op, [source], scope, _size(leaf), (leaf,))
            self.sources[self.normed[key]] = (source.node, source.pools)
        return _Fed(self.normed[key])

    def shift(self, x: _Fed, fixed: Fixed, shape: tuple[int, ...], scope: str) -> _Fed:
        """A term: a norm's bias, a bias, or positions."""
        for path, axes in fixed.items():
            module, node, leaf = path[:-1], self.nodes[x.node], self.shapes[path]
            long = [i for i, along in enumerate(axes) if any(leaf[axis] > 1 for axis in along)]
            if path[-1] == "bias" and node.op in NORMS and node.leaves[0].path[:-1] == module and not x.pools:
                self.nodes[x.node] = dataclasses.replace(node, leaves=(*node.leaves, self.vector(path, "bias")))
            elif path[-1] == "bias" and module in self.stats:
                x = self.norm(path, dataclasses.replace(x, stat=None), None, scope)
            elif not somewhere(axes, leaf):
                self.refuse([path], "mixed with other numbers before it meets the input")
            elif whole(axes, shape, leaf) and (
                long in ([], [len(shape) - 1]) or ("bias" in path[-1] and node.op in WEIGHTS)
            ):
                one = self.vector(path, "bias")
                x = _Fed(self.add("bias", [x], scope, _size(one), (one,)))
            else:
                x = self.embed(x, {path: axes}, shape, scope)
        return x

    def embed(self, x: _Fed, fixed: Fixed, shape: tuple[int, ...], scope: str, reason: str = "") -> _Fed:
        """Learned vectors that are added to features, joined to them or looked up by them."""
        for path in fixed:
            *fan, out = range(len(self.shapes[path]))
            leaf = self.leaf(path, "embed", [out], fan, [], reason=reason)
            x = _Fed(self.add("embed", [x], scope, _size(leaf), (leaf,)))
        return x

    # Records

    def leaf(
        self, path: Path, role: str, out: Iterable[int], fan: Iterable[int], space: Iterable[int], groups: int = 1,
        reason: str = "",
    ) -> Leaf:  # fmt: skip
        """One parameter as it is used; with a reason, or if it is complex, it keeps its own initialiser."""
        reason = "complex numbers" if self.dtypes[path].startswith("complex") else reason
        if reason and path not in self.seen:
            self.own[path] = reason
        self.seen.add(path)
        return Leaf(path, self.shapes[path], self.dtypes[path], role, tuple(out), tuple(fan), tuple(space), groups)

    def vector(self, path: Path, role: str, reason: str = "") -> Leaf:
        """A parameter whose axes are all output channels, or empty."""
        shape = self.shapes[path]
        out = [axis for axis, size in enumerate(shape) if size > 1] or [*range(len(shape))][-1:]
        return self.leaf(path, role, out, [axis for axis in range(len(shape)) if axis not in out], [], reason=reason)

    def refuse(self, paths: Iterable[Path], reason: str) -> None:
        """Notes why parameters are not predicted."""
        for path in paths:
            self.lost.setdefault(path, reason)

    def add(self, op: str, fed: Sequence[_Fed], scope: str, size: Any = None, leaves: tuple[Leaf, ...] = ()) -> int:
        """Adds a node behind values."""
        scope = "/".join(leaves[0].path[:-1]) if leaves else scope
        return self.append(Node(op, scope, size, leaves), [self.settle(x) for x in fed])

    def append(self, node: Node, before: Iterable[int]) -> int:
        """Adds a node behind nodes."""
        self.nodes.append(node)
        self.before.append(sorted(set(before)))
        return len(self.nodes) - 1

    def ancestors(self, nodes: Iterable[int]) -> set[int]:
        """All nodes from which one of these can be reached, and these."""
        seen, todo = set(nodes), [*nodes]
        while todo:
            new = set(self.before[todo.pop()]) - seen
            seen |= new
            todo += new
        return seen

    def finish(self, outputs: Sequence[Any]) -> Traced:
        """Keeps what reaches an output, and gives it one end."""
        ends = {self.settle(value) for value in outputs if isinstance(value, _Fed)}
        kept = self.ancestors(ends) | {0}
        for value in outputs:
            self.refuse([] if isinstance(value, _Fed) else value, "an output that does not depend on the input")
        for i, node in enumerate(self.nodes):
            if i not in kept:
                self.refuse((leaf.path for leaf in node.leaves), "reaches no output")
        sinks = ends - {before for i in kept for before in self.before[i]}
        if len(sinks) > 1:
            kept.add(self.append(Node("output", ""), sinks))
        order = in_order({i: self.before[i] for i in kept})
        number = {old: new for new, old in enumerate(order)}
        uses: dict[Path, int] = {}
        nodes = []
        for old in order:
            leaves = []
            for leaf in self.nodes[old].leaves:
                leaves.append(dataclasses.replace(leaf, use=uses.get(leaf.path, 0)))
                uses[leaf.path] = uses.get(leaf.path, 0) + 1
            nodes.append(dataclasses.replace(self.nodes[old], leaves=tuple(leaves)))
        edges = sorted((number[before], number[i]) for i in kept for before in self.before[i])
        reasons = {path: self.lost.get(path, "not used by the call, or meets no input") for path in self.shapes}
        return (
            nodes,
            edges,
            {path: self.own.get(path, reasons[path]) for path in self.shapes if path not in uses or path in self.own},
        )


def _size(leaf: Leaf) -> tuple[int, int, int, int]:
    return math.prod(leaf.shape[a] for a in leaf.out), math.prod(leaf.shape[a] for a in leaf.fan), 1, 1


def _norm_kind(stat: _Pool | None, channels: int) -> str:
    if stat is None:
        return "ln"
    last = len(stat.shape) - 1
    if 0 in stat.axes:
        return "bn"
    if last not in stat.axes:
        return "inorm"
    return "ln" if stat.axes == (last,) and stat.shape[last] == channels else "gn"


def _called(eqn: Any) -> Any:
    """The jaxpr of an equation that does nothing but call it."""
    shapes = [atom.aval.shape for atom in eqn.invars]
    if eqn.primitive.name.startswith((*_LOOPS, "reduce", "scatter", "select_and", "sort")):
        return None
    for value in eqn.params.values():
        jaxpr = getattr(value, "jaxpr", value)
        if hasattr(jaxpr, "eqns") and [variable.aval.shape for variable in jaxpr.invars] == shapes:
            return jaxpr
    return None
