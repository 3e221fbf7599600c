"""Gradient reversal: check 1 of M2DAN's spec, section (k), and its ramps."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from ophjax.transforms.reversal import linear_ramp, reverse_gradient, sigmoid_ramp


def tree(seed=0):
    rng = np.random.default_rng(seed)
    return {"a": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), "b": jnp.asarray(rng.normal(size=5), jnp.bfloat16)}


def weigh(x):
    """A loss with a gradient that differs from leaf to leaf and from number to number."""
    return sum((leaf.astype(jnp.float32) ** 3).sum() for leaf in jax.tree.leaves(x))


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 7.0])
def test_identity_forwards_and_reversed_backwards(scale):
    """Forwards bit for bit. Backwards the product, to the rounding of each type; a bfloat16 leaf keeps its type."""
    x = tree()
    jax.tree.map(np.testing.assert_array_equal, reverse_gradient(x, scale), x)
    straight = jax.grad(weigh)(x)
    turned = jax.jit(jax.grad(lambda x: weigh(reverse_gradient(x, scale))))(x)
    assert {name: leaf.dtype for name, leaf in turned.items()} == {"a": jnp.float32, "b": jnp.bfloat16}
    np.testing.assert_allclose(turned["a"], -scale * np.asarray(straight["a"]), rtol=1e-6)
    wanted = -scale * np.asarray(straight["b"], np.float32)
    np.testing.assert_allclose(np.asarray(turned["b"], np.float32), wanted, rtol=2**-7)


def test_the_strength_has_no_gradient_and_integers_pass():
    def loss(x, scale, count):
        x, count = reverse_gradient((x, count), scale)
        return (x * count).sum()

    gradients = jax.grad(loss, argnums=(0, 1))(jnp.ones(3), 0.5, jnp.arange(3))
    np.testing.assert_array_equal(gradients[0], [0, -0.5, -1])
    assert gradients[1] == 0


def test_twice_in_a_row_is_the_square():
    x = jnp.arange(4.0)
    turned = jax.grad(lambda x: (reverse_gradient(reverse_gradient(x, 3.0), 3.0) ** 2).sum())(x)
    np.testing.assert_array_equal(turned, 9 * 2 * x)


def test_two_uses_in_one_graph():
    """A feature that is reversed before one head and not before another: the two gradients add up."""
    x = jnp.arange(1.0, 4.0)
    found = jax.grad(lambda x: (x**2).sum() + (5 * reverse_gradient(x, 0.5)).sum())(x)
    np.testing.assert_array_equal(found, 2 * x - 2.5)


def test_a_ramp_does_not_trace_again():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def turned(x, step):
        return jax.grad(lambda x: (reverse_gradient(x, sigmoid_ramp(step / 10)) * 2).sum())(x)

    found = [float(turned(jnp.ones(1), step)[0]) for step in range(3)]
    np.testing.assert_allclose(found, [-2 * np.tanh(0.5 * step) for step in range(3)], rtol=1e-6, atol=1e-12)


def test_under_vmap():
    """Each row has its own strength."""
    scales = jnp.array([0.0, 1.0, 2.0])
    found = jax.vmap(jax.grad(lambda x, scale: 3 * reverse_gradient(x, scale)))(jnp.ones(3), scales)
    np.testing.assert_array_equal(found, -3 * scales)


def test_under_shard_map():
    """Split over eight devices it is what it is on one."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    x, rows = jnp.arange(16.0), PartitionSpec("data")

    def local(x, scale):
        return jax.grad(lambda x: (reverse_gradient(x, scale) ** 2).sum())(x)

    split = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows))
    np.testing.assert_array_equal(split(x, jnp.float32(0.25)), -0.5 * x)


def test_it_is_not_the_gradient_of_the_identity():
    """Finite differences must disagree: that is what it is for."""
    slope = (reverse_gradient(1.5, 1.0) - reverse_gradient(0.5, 1.0)) / 1.0
    assert slope == 1 and jax.grad(reverse_gradient)(1.0) == -1


def test_ramps():
    """The spec's values of the sigmoid ramp (section (d), to three digits; the last to five) and its rise."""
    progress = jnp.array([0.0, 0.1, 0.25, 0.5, 1.0])
    np.testing.assert_allclose(sigmoid_ramp(progress)[:4], [0, 0.462, 0.848, 0.987], atol=5e-4)
    np.testing.assert_allclose(sigmoid_ramp(progress)[4], 0.99991, atol=5e-6)
    assert (np.diff(sigmoid_ramp(jnp.linspace(0, 1, 50))) > 0).all()
    assert sigmoid_ramp(jnp.int32(1)).dtype == jnp.float32
    np.testing.assert_allclose(linear_ramp(progress, end=0.5), [0, 0.2, 0.5, 1, 1], rtol=1e-6)
