"""Dual regression as a method: its losses and stages, the search, the choice of channels, compact networks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_run import drawn

import presets
from ophjax import methods, trees
from ophjax.data import pipeline, textures
from ophjax.data.patches import random_patches
from ophjax.errors import InputError
from ophjax.methods import dualsr
from ophjax.metrics.restoration import luma_scores
from ophjax.nets.superres import count_madds, inner_of, units
from ophjax.train import loop
from ophjax.transforms import pruning


def config(**changes):
    found, data, _ = presets.preset("smoke", "dualsr")
    return dataclasses.replace(methods.fit_to(found, textures.make(data)), **changes)


@pytest.fixture(scope="module")
def batch():
    """Eight pairs, two of them without truth."""
    data = textures.make(presets.preset("smoke", "dualsr")[1])
    stream = pipeline.train_batches(data.splits["adapt"], batch_size=8, seed=0)
    found = next(stream)
    stream.close()
    return {name: jnp.asarray(value) for name, value in found.items()}


def begun(batch, **changes):
    """A configuration, its method, and a state like that of ``init`` (whose kernels spread about 0.4 times as far as
    He's), but drawn: it would take a second to compile."""
    made = config(**changes)
    method = dualsr.make(made)
    state = drawn(method, batch)
    state = state.replace(params=jax.tree.map(lambda leaf: 0.4 * leaf, state.params))
    if made.ratio:
        counts = pruning.uniform_counts(pruning.layout(units(dualsr.build(made))), made.ratio)
        dense = {name: jax.tree.map(jnp.copy, state.params[name]) for name in state.extra["dense"]}
        mask = jnp.ones_like(state.extra["mask"])
        state = state.replace(extra=state.extra | {"mask": mask, "counts": jnp.asarray(counts), "dense": dense})
    if "numbers" in state.params:
        numbers = {"logits": 1e-3 * state.params["numbers"]["logits"]}
        state = state.replace(params=state.params | {"numbers": numbers})
    return made, method, state


def stage(method, name):
    return next(one for one in method.stages if one.name == name)


@functools.partial(jax.jit, static_argnames="step")
def logs_alone(step, key, state, batch):
    return step(key, state, batch)[1]


def logs_of(stage, state, batch):
    """What a step says; what it would change is not compiled."""
    return logs_alone(stage.step, jax.random.key(1), state, batch)


def test_stages_follow_the_configuration():
    def names(**changes):
        return [one.name for one in dualsr.make(config(**changes)).stages]

    assert names() == ["dual", "training", "search", "selection", "tuning"]
    assert names(ratio=0.0, dual_steps=0) == ["training"]
    assert names(ratio=0.0, adapt_steps=3) == ["dual", "training", "adaptation"]
    assert names(widths="uniform", steps=0, dual_steps=0, tune_steps=0) == ["selection"]
    for variant, (changes, _) in dualsr.VARIANTS.items():
        found = dualsr.make(dataclasses.replace(dualsr.Config(**dualsr.DEMO), scale=2, **changes))
        assert found.stages, variant


def test_paper_scale_is_drn_s():
    net = dualsr.build(dualsr.Config())
    assert (net.blocks, net.width, net.scale, inner_of(net)[2]) == (30, 16, 4, 64)
    narrow = dualsr.build(dualsr.Config(narrow=0.5))
    assert count_madds(narrow) / 1e9 == pytest.approx(55.15, abs=0.01)


def test_released_schedule():
    """Released greedy selection: 20 batches for every channel; ours at the paper's scale half of it."""
    ours = dualsr.make(dualsr.Config(ratio=0.5))
    table = pruning.choices(pruning.layout(units(dualsr.build(dualsr.Config()))), 0.5)
    released = 20 * table.counts.max(1).sum()
    assert stage(ours, "selection").steps * 2 == released
    single = dualsr.make(dualsr.Config(ratio=0.5, selection_at_once=1))
    assert stage(single, "selection").steps == released


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (dict(scale=1), "needs pairs"),
        (dict(ratio=1.0), "--method.ratio is 1.0"),
        (dict(narrow=0.5, inner=(3,)), "--method.narrow"),
        (dict(inner=(3,)), "one number for each unit"),
        (dict(scale_weights=(1.0,)), "none, or 2 numbers"),
        (dict(dual_weight=0.0, freeze_dual=True), "--method.freeze-dual"),
        (dict(steps=0, dual_steps=0, ratio=0.0), "Nothing is to be done"),
        (dict(tune_lr=0.0), "--method.tune-lr"),
    ],
)
def test_settings_that_cannot_be(changes, match):
    with pytest.raises(InputError, match=match):
        dualsr.make(config(**changes))


