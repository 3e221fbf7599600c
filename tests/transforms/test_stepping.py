"""The three combinators, on a problem small enough to work out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ophjax.keys import at
from ophjax.train import loop, mesh
from ophjax.transforms.recurrence import CARRIED, recur
from ophjax.transforms.stepping import begin, cut, descend, every, in_slices, in_turn, join
from ophjax.types import Stage, TrainState


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


# Batches in slices ----------------------------------------------------------------------------------------------------


def test_slices_are_parts_of_every_block():
    """Rows 0 to 11 on two devices: each slice of three has two rows of each, in their order."""
    rows = jnp.arange(12)
    np.testing.assert_array_equal(cut(rows, 3, 2), [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]])
    pictures = jax.random.normal(jax.random.key(0), (12, 2, 3))
    np.testing.assert_array_equal(join(cut(pictures, 3, 2), 2), pictures)


def regression(key, params, extra, batch):
    """A net of one hidden layer; the loss is a mean over rows. Counts its calls; hands on its outputs."""
    del key
    hidden = jnp.tanh(batch["x"] @ params["net"]["first"])
    found = hidden @ params["net"]["last"]
    told = extra.get(CARRIED, jnp.zeros_like(found))
    extra = {"calls": extra["calls"] + 1} | ({CARRIED: found} if CARRIED in extra else {})
    return jnp.mean((found - batch["y"] + 0.1 * told) ** 2), (extra, {"most": jnp.abs(found).mean()})


def learner(tx, hidden=16):
    one, two, three, four = jax.random.split(jax.random.key(1), 4)
    net = {"first": jax.random.normal(one, (5, hidden)), "last": jax.random.normal(two, (hidden, 2))}
    opt = {"all": begin(tx, {"net": net}, ("net",))}
    state = TrainState(jnp.zeros((), jnp.int32), {"net": net}, opt, {"calls": jnp.zeros((), jnp.int32)})
    return state, {"x": jax.random.normal(three, (64, 5)), "y": jax.random.normal(four, (64, 2))}


@pytest.mark.parametrize("rounds", [0, 2])
def test_slices_make_the_step_of_the_whole_batch(rounds):
    """Also in rounds that hand on something of every row."""
    step = descend(regression, TX, trains=("net",), slot="all")
    step = recur(step, lambda state, batch: batch["y"], rounds=rounds) if rounds else step
    state, batch = learner(TX)
    whole, logs = jax.jit(step)(jax.random.key(0), state, batch)
    with in_slices((4, 2)):
        sliced, found = jax.jit(step)(jax.random.key(0), state, batch)
    for one, other in zip(jax.tree.leaves(whole.params), jax.tree.leaves(sliced.params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert logs.keys() == found.keys()
    for name in logs:
        np.testing.assert_allclose(logs[name], found[name], rtol=1e-5)
    assert int(sliced.extra["calls"]) == 4 * int(whole.extra["calls"]) == 4 * max(rounds, 1), "slice by slice"
    assert sliced.extra.keys() == state.extra.keys()


def test_what_looks_across_rows_sees_a_slice():
    """Centred on the batch, each slice has a mean of its own: the mean of the slices' losses, not the whole's."""

    def loss(key, params, extra, batch):
        del key
        features = batch["x"] @ params["net"]["first"]
        return jnp.mean((features - features.mean(0, keepdims=True)) ** 2), ({}, {})

    state, batch = learner(TX)
    with in_slices((8, 1)):
        _, logs = descend(loss, TX, trains=("net",), slot="all")(jax.random.key(0), state, batch)
    parts = [loss(None, state.params, {}, {"x": rows})[0] for rows in cut(batch["x"], 8, 1)]
    assert float(logs["loss"]) == pytest.approx(float(np.mean(parts)), rel=1e-5)
    assert float(logs["loss"]) < 0.95 * float(loss(None, state.params, {}, batch)[0])


def test_slices_save_memory_and_stay_on_their_devices():
    """On eight devices: the losses of the whole batch, less memory for activations, no row sent to another device."""
    where = mesh.make_mesh()
    state, _ = learner(TX, hidden=4096)
    batch = {"x": np.ones((256, 5), np.float32), "y": np.zeros((256, 2), np.float32)}
    shardings = mesh.state_shardings(state, where)
    stage = Stage("only", 1, descend(regression, TX, trains=("net",), slot="all"), "train", ("net",))
    spec = mesh.spec_of(batch, 256)
    steps = [loop.compile_step(stage, where, shardings, slices=n).lower(jax.random.key(0), state, spec).compile()
             for n in (1, 8)]  # fmt: skip
    whole, sliced = (step.memory_analysis().temp_size_in_bytes for step in steps)
    assert sliced < 0.5 * whole
    assert not any(word in steps[1].as_text() for word in ("all-to-all", "all-gather", "collective-permute"))
    losses = [step(jax.random.key(0), jax.device_put(jax.tree.map(jnp.copy, state), shardings),
                   mesh.place(batch, where))[1]["loss"] for step in steps]  # fmt: skip
    np.testing.assert_allclose(*losses, rtol=1e-5)
