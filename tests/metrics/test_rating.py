"""Weights against skill, ratios of regions, and the scores of masks by the diagnoses made from them."""

import jax.numpy as jnp
import numpy as np

from ophjax.metrics.rating import disputed_weights, rater_skill, serving_scores
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


def test_scores():
    """AUCs by hand, and the means of what a search has done."""
    label = np.array([0, 0, 1, 1])
    cdr = np.array([0.1, 0.6, 0.5, 0.9])
    prob = np.array([0.2, 0.3, 0.7, 0.9])
    rows = {
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
    found = serving_scores(rows, ("a", "b", "c"))
    assert found["cdr_auc"] == 0.75 and found["vertical_cdr_auc"] == 0.25
    assert found["image_and_mask_auc"] == found["auc"] == 1 and found["accuracy"] == 1
    assert found["dice_cup"] == 0.5 and found["train_gain"] == 0.25
    assert found["weight_b"] == 0.5 and found["skill_c"] == 0.7 and abs(found["weight_skill"] - 1) < 1e-9
