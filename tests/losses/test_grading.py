"""Ordered grades, agreement of heads, coordinates, size prior, sharpened means: GAMMA spec, section (k)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ophjax.losses.grading import (
    disagreement,
    ordinal_grade,
    ordinal_loss,
    ordinal_probs,
    point_loss,
    sharpened_mean,
    size_prior,
)  # fmt: skip

LOGITS = 2 * jax.random.normal(jax.random.key(0), (50, 2))


def test_ordinal_head():
    """Probabilities sum to 1, targets are monotone, and the decision is the number of positive logits."""
    np.testing.assert_allclose(ordinal_probs(LOGITS).sum(1), 1, rtol=1e-6)
    assert float(ordinal_probs(LOGITS).min()) >= 0
    np.testing.assert_array_equal(ordinal_grade(LOGITS), (np.asarray(LOGITS) > 0).sum(1))
    by_hand = [[np.log1p(np.exp(-s if label >= k else s)) for k, s in ((1, a), (2, b))]
               for label, (a, b) in zip([0, 1, 2], np.asarray(LOGITS[:3], np.float64), strict=True)]  # fmt: skip
    np.testing.assert_allclose(ordinal_loss(LOGITS[:3], jnp.arange(3)), np.mean(by_hand, 1), rtol=1e-5)
    # Where the answers are in order, probabilities are their differences.
    np.testing.assert_allclose(ordinal_probs(jnp.array([[0.0, -jnp.log(3.0)]])), [[0.5, 0.25, 0.25]], rtol=1e-6)
    check_grads(lambda x: ordinal_loss(x, jnp.array([0, 1, 2])), (LOGITS[:3],), order=1, modes=["rev"])


def test_disagreement():
    one, other = jax.random.normal(jax.random.key(1), (2, 20, 3))
    np.testing.assert_allclose(disagreement(one, one + 3.0), 0, atol=1e-6)
    assert float(disagreement(one, other).min()) > 0
    p, q = np.exp(one[0]) / np.exp(one[0]).sum(), np.exp(other[0]) / np.exp(other[0]).sum()
    np.testing.assert_allclose(disagreement(one, other)[0], (p * np.log(p / q)).sum(), rtol=1e-4)
    assert float(disagreement(one, other, temperature=5.0).sum()) < float(disagreement(one, other).sum())


@pytest.mark.parametrize("legacy", [False, True])
def test_points(legacy):
    found, truth = jnp.array([[0.5, 0.5], [0.2, 0.2]]), jnp.array([[0.2, 0.1], [0.2, 0.2]])
    np.testing.assert_allclose(point_loss(found, truth, legacy=legacy), [0.5 * 0.125 + 0.5 * 0.5, 0], atol=1e-6)
    gradient = jax.grad(lambda x: point_loss(x, truth, legacy=legacy)[0])(found)[0]
    squares, distance = np.array([0.15, 0.2]), np.array([0.3, 0.4])
    np.testing.assert_allclose(gradient, squares if legacy else squares + distance, rtol=1e-4)
    assert bool(jnp.isfinite(jax.grad(lambda x: point_loss(x, truth, legacy=legacy).sum())(found)).all())


def test_size_prior():
    truth = jax.nn.one_hot(jnp.arange(16).reshape(1, 4, 4) % 3, 3)
    np.testing.assert_allclose(size_prior(10 * truth, truth), 0, atol=1e-6)
    # Where places are exchanged the sizes are still right.
    np.testing.assert_allclose(size_prior(10 * truth[:, ::-1], truth), 0, atol=1e-6)
    wrong = size_prior(10 * jax.nn.one_hot(jnp.zeros((1, 4, 4), int), 3), truth)
    np.testing.assert_allclose(wrong, np.mean([10 / 16, 5 / 16, 5 / 16]), rtol=1e-4)


def test_sharpened_mean():
    probs = jnp.array([[[0.9, 0.1]], [[0.4, 0.6]]])
    roots = np.sqrt(np.asarray(probs)).mean(0)
    np.testing.assert_allclose(sharpened_mean(probs), roots / roots.sum(), rtol=1e-6)
    np.testing.assert_allclose(sharpened_mean(probs, power=1.0), probs.mean(0), rtol=1e-6)
    np.testing.assert_allclose(sharpened_mean(probs[:1], power=1.0), probs[0], rtol=1e-6)
