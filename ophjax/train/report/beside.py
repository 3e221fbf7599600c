"""A section of the report: this run's curves beside those of another run, such as one with another start."""

from __future__ import annotations

from html import escape
from pathlib import Path

from ophjax.errors import InputError
from ophjax.train.report import figures
from ophjax.train.report.reading import Run, logged, read_run, series

SCORES = 3
"""Validation scores that are drawn: the first ones that both runs have."""


def beside(run: Run) -> list[str]:
    """Draws the training loss and the first validation scores of two runs; nothing without another run."""
    folder = run.config.get("beside")
    if not folder:
        return []
    try:
        other = read_run(Path(folder))
    except InputError as error:
        return [f'<p class="note">{escape(str(error))}</p>']
    mine, theirs = run.folder.resolve().name, other.folder.resolve().name
    names = [("train", "loss", "Training loss")]
    common = [
        name
        for name in logged(run.events, "eval")
        if name in logged(other.events, "eval") and not name.endswith(("_low", "_high"))
    ]
    names += [("eval", name, f"Validation: {name}") for name in common[:SCORES]]
    charts = []
    for kind, name, title in names:
        curves = {}
        for label, events in ((mine, run.events), (theirs, other.events)):
            found = series(events, kind, name)
            for stage, curve in found.items():
                curves[f"{label}: {stage}" if len(found) > 1 else label] = curve._replace(low=None, high=None)
        if curves:
            charts.append(figures.line_chart(curves, title=title, noisy=kind == "train"))
    return charts
