"""Drawn B-scans: layers in order, the label's rule, what does and does not tell it."""

import numpy as np
import pytest
from made import build, fails

from ophjax.data import bscans
from ophjax.metrics.ranking import auc


def test_examples():
    data = build("bscans", size=40, width=56, masks=6, val=3, test=3)
    assert data.regions == ("rnfl", "gcipl", "choroid") and data.classes == ("normal", "glaucoma")
    example = data.splits["masks"][0]
    assert example["image"].shape == example["mask"].shape == (40, 56, 3) and example["image"].dtype == np.uint8
    assert example["size"].tolist() == [56, 40]
    assert (example["mask"].sum(-1) <= 1).all(), "layers do not overlap"
    assert all(np.array_equal(v, build("bscans", size=40, width=56).splits["masks"][0][k]) for k, v in example.items())
    names = [name for part in ("masks", "val", "test") for name in data.splits[part].names]
    assert len(names) == len(set(names)) == 12 and data.splits["train"].names == data.splits["masks"].names


def test_layers_lie_in_their_order_and_have_their_thickness():
    for index in range(50):
        scene = bscans.draw_scene(7, index, 90)
        assert (np.diff(scene.edges[:6], axis=0) > 0).all() and scene.edges[5].max() < 1
        thick = 200 * (scene.edges[1] - scene.edges[0]) / scene.strength
        assert thick.min() >= 10 - 1e-9 and thick.max() <= 10 + 6 * 1.25
    assert bscans.diagnose(0.7499) == 1 and bscans.diagnose(0.75) == 0


def test_a_scene_is_the_same_at_any_size():
    small, large = (bscans.draw(3, 5, h, w)["mask"].mean((0, 1)) for h, w in ((100, 138), (400, 552)))
    np.testing.assert_allclose(small, large, rtol=0.03)


def test_the_first_layer_tells_and_nothing_else_does():
    """Over 600 scenes: the AUC of the mean thickness of RNFL is nearly 1, that of all else about one half."""
    scenes = [bscans.draw_scene(9, i, 60) for i in range(600)]
    labels = np.array([bscans.diagnose(scene.strength) for scene in scenes])
    assert 0.34 < labels.mean() < 0.5
    spans = np.array([np.diff(scene.edges[:6], axis=0).mean(1) for scene in scenes])
    assert auc(-spans[:, 0], labels) > 0.985
    others = {"top": np.array([s.edges[0].mean() for s in scenes]), "gcipl": spans[:, 1], "choroid": spans[:, 4]}
    for name, values in others.items():
        assert abs(auc(values, labels) - 0.5) < 0.07, name


@pytest.mark.parametrize(
    ("options", "word"),
    [({"size": 8}, "--data.size"), ({"size": 32, "width": 4}, "--data.width"), ({"seed": -1}, "--data.seed"),
     ({"masks": 0}, "masks"), ({"test": 200_000}, "100000")],
)  # fmt: skip
def test_wrong_settings(options, word):
    fails("bscans", word, **options)
