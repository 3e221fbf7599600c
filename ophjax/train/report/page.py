"""The report of a run: one self-contained HTML file, redrawn while the run goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ophjax.metrics import ranking
from ophjax.train.report import figures, gallery, panel
from ophjax.train.report.beside import beside
from ophjax.train.report.breakdown import by_domain, by_seed, endings
from ophjax.train.report.figures import Curve
from ophjax.train.report.meanings import MEANINGS, describe
from ophjax.train.report.profiles import profiles
from ophjax.train.report.reading import BOOKKEEPING, Run, decisions, elapsed, is_number, logged, read_run, series
from ophjax.train.report.style import LIGHT, STYLE
from ophjax.train.runfolder import write_whole

OVERLAPS = ("dice", "iou", "soft_dice", "soft_iou")

LISTED_APART = ("weight_", "skill_", "round_change", "soft_dice_round")
"""Scores that the section on raters shows, one for each rater or round."""

STATUS = {
    "finish": ("good", "finished"),
    "test": ("good", "tested"),
    "trained": ("busy", "trained, test to come"),
    "stop": ("idle", "stopped; can be resumed"),
    "diverged": ("bad", "diverged"),
}
"""What the last event of a run says about it: colour and words."""


def is_fresh(folder: Path) -> bool:
    """Whether the report was drawn after the run's last event."""
    page, events = folder / "report.html", folder / "metrics.jsonl"
    return page.exists() and page.stat().st_mtime >= events.stat().st_mtime


def write_report(folder: Path) -> Path:
    """Writes ``report.html`` into a run folder, from whatever of the run is there already.

    The page needs nothing but itself: no network, no script. It replaces the old one in one move, so that
    a reader never meets half a page.

    Returns:
      The path of the page.

    Raises:
      InputError: the folder does not exist or cannot be written.
    """
    run = read_run(Path(folder))
    page = render(run)
    target = run.folder / "report.html"
    write_whole(target, page.encode())
    return target


def render(run: Run) -> str:
    """Builds the page of a run as HTML text."""
    parts = (
        header(run),
        section("Scores", scores(run)),
        section("Training", training(run)),
        section("Beside another run", grid(found) if (found := beside(run)) else ""),
        section("Classification of the test split", ranks(run)),
        section("Raters", panel.panel(run)),
        section("Sample images", gallery.gallery(run)),
        section("Restored images", gallery.restored(run)),
        section("Attention maps", gallery.attention(run)),
        section("Maps of training images", gallery.exported(run)),
        section("Thickness of the layers", profile_charts(run)),
        section("Throughput", speed(run)),
        section("Reproduce and go on", commands(run)),
        section("Details", details(run)),
    )
    title = escape(f"{run.config.get('method', 'run')}: {run.folder.resolve().name}")
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark">\n<style>{STYLE}</style></head>\n'
        f"<body><main>\n{''.join(parts)}</main></body></html>\n"
    )


def section(title: str, body: str) -> str:
    """Wraps a part of the page; a part without content is left out."""
    return f"<section><h2>{title}</h2>{body}</section>\n" if body else ""


def note(text: str) -> str:
    return f'<p class="note">{text}</p>'


def grid(parts: Iterable[str]) -> str:
    """Puts parts side by side where the screen is wide enough."""
    return f'<div class="grid">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def duration(seconds: float) -> str:
    minutes, hours = round(seconds) // 60, round(seconds) // 3600
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {round(seconds) % 60} s" if minutes else f"{round(seconds)} s"


def header(run: Run) -> str:
    config, events = run.config, run.events
    kinds = [str(event.get("event")) for event in events]
    kind, status = STATUS.get(kinds[-1] if kinds else "", ("busy", "training (reload to see how far), or interrupted"))
    stages = [str(event.get("stage")) for event in events if event.get("event") == "stage"]
    steps = [event["step"] for event in events if is_number(event.get("step"))]
    facts = {
        "data": config.get("data", ""),
        "preset": config.get("preset", ""),
        "stages": " → ".join(stages),
        "steps": f"{max(steps)}" if steps else "",
        "time": duration(elapsed(events)) if events else "",
    }
    line = " · ".join(f"{escape(name)} <b>{escape(str(value))}</b>" for name, value in facts.items() if value)
    name, method = escape(run.folder.resolve().name), escape(str(config.get("method", "run")))
    return (
        f'<header><p class="name">{name}</p><h1>{method}'
        f' <span class="chip {kind}">{status}</span></h1><p>{line}</p>'
        f"{note(escape(str(config['note']))) if config.get('note') else ''}"
        f"{''.join(note(escape(text)) for text in run.notes)}</header>\n"
    )