def test_patches_show_the_same_place_at_every_scale(batch):
    """Cut and turned alike: shrinking the fine patch gives the coarse one; and rows do not matter."""
    ramp = jnp.arange(32 * 32).reshape(32, 32) % 251
    fine = jnp.broadcast_to(ramp[None, :, :, None], (8, 32, 32, 3)).astype(jnp.uint8)
    pair = {"target": fine, "image": fine[:, ::2, ::2], "index": batch["index"]}
    patches = jax.jit(lambda pair: random_patches(jax.random.key(0), pair, scale=2, size=16, augment=True))
    coarse, cut = patches(pair)
    assert coarse.shape == (8, 8, 8, 3) and cut.shape == (8, 16, 16, 3)
    # A turned patch keeps the sampled pixel at another corner of its square.
    corners = [cut[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    matches = np.array([(np.asarray(corner) == np.asarray(coarse)).all((1, 2, 3)) for corner in corners])
    assert matches.any(0).all() and len({tuple(column) for column in matches.T}) > 1
    turned = {name: value[::-1] for name, value in pair.items()}
    np.testing.assert_array_equal(patches(turned)[1][::-1], cut)
    with pytest.raises(InputError, match="Patches of 64 pixels"):
        random_patches(jax.random.key(0), pair, scale=2, size=64, augment=True)


def test_without_dual_weight_there_are_no_dual_networks(batch):
    _, method, state = begun(batch, dual_weight=0.0, ratio=0.0)
    assert set(state.params) == {"primal"} and [one.trains for one in method.stages] == [("primal",)]


def test_inputs_without_truth(batch):
    """The indicator formula: they move P by the dual loss alone, and D not at all."""
    paired = np.asarray(batch["target_weight"])
    assert 0 < paired.sum() < 8
    alone = dict(batch) | {"target_weight": jnp.zeros(8)}
    _, method, state = begun(batch, ratio=0.0, adapt_steps=2)
    step = jax.jit(stage(method, "adaptation").step)
    after, logs = step(jax.random.key(1), state, alone)
    assert float(logs["primal_loss"]) == 0 and float(logs["dual_loss"]) == 0 and float(logs["unpaired_loss"]) > 0
    same = jax.tree.map(lambda a, b: bool((a == b).all()), after.params, state.params)
    assert all(jax.tree.leaves(same["dual"])) and not all(jax.tree.leaves(same["primal"]))
    # Their blank truth is never read.
    noise = alone | {"target": jnp.full_like(batch["target"], 99)}
    other, _ = step(jax.random.key(1), state, noise)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), after.params, other.params))


def test_search_chooses_among_its_candidates_and_gets_surer(batch):
    """Numbers are candidates, cost no more than the uniform share, and the logits move away from chance."""
    made, method, state = begun(batch, ratio=0.5, numbers_lr=0.1, search_steps=20)
    net = dualsr.build(made)
    step, entropies = jax.jit(stage(method, "search").step), []
    state = stage(method, "search").enter(jax.random.key(0), state)
    for i in range(20):
        state, logs = step(jax.random.key(i), state, batch)
        entropies.append(float(logs["entropy"]))
    assert entropies[-1] < entropies[0]
    dense, trained = state.extra["dense"], state.params
    state = stage(method, "selection").enter(jax.random.key(0), state)
    plan = pruning.layout(units(net))
    counts = np.asarray(state.extra["counts"])
    assert all(c in pruning.candidates(int(width), 0.5) for c, width in zip(counts, plan.widths, strict=True))
    smaller = net.clone(inner=tuple(map(int, counts)))
    assert count_madds(smaller) <= count_madds(net.clone(inner=tuple(map(int, pruning.uniform_counts(plan, 0.5)))))
    # The selection starts from the networks as they were before the search.
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), state.params["primal"], dense["primal"]))
    assert not jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), trained["primal"], dense["primal"]))


