"""The greedy machine on one small chain of convolutions, against a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ophjax.nets.conv import conv2d
from ophjax.transforms.pruning import (
    Site,
    Unit,
    by_channel,
    frobenius_norms,
    kept_channels,
    layout,
    scale_inputs,
    spatial_norms,
)
from ophjax.transforms.selection import MOMENTUM, Plan, advance, memory, start

UNITS = (
    Unit("first", 5, (Site("a/kernel", 3),), Site("b/kernel", 2), Site("b/bias", 0, 0, 4)),
    Unit("second", 4, (Site("b/kernel", 3), Site("b/bias", 0)), Site("c/kernel", 2)),
)
TARGETS = jnp.array([3, 2])


def network(params, x):
    y = jax.nn.relu(conv2d(x, params["a"]["kernel"]))
    y = jax.nn.relu(conv2d(y, params["b"]["kernel"]) + params["b"]["bias"].reshape(1, 1, 1, -1))
    return conv2d(y, params["c"]["kernel"])


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 3, 2, 5), "b": (3, 3, 5, 4), "c": (3, 3, 4, 2)}
    params = {name: {"kernel": jnp.asarray(rng.normal(size=s) / 3, jnp.float32)} for name, s in shapes.items()}
    params["b"]["bias"] = jnp.asarray(rng.normal(size=4), jnp.float32)
    images = jnp.asarray(rng.normal(size=(40, 2, 6, 6, 2)), jnp.float32)
    return params, images


def run(params, images, plan, targets=TARGETS, given=None):
    """Runs the machine to its end and lists (unit, mask) after each step."""
    dense = params

    @jax.jit
    def step(params, place, held, image):
        def loss(masked, one_hot):
            return jnp.square(network(masked, image) - network(dense, image)).mean(), one_hot

        return advance(plan, loss, params, place, held, targets, given)

    place, held, seen = start(plan), memory(params, plan.units), []
    for number in range(plan.steps(targets)):
        before = place
        params, place, held, _, one_hot = step(params, place, held, images[number % len(images)])
        assert one_hot.tolist() == [1.0 * (unit == before.unit) for unit in range(2)]
        seen.append((int(place.unit), np.asarray(place.mask)))
    return params, place, seen


def by_hand(params, images, at_once, batches, refit, lr):
    """The same in plain loops, from the specification."""
    dense, number = params, 0
    masks = [np.zeros(5), np.ones(4)]

    @jax.jit
    def gradient(params, mask, image):
        whole = scale_inputs(params, UNITS, mask)
        return jax.grad(lambda p: jnp.square(network(p, image) - network(dense, image)).mean())(whole)

    def slope(params, image):
        found = gradient(params, np.concatenate(masks).astype(np.float32), image)
        return jax.tree.map(np.array, found)

    for unit, (name, target) in enumerate((("b", 3), ("c", 2))):
        masks[unit] = np.zeros_like(masks[unit])
        while masks[unit].sum() < target:
            total = 0
            for _ in range(batches):
                total = total + slope(params, images[number])[name]["kernel"]
                number += 1
            scores = np.array(spatial_norms(total))
            scores[masks[unit] > 0] = -1
            for k in np.argsort(-scores)[: min(at_once, int(target - masks[unit].sum()))]:
                masks[unit][k] = 1
            moment = {"kernel": 0.0, "bias": 0.0}
            for _ in range(batches if refit else 0):
                found = slope(params, images[number])[name]
                number += 1
                changed = dict(params[name])
                for leaf in found:
                    moment[leaf] = found[leaf] + MOMENTUM * moment[leaf]
                    reach = masks[unit].reshape(1, 1, -1, 1) if leaf == "kernel" else 1.0
                    changed[leaf] = params[name][leaf] - lr * reach * (found[leaf] + MOMENTUM * moment[leaf])
                params = params | {name: changed}
    return params, np.concatenate(masks)


@pytest.mark.parametrize(("at_once", "refit"), [(1, True), (2, True), (2, False)])
def test_machine_equals_a_plain_loop(problem, at_once, refit):
    params, images = problem
    plan = Plan(UNITS, at_once, 2, refit, 0.1, spatial_norms)
    found, place, _ = run(params, images, plan)
    wanted, mask = by_hand(params, images, at_once, 2, refit, 0.1)
    np.testing.assert_array_equal(place.mask, mask)
    assert int(place.unit) == 2
    assert {name: len(kept) for name, kept in kept_channels(place.mask, UNITS).items()} == {"first": 3, "second": 2}
    for one, other, old in zip(*map(jax.tree.leaves, (found, wanted, params)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
        assert refit or (one == old).all()


def test_all_channels_kept_leave_the_network_as_it_was(problem):
    params, images = problem
    plan = Plan(UNITS, 4, 1, False, 0.1, spatial_norms)
    found, place, _ = run(params, images, plan, jnp.array([5, 4]))
    assert (place.mask == 1).all()
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found, params))


def test_a_permutation_of_channels_permutes_the_choice(problem):
    params, images = problem
    plan, order = Plan(UNITS, 1, 2, True, 0.1, spatial_norms), np.array([3, 0, 4, 1, 2])
    turned = params | {"a": {"kernel": params["a"]["kernel"][..., order]}}
    turned["b"] = params["b"] | {"kernel": params["b"]["kernel"][:, :, order]}
    _, place, _ = run(params, images, plan)
    _, other, _ = run(turned, images, plan)
    np.testing.assert_array_equal(other.mask[:5], place.mask[:5][order])
    np.testing.assert_array_equal(other.mask[5:], place.mask[5:])


def test_given_scores_are_followed(problem):
    params, images = problem
    norms = by_channel(params, UNITS)
    _, place, _ = run(params, images, Plan(UNITS, 2, 1, True, 0.1, frobenius_norms), given=norms)
    for part, target in ((slice(0, 5), 3), (slice(5, 9), 2)):
        assert set(np.flatnonzero(place.mask[part])) == set(np.argsort(-norms[part])[:target])


def test_steps_and_what_is_left_of_them():
    plan = Plan(UNITS, 2, 10, True, 0.1, spatial_norms)
    assert plan.steps([3, 2]) == 20 * (2 + 1)
    # As released: one channel a round; four at once take a quarter of the passes, or a little more.
    released, ours = plan._replace(at_once=1), plan._replace(at_once=4)
    assert released.steps([32] * 64) / ours.steps([32] * 64) == 4
    assert layout(UNITS).starts.tolist() == [0, 5]
