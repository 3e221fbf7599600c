"""A descent inside a step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ophjax.transforms.searching import search


def test_together_and_one_by_one():
    """Check 10: under vmap every instance has an Adam of its own."""
    goals = jnp.array([[1.0, -2.0], [0.001, 300.0], [0.0, 0.0]])

    def find(goal):
        return search(lambda x: jnp.square(x - goal).sum(), optax.adam(0.1), jnp.zeros(2), steps=40)

    together, alone = jax.jit(jax.vmap(find))(goals), [jax.jit(find)(goal) for goal in goals]
    for i, (found, values) in enumerate(alone):
        np.testing.assert_allclose(together[0][i], found, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(together[1][i], values, rtol=1e-6)
    np.testing.assert_array_equal(together[0][2], 0)  # at the goal already


def test_the_steps_are_those_of_the_optimiser():
    """Against optax by hand; the values are those before each step."""
    tx, x = optax.adam(0.1), jnp.array(3.0)
    found, values = search(jnp.square, tx, x, steps=3)
    state = tx.init(x)
    for value in values:
        np.testing.assert_allclose(value, x * x, rtol=1e-6)
        updates, state = tx.update(2 * x, state)
        x = optax.apply_updates(x, updates)
    np.testing.assert_allclose(found, x, rtol=1e-6)
