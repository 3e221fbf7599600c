"""Charts of the report, as inline SVG.

Charts are drawn by Matplotlib without pyplot, so no global state and no window system is involved. Colours
are written as CSS variables, so that the page's light and dark themes apply to the charts; text stays text.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ophjax.train.report.style import LIGHT

if TYPE_CHECKING:
    Array = np.ndarray

INK = "#010101"
# Colours alone do not tell seven lines apart in print.
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), "-.", (0, (7, 1, 1, 1, 1, 1)), (0, (3, 2)), (0, (1, 2)))
# A chart is drawn at the width of a phone; wider screens put several side by side.
SIZE = (3.9, 2.7)
POINTS = 250


class Curve(NamedTuple):
    """A line of a chart, with an optional band around it."""

    x: Array
    y: Array
    low: Array | None = None
    high: Array | None = None


def joined(first: Curve, second: Curve) -> Curve:
    """Puts one curve after another; bands stay where both have one."""
    x, y = np.concatenate([first.x, second.x]), np.concatenate([first.y, second.y])
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return Curve(x, y)
    return Curve(x, y, np.concatenate([first.low, second.low]), np.concatenate([first.high, second.high]))


def thin(curve: Curve) -> Curve:
    """Reduces a long curve to at most POINTS points, each the mean of a run of its neighbours."""
    if len(curve.x) <= POINTS:
        return curve
    parts = np.array_split(np.arange(len(curve.x)), POINTS)

    def means(values: Array) -> Array:
        return np.array([values[part].mean() for part in parts])

    if curve.low is None or curve.high is None:
        return Curve(means(curve.x), means(curve.y))
    return Curve(means(curve.x), means(curve.y), means(curve.low), means(curve.high))


def smoothed(values: Array) -> Array:
    """Averages each value with its neighbours within a fortieth of the curve to either side."""
    reach = len(values) // 40
    total = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - reach, 0)
    last = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    return (total[last] - total[first]) / (last - first)


def line_chart(
    curves: Mapping[str, Curve],
    *,
    title: str,
    boundaries: Sequence[tuple[str, float]] = (),
    noisy: bool = False,
    across: str = "step",
) -> str:
    """Draws curves over training steps, or over something else.

    Args:
      curves: by name; where there are several, a legend names them.
      title: what the vertical axis shows.
      boundaries: name and first step of each stage of training, marked by vertical lines.
      noisy: values of single batches: draw a running mean over them, on a logarithmic axis where they span
        more than a factor of 20.
      across: what the horizontal axis shows.

    Returns:
      An ``<svg>`` element.
    """
    figure, axes = _blank()
    for number, (name, curve) in enumerate(curves.items()):
        curve, colour, dashes = thin(curve), LIGHT[number % len(LIGHT)], DASHES[number % len(DASHES)]
        # Bands of more than three curves hide one another.
        if curve.low is not None and curve.high is not None and len(curves) <= 3:
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
        if noisy and len(curve.x) >= 40:
            axes.plot(curve.x, curve.y, color=colour, alpha=0.3, linewidth=0.8)
            axes.plot(curve.x, smoothed(curve.y), color=colour, linewidth=1.6, label=name)
        else:
            marker = "o" if len(curve.x) <= 25 and not noisy else None
            axes.plot(
                curve.x,
                curve.y,
                color=colour,
                linestyle=dashes,
                marker=marker,
                markersize=3,
                linewidth=1.6,
                label=name,
            )
    values = np.concatenate([curve.y for curve in curves.values()])
    if noisy and values.min() > 0 and values.max() > 20 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    for name, step in boundaries:
        axes.axvline(step, color=INK, alpha=0.35, linewidth=0.8, linestyle=(0, (2, 2)))
        axes.annotate(
            name, (step, 1.0), xycoords=("data", "axes fraction"), xytext=(2, 2), textcoords="offset points",
            fontsize=7.5, annotation_clip=False,
        )  # fmt: skip
    axes.set_xlabel(across, fontsize=9)
    if across != "step":
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(title, loc="left", pad=14 if boundaries else 6, fontsize=10)
    _legend(figure, curves)
    return _svg(figure, title, curves)


def point_chart(
    points: Mapping[str, tuple[float, float]], *, title: str, across: str, up: str, level: tuple[str, float]
) -> str:
    """Draws named points; a dotted line at some height is named too. Returns an ``<svg>`` element."""
    figure, axes = _blank(height=3.1)
    name, height = level
    axes.axhline(height, color=INK, alpha=0.4, linestyle=(0, (1, 2)), linewidth=1)
    for number, (x, y) in enumerate(points.values()):
        colour, marker = LIGHT[number % len(LIGHT)], "osD^v<>P*X"[number // len(LIGHT) % 10]
        axes.plot([x], [y], marker, color=colour, markersize=6, label=list(points)[number])
    axes.margins(0.12)
    axes.annotate(
        name, (0.0, height), xycoords=("axes fraction", "data"), xytext=(3, 3), textcoords="offset points", fontsize=7.5
    )
    axes.set_xlabel(across, fontsize=9)
    axes.set_ylabel(up, fontsize=9)
    axes.set_title(title, loc="left", fontsize=10)
    _legend(figure, points)
    return _svg(figure, title, points)


def roc_chart(curves: Mapping[str, Curve], *, title: str) -> str:
    """Draws ROC curves with their bands; the dotted diagonal is a guess. Returns an ``<svg>`` element."""
    figure, axes = _blank(height=3.7)
    axes.plot([0, 1], [0, 1], color=INK, alpha=0.4, linestyle=(0, (1, 2)), linewidth=1)
    for number, (name, curve) in enumerate(curves.items()):
        colour = LIGHT[number % len(LIGHT)]
        # The band has a grid of its own: x of a band is evenly spaced, x of the curve has one entry per cut.
        if curve.low is not None and curve.high is not None:
            grid = np.linspace(0, 1, len(curve.low))
            axes.fill_between(grid, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
        x, y = curve.x, curve.y
        if len(x) > POINTS:
            x = np.linspace(0, 1, POINTS)
            y = np.interp(x, curve.x, curve.y)
        axes.plot(x, y, color=colour, linestyle=DASHES[number % len(DASHES)], linewidth=1.8, label=name)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set_xlabel("false positive rate (1 - specificity)", fontsize=9)
    axes.set_ylabel("true positive rate (sensitivity)", fontsize=9)
    axes.set_title(title, loc="left", fontsize=10)
    _legend(figure, curves if len(curves) > 1 else {}, columns=1)
    return _svg(figure, title, curves)


def _blank(height: float = SIZE[1]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SIZE[0], height), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=INK, alpha=0.5)
    axes.tick_params(color=INK, labelcolor=INK, labelsize=8.5)
    return figure, axes


def _legend(figure: Any, names: Mapping[str, Any], columns: int = 2) -> None:
    if len(names) > 1:
        figure.legend(loc="outside lower left", ncols=columns, frameon=False, fontsize=8, handlelength=2.4)


def _svg(figure: Any, title: str, names: Iterable[str]) -> str:
    """Writes a figure as an SVG element that takes its colours and its font from the page."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    # Ids are hashed with what the chart shows, so that several charts can stand in one page.
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": " ".join([title, *names]), "text.parse_math": False}
    for text in figure.findobj(match=matplotlib.text.Text):
        text.set(color=INK, parse_math=False)
    file = io.StringIO()
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # The browser has glyphs that Matplotlib's own font lacks, and it is the browser that draws them.
        warnings.filterwarnings("ignore", message=r"(?s).*Glyph.*missing")
        # Not by savefig, which draws a figure twice where its layout is constrained.
        FigureCanvasSVG(figure).print_svg(file, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", "system-ui, sans-serif", text)
    for number, colour in enumerate(LIGHT):
        text = text.replace(colour, f"var(--c{number})")
    text = text.replace(INK, "currentColor")
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", text)
    head = f'<svg class="chart" role="img" aria-label="{html.escape(title)}"'
    text = re.sub(r'^<svg[^>]*?( viewBox="[^"]+")[^>]*>', lambda found: f"{head}{found[1]}>", text)
    return re.sub(r">\s+<", "><", text.replace("xlink:href", "href"))


def interval_bar(value: float, low: float | None, high: float | None) -> str:
    """Draws a score in [0, 1] and its interval as a small bar."""
    low, high = (value if low is None else low), (value if high is None else high)
    left, right, mark = (100 * min(max(x, 0.0), 1.0) for x in (low, high, value))
    return (
        '<svg class="bar" viewBox="-2 0 104 8" aria-hidden="true"><path class="rail" d="M0 4H100"/>'
        f'<path class="span" d="M{left:.1f} 4H{right:.1f}"/><circle cx="{mark:.1f}" cy="4" r="2.6"/></svg>'
    )
