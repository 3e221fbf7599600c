"""Weightings and losses over raters, by hand (selfcal spec, section (k), checks 1, 2, 4, 5, 7)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ophjax.errors import InputError
from ophjax.losses import agreement
from ophjax.transforms import fusion

RNG = np.random.default_rng(0)
B, R, H, W, C = 2, 5, 6, 7, 2
MASKS = (RNG.random((B, R, H, W, C)) < 0.4).astype(np.float32)
LOGITS = RNG.normal(0, 3, (B, R, H, W, C)).astype(np.float32)
ALL = np.ones((B, R), np.float32)
SOME = ALL * np.array([1, 0, 1, 1, 0], np.float32)


def weigh(kind, logits, present):
    if kind == "ratio":
        return agreement.ratio_weights(jax.nn.sigmoid(logits), present)
    return agreement.softmax_weights(logits, present)


both = pytest.mark.parametrize("kind", ["ratio", "softmax"])


@both
@pytest.mark.parametrize("level", [0.7, -40.0])
def test_equal_outputs_give_the_mean_of_the_raters(kind, level):
    """Check 1; also where every simulated mask is so small that the released formula is 0 / 0."""
    weights = weigh(kind, jnp.full((B, R, H, W, C), level), ALL)
    np.testing.assert_allclose(weights, 1 / R, rtol=1e-5)
    np.testing.assert_allclose(agreement.fuse(MASKS, weights), MASKS.mean(1), atol=1e-6)


@both
def test_a_single_rater_is_the_label(kind):
    """Check 2."""
    weights = weigh(kind, LOGITS[:, :1], ALL[:, :1])
    np.testing.assert_allclose(weights, 1, atol=1e-6)
    np.testing.assert_allclose(agreement.fuse(MASKS[:, :1], weights), MASKS[:, 0], atol=1e-6)


@both
def test_unanimous_raters_are_the_label_whatever_the_weights(kind):
    """Check 4."""
    same = np.repeat(MASKS[:, :1], R, 1)
    np.testing.assert_allclose(agreement.fuse(same, weigh(kind, LOGITS, SOME)), MASKS[:, 0], atol=1e-6)


@both
@pytest.mark.parametrize("present", [ALL, SOME])
def test_weights_sum_to_one_and_labels_lie_between_the_raters(kind, present):
    """Check 5, and missing raters have no weight."""
    weights = np.asarray(weigh(kind, LOGITS * 10, present))
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    assert (weights[present == 0] == 0).all() and (weights >= 0).all()
    there = MASKS[:, present[0] > 0]
    fused = np.asarray(agreement.fuse(MASKS, weights))
    assert (fused <= there.max(1) + 1e-6).all() and (fused >= there.min(1) - 1e-6).all()


@both
def test_permuted_raters_give_the_same_label(kind):
    """Check 3, the part without nets."""
    order = RNG.permutation(R)
    fused = [agreement.fuse(MASKS[:, o], weigh(kind, LOGITS[:, o], SOME[:, o])) for o in (np.arange(R), order)]
    np.testing.assert_allclose(fused[0], fused[1], atol=1e-6)


def test_ratio_weights_of_perfect_simulations_give_the_union():
    """Check 7: the bias of the released formula, exactly (softmax over logits has none of it)."""
    weights = agreement.ratio_weights(MASKS, ALL)
    np.testing.assert_allclose(agreement.fuse(MASKS, weights), MASKS.max(1), atol=1e-5)


def slow_ssim(x, y):
    """The mean of SSIM over positions, window by window, zeros beyond the border."""
    kernel = np.exp(-0.5 * (np.arange(11) - 5.0) ** 2 / 1.5**2)
    kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
    x, y = np.pad(x, 5), np.pad(y, 5)
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (kernel * a).sum(), (kernel * b).sum()
            va, vb, cov = (
                (kernel * a * a).sum() - ma**2,
                (kernel * b * b).sum() - mb**2,
                (kernel * a * b).sum() - ma * mb,
            )
            values.append((2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    return np.mean(values)


def test_ssim_is_that_of_windows():
    x, y = RNG.random((2, 1, 13, 16, 1)).astype(np.float32)
    np.testing.assert_allclose(agreement.ssim(x, y)[0, 0], slow_ssim(x[0, ..., 0], y[0, ..., 0]), rtol=1e-4)


def test_ssim_enters_as_one_minus_ssim():
    """Equal maps cost nothing; a step against the gradient makes unequal ones more alike, not less."""
    target = MASKS[:, 0]
    np.testing.assert_allclose(agreement.ssim(target, target), 1, atol=1e-5)
    logits = jnp.asarray(LOGITS[:, 0] / 3)
    grad = jax.grad(lambda z: (1 - agreement.ssim(jax.nn.sigmoid(z), target)).sum())(logits)
    before, after = (agreement.ssim(jax.nn.sigmoid(z), target).sum() for z in (logits, logits - grad))
    assert after > before + 0.01


def test_cross_entropy_of_probabilities_by_hand():
    probs = np.array([0.25, 0.5, 1.0, 0.0], np.float32).reshape(1, 2, 2, 1)
    target = np.array([1.0, 0.5, 1.0, 0.0], np.float32).reshape(1, 2, 2, 1)
    expected = (np.log(4) + np.log(2)) / 4
    np.testing.assert_allclose(agreement.probs_cross_entropy(probs, target)[0, 0], expected, rtol=1e-4)
    with pytest.raises(InputError, match="must be"):
        agreement.probs_cross_entropy(probs, target[0])


def test_shuffle_loss_by_hand_and_without_missing_raters():
    order = np.array([2, 0, 3, 1, 4])
    probs = np.asarray(jax.nn.sigmoid(LOGITS))
    weights = np.asarray(agreement.softmax_weights(LOGITS, SOME))
    p = np.clip(probs[:, order] * weights, 1e-6, 1 - 1e-6)
    t = MASKS[:, order] * weights
    each = -(t * np.log(p) + (1 - t) * np.log1p(-p)).mean((2, 3, 4))
    both = SOME * SOME[:, order]  # places 0 (rater 2) and 2 (rater 3)
    assert both[0].tolist() == [1, 0, 1, 0, 0]
    expected = (each * both).sum(1) / 2
    np.testing.assert_allclose(agreement.shuffle_loss(order, probs, weights, MASKS, SOME), expected, rtol=1e-5)
    other = np.where(SOME[:, :, None, None, None] > 0, MASKS, 1 - MASKS)
    np.testing.assert_allclose(agreement.shuffle_loss(order, probs, weights, other, SOME), expected, rtol=1e-5)


def test_entropy_of_weights():
    weights = agreement.uniform_weights(MASKS, SOME)
    np.testing.assert_allclose(agreement.weight_entropy(weights), np.log(3), rtol=1e-5)
    one = np.zeros_like(MASKS)
    one[:, 2] = 1
    np.testing.assert_allclose(agreement.weight_entropy(one), 0, atol=1e-6)


def test_uniform_weights_fuse_to_the_mean_of_those_there():
    fused = agreement.fuse(MASKS, agreement.uniform_weights(MASKS, SOME))
    np.testing.assert_allclose(fused, fusion.mean_of_raters(MASKS, SOME), atol=1e-6)
