"""Scores taken apart: in each domain, and of each seed of those trained side by side."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from html import escape
from typing import Any

from ophjax.train.report.meanings import describe
from ophjax.train.report.reading import Run, is_number


def endings(run: Run) -> tuple[str, ...]:
    """How the names of scores end that belong to one domain only; none where there is one domain."""
    domains = [str(name) for name in run.config.get("domains", [])]
    return ("_worst", *(f"_{name}" for name in domains)) if len(domains) > 1 else ()


def by_domain(run: Run, numbers: Mapping[str, float]) -> str:
    """Makes the table of the scores (rows) in each domain (columns)."""
    columns = endings(run)
    bases = [name for name in numbers if columns and any(f"{name}{end}" in numbers for end in columns[1:])]
    if not bases:
        return ""
    head = "".join(f'<th scope="col">{escape(end[1:])}</th>' for end in ("_mean of targets", *columns))
    rows = ""
    for base in bases:
        cells = ""
        for end in ("", *columns):
            value, low, high = (numbers.get(f"{base}{end}{mark}") for mark in ("", "_low", "_high"))
            span = "" if low is None or high is None else f'<span class="small">{low:.2f} to {high:.2f}</span>'
            cells += f"<td>{'' if value is None else f'{value:.3f}'}{span}</td>"
        rows += f'<tr><th scope="row">{escape(describe(base)[0])}</th>{cells}</tr>'
    source = f'<p class="note">Learned on {escape(columns[1][1:])}; the others are the targets.</p>'
    return (
        f'<h3>By domain</h3><div class="scroll"><table class="confusion many"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{source}"
    )


def by_seed(numbers: Mapping[str, float], seeds: Mapping[str, Mapping[str, Any]]) -> str:
    """Makes the table of the scores of several seeds and of their ensemble, intervals left out."""
    if not seeds:
        return ""
    names = [
        name
        for name in numbers
        if not name.endswith(("_low", "_high")) and all(is_number(one.get(name)) for one in seeds.values())
    ]
    columns = [*(f"seed {seed}" for seed in seeds), "mean", "spread", "ensemble"]
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    rows = ""
    for name in names:
        found = [float(one[name]) for one in seeds.values()]
        values = [*found, statistics.mean(found), statistics.stdev(found), numbers[name]]
        cells = "".join(f"<td>{value:.3f}</td>" for value in values)
        rows += f'<tr><th scope="row">{escape(describe(name)[0])}</th>{cells}</tr>'
    return (
        f'<h3>By seed</h3><div class="scroll"><table class="confusion many"><thead><tr><td></td>{head}</tr></thead>'
        f'<tbody>{rows}</tbody></table></div><p class="note">Spread is the standard deviation over the seeds; the'
        " ensemble is the mean of their outputs, to which the scores above belong.</p>"
    )
