"""The attention stage: exact where it can be, capped where it must, and every part of it learns."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ophjax import trees
from ophjax.errors import InputError
from ophjax.nets.stage import AttentionStage, largest_divisor
from ophjax.nets.transformer import pool_to

LIGHT = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = partial(jax.jit, compiler_options=LIGHT)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def parameters(stage, *inputs):
    """Random parameters, without compiling the initialisation."""
    shapes = jax.eval_shape(lambda *maps: stage.init(jax.random.key(0), *maps, train=False), *inputs)
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.5 * random.standard_normal(leaf.shape, np.float32), shapes)


def run(stage, weights, *inputs):
    return np.asarray(jit(lambda w, *maps: stage.apply(w, *maps, train=False))(weights, *inputs))


@pytest.mark.parametrize("bound", ["pool", "window"])
def test_bounded_equals_exact_on_maps_within_the_bound(bound):
    x, context = normal(0, 1, 32, 32, 4), normal(1, 1, 32, 32, 6)
    capped, exact = (AttentionStage(2, width=8, tokens=tokens, bound=b) for tokens, b in ((32, bound), (None, "pool")))
    weights = parameters(capped, x, context)
    # The same sums, in one order or another.
    np.testing.assert_allclose(run(capped, weights, x, context), run(exact, weights, x, context), atol=2e-5)


def test_windows_are_exact_stages_on_their_own():
    """Four windows of 4 x 4 give what each quarter gives alone, with its part of the position tables."""
    stage = AttentionStage(2, width=4, tokens=4, bound="window")
    x, context = normal(0, 2, 8, 8, 4), normal(1, 2, 8, 8, 3)
    weights = parameters(stage, x, context)
    for stream in ("query", "context"):  # with a kernel of one tap, quarters do not see one another's border
        kernel = weights["params"][f"{stream}_depthwise"]["kernel"]
        weights["params"][f"{stream}_depthwise"]["kernel"] = kernel * (np.arange(9) == 4).reshape(3, 3, 1, 1)
    whole = run(stage, weights, x, context)
    for rows in (slice(0, 4), slice(4, 8)):
        part = jax.tree.map(lambda leaf: leaf, weights)
        for name in ("query_position", "key_position"):
            part["params"][name] = weights["params"][name].reshape(1, 8, 8, -1)[:, rows, rows].reshape(1, 16, 1, -1)
        alone = run(AttentionStage(2, width=4), part, x[:, rows, rows], context[:, rows, rows])
        np.testing.assert_allclose(alone, whole[:, rows, rows], atol=2e-5)


def test_a_context_that_is_kept_is_there_without_any_attention():
    """With attention and feed-forward silent, the result is the sum of both embedded streams instead of the query's."""
    stage = AttentionStage(2, width=6)
    x, context = normal(0, 1, 4, 4, 5), normal(1, 1, 4, 4, 3)
    weights = parameters(stage, x, context)
    for part in (("attention", "out"), ("feed_forward", "contract")):
        weights["params"][part[0]][part[1]] = jax.tree.map(np.zeros_like, weights["params"][part[0]][part[1]])
    plain = run(stage, weights, x, context)
    kept = run(stage.clone(keep_context=True), weights, x, context)
    swapped = {"query_depthwise": "context_depthwise", "query_linear": "context_linear"}
    swapped |= {new: old for old, new in swapped.items()}
    turned = {"params": {swapped.get(name, name): tree for name, tree in weights["params"].items()}}
    np.testing.assert_allclose(kept, plain + run(stage, turned, context, x), atol=1e-5)


def test_windows_divide_the_map():
    assert [largest_divisor(n, most=32) for n in (128, 48, 24, 7, 67)] == [32, 24, 24, 7, 1]
    with pytest.raises(InputError, match="4 x 4 and 8 x 8 positions"):
        AttentionStage(1, bound="window").init(
            jax.random.key(0), normal(0, 1, 4, 4, 2), normal(0, 1, 8, 8, 2), train=False
        )


def test_a_capped_map_keeps_its_resolution_and_gets_the_update_of_its_averages():
    """Without its feed-forward, what a stage adds to the query stream is the resized update."""
    stage = AttentionStage(2, width=4, tokens=4, ratio=0.5)
    x, context = normal(0, 2, 8, 8, 4), normal(1, 2, 16, 16, 3)
    weights = parameters(stage, x, context)
    fed = weights["params"]["feed_forward"]
    fed["contract"] = jax.tree.map(np.zeros_like, fed["contract"])
    out = run(stage, weights, x, context)
    silent = jax.tree.map(lambda leaf: leaf, weights)
    silent["params"]["attention"] = dict(weights["params"]["attention"])
    silent["params"]["attention"]["out"] = jax.tree.map(np.zeros_like, weights["params"]["attention"]["out"])
    update = out - run(stage, silent, x, context)
    # An update made on 4 x 4 positions and resized is smooth: what resizing its averages gives again is close to it.
    assert np.abs(update).max() > 0.05
    coarse = jax.image.resize(np.asarray(pool_to(jnp.asarray(update), 4, 4)), update.shape, "bilinear")
    assert np.abs(update - coarse).mean() < 0.35 * np.abs(update).mean()
    fine = out - jax.image.resize(np.asarray(pool_to(jnp.asarray(out), 4, 4)), out.shape, "bilinear")
    assert np.abs(fine).mean() > 0.3 * np.abs(out).mean()  # the query stream itself is not blurred


