"""Draws a network's graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ophjax.nets.graph import NORMS, OPS, ModuleGraph, Node

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# One colour for each group of operations.
_GROUPS = {
    "convolution": ("#8ec1e8", ("conv", "dil_conv", "dw_conv", "conv_t")),
    "linear": ("#b9b3e6", ("dense",)),
    "bias": ("#e3e5e8", ("bias",)),
    "norm": ("#a5d9b8", NORMS),
    "pool": ("#f5c58f", ("max_pool", "avg_pool", "glob_avg")),
    "join": ("#f2e38c", ("sum", "concat", "gate")),
    "attention": ("#f0a6a0", ("msa",)),
    "embedding, scale": ("#e6b8dc", ("embed", "scale")),
    "other": ("#c9c2b8", ("other",)),
    "input, output": ("#ffffff", ("input", "output")),
}
_COLOURS = {op: colour for colour, ops in _GROUPS.values() for op in ops}
assert set(_COLOURS) == set(OPS)
_WIDTH, _HEIGHT = 0.84, 0.62  # of a box, in columns and lanes


def draw_graph(graph: ModuleGraph, title: str, *, columns: int = 16) -> Figure:
    """Draws operations from left to right, long graphs in several rows.

    A dashed box keeps its own initialiser. An edge to another row leaves on the right and enters on the left, both ends
    marked by the other one's number.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch, Patch

    depth, lane = _places(graph)
    rows = max(depth) // columns + 1
    used = [sorted({lane[i] for i in range(len(depth)) if depth[i] // columns == row}) for row in range(rows)]
    lanes = [len(one) for one in used]
    tops = [sum(lanes[:row]) + 0.5 * row for row in range(rows)]
    spots = [(d % columns, tops[d // columns] + used[d // columns].index(a)) for d, a in zip(depth, lane, strict=True)]
    wide = min(columns, max(depth) + 1)
    height = tops[-1] + lanes[-1]
    figure = Figure(figsize=(max(0.82 * wide + 0.6, 7), 0.5 * height + 1.3), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.9, max(wide, 8) - 0.1), ylim=(height - 0.3, -0.95))
    axes.set_axis_off()
    own = {path for path, _ in graph.fallback}
    for i, node in enumerate(graph.nodes):
        x, y = spots[i]
        kept = any(leaf.path in own for leaf in node.leaves)
        box = FancyBboxPatch(
            (x - _WIDTH / 2, y - _HEIGHT / 2), _WIDTH, _HEIGHT, boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=_COLOURS[node.op], edgecolor="#333a42", linewidth=0.7, linestyle="--" if kept else "-", zorder=3,
        )  # fmt: skip
        axes.add_patch(box)
        axes.text(x, y, _label(node), ha="center", va="center", fontsize=6.5, linespacing=1.05, zorder=4)
    stubs: dict[tuple[int, bool], list[int]] = {}
    for source, target in graph.edges:
        if depth[source] // columns == depth[target] // columns:
            _arrow(axes, spots[source], spots[target], lane[source] == used[depth[source] // columns][0])
        else:
            stubs.setdefault((source, True), []).append(target)
            stubs.setdefault((target, False), []).append(source)
    for (i, leaving), others in stubs.items():
        _stub(axes, spots[i], leaving, ", ".join(map(str, sorted(others))), i)
    counts = graph.counts()
    legend = [
        Patch(facecolor=colour, edgecolor="#333a42", linewidth=0.7, label=name)
        for name, (colour, ops) in _GROUPS.items()
        if any(op in counts for op in ops)
    ]
    if any(leaf.path in own for node in graph.nodes for leaf in node.leaves):
        legend.append(Patch(facecolor="white", edgecolor="#333a42", linestyle="--", label="own initialiser"))
    axes.set_title(title, loc="left", fontsize=11)
    figure.legend(handles=legend, loc="outside lower left", ncols=6, fontsize=7, frameon=False)
    return figure


def _places(graph: ModuleGraph) -> tuple[list[int], list[int]]:
    """The column of each node, its longest distance from the input, and its lane: that of its sources if free.

    Where several want a lane, it goes to the one with the longest way before it: the main path runs straight.
    """
    count = len(graph.nodes)
    before: list[list[int]] = [[] for _ in range(count)]
    depth, ahead, lane = [0] * count, [0] * count, [0] * count
    for source, target in graph.edges:
        before[target].append(source)
    for target in range(count):
        depth[target] = max((depth[i] + 1 for i in before[target]), default=0)
    for source, target in sorted(graph.edges, reverse=True):
        ahead[source] = max(ahead[source], ahead[target] + 1)
    taken: set[tuple[int, int]] = set()
    for node in sorted(range(count), key=lambda i: (depth[i], -ahead[i], i)):
        lane[node] = min((lane[i] for i in before[node]), default=0)
        while (depth[node], lane[node]) in taken:
            lane[node] += 1
        taken.add((depth[node], lane[node]))
    return depth, lane


def _label(node: Node) -> str:
    if node.size is None or node.op in ("glob_avg",):
        return node.op.replace("_", " ")
    out, fan, height, width = node.size
    if node.op in ("max_pool", "avg_pool"):
        return f"{node.op.replace('_', ' ')}\n{height}×{width}"
    if node.op in ("dense", "embed"):
        return f"{node.op}\n{fan}→{out}" if node.op == "dense" else f"embed\n{fan}×{out}"
    if node.op in ("conv", "dil_conv", "dw_conv", "conv_t"):
        groups = node.leaves[0].groups if node.leaves else 1
        return f"{node.op.replace('_', ' ')} {height}×{width}\n{fan * groups}→{out}"
    return f"{node.op} {out}"


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], top: bool) -> None:
    """An arrow; one that passes boxes of its lane is led over them, higher above the top lane, where there is room."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    span, side = end[0] - start[0], _HEIGHT / 2
    style: dict[str, Any] = dict(
        arrowstyle="-|>,head_width=1.2,head_length=2.4", color="#333a42", linewidth=0.7, shrinkA=0, shrinkB=0, zorder=2
    )
    if span > 1 and start[1] == end[1]:
        left, right, foot = start[0] + 0.15, end[0] - 0.15, start[1] - side
        roof = foot - (0.2 + 0.04 * min(span, 7) if top else 0.15)
        points = [(left, foot), (left, roof), (left + 0.15, roof), (right - 0.15, roof), (right, roof), (right, foot)]
        codes = [Path.MOVETO, Path.CURVE3, Path.CURVE3, Path.LINETO, Path.CURVE3, Path.CURVE3]
        axes.add_patch(FancyArrowPatch(path=Path(points, codes), **style))
    else:
        first, last = (start[0] + _WIDTH / 2, start[1]), (end[0] - _WIDTH / 2, end[1])
        # Along the lower of the two lanes, where nothing else runs; up or down between the columns.
        turn = (start[0] if end[1] > start[1] else end[0] - 1) + 0.5
        points = [first, (turn, start[1]), (turn, end[1]), last]
        axes.add_patch(FancyArrowPatch(path=Path(points, [Path.MOVETO] + 3 * [Path.LINETO]), **style))


def _stub(axes: Any, spot: tuple[float, float], leaving: bool, other: str, number: int) -> None:
    """The end of an edge that goes on in another row."""
    x, y = spot
    side = _HEIGHT / 2
    text = f"{number} → {other}" if leaving else f"{other} → {number}"
    place = (x + 0.12, y + side + 0.16) if leaving else (x - 0.12, y - side - 0.16)
    axes.text(*place, text, fontsize=5.5, ha="center", va="center", color="#a03000", zorder=4)
