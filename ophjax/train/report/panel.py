"""The report's section on raters: what they are worth and how they are weighed, round by round and pixel by pixel.

It is drawn from scores by name: ``weight_RATER``, ``skill_RATER``, ``soft_dice_roundT``, ``round_changeT``,
``disagreement_before`` and ``_after``; and from the samples ``raters`` and ``rater_maps``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape

import numpy as np

from ophjax.train.report import figures, gallery
from ophjax.train.report.figures import Curve
from ophjax.train.report.reading import Run, is_number

PICTURES = 3
"""Sample images whose maps are shown."""


def panel(run: Run) -> str:
    """Builds the section; empty where the run knows no raters or has not been tested."""
    names = [str(name) for name in run.config.get("raters", [])]
    tests = [event for event in run.events if event.get("event") == "test"]
    source = tests[-1].get("scores", {}) if tests else {}
    numbers = {name: float(value) for name, value in source.items() if is_number(value)}
    if not names or not numbers:
        return ""
    charts = [chart for chart in (weighed(names, numbers), *rounds(numbers)) if chart]
    side = "".join(f"<div>{chart}</div>" for chart in charts)
    page = f'<div class="grid">{side}</div>' if charts else ""
    return page + table(names, numbers) + agreement(numbers) + maps(run, names)


def weighed(names: list[str], numbers: Mapping[str, float]) -> str:
    """Draws each rater's weight over its skill."""
    known = [name for name in names if f"weight_{name}" in numbers and f"skill_{name}" in numbers]
    if not known:
        return ""
    points = {name: (numbers[f"skill_{name}"], numbers[f"weight_{name}"]) for name in known}
    level = (f"equal weights, 1/{len(names)}", 1 / len(names))
    across, up = "skill: Dice with the truth", "mean weight where raters differ"
    return figures.point_chart(points, title="Weight over skill", across=across, up=up, level=level)


def rounds(numbers: Mapping[str, float]) -> list[str]:
    """Draws the scores over the rounds of inference, and by how much the probabilities still change."""
    charts = []
    for pattern, title in (
        (r"soft_dice_round(\d+)", "Soft Dice by round"),
        (r"round_change(\d+)", "Change from the round before"),
    ):
        found = sorted((int(m[1]), value) for name, value in numbers.items() if (m := re.fullmatch(pattern, name)))
        if len(found) > 1:
            x, y = np.array(found, np.float64).T
            curve = {title: Curve(x, y)}
            charts.append(figures.line_chart(curve, title=title, across="round"))
    return charts


def table(names: list[str], numbers: Mapping[str, float]) -> str:
    """Lists each rater with its skill and weight."""
    rows = ""
    for name in names:
        cells = ""
        for kind in ("skill", "weight"):
            value = numbers.get(f"{kind}_{name}")
            cells += f"<td>{'' if value is None else f'{value:.3f}'}</td>"
        rows += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    head = '<th scope="col">skill</th><th scope="col">weight</th>'
    note = f"Skill is the Dice of a rater with what the scores take for the truth. Equal weights: {1 / len(names):.3f}."
    listed = f'<table class="confusion many"><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="scroll">{listed}</div><p class="note">{note}</p>'


def agreement(numbers: Mapping[str, float]) -> str:
    """Says how much raters disagreed, and how much they do as weighed."""
    if not {"disagreement_before", "disagreement_after"} <= numbers.keys():
        return ""
    before, after = numbers["disagreement_before"], numbers["disagreement_after"]
    return (
        f"<p>Disagreement: <b>{before:.3f}</b> under equal weights, <b>{after:.3f}</b> under the learned ones.</p>"
        '<p class="note">The sum of y (1 - y) over the area of the fused label y: 0 where those who count agree.</p>'
    )


def maps(run: Run, names: list[str]) -> str:
    """Draws, for a few images, each rater's outlines and the expertness given to it, pixel by pixel."""
    samples = run.samples
    if not {"image", "rater_maps"} <= samples.keys():
        return ""
    rows = ""
    for i in range(min(PICTURES, len(samples["rater_maps"]))):
        image, weights = samples["image"][i], np.asarray(samples["rater_maps"][i], np.float64)
        ratio = image.shape[1] / image.shape[0]
        grey = np.round(image[..., :3] @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
        plain = gallery.picture(gallery.data_uri(grey), f"rated{i}", ratio=ratio, label="image")
        # Of nested regions the last one is where raters differ most; one scale for all raters.
        shown = weights[..., -1]
        cells = f"<figure>{plain}<figcaption>image</figcaption></figure>"
        for r, name in enumerate(names[: len(shown)]):
            there = "rater_weight" not in samples or samples["rater_weight"][i][r] > 0
            lines = samples["raters"][i][r] if "raters" in samples and there else None
            drawn = gallery.overlay(f"rated{i}", shown[r], ratio=ratio, label=f"expertness, {name}", top=shown.max())
            if lines is not None:
                paths = "".join(
                    f'<path class="truth" d="{gallery.outline(one)}"/>' for one in np.moveaxis(lines, -1, 0)
                )
                drawn = drawn.replace("</svg>", f"{paths}</svg>")
            share = f" {shown[r].mean():.2f}" if there else " (did not draw this image)"
            cells += f"<figure>{drawn}<figcaption>{escape(name)}{share}</figcaption></figure>"
        words = f'<span class="name">{escape(gallery.name_of(run, i))}</span>'
        rows += f'<p class="caption">{words}</p><div class="maps">{cells}</div>'
    regions = [str(name) for name in run.config.get("regions", [])]
    of = f" for the {escape(regions[-1])}" if regions else ""
    return (
        f'<h3>Expertness maps</h3><p class="note">White: what each rater drew. Colour: the weight{of} that is given to'
        f" the rater there, found without seeing what was drawn; yellow is the greatest of an image.</p>{rows}"
    )
