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
    lanes = [max(lane[i] for i in range(len(depth)) if depth[i] // columns == row) + 1 for row in range(rows)]
    tops = [sum(lanes[:row]) + 0.9 * row for row in range(rows)]
    spots = [(depth[i] % columns, tops[depth[i] // columns] + lane[i]) for i in range(len(depth))]
    wide = min(columns, max(depth) + 1)
    height = tops[-1] + lanes[-1]
    figure = Figure(figsize=(max(0.82 * wide + 0.6, 7), 0.5 * height + 1.3), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.9, max(wide, 8) - 0.1), ylim=(height - 0.3, -1.2))
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
            _arrow(axes, spots[source], spots[target])
        else:
            stubs.setdefault((source, True), []).append(target)
            stubs.setdefault((target, False), []).append(source)
    for (i, leaving), others in stubs.items():
        _stub(axes, spots[i], leaving, ", ".join(map(str, sorted(others))), i)
    used = graph.counts()
    legend = [
        Patch(facecolor=colour, edgecolor="#333a42", linewidth=0.7, label=name)
        for name, (colour, ops) in _GROUPS.items()
        if any(op in used for op in ops)
    ]
    if any(leaf.path in own for node in graph.nodes for leaf in node.leaves):
        legend.append(Patch(facecolor="white", edgecolor="#333a42", linestyle="--", label="own initialiser"))
    axes.set_title(title, loc="left", fontsize=11)
    figure.legend(handles=legend, loc="outside lower left", ncols=6, fontsize=7, frameon=False)
    return figure


def _places(graph: ModuleGraph) -> tuple[list[int], list[int]]:
    """The column of each node, its longest distance from the input, and its lane: that of its first source if free."""
    before: list[list[int]] = [[] for _ in graph.nodes]
    for source, target in graph.edges:
        before[target].append(source)
    depth: list[int] = []
    lane: list[int] = []
    taken: set[tuple[int, int]] = set()
    for sources in before:
        depth.append(max((depth[i] + 1 for i in sources), default=0))
        free = min((lane[i] for i in sources), default=0)
        while (depth[-1], free) in taken:
            free += 1
        lane.append(free)
        taken.add((depth[-1], free))
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


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """An arrow; over boxes in between it is an arc above them."""
    far = end[0] - start[0] > 1 and start[1] == end[1]
    style = dict(arrowstyle="-|>,head_width=0.1,head_length=0.2", color="#333a42", linewidth=0.7)
    if far:
        bend = min(0.45, 0.1 + 0.9 / (end[0] - start[0]))
        ends = (start[0] + 0.1, start[1] - _HEIGHT / 2), (end[0] - 0.1, end[1] - _HEIGHT / 2)
        style["connectionstyle"] = f"arc3,rad=-{bend}"
    else:
        ends = (start[0] + _WIDTH / 2, start[1]), (end[0] - _WIDTH / 2, end[1])
    axes.annotate("", xy=ends[1], xytext=ends[0], arrowprops=dict(style, shrinkA=0, shrinkB=0), zorder=2)


def _stub(axes: Any, spot: tuple[float, float], leaving: bool, other: str, number: int) -> None:
    """The end of an edge that goes on in another row."""
    x, y = spot
    side = _HEIGHT / 2
    text = f"{number} → {other}" if leaving else f"{other} → {number}"
    place = (x + 0.12, y + side + 0.16) if leaving else (x - 0.12, y - side - 0.16)
    axes.text(*place, text, fontsize=5.5, ha="center", va="center", color="#a03000", zorder=4)