def test_search_gives_a_half_dead_layer_fewer_channels(batch):
    """Two equal blocks, of whose second only four channels do anything. The truth is what the dense network gives, so
    that every living channel is needed: the search gives the first block more."""
    made, method, state = begun(batch, ratio=0.3, dual_weight=0.0, numbers_lr=0.05, search_lr=1e-5, search_steps=15)
    blocks, width = state.params["primal"]["stage0"], 16
    for name, axis in (("conv1_kernel", 3), ("conv1_bias", 0), ("conv2_kernel", 2)):
        leaf = blocks[name]
        first = jnp.take(leaf, jnp.arange(width), axis=axis) * (5.0 if name == "conv2_kernel" else 1.0)
        alive = (jnp.arange(width) < 4).astype(leaf.dtype).reshape([-1 if a == axis else 1 for a in range(leaf.ndim)])
        blocks[name] = jnp.concatenate([first, first * alive], axis)
    numbers = {"logits": jnp.zeros_like(state.params["numbers"]["logits"])}
    state = state.replace(params=state.params | {"numbers": numbers})
    taught = dict(batch) | {"target": jax.jit(method.predict)(jax.random.key(0), state, batch)["restored"]}
    step = jax.jit(stage(method, "search").step)
    for i in range(15):
        state, _ = step(jax.random.key(i), state, taught)
    table = pruning.choices(pruning.layout(units(dualsr.build(made))), 0.3)
    expected = (pruning.choice_probs(state.params["numbers"]["logits"], table) * table.counts).sum(1)
    assert expected[1] > expected[2] + 0.1


