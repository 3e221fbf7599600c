import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ophjax.transforms.bundling import bundle


def mixed_tree(seed):
    """Small leaves of several shapes, a scalar, an empty one, and two above the limit of 100 numbers used below."""
    rng = np.random.default_rng(seed)
    shapes = {"scale": (), "bias": (7,), "none": (0, 3), "large": (20, 30), "kernel": (3, 3, 2, 4), "wide": (101,)}
    return {"net": {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}}


def run(tx, steps=4):
    params = mixed_tree(0)
    state = tx.init(params)
    for i in range(steps):
        updates, state = tx.update(mixed_tree(1 + i), state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize(
    "tx",
    [
        optax.adam(1e-2),
        optax.adamw(1e-2, weight_decay=0.1),
        optax.sgd(0.1, momentum=0.9),
        optax.chain(optax.clip_by_global_norm(0.5), optax.adam(optax.cosine_decay_schedule(1e-2, 10))),
    ],
    ids=["adam", "adamw", "sgd", "clipped"],
)
@pytest.mark.parametrize("small", [100, 0, 10**6], ids=["some bundled", "none bundled", "all bundled"])
def test_numbers_are_those_of_the_optimiser(tx, small):
    """Equal but for rounding, which the order of additions in a norm or a fused division may change."""
    expected, found = run(tx), run(bundle(tx, small=small))
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7), expected, found)


def test_types_of_the_updates_are_those_of_the_gradients():
    """A bfloat16 leaf is bundled with float32 ones and comes back as bfloat16."""
    params = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones((2, 2))}
    tx = bundle(optax.adam(0.1))
    updates, _ = tx.update(params, tx.init(params), params)
    assert {name: leaf.dtype for name, leaf in updates.items()} == {"a": jnp.bfloat16, "b": jnp.float32}


def test_many_small_leaves_cost_few_operations():
    """A hundred biases: Adam itself multiplies and divides for each, the bundle once for all."""
    params = {str(i): jnp.ones(8) for i in range(100)}

    def arithmetic(tx):
        text = str(jax.make_jaxpr(lambda grads, state: tx.update(grads, state))(params, tx.init(params)))
        return len(re.findall(r"= (?:mul|div|sqrt|integer_pow|add)\b", text))

    plain, bundled = arithmetic(optax.adam(1e-3)), arithmetic(bundle(optax.adam(1e-3)))
    assert plain > 500 and bundled < 30  # at least five for each leaf; a dozen, and the count of steps


def test_large_leaves_keep_their_shape():
    """So that a rule can shard their moments as it shards them."""
    state = bundle(optax.adam(1e-3), small=100).init(mixed_tree(0))
    assert [leaf.shape for leaf in state[0].mu["apart"]] == [(20, 30), (101,)]
    assert state[0].mu["bundle"].shape == (1 + 7 + 0 + 72,)
