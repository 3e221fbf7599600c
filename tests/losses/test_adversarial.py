"""Checks 4 and 5 of the specification of ADS, section (k), for the losses alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ophjax.errors import InputError
from ophjax.losses.adversarial import patch_nce, symmetric_kl
from ophjax.transforms.centroids import normalise


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def test_kl_is_zero_for_equal_logits_symmetric_and_positive():
    one, other = normal(0, 3, 4, 5, 4), normal(1, 3, 4, 5, 4)
    np.testing.assert_array_equal(symmetric_kl(one, one), jnp.zeros(3))
    np.testing.assert_array_equal(symmetric_kl(one, other), symmetric_kl(other, one))
    assert (symmetric_kl(one, other) > 0).all()


def test_kl_of_the_definition():
    """Against both divergences written out in double precision; the smoothing by 1e-6 shifts them by less than 1e-4."""
    one, other = normal(2, 2, 3, 3, 5), normal(3, 2, 3, 3, 5)
    p, q = (np.exp(np.float64(x)) / np.exp(np.float64(x)).sum(-1, keepdims=True) for x in (one, other))
    pixels = 0.5 * ((p * np.log(p / q)).sum(-1) + (q * np.log(q / p)).sum(-1))
    np.testing.assert_allclose(symmetric_kl(one, other), pixels.mean((1, 2)), rtol=1e-4)


def test_kl_over_elements_times_the_classes_is_kl_over_pixels():
    """PyTorch's KLDivLoss() averages p (log p - log q) over all elements, classes included: a factor of k."""
    one, other = normal(4, 2, 3, 3, 4), normal(5, 2, 3, 3, 4)
    p, q = jax.nn.softmax(one), jax.nn.softmax(other)
    elements = 0.5 * ((p - q) * (jnp.log(p) - jnp.log(q))).mean()
    np.testing.assert_allclose(symmetric_kl(one, other).mean(), 4 * elements, rtol=1e-4)


def test_kl_is_finite_for_extreme_logits():
    """Opposite certainties: at most log of (1 + eps) / eps, here 1e6, and so are the gradients finite."""
    one = jnp.array([50.0, -50.0, -50.0]).reshape(1, 1, 1, 3)
    value, slope = jax.value_and_grad(lambda x: symmetric_kl(x, -x).sum())(one)
    assert 1 < float(value) < np.log(1e6) and np.isfinite(slope).all()


def unit_vectors(seed, rows=2, places=16, width=8):
    return normalise(normal(seed, rows, places, width))


def test_nce_of_equal_features_is_low_and_of_shuffled_ones_high():
    keys = unit_vectors(0)
    own, wrong = patch_nce(keys, keys), patch_nce(keys, jnp.roll(keys, 1, axis=1))
    assert (own >= 0).all() and (own < 0.1).all() and (wrong > np.log(16)).all()


def test_nce_of_constant_features_is_log_n():
    same = normalise(jnp.ones((3, 16, 8)))
    np.testing.assert_allclose(patch_nce(same, same), np.log(16), rtol=1e-6)


def test_nce_of_the_definition():
    """Against the sum written out: the temperature enters once, and only locations of the same image compete."""
    queries, keys = unit_vectors(1), unit_vectors(2)
    found = patch_nce(queries, keys, temperature=0.5)
    for row in range(2):
        q, k = np.float64(queries[row]), np.float64(keys[row])
        each = [
            -np.log(np.exp(q[s] @ k[s] / 0.5) / sum(np.exp(q[s] @ k[t] / 0.5) for t in range(16))) for s in range(16)
        ]
        np.testing.assert_allclose(found[row], np.mean(each), rtol=1e-5)


def test_no_gradient_reaches_the_keys():
    queries, keys = unit_vectors(3), unit_vectors(4)
    of_queries, of_keys = jax.grad(lambda q, k: patch_nce(q, k).sum(), argnums=(0, 1))(queries, keys)
    assert (of_keys == 0).all() and float(jnp.abs(of_queries).max()) > 1e-3


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(InputError, match="temperature"):
        patch_nce(unit_vectors(0), unit_vectors(1), temperature=temperature)


def test_wrong_shapes():
    with pytest.raises(InputError, match="two equal shapes"):
        patch_nce(unit_vectors(0), unit_vectors(0, places=8))
    with pytest.raises(InputError, match=r"\[b, h, w, k\]"):
        symmetric_kl(jnp.zeros((2, 3)), jnp.zeros((2, 3)))
