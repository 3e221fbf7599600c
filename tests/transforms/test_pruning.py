"""Pruning of a small chain of convolutions whose leaves the tests can see through, and of DRN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ophjax.errors import InputError
from ophjax.nets.superres import DRN, count_madds, units
from ophjax.transforms.pruning import (
    Site,
    Unit,
    by_channel,
    candidates,
    choice_probs,
    choices,
    choose,
    keep_best,
    kept_channels,
    layout,
    mixture,
    prune,
    rank,
    scale_inputs,
    spatial_norms,
    uniform_counts,
)

# dualsr spec, (e.1).
CANDIDATES = {
    (64, 0.3): [20, 24, 32, 36, 40, 44], (64, 0.5): [16, 20, 20, 24, 28, 32], (64, 0.7): [8, 12, 12, 16, 16, 20],
    (32, 0.3): [12, 12, 16, 16, 20, 20], (32, 0.5): [8, 8, 12, 12, 12, 16], (32, 0.7): [4, 4, 4, 8, 8, 8],
    (16, 0.3): [4, 4, 8, 8, 8, 12], (16, 0.5): [4, 4, 4, 4, 8, 8], (16, 0.7): [4] * 6,
    (8, 0.3): [4] * 6, (8, 0.5): [4] * 6, (8, 0.7): [4] * 6,
    (80, 0.3): [28, 32, 40, 44, 48, 56], (80, 0.5): [20, 24, 28, 32, 36, 40], (80, 0.7): [12, 12, 16, 20, 20, 24],
}  # fmt: skip
TWO = (
    Unit("first", 3, (Site("a", 1),), Site("c", 2)),
    Unit("second", 2, (Site("b", 0, 0, 2),), Site("c", 2, 3)),
)
"""Two units that share a consumer of five inputs; each channel of the second has two entries in its producer."""


def tree():
    rng = np.random.default_rng(0)
    return {"a": rng.normal(size=(2, 3)), "b": rng.normal(size=4), "c": rng.normal(size=(3, 3, 5, 2)), "d": np.ones(2)}


@pytest.fixture(scope="module")
def net():
    dense = DRN(4, 2, 4)
    return dense, jax.jit(dense.init)(jax.random.key(0), jnp.zeros((1, 6, 6, 3)))["params"]


@pytest.mark.parametrize(("width", "ratio"), CANDIDATES)
def test_candidates(width, ratio):
    assert candidates(width, ratio) == CANDIDATES[width, ratio]


def test_choices_come_once_each_or_as_released():
    plan = layout([Unit("a", 64, (), Site("", 0)), Unit("b", 8, (), Site("", 0))])
    once = choices(plan, 0.5)
    assert once.counts[0].tolist() == [16, 20, 24, 28, 32] and once.real[0].all()
    assert once.counts[1][0] == 4 and once.real[1].tolist() == [True] + [False] * 4
    assert choices(plan, 0.5, repeats=True).counts.tolist() == [CANDIDATES[64, 0.5], CANDIDATES[8, 0.5]]
    assert candidates(3, 0.5) == [3] * 6  # narrower than 4: whole
    assert uniform_counts(plan, 0.3).tolist() == [44, 5]


def test_prune_takes_the_right_entries():
    params = tree()
    found = prune(params, TWO, {"first": np.array([0, 2]), "second": np.array([1])})
    np.testing.assert_array_equal(found["a"], params["a"][:, [0, 2]].astype(np.float32))
    np.testing.assert_array_equal(found["b"], params["b"][[2, 3]].astype(np.float32))
    np.testing.assert_array_equal(found["c"], params["c"][:, :, [0, 2, 4]].astype(np.float32))
    np.testing.assert_array_equal(found["d"], params["d"])


def test_prune_everything_kept_is_the_identity(net):
    dense, params = net
    same = prune(params, units(dense), {unit.name: np.arange(unit.width) for unit in units(dense)})
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), same, params))


@pytest.mark.parametrize("channels", [[], [2, 1], [0, 0], [0, 3], [-1, 0]])
def test_prune_refuses(channels):
    with pytest.raises(InputError, match="Unit first is to keep"):
        prune(tree(), TWO, {"first": np.array(channels, int), "second": np.array([0])})


def test_masks_scale_the_consumers_inputs():
    params = jax.tree.map(jnp.asarray, tree())
    factors = jnp.array([1.0, 0, 2, 0.5, 0])
    found = scale_inputs(params, TWO, factors)
    np.testing.assert_allclose(found["c"], params["c"] * factors.reshape(1, 1, -1, 1), rtol=1e-6)
    assert (found["a"] == params["a"]).all() and (found["b"] == params["b"]).all()
    with pytest.raises(ValueError, match="only a part"):
        scale_inputs(params, TWO[:1], factors[:3])


def test_scores_ranks_and_masks():
    params = jax.tree.map(jnp.asarray, tree())
    np.testing.assert_allclose(by_channel(params, TWO), np.abs(params["c"]).sum((0, 1, 3)), rtol=1e-5)
    norms = by_channel(params, TWO, spatial_norms)
    wanted = [sum(np.linalg.norm(params["c"][:, :, k, o]) for o in range(2)) for k in range(5)]
    np.testing.assert_allclose(norms, wanted, rtol=1e-5)
    plan, scores = layout(TWO), jnp.array([1.0, 3, 2, 5, 5])
    assert rank(scores, plan).tolist() == [2, 0, 1, 0, 1]
    mask = keep_best(scores, jnp.array([2, 1]), plan)
    assert mask.tolist() == [0, 1, 1, 1, 0]
    assert {name: kept.tolist() for name, kept in kept_channels(np.asarray(mask), TWO).items()} == {
        "first": [1, 2],
        "second": [0],
    }


def test_mixture_of_masks():
    """Sum, certain and impossible channels (spec, (k) 8), and the gradient against finite differences."""
    wide = [Unit("a", 16, (), Site("", 0)), Unit("b", 32, (), Site("", 0))]
    plan = layout(wide)
    table = choices(plan, 0.5)
    rng = np.random.default_rng(1)
    scores, logits = jnp.asarray(rng.normal(size=48), jnp.float32), jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
    ranks = rank(scores, plan)
    m = mixture(logits, table, ranks, plan)
    expected = (choice_probs(logits, table) * table.counts).sum(1)
    np.testing.assert_allclose([m[:16].sum(), m[16:].sum()], expected, rtol=1e-5)
    smallest, largest = table.counts[:, 0], table.counts.max(1)
    assert (np.abs(m[ranks < smallest[plan.owner]] - 1) < 1e-6).all() and (m[ranks >= largest[plan.owner]] == 0).all()
    weigh = jnp.asarray(rng.normal(size=48), jnp.float32)

    def value(logits):
        return (mixture(logits, table, ranks, plan) * weigh).sum()

    slope = jax.grad(value)(logits)
    assert slope[0, 2] == 0  # 16 has two candidates at 0.5
    for i, k in ((0, 0), (1, 2)):
        step = jnp.zeros((2, 3)).at[i, k].set(1e-2)
        assert float(value(logits + step) - value(logits - step)) / 2e-2 == pytest.approx(float(slope[i, k]), abs=2e-3)
    assert choose(jnp.array([[0.0, 1, 9], [0, 0, 1]]), table).tolist() == [8, 16]


def test_masked_and_compact_agree(net):
    """Outputs to 1e-4 on 0..255, and the gradients on what is kept (spec, (k) 10 and (l) 8)."""
    dense, params = net
    plan = layout(units(dense))
    counts = jnp.array([3, 5, 9, 16, 7, 4, 13, 11])
    mask = keep_best(by_channel(params, units(dense)), counts, plan)
    kept = kept_channels(np.asarray(mask), units(dense))
    assert [len(channels) for channels in kept.values()] == counts.tolist()
    compact = dense.clone(inner=tuple(counts.tolist()))
    image = jax.random.uniform(jax.random.key(5), (2, 7, 6, 3), maxval=255.0)

    def loss(net, params):
        images = net.apply({"params": params}, image).images
        return sum((jnp.sin(image / 50) * image).mean() for image in images), images

    masked = jax.jit(jax.value_and_grad(lambda p: loss(dense, scale_inputs(p, units(dense), mask)), has_aux=True))
    small = jax.jit(jax.value_and_grad(lambda p: loss(compact, p), has_aux=True))
    (_, ours), slope = masked(params)
    (_, theirs), small_slope = small(prune(params, units(dense), kept))
    _, whole = jax.jit(lambda p: loss(dense, p))(params)
    for one, other, full in zip(ours, theirs, whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
        assert np.abs(one - full).max() > 0.05
    for one, other in zip(jax.tree.leaves(prune(slope, units(dense), kept)), jax.tree.leaves(small_slope), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * float(np.abs(other).max()) + 1e-5)
    assert count_madds(compact) < count_madds(dense)


def test_permuted_channels_are_the_same_network(net):
    """Permuting a unit's channels, producer and consumer together, leaves the function as it is (spec, (k) 9)."""
    dense, params = net
    order = np.random.default_rng(2).permutation(16)
    flat = {name: dict(leaves) if isinstance(leaves, dict) else leaves for name, leaves in params.items()}
    own = 16 + order
    stage = flat["stage0"]
    stage["conv1_kernel"] = stage["conv1_kernel"].at[..., 16:32].set(params["stage0"]["conv1_kernel"][..., own])
    stage["conv1_bias"] = stage["conv1_bias"].at[16:32].set(params["stage0"]["conv1_bias"][own])
    stage["conv2_kernel"] = stage["conv2_kernel"].at[:, :, 16:32].set(params["stage0"]["conv2_kernel"][:, :, own])
    image = jax.random.uniform(jax.random.key(6), (1, 5, 5, 3), maxval=255.0)
    apply = jax.jit(lambda p: dense.apply({"params": p}, image).images[-1])
    np.testing.assert_allclose(apply(params), apply(flat), atol=1e-3)
    before, after = (by_channel(p, units(dense))[28:44] for p in (params, flat))
    np.testing.assert_allclose(after, before[order], rtol=1e-5)
