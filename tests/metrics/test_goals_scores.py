"""Scores of GOALS: the golden values of its spec, section (k), and the edge cases of section (h)."""

import numpy as np
import pytest

from ophjax.errors import InputError
from ophjax.metrics import goals, overlap
from ophjax.metrics.greys import GOALS, decode, encode


def band(first, last, columns=slice(None), size=(100, 200)):
    region = np.zeros(size, bool)
    region[first : last + 1, columns] = True
    return region


LAYER = band(40, 59)


def test_shifted_layer():
    found = band(42, 61)
    assert overlap.dice(found, LAYER) == pytest.approx(0.9, abs=1e-9)
    assert overlap.edge_distance(found, LAYER) == pytest.approx(2.0, abs=1e-9)
    assert overlap.edge_distance(found, LAYER, border=True) == pytest.approx(1.8256880734, abs=1e-9)


def test_thicker_layer():
    found = band(40, 64)
    assert overlap.dice(found, LAYER) == pytest.approx(0.8888888889, abs=1e-9)
    for pair in ((found, LAYER), (LAYER, found)):
        assert overlap.edge_distance(*pair) == pytest.approx(2.5, abs=1e-9)


def test_half_a_layer_shows_the_direction():
    found = band(40, 59, slice(100))
    assert overlap.dice(found, LAYER) == pytest.approx(0.6666666667, abs=1e-9)
    assert overlap.edge_distance(found, LAYER) == pytest.approx(0.4128440367, abs=1e-9)
    assert overlap.edge_distance(LAYER, found) == pytest.approx(25.25, abs=1e-9)


def test_empty_layers():
    empty, diagonal = np.zeros((800, 1100), bool), pytest.approx(1360.1470508735, abs=1e-6)
    full = band(40, 59, size=(800, 1100))
    assert (overlap.dice(empty, full), overlap.edge_distance(empty, full)) == (0, diagonal)
    assert (overlap.dice(full, empty), overlap.edge_distance(full, empty)) == (0, diagonal)
    assert (overlap.dice(empty, empty), overlap.edge_distance(empty, empty)) == (1, 0)


def test_a_region_that_fills_the_image():
    full = np.ones((20, 30), bool)
    assert overlap.edge_distance(full, full) == 0 and overlap.edge_distance(full, band(5, 9, size=(20, 30))) > 1


def test_distance_moves_and_scales_with_the_image():
    rng = np.random.default_rng(0)
    shape = np.cumsum(rng.integers(-1, 2, 200))
    top, rows = 40 + shape, np.arange(100)[:, None]
    truth, found = ((rows >= t) & (rows < t + 9) for t in (top, top + rng.integers(-2, 3, 200)))
    here = overlap.edge_distance(found, truth)
    moved = [np.roll(region, (7, 0), (0, 1)) for region in (found, truth)]
    assert here > 0.5 and overlap.edge_distance(*moved) == pytest.approx(here, abs=1e-12)
    large = [np.kron(region, np.ones((3, 3), bool)) for region in (found, truth)]
    assert overlap.edge_distance(*large) == pytest.approx(3 * here, abs=1)


def test_scores_of_a_set():
    truth = np.zeros((100, 200), np.uint8)
    for number, first in enumerate((20, 40, 70), 1):
        truth[first : first + 20] = number
    same = goals.compare_layers(truth, truth)
    scores = goals.segmentation_scores([same, same])
    assert scores["dice"] == pytest.approx(1, abs=1e-9) and scores["med"] == 0
    layers = tuple(goals.Layer(dice, 1.0, 3.0) for dice in (0.9, 0.8, 0.7))
    scores = goals.segmentation_scores([layers])
    assert scores["dice"] == pytest.approx(0.81, abs=1e-9) and scores["med"] == pytest.approx(1, abs=1e-9)
    assert scores["med_both_gcipl"] == 2 and scores["dice_choroid"] == 0.7
    with pytest.raises(InputError, match="no masks"):
        goals.segmentation_scores([])
    with pytest.raises(InputError, match="size"):
        goals.compare_layers(truth[1:], truth)


def test_auc():
    labels = np.array([0, 0, 1, 1, 1])
    probs = np.array([0.1, 0.4, 0.6, 0.8, 0.9])
    assert goals.classification_auc(probs, labels) == 1
    assert goals.classification_auc(1 - probs, labels) == 0
    assert goals.classification_auc(np.full(5, 0.3), labels) == 0.5
    for bad in (probs * np.nan, probs + 1):
        with pytest.raises(InputError, match="0 to 1"):
            goals.classification_auc(bad, labels)
    with pytest.raises(InputError, match="both classes"):
        goals.classification_auc(probs, np.ones(5, int))


def test_composite_is_the_users_own():
    scores = {"dice": 0.8, "med": 3.0, "auc": 0.9}
    assert goals.composite(scores, {"dice": 0.5, "med": 0.2, "auc": 0.3}) == pytest.approx(0.4 + 0.05 + 0.27)
    assert goals.composite(scores, {"med": 1.0}, closeness=lambda px: -px) == -3


def test_masks_to_grey_and_back():
    classes = np.arange(4, dtype=np.uint8).reshape(2, 2)
    grey = encode(classes, GOALS)
    assert grey.tolist() == [[255, 0], [80, 160]]
    assert np.array_equal(decode(grey, GOALS)[0], classes)
    nearest, strange = decode(np.array([0, 39, 40, 119, 120, 207, 208], np.uint8), GOALS)
    assert nearest.tolist() == [1, 1, 2, 2, 3, 3, 0] and strange == 6


def test_nearest_upsampling_makes_only_codes_and_bilinear_others():
    from PIL import Image

    classes = np.repeat(np.arange(4, dtype=np.uint8), 16)[:, None].repeat(64, 1)
    picture = Image.fromarray(encode(classes, GOALS))
    for how, strange in ((Image.Resampling.NEAREST, False), (Image.Resampling.BILINEAR, True)):
        levels = set(np.unique(np.asarray(picture.resize((275, 200), how))))
        assert (levels > set(GOALS.greys)) == strange and levels >= set(GOALS.greys)


def test_the_baselines_own_dice_is_broken():
    """Decision 4: copied from GAMMA, it blanks label 2, which here is the choroid; why it is not used."""
    areas = np.array([4, 4, 8, 84])  # RNFL, GCIPL, choroid, other: the baseline's order
    labels = np.repeat(np.arange(4), areas)
    probs = np.where((labels == 2)[:, None], 0.25, np.eye(4)[labels])
    truth = np.eye(4)[labels]
    per_class = 2 * (probs * truth).sum(0) / (probs.sum(0) + truth.sum(0))
    np.testing.assert_allclose(per_class, [0.8, 0.8, 0.4, 0.988], atol=5e-4)
    assert per_class.mean() == pytest.approx(0.7471, abs=5e-5)
