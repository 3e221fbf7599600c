"""Layers as boundaries: there and back, order that cannot be broken, gradients; their loss."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from ophjax.data import bscans
from ophjax.losses.boundaries import boundary_loss
from ophjax.transforms.boundaries import bands, edges_of, expected_edges, order_kept, thickness

MASK = jnp.asarray(np.stack([bscans.draw(100, i, 48, 64)["mask"] for i in range(3)]))


def sure(edges, height):
    """Logits that are sure of whole rows."""
    return 50.0 * jax.nn.one_hot(edges.astype(int), height, axis=1)


def test_edges_there_and_back():
    edges, known = edges_of(MASK)
    assert edges.shape == (3, 64, 6) and bool(known.all())
    assert bool((jnp.diff(edges, axis=-1) >= 0).all())
    np.testing.assert_array_equal(thickness(MASK), edges[..., 1::2] - edges[..., ::2])
    np.testing.assert_array_equal(bands(edges, 48, softness=0.05) > 0.5, MASK > 0)
    np.testing.assert_allclose(expected_edges(sure(edges, 48)), edges, atol=1e-3)


def test_order_cannot_be_broken():
    logits = 5 * jax.random.normal(jax.random.key(0), (2, 30, 20, 6))
    edges = expected_edges(logits)
    assert bool((jnp.diff(edges, axis=-1) >= 0).all())
    probs = bands(edges, 30)
    assert float(probs.min()) >= 0 and float(probs.sum(-1).max()) <= 1 + 1e-5
    # Free expectations of the same logits would cross.
    free = jnp.einsum("bhwk,h->bwk", jax.nn.softmax(logits, 1), jnp.arange(30.0))
    assert bool((jnp.diff(free, axis=-1) < 0).any())


def test_gradients_of_edges_and_bands():
    logits = jax.random.normal(jax.random.key(0), (1, 8, 3, 4))
    with jax.numpy_rank_promotion("allow"):
        check_grads(lambda x: bands(expected_edges(x), 8), (logits,), order=1, modes=["rev"], atol=0.02, rtol=0.02)


def test_order_of_columns():
    assert order_kept(MASK).tolist() == [1, 1, 1]
    turned = MASK.at[0, ::, :16].set(MASK[0, ::-1, :16])
    np.testing.assert_allclose(order_kept(turned), [0.75, 1, 1])
    # A layer that is not there breaks no order.
    np.testing.assert_allclose(order_kept(MASK.at[..., 1].set(0)), 1)


def test_loss_by_hand():
    logits = jnp.log(jnp.array([0.7, 0.2, 0.1])).reshape(1, 3, 1, 1)
    for row, probability in ((0.0, 0.7), (2.0, 0.1), (3.0, 0.1)):  # an edge below the last row counts as the last
        edges = jnp.full((1, 1, 1), row)
        entropy, apart = boundary_loss(logits, jnp.full((1, 1, 1), 0.4), edges, jnp.ones((1, 1, 1), bool))
        np.testing.assert_allclose(entropy, [-np.log(probability)], rtol=1e-6)
        np.testing.assert_allclose(apart, [abs(0.4 - row)], rtol=1e-6)
    entropy, apart = boundary_loss(logits, edges, edges, jnp.zeros((1, 1, 1), bool))
    assert float(entropy[0]) == float(apart[0]) == 0


def test_loss_counts_known_edges_only():
    logits = jnp.zeros((1, 4, 2, 2))
    edges = jnp.array([[[1.0, 2.0], [0.0, 4.0]]])
    known = jnp.array([[[True, True], [False, False]]])
    entropy, apart = boundary_loss(logits, edges + jnp.array([[[1.0, 1.0], [9.0, 9.0]]]), edges, known)
    np.testing.assert_allclose(entropy, np.log(4), rtol=1e-6)
    np.testing.assert_allclose(apart, 1, rtol=1e-6)
