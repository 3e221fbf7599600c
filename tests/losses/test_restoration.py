import jax
import jax.numpy as jnp
import numpy as np

from ophjax.losses.restoration import dual_loss, mean_absolute, primal_loss


def halve(image):
    """An exact downsampler."""
    return image[:, ::2, ::2]


def images():
    fine = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3), maxval=255.0)
    return [halve(halve(fine)), halve(fine), fine]


def test_truth_costs_nothing():
    truth = images()
    assert (primal_loss(truth, truth) == 0).all() and (dual_loss(truth, truth, [halve, halve]) == 0).all()


def test_by_hand():
    truth = images()
    restored = [truth[0] + 1, truth[1] - 2, truth[2] + 4]
    np.testing.assert_allclose(primal_loss(restored, truth), [7, 7], rtol=1e-5)
    np.testing.assert_allclose(primal_loss(restored, truth, (0.0, 1.0, 0.5)), [4, 4], rtol=1e-5)
    np.testing.assert_allclose(dual_loss(restored, truth, [halve, lambda x: halve(x) + 1]), [7, 7], rtol=1e-5)
    assert mean_absolute(truth[0][:, :1], truth[0][:, :1] + 3).tolist() == [3, 3]


def test_the_dual_loss_reaches_both_networks():
    truth = images()

    def loss(shift, factor):
        restored = [image + shift for image in truth]
        return dual_loss(restored, truth, [lambda x: factor * halve(x)] * 2).sum()

    of_primal, of_dual = jax.grad(loss, argnums=(0, 1))(jnp.float32(3.0), jnp.float32(1.0))
    assert of_primal != 0 and of_dual != 0
