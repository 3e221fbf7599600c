"""Overlap metrics against values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ophjax.errors import InputError
from ophjax.metrics.streaming import dice, iou, pair, region_metrics, soft_dice, soft_iou


def as_mask(*rows):
    return jnp.array(rows, jnp.float32).reshape(len(rows), 1, -1, 1)


def test_overlap_by_hand():
    # Two of three predicted pixels are true, of two true ones both are found: Dice 4/5, IoU 2/3.
    probs, target = as_mask([0.9, 0.8, 0.7, 0.2]), as_mask([1, 1, 0, 0])
    np.testing.assert_allclose(dice(probs, target), [[4 / 5]], rtol=1e-6)
    np.testing.assert_allclose(iou(probs, target), [[2 / 3]], rtol=1e-6)
    # At 0.75 the third is gone and both are perfect.
    np.testing.assert_array_equal(dice(probs, target, threshold=0.75), [[1.0]])


def test_exactly_the_threshold_is_outside():
    np.testing.assert_array_equal(dice(as_mask([0.5]), as_mask([1])), [[0.0]])


def test_empty_regions():
    probs, target = as_mask([0, 0], [1, 0], [0, 0]), as_mask([0, 0], [0, 0], [1, 0])
    # Nothing to find and nothing found is 1; a false alarm or a miss of the whole region is 0.
    for metric in (dice, iou, soft_dice, soft_iou):
        np.testing.assert_array_equal(metric(probs, target), [[1.0], [0.0], [0.0]])


def test_threshold_average_by_hand():
    # Against one true pixel of two: cut 0.1 finds both (Dice 2/3, IoU 1/2); 0.3 and 0.5 only the true one (1);
    # 0.7 and 0.9 none (0).
    probs, target = as_mask([0.6, 0.2]), as_mask([1, 0])
    np.testing.assert_allclose(soft_dice(probs, target), [[(2 / 3 + 2) / 5]], rtol=1e-6)
    np.testing.assert_allclose(soft_iou(probs, target), [[(1 / 2 + 2) / 5]], rtol=1e-6)


def test_soft_truth_is_cut_too():
    # The mean of three raters, given back as it is, is right at every cut.
    target = as_mask([1 / 3, 2 / 3, 1, 0])
    np.testing.assert_array_equal(soft_dice(target, target), [[1.0]])


def test_narrow_floats_are_counted_exactly():
    # 2^16 predicted and 2^15 true pixels: a count in bfloat16 would stop at 256, in float16 at 2^11.
    probs = jnp.ones((1, 256, 256, 1), jnp.bfloat16)
    target = probs.at[:, :128].set(0)
    assert dice(probs, target).dtype == jnp.float32
    np.testing.assert_allclose(dice(probs, target), [[2 / 3]], rtol=1e-6)


def test_rows_that_do_not_count():
    values = jnp.array([0.5, jnp.nan, 0.25])
    value, count = pair(values, jnp.array([1.0, 0.0, 1.0]))
    np.testing.assert_array_equal(value, [0.5, 0.0, 0.25])
    np.testing.assert_array_equal(count, [1.0, 0.0, 1.0])
    np.testing.assert_array_equal(pair(values[:1])[1], [1.0])


def test_region_metrics_in_the_form_of_the_contract():
    probs = jax.random.uniform(jax.random.key(0), (3, 8, 8, 2))
    target = (jax.random.uniform(jax.random.key(1), (3, 8, 8, 2)) > 0.5).astype(jnp.uint8)
    weight = jnp.array([1.0, 1.0, 0.0])
    pairs = region_metrics(probs, target, ("disc", "cup"), weight=weight)
    assert set(pairs) == {f"{m}_{r}" for m in ("dice", "iou", "soft_dice", "soft_iou") for r in ("disc", "cup")}
    value, count = pairs["dice_cup"]
    np.testing.assert_array_equal(count, weight)
    np.testing.assert_allclose(value, dice(probs, target)[:, 1] * weight)
    # The mean over the counted rows is what the first two rows alone give.
    alone = region_metrics(probs[:2], target[:2], ("disc", "cup"))
    for name, (value, count) in pairs.items():
        np.testing.assert_allclose(value.sum() / count.sum(), alone[name][0].mean(), rtol=1e-6)


def test_names_must_fit_the_channels():
    with pytest.raises(InputError, match="disc"):
        region_metrics(jnp.zeros((1, 2, 2, 2)), jnp.zeros((1, 2, 2, 2)), ("disc",))


def test_a_tie_counts_as_marked_where_asked():
    """Three raters of six and three of ten: at the thresholds 0.5 and 0.3, which a float may miss by a rounding."""
    truth = np.array([3 / 6, 1.0, 0.0, 0.0], np.float32).reshape(1, 2, 2, 1)
    found = np.array([1.0, 1.0, 0.0, 0.0], np.float32).reshape(1, 2, 2, 1)
    assert dice(found, truth).item() == pytest.approx(2 / 3)
    assert dice(found, truth, inclusive=True).item() == 1
    tenth = (np.float32(1) - np.float32(0.7)).reshape(1, 1, 1, 1)  # 0.3 and a little less
    assert dice(np.ones((1, 1, 1, 1)), tenth, threshold=0.3, inclusive=True).item() == 1
    assert soft_dice(found, truth, inclusive=True).item() == pytest.approx((1 + 1 + 1 + 2 / 3 + 2 / 3) / 5)
