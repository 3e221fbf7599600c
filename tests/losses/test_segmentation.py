"""Segmentation losses against values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ophjax.errors import InputError
from ophjax.losses.segmentation import binary_cross_entropy, soft_dice_loss


def test_cross_entropy_of_two_pixels():
    # Probabilities 3/4 for a true pixel and 1/4 for a false one: both cost log(4/3).
    logits = jnp.log(jnp.array([3.0, 1 / 3])).reshape(1, 1, 2, 1)
    target = jnp.array([1, 0], jnp.uint8).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(binary_cross_entropy(logits, target), [[np.log(4 / 3)]], rtol=1e-6)


def test_cross_entropy_survives_extreme_logits():
    logits = jnp.array([200.0, -200.0]).reshape(2, 1, 1, 1)
    target = jnp.ones((2, 1, 1, 1))
    # A certain and right answer costs nothing, a certain and wrong one its logit; 1 - sigmoid would be 0 here.
    np.testing.assert_allclose(binary_cross_entropy(logits, target)[:, 0], [0.0, 200.0], atol=1e-6)


def test_soft_dice_by_hand():
    # Region 0: overlap .5 + 1 = 1.5, sizes 2 + 2; 1 - (3 + 1) / (4 + 1) = 0.2.
    probs = jnp.array([[0.5, 0.0], [1.0, 0.0], [0.5, 0.0], [0.0, 0.0]]).reshape(1, 2, 2, 2)
    target = jnp.array([[1, 0], [1, 0], [0, 0], [0, 0]], jnp.uint8).reshape(1, 2, 2, 2)
    # Region 1 is empty and predicted as empty, which is right: 1 - 1 / 1 = 0.
    np.testing.assert_allclose(soft_dice_loss(probs, target), [[0.2, 0.0]], atol=1e-6)
    # Without smoothing 1 - 3 / 4.
    np.testing.assert_allclose(soft_dice_loss(probs, target, smooth=0.0)[0, 0], 0.25, atol=1e-6)


def test_examples_do_not_see_each_other():
    key = jax.random.key(0)
    logits = jax.random.normal(key, (3, 4, 4, 2))
    target = (logits > 0.3).astype(jnp.uint8)
    for loss in (binary_cross_entropy, soft_dice_loss):
        together = loss(logits, target)
        alone = jnp.concatenate([loss(logits[i : i + 1], target[i : i + 1]) for i in range(3)])
        np.testing.assert_array_equal(together, alone)


def test_narrow_floats_are_summed_in_float32():
    # 2^14 pixels: a bfloat16 sum stops growing at 256.
    probs = jnp.ones((1, 128, 128, 1), jnp.bfloat16)
    loss = soft_dice_loss(probs, jnp.ones((1, 128, 128, 1), jnp.uint8))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, 0.0, atol=1e-6)
    assert binary_cross_entropy(probs, jnp.ones((1, 128, 128, 1), jnp.uint8)).dtype == jnp.float32


def test_gradients():
    key = jax.random.key(1)
    logits = jax.random.normal(key, (2, 3, 3, 1))
    target = (logits > 0).astype(jnp.float32)
    # Finite differences in float32 are good to about three digits.
    check_grads(lambda x: binary_cross_entropy(x, target), (logits,), 1, modes=["rev"], atol=1e-2, rtol=1e-2)
    check_grads(lambda x: soft_dice_loss(jax.nn.sigmoid(x), target), (logits,), 1, modes=["rev"], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("loss", [binary_cross_entropy, soft_dice_loss])
def test_shapes_that_would_broadcast_are_refused(loss):
    with pytest.raises(InputError, match=r"\(2, 4, 4, 2\).*\(2, 4, 4, 1\)"):
        loss(jnp.zeros((2, 4, 4, 2)), jnp.zeros((2, 4, 4, 1)))
