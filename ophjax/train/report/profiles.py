"""Thickness of layers along a scan, predicted and true, as charts of the report."""

from __future__ import annotations

import json

import numpy as np

from ophjax.train.report import figures
from ophjax.train.report.figures import Curve
from ophjax.train.report.reading import Run


def profiles(run: Run) -> str:
    """Builds a chart for each layer: its mean thickness in each column, over the sample images of each class.

    Columns are given in percent of the scan's width and thickness in rows of the image that the net sees. Empty where
    the run has left no profiles.
    """
    samples = run.samples
    if "profiles" not in samples:
        return ""
    names = [str(name) for name in json.loads(str(samples["profile_names"]))]
    classes = [str(name) for name in run.config.get("classes", [])]
    count = len(samples["profiles"])
    labels = samples["label"] if "label" in samples else np.full(count, -1)
    groups = [(name, labels == k) for k, name in enumerate(classes)]
    groups = [(name, rows) for name, rows in groups if rows.any()] or [("all", np.ones(count, bool))]
    masked = samples["mask_weight"] > 0 if "mask_weight" in samples else np.zeros(count, bool)
    charts = []
    regions = [str(name) for name in run.config.get("regions", [])]
    for layer in filter(names.__contains__, regions):
        found, channel = samples["profiles"][:, names.index(layer)], regions.index(layer)
        x = (np.arange(found.shape[1]) + 0.5) * (100 / found.shape[1])
        curves: dict[str, Curve] = {}
        for name, rows in groups:
            curves[f"{name}, predicted"] = Curve(x, found[rows].mean(0))
            if "mask" in samples and (rows & masked).any():
                curves[f"{name}, true"] = Curve(x, (samples["mask"][rows & masked][..., channel] > 0).sum(1).mean(0))
        charts.append(figures.line_chart(curves, title=f"{layer}: thickness in rows", across="% of the scan's width"))
    return "".join(f"<div>{chart}</div>" for chart in charts)
