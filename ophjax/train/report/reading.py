"""Reads what a run has left in its folder, whole or half-way."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ophjax.errors import InputError
from ophjax.train.logs import read_events
from ophjax.train.report.figures import Curve

BOOKKEEPING = ("event", "stage", "split", "step", "time", "images_per_s")
"""Entries of an event that are neither a score nor a loss."""


class Run(NamedTuple):
    """What a run folder holds so far; absent parts are empty, unreadable ones are named in ``notes``."""

    folder: Path
    config: dict[str, Any]
    events: list[dict[str, Any]]
    predictions: list[dict[str, str]]
    samples: dict[str, np.ndarray]
    notes: list[str]


def read_run(folder: Path) -> Run:
    """Reads a run folder. Files may be absent; one that cannot be read is noted, not fatal."""
    if not folder.is_dir():
        raise InputError(
            f"There is no run folder {str(folder)!r}. Give the folder that a run wrote, one that holds"
            " config.json and metrics.jsonl."
        )
    notes: list[str] = []

    def attempt(name: str, read: Callable[[Path], Any], absent: Any) -> Any:
        path = folder / name
        if not path.exists():
            return absent
        try:
            return read(path)
        except Exception as error:  # damaged files make json, zipfile, zlib and NumPy raise nearly anything
            notes.append(f"{name} could not be read ({type(error).__name__}: {error}).")
            return absent

    return Run(
        folder,
        attempt("config.json", lambda path: dict(json.loads(path.read_text(encoding="utf-8"))), {}),
        attempt("metrics.jsonl", lambda path: latest(read_events(path)), []),
        attempt("predictions.csv", _read_rows, []),
        attempt("samples.npz", _read_arrays, {}),
        notes,
    )


def _read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    # Given a path, NumPy leaves the file open when it is no archive.
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def latest(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Orders events as if the run had never been interrupted: of a step run twice the later line stays."""
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, event in enumerate(events):
        kind, step = event.get("event"), event.get("step")
        if kind == "resume" and is_number(step):
            # What lay beyond the checkpoint was lost with the process that computed it.
            kept = {key: old for key, old in kept.items() if len(key) == 1 or old["step"] <= step}
        once = kind in ("train", "eval", "stage") and is_number(step)
        key = (kind, event.get("stage"), event.get("split"), step) if once else (number,)
        kept.pop(key, None)
        kept[key] = event
    return list(kept.values())


def is_number(value: Any) -> bool:
    """Whether a logged value is a finite number (a score that diverged is logged as None)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def logged(events: Iterable[Mapping[str, Any]], kind: str) -> list[str]:
    """Names everything that events of one kind have logged as numbers, in order of appearance."""
    found: dict[str, None] = {}
    for event in events:
        if event.get("event") == kind:
            found |= {name: None for name, value in event.items() if name not in BOOKKEEPING and is_number(value)}
    return list(found)


def series(events: Iterable[Mapping[str, Any]], kind: str, name: str) -> dict[str, Curve]:
    """Collects one logged value over the steps: a curve for each stage, with its interval if one was logged."""
    points: dict[str, list[tuple[float, ...]]] = {}
    for event in events:
        if event.get("event") == kind and is_number(event.get(name)) and is_number(event.get("step")):
            ends = [event[end] if is_number(event.get(end)) else math.nan for end in (f"{name}_low", f"{name}_high")]
            points.setdefault(str(event.get("stage", "")), []).append((event["step"], event[name], *ends))
    curves = {}
    for stage, rows in points.items():
        x, y, low, high = np.array(sorted(rows), np.float64).T
        banded = bool(np.isfinite(low + high).all())
        curves[stage] = Curve(x, y, low if banded else None, high if banded else None)
    return curves


def elapsed(events: Iterable[Mapping[str, Any]]) -> float:
    """Adds up the seconds that the run was at work; the time between a stop and a resume does not count."""
    total, before = 0.0, None
    for event in events:
        now = event.get("time")
        if is_number(now):
            if before is not None and event.get("event") not in ("start", "resume"):
                total += max(0.0, now - before)
            before = now
    return total


class Decisions(NamedTuple):
    """Of the images whose label is known: probabilities [n, k], labels, predicted classes and, where some are of one
    patient, patients; names of the classes."""

    probs: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    patients: np.ndarray | None
    classes: list[str]


def decisions(run: Run) -> Decisions | None:
    """Reads what a classifier decided; None where there is nothing of it."""
    rows, classes = run.predictions, [str(name) for name in run.config.get("classes", [])]
    if not rows or len(classes) < 2:
        return None
    columns = ["prob"] if "prob" in rows[0] else [name for name in rows[0] if name.startswith("prob_")]
    try:
        probs = np.array([[float(row[name]) for name in columns] for row in rows])
        labels, predicted = (np.array([int(row[name]) for row in rows]) for name in ("label", "predicted"))
        patients = np.array([int(row["patient"]) for row in rows]) if "patient" in rows[0] else None
    except (KeyError, TypeError, ValueError):  # no such column, a row cut short, or no number
        return None
    if columns == ["prob"]:
        probs = np.concatenate([1 - probs, probs], 1)
    known = labels >= 0
    probs, labels, predicted = probs[known], labels[known], predicted[known]
    patients = None if patients is None else patients[known]
    if not known.any():
        return None
    indices = np.concatenate([labels, predicted])
    fits = probs.shape[1] == len(classes) and indices.min() >= 0 and indices.max() < len(classes)
    return Decisions(probs, labels, predicted, patients, classes) if fits and np.isfinite(probs).all() else None
