"""Drawn pairs: the rule, what one modality can tell at most, and that each tells no more."""

import numpy as np
import pytest
from made import build, fails

from ophjax.data import eyes
from ophjax.metrics.gamma import kappa


def test_examples():
    data = build("eyes", size=32, oct_size=16, slices=4, train=5, val=2, test=2)
    assert data.regions == ("disc", "cup") and data.classes == ("non", "early", "mid_advanced")
    example = data.splits["train"][0]
    assert example["image"].shape == (32, 32, 3) and example["image"].dtype == np.uint8
    assert example["volume"].shape == (16, 16, 4) and example["volume"].dtype == np.uint8
    assert (example["mask"][..., 1] <= example["mask"][..., 0]).all() and example["mask"][..., 0].any()
    again = build("eyes", size=32, oct_size=16, slices=4).splits["train"][0]
    assert all(np.array_equal(value, again[name]) for name, value in example.items())


def test_grades():
    assert [eyes.grade(v, t, "sum") for v, t in ((0.4, 0.5), (0.6, 0.5), (0.9, 0.5), (1.0, 0.0))] == [0, 1, 2, 2]
    assert [eyes.grade(v, t, "xor") for v, t in ((0.6, 0.6), (0.6, 0.4), (0.4, 0.6), (0.4, 0.4))] == [0, 2, 2, 0]
    scenes = [eyes.draw_scene(5, i) for i in range(4000)]
    counts = np.bincount([eyes.grade(s.ratio, s.thickness, "sum") for s in scenes]) / 4000
    np.testing.assert_allclose(counts, [0.5, 0.26, 0.24], atol=0.025)


def test_ceilings():
    """As the specification's Monte Carlo found: 0.534 and 0.594; and as scores of drawn scenes."""
    found = eyes.ceilings()
    assert found["argmax"] == pytest.approx(0.534, abs=0.004) and found["tuned"] == pytest.approx(0.594, abs=0.002)
    assert eyes.ceilings("xor") == {"argmax": 0, "tuned": 0}
    scenes = [eyes.draw_scene(6, i) for i in range(4000)]
    for rule in ("sum", "xor"):
        labels = np.array([eyes.grade(s.ratio, s.thickness, rule) for s in scenes])
        for values in (np.array([s.ratio for s in scenes]), 1 - np.array([s.thickness for s in scenes])):
            cuts = np.linspace(0, 1, 21)
            reached = max(
                kappa((values > low).astype(int) + (values > high), labels)
                for low in cuts
                for high in cuts
                if low <= high
            )
            assert abs(reached - eyes.ceilings(rule)["tuned"]) < 0.05
        both = np.array([eyes.grade(s.ratio, s.thickness, rule) for s in scenes])
        assert kappa(both, labels) == 1


def test_each_modality_shows_its_own_number():
    """The cup's height in the mask is v, the band's brightness sum grows with t, and neither follows the other."""
    config = eyes.Config(seed=7, size=64, oct_size=32, slices=4)
    examples = [eyes.draw(config, i) for i in range(150)]
    scenes = [eyes.draw_scene(7, i) for i in range(150)]
    heights = np.array([[e["mask"][..., i].any(1).sum() for i in (0, 1)] for e in examples])
    ratio, thick = np.array([s.ratio for s in scenes]), np.array([s.thickness for s in scenes])
    np.testing.assert_allclose(heights[:, 1] / heights[:, 0], ratio, atol=0.09)
    bright = np.array([(e["volume"] > 110).mean() for e in examples])
    assert np.corrcoef(bright, thick)[0, 1] > 0.8 and abs(np.corrcoef(bright, ratio)[0, 1]) < 0.25
    for example, scene in zip(examples, scenes, strict=True):
        x, y = (example["fovea"]).astype(int)
        assert example["image"][y, x].sum() < np.median(example["image"].sum(-1)) and scene.fovea != scene.disc


@pytest.mark.parametrize(
    ("options", "word"),
    [({"size": 8}, "--data.size"), ({"oct_size": 8}, "--data.oct-size"), ({"train": 0}, "--data.train"),
     ({"slices": 0}, "--data.slices"), ({"test": 200_000}, "--data.test")],
)  # fmt: skip
def test_wrong_settings(options, word):
    fails("eyes", word, **({"size": 32} | options))