def scores(run: Run) -> str:
    tests = [event for event in run.events if event.get("event") == "test"]
    evals = [event for event in run.events if event.get("event") == "eval"]
    if tests:
        source, where = tests[-1].get("scores", {}), f"the {tests[-1].get('split', 'test')} split"
    elif evals:
        where = f"the {evals[-1].get('split', 'val')} split after step {evals[-1].get('step')} (not tested yet)"
        source = {name: value for name, value in evals[-1].items() if name not in BOOKKEEPING}
    else:
        return note("Nothing has been scored yet.")
    numbers = {name: float(value) for name, value in source.items() if is_number(value)}
    rows, ends = "", ("_low", "_high", *endings(run))
    for name, value in numbers.items():
        if name.endswith(ends) or (name.startswith(LISTED_APART) and name != "weight_skill"):
            continue
        low, high = numbers.get(f"{name}_low"), numbers.get(f"{name}_high")
        short, meaning = describe(name)
        span = f"{low:.3f} to {high:.3f}" if low is not None and high is not None else ""
        bar = figures.interval_bar(value, low, high) if 0 <= value <= 1 else ""
        rows += (
            f'<tr><th scope="row">{escape(short)}<span class="small">{escape(meaning)}</span></th>'
            f'<td class="value"><b>{value:.3f}</b><span class="small">{span}</span>{bar}</td></tr>'
        )
    size = f" ({len(run.predictions)} examples)" if tests and run.predictions else ""
    explained = (
        "Below each value stands its 95 % bootstrap interval: how far the score could move with another sample"
        " of examples of the same kind. It does not include the spread between training seeds. Examples of one patient,"
        " slices of one volume and tiles of one image are drawn together where the data set knows them."
    )
    caution = str(run.config.get("caution", ""))
    return (
        f"<p>On {escape(where)}{size}.</p><table class=scores><tbody>{rows}</tbody></table>{by_domain(run, numbers)}"
        f"{by_seed(numbers, tests[-1].get('seeds', {}) if tests else {})}"
        f"{note(f'<b>Caution.</b> {escape(caution)}') if caution else ''}"
        f"{note(explained) if any(name.endswith('_low') for name in numbers) else ''}"
    )


def training(run: Run) -> str:
    events = run.events
    boundaries = [
        (str(event.get("stage")), event["step"])
        for event in events
        if event.get("event") == "stage" and is_number(event.get("step"))
    ]
    boundaries = boundaries if len(boundaries) > 1 else []

    def by_stage(name: str, title: str) -> str:
        return figures.line_chart(series(events, "train", name), title=title, boundaries=boundaries, noisy=True)

    groups: dict[str, dict[str, Curve]] = {}
    for name in logged(events, "eval"):
        if name.startswith(("weight_", "skill_", "round_change")):
            continue
        if name.endswith(("_low", "_high", *endings(run)[:1], *endings(run)[2:])):  # of the domains, the source only
            continue
        for curve in series(events, "eval", name).values():
            group = f"Validation: {name}"
            if curve.y.min() >= 0 and curve.y.max() <= 1:
                overlap = next((start for start in OVERLAPS if f"{name}_".startswith(f"{start}_")), None)
                group = f"Validation: {MEANINGS[overlap][0] if overlap else 'scores'}"
            known = groups.setdefault(group, {}).get(describe(name)[0])
            groups[group][describe(name)[0]] = figures.joined(known, curve) if known else curve
    train = logged(events, "train")
    charts = [by_stage("loss", "Training loss")] if "loss" in train else []
    others = [by_stage(name, f"Training: {name}") for name in train if name != "loss"]
    for title, curves in groups.items():
        names = list(curves)
        main = title in ("Validation: Dice", "Validation: scores")
        for start in range(0, len(names), len(LIGHT)):
            part = {name: curves[name] for name in names[start : start + len(LIGHT)]}
            (charts if main else others).append(figures.line_chart(part, title=title, boundaries=boundaries))
    page = grid(charts) if charts else note("No step has been logged yet.")
    if others:
        page += f"<details><summary>More curves ({len(others)})</summary>{grid(others)}</details>"
    return page


