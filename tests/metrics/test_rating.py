"""Weights against skill, ratios of regions, and the scores of masks by the diagnoses made from them."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ophjax.metrics.rating import (
    disputed_weights,
    nothing_found,
    rater_skill,
    search_means,
    serving_scores,
    spearman,
)  # fmt: skip
from ophjax.metrics.ratios import region_ratios


def test_weights_count_where_raters_differ():
    """By hand: of two pixels one is disputed; absent raters dispute nothing; unanimous ones have equal shares."""
    masks = jnp.array([[[[[1.0], [1.0]]], [[[1.0], [0.0]]], [[[0.0], [0.0]]]]])
    weights = jnp.array([[[[0.5, 0.3, 0.2], [0.7, 0.2, 0.1]]]])
    np.testing.assert_allclose(disputed_weights(weights, masks, jnp.ones((1, 3))), [[0.6, 0.25, 0.15]], rtol=1e-6)
    np.testing.assert_allclose(disputed_weights(weights, masks, jnp.array([[1.0, 1, 0]])), [[0.7, 0.2, 0.1]], rtol=1e-6)
    np.testing.assert_allclose(disputed_weights(weights, masks, jnp.array([[0.0, 1, 0]])), [[0, 1, 0]])


def test_skill_is_the_dice_of_the_last_region():
    truth = jnp.array([[[[1, 1], [1, 1], [1, 0], [0, 0]]]])
    masks = jnp.stack([truth, truth.at[..., 1].set(jnp.array([1, 0, 0, 0]))], 1)
    np.testing.assert_allclose(rater_skill(masks, truth), [[1, 2 / 3]], rtol=1e-6)


def test_ratios():
    """A disc of 4 x 2 pixels with a cup of 2 x 1: areas 1 / 4, heights 1 / 2; without a disc 0; one region over all."""
    disc, cup = np.zeros((2, 6, 6, 2), np.float32)[..., 0], np.zeros((2, 6, 6), np.float32)
    disc[0, 1:5, 2:4], cup[0, 2:4, 2:3] = 1, 1
    found = region_ratios(jnp.asarray(np.stack([disc, cup], -1)))
    np.testing.assert_allclose(found["cdr"], [0.25, 0])
    np.testing.assert_allclose(found["vertical_cdr"], [0.5, 0])
    np.testing.assert_allclose(region_ratios(jnp.asarray(disc[..., None]))["cdr"], [8 / 36, 0], rtol=1e-6)


def rows_of_four():
    label = np.array([0, 0, 1, 1])
    cdr = np.array([0.1, 0.6, 0.5, 0.9])
    prob = np.array([0.2, 0.3, 0.7, 0.9])
    return {
        "label": label,
        "cdr": cdr,
        "vertical_cdr": 1 - cdr,
        "image_and_mask": prob,
        "probs": np.stack([1 - prob, prob], -1),
        "dice_cup": np.full(4, 0.5),
        "train_gain": np.full(4, 0.25),
        "train_weights": np.tile([0.2, 0.5, 0.3], (4, 1)),
        "train_skill": np.tile([0.6, 0.9, 0.7], (4, 1)),
    }


def test_scores():
    """AUCs by hand, and the means of what a search has done."""
    found = serving_scores(rows_of_four(), ("a", "b", "c"))
    assert found["cdr_auc"] == 0.75 and found["vertical_cdr_auc"] == 0.25
    assert found["image_and_mask_auc"] == found["auc"] == 1 and found["accuracy"] == 1
    assert found["dice_cup"] == 0.5 and found["train_gain"] == 0.25
    assert found["weight_b"] == 0.5 and found["skill_c"] == 0.7 and abs(found["weight_skill"] - 1) < 1e-9


def test_unknown_labels_are_left_out():
    """Two more images without a label change no ranking, but count in the overlaps; without any label there is none."""
    rows, raters = rows_of_four(), ("a", "b", "c")
    more = {name: np.concatenate([value, value[:2]]) for name, value in rows.items()}
    more |= {"label": np.array([0, 0, 1, 1, -1, -1]), "dice_cup": np.array([0.5] * 4 + [1.0] * 2)}
    found, known = serving_scores(more, raters), serving_scores(rows, raters)
    assert found["dice_cup"] == pytest.approx(2 / 3)
    cup = {name: value for name, value in known.items() if name.startswith("dice_cup")}
    assert found | cup == pytest.approx(known)
    blind = serving_scores(more | {"label": np.full(6, -1)}, raters)
    assert "cdr_auc" not in blind and "auc" not in blind and blind["weight_b"] == 0.5


def test_before_the_search_nothing_is_said():
    """No gains of 0 and no correlation of weights that are all 0 with skills that are all 0; the loop takes no NaN."""
    means = search_means(nothing_found(5, 3))
    assert all(bool(jnp.isfinite(value).all()) for value in means.values())
    rows = rows_of_four() | {name: np.broadcast_to(value, (4, *value.shape)) for name, value in means.items()}
    found = serving_scores(rows, ("a", "b", "c"))
    assert not [name for name in found if name.startswith(("train_", "weight_", "skill_"))] and found["auc"] == 1


def test_missing_masks_do_not_scale_what_is_said_of_raters():
    """By hand: each rater's mean is over its own images, others are over those that anybody drew."""
    found = {
        "weights": jnp.array([[0.6, 0.4, -1.0], [1.0, -1.0, -1.0], [-1.0, -1.0, -1.0]]),
        "skill": jnp.array([[0.5, 0.9, -1.0], [-1.0, -1.0, -1.0], [-1.0, -1.0, -1.0]]),
        "gain": jnp.array([1.0, 3.0, 0.0]),
    }
    means = search_means(found)
    np.testing.assert_allclose(means["train_weights"], [0.8, 0.4, -1], rtol=1e-6)
    np.testing.assert_allclose(means["train_skill"], [0.5, 0.9, -1], rtol=1e-6)
    assert float(means["train_gain"]) == 2
    rows = rows_of_four() | {name: np.broadcast_to(value, (4, *value.shape)) for name, value in means.items()}
    scores = serving_scores(rows, ("a", "b", "c"))
    assert scores["weight_a"] == pytest.approx(0.8) and not {"weight_c", "skill_c", "weight_skill"} & set(scores)


def test_correlation_of_ranks():
    random = np.random.default_rng(0)
    for _ in range(20):
        one, other = random.integers(0, 4, (2, 7)).astype(float)
        if min(np.ptp(one), np.ptp(other)):
            np.testing.assert_allclose(spearman(one, other), scipy.stats.spearmanr(one, other)[0], atol=1e-12)
    assert np.isnan(spearman(np.ones(4), np.arange(4.0))) and np.isnan(spearman(np.arange(2.0), np.arange(2.0)))