def test_the_query_map_is_the_residual_and_the_context_gives_the_values():
    stage = AttentionStage(2, width=6)
    x, context = normal(0, 1, 4, 4, 5), normal(1, 1, 4, 4, 3)
    weights = parameters(stage, x, context)
    out = run(stage, weights, x, context)
    assert out.shape == (1, 4, 4, 6)
    # Without values there is nothing to read: the context no longer matters.
    mute = jax.tree.map(lambda leaf: leaf, weights)
    mute["params"]["attention"] = dict(mute["params"]["attention"])
    mute["params"]["attention"]["value"] = jax.tree.map(np.zeros_like, mute["params"]["attention"]["value"])
    np.testing.assert_array_equal(run(stage, mute, x, context), run(stage, mute, x, 2 * context + 1))
    assert np.abs(run(stage, weights, x, 2 * context + 1) - out).max() > 1e-3


def closed_form(own, other, width, heads, tokens, ratio):
    """Parameters of a stage: depthwise and linear of each stream, norm, positions, attention, feed-forward."""
    hidden = round(ratio * width)
    streams = sum(9 * c + c + c * width for c in (own, *([other] if other else [])))
    attention = 3 * width * width + width * width + width + 5 * width  # q, k, v; out; norms, that of the keys unbiased
    return (
        streams + 2 * width + 2 * tokens * width // heads + attention + 2 * width + 2 * width * hidden + hidden + width
    )


@pytest.mark.parametrize(
    ("own", "other", "width", "heads", "side", "ratio"),
    [(256, 256, 256, 8, 16, 0.5), (64, 64, 64, 1, 32, 3), (5, None, 16, 4, 32, 0.5), (16, None, 14, 7, 8, 0.5)],
)
def test_parameter_count(own, other, width, heads, side, ratio):
    stage = AttentionStage(heads, width=width, ratio=ratio)
    maps = [jax.ShapeDtypeStruct((1, side, side, c), jnp.float32) for c in (own, other) if c]
    made = jax.eval_shape(lambda *maps: stage.init(jax.random.key(0), *maps, train=False), *maps)
    assert trees.count(made) == closed_form(own, other, width, heads, side * side, ratio)


def test_every_part_learns_and_drop_path_acts_in_training_only():
    stage = AttentionStage(2, width=6, tokens=4, drop_path=0.5)
    x, context = normal(0, 4, 8, 8, 5), normal(1, 4, 8, 8, 3)
    weights = parameters(stage, x, context)

    def loss(weights, key, train):
        rngs = {"drop_path": key}
        return (stage.apply(weights, x, context, train=train, rngs=rngs) ** 3).mean()

    grads = jit(jax.grad(partial(loss, train=False)))(weights, jax.random.key(0))
    still = [path for path, leaf in trees.named_leaves(grads).items() if not np.abs(leaf).max() > 1e-7]
    assert not still
    training = jit(partial(loss, train=True))
    values = {float(training(weights, jax.random.key(seed))) for seed in range(1, 5)}
    assert len(values) > 1


def test_scores_stay_small_at_the_papers_scale():
    """No intermediate above 1 GB at batch 4, 256 x 256 pixels, where the finest stage has 128 x 128 positions."""
    stage = AttentionStage(8, width=256, ratio=0.5)
    fine = jax.ShapeDtypeStruct((4, 128, 128, 256), jnp.float32)

    def largest(tokens, bound="pool", heads=8):
        module = stage.clone(tokens=tokens, bound=bound, heads=heads)
        made = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, x, train=False), fine)
        program = jax.make_jaxpr(lambda w, x: module.apply(w, x, x, train=False))(made, fine)
        return max(4 * v.aval.size for eqn in program.jaxpr.eqns for v in eqn.outvars)

    assert largest(32) < 2**29 and largest(32, "window", heads=1) < 2**29  # ConM has one head there
    assert largest(None) > 2**34  # what the exact form would need


def test_heads_must_divide_the_width():
    with pytest.raises(InputError, match="width 14 and 4 heads"):
        AttentionStage(4, width=14).init(jax.random.key(0), normal(0, 1, 4, 4, 3), train=False)
