"""The recurrence: one optimiser step a round on what the round before left, and no gradient between rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ophjax.transforms.recurrence import CARRIED, recur
from ophjax.transforms.stepping import begin, descend
from ophjax.types import TrainState

TX = optax.sgd(0.1)


def loss(key, params, extra, batch):
    """A scalar weight chases what the last round left; what it leaves depends on the weight."""
    told = extra[CARRIED]
    value = (params["net"]["w"] * batch["x"].sum() - told) ** 2 + jax.random.normal(key) * params["net"]["w"]
    return value, ({CARRIED: told * params["net"]["w"], "seen": extra["seen"] + 1}, {"told": told})


def start():
    params = {"net": {"w": jnp.asarray(0.7)}}
    opt = {"all": begin(TX, params, ("net",))}
    return TrainState(step=jnp.asarray(5), params=params, opt=opt, extra={"seen": jnp.asarray(0)})


BATCH = {"x": jnp.array([0.5, 0.25])}
STEP = descend(loss, TX, trains=("net",), slot="all")


def run(rounds, loss_step=STEP):
    return jax.jit(recur(loss_step, lambda state, batch: batch["x"].sum(), rounds=rounds))(
        jax.random.key(0), start(), BATCH
    )


def test_rounds_equal_steps_by_hand():
    from ophjax.keys import at

    state, logs = run(3)
    w, told, seen = 0.7, 0.75, []
    for number in range(3):
        noise = float(jax.random.normal(at(jax.random.key(0), "round", number)))
        seen.append(told)
        # The gradient knows nothing of where ``told`` came from.
        slope, told = 2 * (w * 0.75 - told) * 0.75 + noise, told * w
        w -= 0.1 * slope
    np.testing.assert_allclose(state.params["net"]["w"], w, rtol=1e-5)
    np.testing.assert_allclose(logs["told"], np.mean(seen), rtol=1e-5)
    assert int(state.extra["seen"]) == 3


def test_nothing_but_the_rounds_results_is_left():
    state, logs = run(2)
    assert set(state.extra) == {"seen"} and int(state.step) == 5
    assert {"loss", "grad_norm", "told"} == set(logs)
    assert jax.tree.structure(state) == jax.tree.structure(start())


def test_one_round_is_the_plain_step():
    from ophjax.keys import at

    given = start()
    given = given.replace(extra=given.extra | {CARRIED: BATCH["x"].sum()})
    plain, _ = jax.jit(STEP)(at(jax.random.key(0), "round", 0), given, BATCH)
    np.testing.assert_allclose(run(1)[0].params["net"]["w"], plain.params["net"]["w"], rtol=1e-6)


def test_what_is_carried_has_no_gradient():
    """Differentiating the whole recurrence: the carried value passes none from round to round."""

    def last_told(w):
        state = start()
        state = state.replace(params={"net": {"w": w}})
        frozen = descend(loss, optax.set_to_zero(), trains=("net",), slot="all")
        _, logs = recur(frozen, lambda state, batch: batch["x"].sum(), rounds=3)(jax.random.key(0), state, BATCH)
        return logs["told"]

    assert float(jax.jit(jax.grad(last_told))(jnp.asarray(0.7))) == 0


def test_rounds_must_be():
    with pytest.raises(ValueError, match="at least 1"):
        recur(STEP, lambda state, batch: 0, rounds=0)
