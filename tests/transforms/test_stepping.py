"""The three combinators, on a problem small enough to work out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ophjax.keys import at
from ophjax.transforms.stepping import begin, descend, every, in_turn
from ophjax.types import TrainState


def quadratic(key, params, extra, batch):
    """Sum of squared distances of both networks to the batch; counts its calls in extra."""
    del key
    value = jnp.sum((params["a"] - batch["x"]) ** 2) + jnp.sum((params["b"] - batch["x"]) ** 2)
    return value, ({"calls": extra["calls"] + 1}, {"seen": batch["x"].sum()})


TX = optax.sgd(0.1)


def start(*slots):
    params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0, 4.0])}
    opt = {slot: begin(TX, params, trains) for slot, trains in slots}
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt=opt, extra={"calls": jnp.zeros((), jnp.int32)})


BATCH = {"x": jnp.zeros(2)}


def test_descend_moves_what_it_trains_and_nothing_else():
    state = start(("first", ("a",)))
    new, logs = descend(quadratic, TX, trains=("a",), slot="first")(jax.random.key(0), state, BATCH)
    # a <- a - 0.1 * 2a
    np.testing.assert_allclose(new.params["a"], [0.8, 1.6], rtol=1e-6)
    np.testing.assert_array_equal(new.params["b"], state.params["b"])
    assert float(logs["loss"]) == 1 + 4 + 9 + 16
    # The gradient of a alone is (2, 4): b's is not even in the norm.
    assert float(logs["grad_norm"]) == pytest.approx(np.sqrt(20))
    assert int(new.extra["calls"]) == 1
    assert int(new.step) == 0, "the loop counts steps, not the combinators"


def test_frozen_networks_cost_no_backward_pass():
    """The program that trains one of two equal networks has fewer matrix products than the one that trains both."""

    def loss(key, params, extra, batch):
        del key
        return sum(jnp.sum((batch["x"] @ w) ** 2) for w in params.values()), (extra, {})

    params = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4))}

    def products(trains):
        state = TrainState(jnp.zeros((), jnp.int32), params, {"s": begin(TX, params, trains)}, {})
        step = descend(loss, TX, trains=trains, slot="s")
        return str(jax.make_jaxpr(step)(jax.random.key(0), state, {"x": jnp.ones((2, 4))})).count("dot_general")

    assert products(("a",)) == 3 and products(("a", "b")) == 4


def test_in_turn_runs_each_step_on_what_the_one_before_left_with_its_own_key():
    state = start(("first", ("a",)), ("second", ("a",)))
    keys = []

    def noting(name):
        inner = descend(quadratic, TX, trains=("a",), slot=name)

        def step(key, state, batch):
            keys.append(key)
            return inner(key, state, batch)

        return step

    key = jax.random.key(0)
    new, logs = in_turn(("one", noting("first")), ("two", noting("second")))(key, state, BATCH)
    np.testing.assert_allclose(new.params["a"], [0.64, 1.28], rtol=1e-6)
    assert set(logs) == {f"{n}/{e}" for n in ("one", "two") for e in ("seen", "loss", "grad_norm")}
    assert all(bool((k == at(jax.random.key(0), n)).all()) for k, n in zip(keys, ("one", "two"), strict=True))


def test_every_runs_on_multiples_of_its_period_in_one_program():
    state = start(("first", ("a",)), ("second", ("b",)))
    step = every(
        3,
        descend(quadratic, TX, trains=("a",), slot="first"),
        otherwise=descend(quadratic, TX, trains=("b",), slot="second"),
    )
    traces = []

    @jax.jit
    def run(key, state, batch):
        traces.append(1)
        return step(key, state, batch)[0].replace(step=state.step + 1)

    moved = []
    for i in range(6):
        new = run(jax.random.key(i), state, BATCH)
        moved.append("a" if bool((new.params["a"] != state.params["a"]).any()) else "b")
        state = new
    assert moved == ["a", "b", "b", "a", "b", "b"]
    assert len(traces) == 1


def test_every_fills_the_logs_of_the_idle_branch_with_zeros():
    state = start(("first", ("a",))).replace(step=jnp.ones((), jnp.int32))
    new, logs = every(2, descend(quadratic, TX, trains=("a",), slot="first"))(jax.random.key(0), state, BATCH)
    np.testing.assert_array_equal(new.params["a"], state.params["a"])
    assert float(logs["loss"]) == 0.0


def test_every_refuses_a_period_below_one():
    with pytest.raises(ValueError, match="period was 0"):
        every(0, descend(quadratic, TX, trains=("a",), slot="first"))
