"""Thickness profiles of the report: what is drawn of which samples."""

import json

import numpy as np

from ophjax.train.report import figures
from ophjax.train.report.profiles import profiles
from ophjax.train.report.reading import Run


def run_of(samples, classes):
    return Run(None, {"classes": classes, "regions": ["rnfl", "gcipl"]}, [], [], samples, [])


def samples(n=6, columns=10):
    mask = np.zeros((n, 20, columns, 2), np.uint8)
    mask[:, 5:9, :, 0] = mask[:, 9:12, :, 1] = 1
    return {
        # As programs give them: by name, whatever the order of the layers.
        "profiles": np.repeat(np.array([[[3.0], [4.0]]]), n, 0).repeat(columns, 2),
        "profile_names": np.array(json.dumps(["gcipl", "rnfl"])),
        "mask": mask,
        "mask_weight": np.ones(n),
        "label": np.arange(n) % 2,
    }


def test_a_chart_for_each_layer_with_each_class():
    page = profiles(run_of(samples(), ["normal", "glaucoma"]))
    for layer in ("rnfl", "gcipl"):
        assert f"{layer}: thickness in rows" in page
    assert page.count("<svg") == 2
    for name in ("normal, predicted", "normal, true", "glaucoma, predicted", "glaucoma, true"):
        assert page.count(name) >= 2


def test_predicted_and_true_are_of_the_same_layer(monkeypatch):
    drawn = {}
    monkeypatch.setattr(figures, "line_chart", lambda curves, *, title, across: drawn.update({title: curves}) or "")
    profiles(run_of(samples(), []))
    for layer, rows in (("rnfl", 4), ("gcipl", 3)):
        for kind in ("predicted", "true"):
            assert set(drawn[f"{layer}: thickness in rows"][f"all, {kind}"].y) == {rows}


def test_without_classes_labels_or_masks():
    given = samples()
    assert "all, predicted" in profiles(run_of(given, []))
    blind = {name: value for name, value in given.items() if name not in ("mask", "label")}
    # A single curve needs no legend.
    assert profiles(run_of(blind, ["normal", "glaucoma"])).count("<svg") == 2
    unknown = given | {"label": np.full(6, -1)}
    page = profiles(run_of(unknown, ["normal", "glaucoma"]))
    assert "all, predicted" in page and "all, true" in page and "normal" not in page
    assert profiles(run_of({}, ["normal", "glaucoma"])) == ""
