"""Official scores of GAMMA: the golden values of its spec, section (k), and the edge cases of section (h)."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from ophjax.errors import InputError
from ophjax.losses.grading import ordinal_grade, ordinal_probs
from ophjax.metrics import gamma, ranking
from ophjax.metrics.greys import GAMMA, decode, encode

LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
FOUND = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 0])
SIZES = np.array([[2992, 2000]] * 2)
FOVEAS = np.array([[1496.0, 1000.0], [1500.0, 1100.0]])
NEAR = np.array([[1525.92, 1020.0], [1500.0, 1100.0]])


def close(value, golden):
    assert value == pytest.approx(golden, abs=1e-9)


def mask(disc, cup, size=(100, 100)):
    """Classes of a mask from (first row, last row, first column, last column) of disc and cup."""
    classes = np.zeros(size, np.uint8)
    for number, box in ((1, disc), (2, cup)):
        if box:
            classes[box[0] : box[1] + 1, box[2] : box[3] + 1] = number
    return classes


TRUTH = mask((20, 59, 20, 59), (30, 49, 30, 49))
PREDICTED = mask((20, 59, 22, 61), (28, 51, 30, 49))


@pytest.mark.parametrize(
    ("weights", "golden"), [("quadratic", 0.5652173913), ("linear", 0.5555555556), ("none", 0.5454545455)]
)
def test_kappa(weights, golden):
    close(gamma.kappa(FOUND, LABELS, weights=weights), golden)
    order = np.random.default_rng(0).permutation(10)
    close(gamma.kappa(FOUND[order], LABELS[order], weights=weights), golden)


def test_kappa_at_its_ends():
    close(gamma.kappa(LABELS, LABELS), 1)
    close(gamma.kappa(np.ones(10, int), LABELS), 0)
    close(gamma.kappa(np.array([2, 1, 0]), np.array([0, 1, 2])), -1)
    # The denominator is 0 where chance agreement is perfect.
    close(gamma.kappa(np.ones(4, int), np.ones(4, int)), 1)
    close(gamma.kappa(np.zeros(4, int), np.ones(4, int)), 0)


@pytest.mark.parametrize("given", [([0, 1], [0]), ([], []), ([3], [0]), ([-1], [0])])
def test_kappa_refuses(given):
    with pytest.raises(InputError):
        gamma.kappa(*map(np.array, given))
    with pytest.raises(InputError, match="quadratic, linear, none"):
        gamma.kappa(FOUND, LABELS, weights="cubic")


def test_fovea():
    apart = gamma.fovea_distances(NEAR, FOVEAS, SIZES)
    np.testing.assert_allclose(apart, [0.0141421356, 0], atol=1e-9)
    close(apart.mean(), 0.0070710678118654)
    assert gamma.fovea_score(apart.mean()) == pytest.approx(9.3395911747, abs=1e-9)
    close(gamma.fovea_score(0), 10)
    # Image and coordinates scaled together change nothing; x and y exchanged do.
    np.testing.assert_allclose(gamma.fovea_distances(3 * NEAR, 3 * FOVEAS, 3 * SIZES), apart, atol=1e-12)
    assert abs(gamma.fovea_distances(NEAR[:, ::-1], FOVEAS, SIZES).mean() - apart.mean()) > 0.1


def test_invisible_foveas():
    nowhere = np.zeros((2, 2))
    close(gamma.fovea_distances(nowhere, nowhere, SIZES).sum(), 0)
    close(gamma.fovea_distances(nowhere[:1], FOVEAS[:1], SIZES[:1])[0], np.hypot(0.5, 0.5))


def test_fovea_score_falls_with_noise():
    noise = np.random.default_rng(0).normal(0, 1, FOVEAS.shape)
    scores = [
        gamma.fovea_score(gamma.fovea_distances(FOVEAS + k * noise, FOVEAS, SIZES).mean()) for k in (0, 5, 50, 500)
    ]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 4


@pytest.mark.parametrize("bad", [(NEAR[:1], FOVEAS, SIZES), (NEAR * np.nan, FOVEAS, SIZES), (NEAR, FOVEAS, 0 * SIZES)])
def test_foveas_refused(bad):
    with pytest.raises(InputError, match="oveas"):
        gamma.fovea_distances(*bad)


def test_segmentation():
    found = gamma.compare_masks(PREDICTED, TRUTH)
    np.testing.assert_allclose(found, [0.9090909090909091, 0.95, 0.1], atol=1e-9)
    close(gamma.cup_to_disc(TRUTH), 0.5)
    close(gamma.cup_to_disc(PREDICTED), 0.6)
    close(gamma.segmentation_score(*found), 7.597727272727273)
    close(gamma.compare_masks(PREDICTED, TRUTH, disc="rim").disc, 0.896551724137931)


def test_empty_regions():
    empty, no_cup = mask(None, None), mask((20, 59, 20, 59), None)
    assert gamma.compare_masks(empty, TRUTH) == (0, 0, 0.5)
    assert gamma.compare_masks(no_cup, TRUTH) == (0, 1, 0.5)
    assert gamma.compare_masks(no_cup, no_cup) == (1, 1, 0)
    with pytest.raises(InputError, match="no disc"):
        gamma.compare_masks(TRUTH, empty)
    with pytest.raises(InputError, match=r"\[50, 100\]"):
        gamma.compare_masks(TRUTH[:50], TRUTH)


def test_total():
    perfect = [gamma.grading_score(1), gamma.fovea_score(0), gamma.segmentation_score(1, 1, 0)]
    np.testing.assert_allclose(perfect, 10, atol=1e-9)
    close(gamma.total_score(*perfect), 10)
    close(gamma.total_score(1, 2, 3), 0.4 + 0.6 + 0.9)
    other = dataclasses.replace(gamma.RECALLED, offset=1.0, tasks=(1.0, 0.0, 0.0))
    close(gamma.fovea_score(0, other), 1)
    close(gamma.total_score(7, 2, 3, other), 7)


@pytest.mark.parametrize("size", [(2000, 2992), (1934, 1956)])
def test_masks_to_grey_and_back(size):
    classes = mask((500, 900, 500, 900), (600, 800, 600, 800), size)
    grey = encode(classes, GAMMA)
    assert set(np.unique(grey)) == {0, 128, 255}
    back, strange = decode(grey, GAMMA)
    assert strange == 0 and np.array_equal(back, classes)


def test_strange_greys_go_to_the_nearest():
    classes, strange = decode(np.array([0, 63, 64, 128, 191, 192, 255], np.uint8), GAMMA)
    assert classes.tolist() == [2, 2, 1, 1, 1, 0, 0] and strange == 4


def test_the_baselines_own_dice_is_broken():
    """Decision 7: it blanks the background's logits, so that a perfect answer scores about 0.2; why it is not used."""
    size = 256 * 256
    labels = np.repeat([0, 1, 2], [300, 850, size - 1150])  # cup, rim, background
    logits = 1000.0 * np.eye(3)[labels] * (labels != 2)[:, None]
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    truth = np.eye(3)[labels]
    per_class = 2 * (probs * truth).sum(0) / (probs.sum(0) + truth.sum(0))
    assert per_class.mean() == pytest.approx(0.2002, abs=5e-5)


