import jax
import jax.numpy as jnp
import numpy as np

from ophjax.nets.recompute import recomputed
from ophjax.nets.superres import DRN


def test_same_numbers_from_less_memory():
    net, image = DRN(2, 6, 4), jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    params = jax.jit(net.init)(jax.random.key(1), image)

    def loss(params):
        return sum(jnp.mean(jnp.square(leaf)) for leaf in jax.tree.leaves(net.apply(params, image)))

    whole = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
    with recomputed(True):
        less = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
    assert less.memory_analysis().temp_size_in_bytes < 0.8 * whole.memory_analysis().temp_size_in_bytes
    for one, other in zip(jax.tree.leaves(whole(params)), jax.tree.leaves(less(params)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