def ranks(run: Run) -> str:
    """Draws the ROC curve and the confusion matrix from predictions.csv, where it holds decisions."""
    found = decisions(run)
    if found is None:
        return ""
    probs, labels, predicted, patients, classes = found
    lines: dict[str, Curve] = {}
    for k in range(len(classes)) if len(classes) > 2 else [1]:
        truth = (labels == k).astype(np.int64)
        if 0 < truth.sum() < len(truth) and len(lines) < len(LIGHT):
            low, high = ranking.roc_band(probs[:, k], truth, np.linspace(0, 1, 101), clusters=patients, samples=500)
            name = f"{classes[k]}, AUC {ranking.auc(probs[:, k], truth):.3f}"
            lines[name] = Curve(*ranking.roc(probs[:, k], truth), low, high)
    if lines:
        title = "ROC, one class against the rest" if len(classes) > 2 else f"ROC of {next(iter(lines))}"
        chart = figures.roc_chart(lines, title=title) + note("Shaded: pointwise 95 % bootstrap interval.")
    else:
        chart = note("The ROC curve needs examples of more than one class.")
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in classes)
    rows = ""
    for name, row in zip(classes, ranking.confusion(predicted, labels, len(classes)), strict=True):
        cells = ""
        for count in row:
            share = count / max(row.sum(), 1.0)
            tone = " class=deep" if share > 0.5 else ""
            percent = f'<span class="small">{share:.0%}</span>'
            cells += f'<td style="--share:{share:.2f}"{tone}>{count:.0f}{percent}</td>'
        rows += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    rule = "decided at probability 0.5" if len(classes) == 2 else "the most probable class is predicted"
    if "predicted" in run.samples:  # those of an ordinal head
        rule = "the grade is how many of P(grade ≥ 1), P(grade ≥ 2), ... are above one half"
    width = " many" if len(classes) > 2 else ""
    matrix = (
        f'<h3>Confusion matrix</h3><div class="scroll"><table class="confusion{width}">'
        f"<thead><tr><td>true ↓<br>predicted →</td>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        f"{note(f'Number of examples, and its share of the true class; {rule}.')}"
    )
    return grid([chart, matrix])


def profile_charts(run: Run) -> str:
    charts = profiles(run)
    return f'<div class="grid">{charts}</div>{note("Means over the sample images of each class.")}' if charts else ""


def speed(run: Run) -> str:
    curves = series(run.events, "train", "images_per_s")
    if not curves:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(stage)}</th><td class="value"><b>{np.median(curve.y):,.1f}</b> images/s</td></tr>'
        for stage, curve in curves.items()
    )
    start = next((event for event in run.events if event.get("event") == "start"), {})
    machine = f"Devices: {start['devices']}. " if "devices" in start else ""
    return (
        f"<table class=scores><tbody>{rows}</tbody></table>"
        f"{note(escape(machine) + 'Median over the training of each stage, waiting for data included.')}"
    )


def commands(run: Run) -> str:
    command = str(run.config.get("command", ""))
    if not command:
        return ""
    resume = command if "--resume" in command.split() else f"{command} --resume"
    lines = {
        "The command of this run": command,
        "Go on after a stop": resume,
    }
    return "".join(f"<h3>{title}</h3><pre>{escape(line)}</pre>" for title, line in lines.items())


def details(run: Run) -> str:
    start = next((event for event in run.events if event.get("event") == "start"), {})
    counts = start.get("parameters", {})
    tables = {
        "Configuration": flatten(run.config.get("config", {})),
        "Parameters of each network": {name: f"{count:,}" for name, count in counts.items() if is_number(count)},
        "Versions": flatten(run.config.get("versions", {})),
    }
    return "".join(
        f'<details><summary>{title} ({len(table)})</summary><table class="plain"><tbody>'
        + "".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(str(v))}</td></tr>' for k, v in table.items())
        + "</tbody></table></details>"
        for title, table in tables.items()
        if table
    )


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Lists a nested configuration as ``{"train.batch_size": 16}``."""
    if isinstance(tree, Mapping):
        parts = [flatten(value, f"{prefix}.{name}" if prefix else str(name)) for name, value in tree.items()]
        return {name: value for part in parts for name, value in part.items()}
    return {prefix: tree}