def test_an_ordinal_head_decides_by_its_answers():
    """Spec, section (d) D2: the number of positive logits, where the most probable grade is often another."""
    logits = -np.sort(-np.random.default_rng(0).normal(size=(500, 3)), axis=1)
    probs = np.asarray(ordinal_probs(jnp.asarray(logits)))
    by_count = np.asarray(ordinal_grade(jnp.asarray(logits)))
    np.testing.assert_array_equal(ranking.choose_classes(probs, ordinal=True), by_count)
    assert (ranking.choose_classes(probs) == probs.argmax(1)).all() and (probs.argmax(1) != by_count).mean() > 0.1
    assert ranking.choose_classes(np.array([[0.4, 0.25, 0.35]]), ordinal=True).tolist() == [1]


def test_specialists_overrule_in_their_order():
    """All eight combinations: the last rule that holds decides, and without any the grade is early."""
    sure_advanced, sure_normal = np.array([0.2, 0.2, 0.6]), np.array([0.4, 0.3, 0.3])
    sure_early = np.array([0.05, 0.9, 0.05])
    unsure = np.array([0.3, 0.4, 0.3])
    table = {
        (0, 0, 0): 1, (1, 0, 0): 2, (0, 1, 0): 0, (1, 1, 0): 0,
        (0, 0, 1): 1, (1, 0, 1): 1, (0, 1, 1): 1, (1, 1, 1): 1,
    }  # fmt: skip
    given = [
        np.stack([sure if case[i] else unsure for case in table])
        for i, sure in enumerate((sure_advanced, sure_normal, sure_early))
    ]
    assert gamma.specialist_override(*given).tolist() == list(table.values())