@pytest.mark.parametrize("selection", ["dual", "magnitude", "random", "magnitude-refit"])
def test_selection_keeps_the_numbers_asked_for_and_compacts(batch, selection):
    """Numbers as configured; the compact network gives the masked one's images (1e-4) and is smaller."""
    made, method, state = begun(batch, selection=selection, widths="uniform", ratio=0.5, selection_at_once=3)
    chosen = stage(method, "selection")
    state = chosen.enter(jax.random.key(0), state)
    before, step = state.params["primal"], jax.jit(chosen.step)
    for i in range(chosen.steps):
        state, _ = step(jax.random.key(i), state, batch)
    net = dualsr.build(made)
    plan = pruning.layout(units(net))
    kept = np.add.reduceat(np.asarray(state.extra["mask"]), plan.starts)
    assert set(np.unique(state.extra["mask"])) <= {0.0, 1.0}
    np.testing.assert_array_equal(kept, pruning.uniform_counts(plan, 0.5))
    assert int(state.extra["unit"]) == (len(plan.widths) if chosen.trains else 0)
    refitted = not jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), before, state.params["primal"]))
    assert refitted == (selection in ("dual", "magnitude-refit"))
    small, params = dualsr.compact(made, state)
    image = batch["image"][:2].astype(jnp.float32)
    masked = jax.jit(lambda s: net.apply({"params": dualsr.masked(made, s)}, image).images)(state)
    compacted = jax.jit(lambda p: small.apply({"params": p}, image).images)(params)
    for one, other in zip(masked, compacted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert trees.count(params) < trees.count(state.params["primal"])
    # What a run predicts is the masked network, rounded.
    found = jax.jit(method.predict)(jax.random.key(0), state, batch)["restored"]
    np.testing.assert_allclose(found[:2], np.clip(np.round(compacted[-1]), 0, 255), atol=1)


def test_tuning_leaves_masked_channels_alone(batch):
    """Tuning with masks is tuning the compact network: what is gone gets no gradient."""
    made, method, state = begun(batch, selection="magnitude", widths="uniform", ratio=0.5)
    state = stage(method, "selection").enter(jax.random.key(0), state)
    after, _ = jax.jit(stage(method, "tuning").step)(jax.random.key(1), state, batch)
    lost = np.asarray(state.extra["mask"]) == 0
    for name in ("primal",):
        moved = pruning.by_channel(
            jax.tree.map(lambda a, b: a - b, after.params[name], state.params[name]), units(dualsr.build(made))
        )
        assert (moved[lost] == 0).all() and (moved[~lost] > 0).all()


def test_distillation_needs_no_teacher_of_its_own(batch):
    _, method, state = begun(batch, widths="uniform", selection="random", distil_weight=1.0)
    state = stage(method, "selection").enter(jax.random.key(0), state)
    tuning = stage(method, "tuning")
    assert float(logs_of(tuning, state, batch)["distillation"]) > 0
    whole = state.replace(extra=state.extra | {"mask": jnp.ones_like(state.extra["mask"])})
    assert float(logs_of(tuning, whole, batch)["distillation"]) == pytest.approx(0, abs=1e-6)


def test_only_the_tuning_is_taught_by_the_dense_network(batch):
    """In the stage training there is no dense network yet, only a copy of the random start (spec, (e.3))."""
    _, method, state = begun(batch, distil_weight=1.0)
    for name in ("training", "tuning"):
        _, logs = jax.eval_shape(stage(method, name).step, jax.random.key(0), state, batch)
        assert ("distillation" in logs) == (name == "tuning")


def test_differences_of_features_are_float32(batch):
    """Of a bfloat16 net too, neither the difference nor its mean square is rounded to bfloat16."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        _, method, state = begun(batch, widths="uniform", distil_weight=1.0, dtype=dtype)
        state = stage(method, "selection").enter(jax.random.key(0), state)
        for name, entry in (("selection", "reconstruction"), ("tuning", "distillation")):
            logs = logs_of(stage(method, name), state, batch)
            assert logs[entry].dtype == logs["loss"].dtype == jnp.float32
            assert logs[entry] != logs[entry].astype(jnp.bfloat16), (name, dtype)
            found[name, dtype] = float(logs[entry])
    for name in ("selection", "tuning"):
        assert found[name, "bfloat16"] == pytest.approx(found[name, "float32"], rel=0.02), found


def test_a_patch_larger_than_the_pictures_is_refused_before_the_training(batch):
    method = dualsr.make(config(compress_patch=64))
    with pytest.raises(InputError, match=r"--method\.compress-patch"):
        jax.eval_shape(method.init, jax.random.key(0), batch)


def test_the_search_wants_an_even_batch(batch, tmp_path):
    """Told before the first stage is trained."""
    _, method, _ = begun(batch)
    data = textures.make(presets.preset("smoke", "dualsr")[1])
    with pytest.raises(InputError, match="the stage search of this run needs a multiple of 2"):
        loop.fit(method, data, loop.Config(batch_size=7), tmp_path, about={})
    assert not list(tmp_path.iterdir())


def test_compact_needs_a_compressed_run(batch):
    made, _, state = begun(batch, ratio=0.0)
    with pytest.raises(InputError, match="did not compress"):
        dualsr.compact(made, state)
    made, _, state = begun(batch, widths="uniform")
    with pytest.raises(InputError, match="not chosen all its channels"):
        dualsr.compact(made, state)


def test_scores_of_the_truth_and_of_bicubic(batch):
    """The truth as output has a consistency that only rounding limits; bicubic's PSNR is the host's."""
    _, method, _ = begun(batch, ratio=0.0)
    paired = np.flatnonzero(batch["target_weight"])
    found = jax.jit(method.metrics)({"restored": batch["target"]}, batch)
    value, count = found["consistency"]
    assert (value[paired] > 45).all() and (count == batch["target_weight"]).all()
    assert (found["psnr"][0][paired] >= 100).all()
    from ophjax.transforms.resizing import resize_bytes

    again = np.stack([resize_bytes(np.asarray(image), 2, up=True) for image in batch["image"]]).astype(np.float64)
    host, _ = luma_scores(again, np.asarray(batch["target"], np.float64), 2)
    np.testing.assert_allclose(found["psnr_bicubic"][0][paired], host[paired], atol=0.05)


@pytest.mark.slow
def test_overfits_one_image(batch):
    """One image, 200 steps: more than 1 dB above bicubic (spec, (k) 11)."""
    made = config(ratio=0.0, dual_steps=0, steps=200, lr=5e-3, width=12)
    method = dualsr.make(made)
    first = int(np.flatnonzero(batch["target_weight"])[0])
    one = {name: value[first : first + 1] for name, value in batch.items()}
    state = jax.jit(method.init)(jax.random.key(0), one)

    def body(state, key):
        state, logs = method.stages[0].step(key, state, one)
        return state.replace(step=state.step + 1), logs["loss"]

    with jax.debug_key_reuse(False):  # the checker does not follow keys into scan
        state, _ = jax.jit(lambda s, keys: jax.lax.scan(body, s, keys))(state, jax.random.split(jax.random.key(1), 200))
    found = jax.jit(lambda state: method.metrics(method.predict(jax.random.key(0), state, one), one))(state)
    assert float(found["psnr"][0][0]) > float(found["psnr_bicubic"][0][0]) + 1
