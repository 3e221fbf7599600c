"""Sharpness-aware steps: where the ascent leads, by hand, and that plain steps are the limit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ophjax.transforms.sharpness import ascend, descend_flat
from ophjax.transforms.stepping import begin, descend, in_slices
from ophjax.types import TrainState


@pytest.mark.parametrize("adaptive", [True, False])
def test_ascent_by_hand(adaptive):
    w, g = {"a": jnp.array([3.0, -4.0]), "b": jnp.array([0.5])}, {"a": jnp.array([1.0, 2.0]), "b": jnp.array([-2.0])}
    flat_w, flat_g = np.array([3, -4, 0.5]), np.array([1, 2, -2.0])
    step = flat_w**2 * flat_g / np.linalg.norm(np.abs(flat_w) * flat_g) if adaptive else flat_g / np.linalg.norm(flat_g)
    moved = ascend(w, g, rho=0.1, adaptive=adaptive)
    np.testing.assert_allclose(np.concatenate([moved["a"], moved["b"]]), flat_w + 0.1 * step, rtol=1e-6)
    still = ascend(w, jax.tree.map(jnp.zeros_like, g), rho=0.1, adaptive=adaptive)
    np.testing.assert_array_equal(still["a"], w["a"])


def loss(key, params, extra, batch):
    del key, extra
    value = jnp.cosh(params["net"]["w"] - batch["x"]).sum()
    return value, ({"seen": value}, {"value": value})


def test_step():
    tx = optax.sgd(0.1)
    params = {"net": {"w": jnp.array([1.0, -2.0])}, "other": {"w": jnp.ones(1)}}
    state = TrainState(jnp.zeros((), int), params, {"all": begin(tx, params, ("net",))}, {"seen": jnp.zeros(())})
    batch = {"x": jnp.array([0.5, 0.5])}
    flat = descend_flat(loss, tx, trains=("net",), slot="all", rho=0.05)
    after, logs = flat(jax.random.key(0), state, batch)
    grads = jnp.sinh(params["net"]["w"] - batch["x"])
    there = ascend(params["net"]["w"], grads, rho=0.05)
    by_hand = params["net"]["w"] - 0.1 * jnp.sinh(there - batch["x"])
    np.testing.assert_allclose(after.params["net"]["w"], by_hand, rtol=1e-6)
    # Loss and state are those of the first pass.
    first, _ = loss(None, params, None, batch)
    assert float(logs["loss"]) == float(after.extra["seen"]) == float(first)
    assert after.params["other"] is params["other"]
    limit, _ = descend_flat(loss, tx, trains=("net",), slot="all", rho=0.0)(jax.random.key(0), state, batch)
    plain, _ = descend(loss, tx, trains=("net",), slot="all")(jax.random.key(0), state, batch)
    np.testing.assert_allclose(limit.params["net"]["w"], plain.params["net"]["w"], rtol=1e-6)


def test_both_passes_go_in_slices():
    """Of a mean over rows: the step of the whole batch, the loss called for each slice."""

    def mean_loss(key, params, extra, batch):
        del key
        value = jnp.cosh(params["net"]["w"][None] - batch["x"]).mean()
        return value, ({"calls": extra["calls"] + 1, "rows": jnp.asarray(len(batch["x"]))}, {})

    tx, params = optax.sgd(0.1), {"net": {"w": jnp.array([1.0, -2.0])}}
    extra = {"calls": jnp.zeros((), int), "rows": jnp.zeros((), int)}
    state = TrainState(jnp.zeros((), int), params, {"all": begin(tx, params, ("net",))}, extra)
    batch = {"x": jax.random.normal(jax.random.key(0), (8, 2))}
    step = descend_flat(mean_loss, tx, trains=("net",), slot="all", rho=0.5)
    whole, logs = step(jax.random.key(0), state, batch)
    with in_slices((4, 1)):
        sliced, found = step(jax.random.key(0), state, batch)
    np.testing.assert_allclose(sliced.params["net"]["w"], whole.params["net"]["w"], rtol=1e-5)
    np.testing.assert_allclose(found["loss"], logs["loss"], rtol=1e-5)
    assert [int(one.extra["calls"]) for one in (whole, sliced)] == [1, 4] and int(sliced.extra["rows"]) == 2
