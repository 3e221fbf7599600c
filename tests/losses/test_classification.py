"""Classification losses against values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ophjax.errors import InputError
from ophjax.losses.classification import sigmoid_cross_entropy, softmax_cross_entropy


def test_sigmoid_by_hand():
    # Probability 3/4: -log(3/4) if true, -log(1/4) if false.
    logits = jnp.full(2, np.log(3.0))
    labels = jnp.array([1, 0])
    expected = np.array([-np.log(0.75), -np.log(0.25)])
    np.testing.assert_allclose(sigmoid_cross_entropy(logits, labels), expected, rtol=1e-6)
    # The weight multiplies the part of class 1 only (PyTorch's pos_weight).
    weighted = sigmoid_cross_entropy(logits, labels, positive_weight=2.0)
    np.testing.assert_allclose(weighted, expected * [2, 1], rtol=1e-6)


def test_positive_weight_with_soft_labels():
    # Label 0.25, probability 1/2: -(2 * 0.25 + 0.75) log(1/2). Scaling the whole loss would give another value.
    loss = sigmoid_cross_entropy(jnp.zeros(1), jnp.array([0.25]), positive_weight=2.0)
    np.testing.assert_allclose(loss, 1.25 * np.log(2), rtol=1e-6)


def test_sigmoid_survives_extreme_logits():
    loss = sigmoid_cross_entropy(jnp.array([1000.0, -1000.0]), jnp.array([1, 1]))
    np.testing.assert_array_equal(loss, [0.0, 1000.0])


def test_softmax_by_hand():
    # Odds 1 : 2 : 5, so the classes have probabilities 1/8, 1/4 and 5/8.
    logits = jnp.log(jnp.array([[1.0, 2.0, 5.0]] * 3))
    loss = softmax_cross_entropy(logits, jnp.arange(3))
    np.testing.assert_allclose(loss, np.log([8, 4, 1.6]), rtol=1e-6)


def test_two_class_softmax_is_the_sigmoid():
    logits = jax.random.normal(jax.random.key(0), (8,))
    labels = jnp.arange(8) % 2
    pairs = jnp.stack([jnp.zeros(8), logits], -1)
    expected = sigmoid_cross_entropy(logits, labels)
    # Equal in exact arithmetic; float32 rounds about seven digits.
    np.testing.assert_allclose(softmax_cross_entropy(pairs, labels), expected, rtol=1e-5, atol=1e-6)


def test_float32_inside():
    assert sigmoid_cross_entropy(jnp.zeros(2, jnp.bfloat16), jnp.zeros(2, jnp.int32)).dtype == jnp.float32
    assert softmax_cross_entropy(jnp.zeros((2, 3), jnp.bfloat16), jnp.zeros(2, jnp.int32)).dtype == jnp.float32


def test_gradients():
    logits = jax.random.normal(jax.random.key(1), (4,))
    labels = jnp.array([0, 1, 1, 0])
    # Finite differences in float32 are good to about three digits.
    check_grads(lambda x: sigmoid_cross_entropy(x, labels, positive_weight=2.0), (logits,), 1, modes=["rev"], rtol=1e-2)


def test_wrong_shapes_are_refused():
    with pytest.raises(InputError, match=r"logits\[:, 0\]"):
        sigmoid_cross_entropy(jnp.zeros((4, 1)), jnp.zeros(4))
    with pytest.raises(InputError, match="argmax"):
        softmax_cross_entropy(jnp.zeros((4, 3)), jnp.zeros((4, 3)))
    with pytest.raises(InputError, match="argmax"):
        softmax_cross_entropy(jnp.zeros((4, 3)), jnp.zeros(4))
