"""DiFF as a whole: the checks of its spec, section (k), that the parts' own tests do not make."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_run import drawn

import presets
from ophjax import data as datasets
from ophjax import methods, trees
from ophjax.data import pipeline
from ophjax.errors import InputError
from ophjax.methods import diff
from ophjax.train import loop, mesh

STEPS = 12


@functools.cache
def build(segmenter="unet", **changes):
    """A small segmenter, but where the segmenter is the point: Take and Give compiles slowly."""
    config, data_config, train = presets.preset("smoke", "diff")
    data = datasets.load(diff.DATA).make(data_config)
    config = dataclasses.replace(methods.fit_to(config, data), search_steps=STEPS, search_lr=0.02, segmenter=segmenter)
    return diff.make(dataclasses.replace(config, **changes)), data, train


@pytest.fixture(scope="module")
def batch():
    _, data, _ = build()
    batches = pipeline.eval_batches(data.splits["train"], batch_size=8)
    first = next(iter(batches))
    batches.close()
    return {name: jnp.asarray(value) for name, value in first.items()}


@pytest.fixture(scope="module")
def start(batch):
    """A state whose expertness, and the classifier that judges it, are fresh; the other nets are drawn."""
    method, _, _ = build()

    @jax.jit
    def fresh(key):
        params = method.init(key, batch).params
        return {name: params[name] for name in ("expertness", "diagnosis")}

    state = drawn(method, batch)
    return state.replace(params=state.params | fresh(jax.random.key(0)))


def searched(state, batch, **changes):
    """The state after the search stage has met the batch once, and its logs."""
    return step_of("search", **changes)(jax.random.key(1), state, batch)


@functools.cache
def step_of(name, **changes):
    (stage,) = [stage for stage in build(**changes)[0].stages if stage.name == name]
    return jax.jit(stage.step)


@functools.cache
def export_of():
    return jax.jit(build()[0].export)


@pytest.fixture(scope="module")
def found(start, batch):
    return searched(start, batch)


def exported(state, batch):
    return jax.device_get(export_of()(jax.random.key(0), state, batch))


def all_alike(batch):
    """Every rater draws what the first drew."""
    return dict(batch) | {"raters": jnp.broadcast_to(batch["raters"][:, :1], batch["raters"].shape)}


def test_it_starts_as_the_majority_vote(start, batch):
    """Check 1: with no step of the search, DF-GT is the mean of the raters to 1e-6, every weight 1/7."""
    maps = exported(start, batch)
    np.testing.assert_allclose(maps["dfgt"], maps["majority"], atol=1e-6)
    np.testing.assert_allclose(maps["expertness"], 1 / 7, atol=1e-6)
    assert len(np.unique(maps["majority"])) > 5  # the raters do differ


def test_raters_who_agree(start, batch):
    """Check 2: DF-GT is their mask whatever the expertness; the gradient is zero, so that nothing moves."""
    alike = all_alike(batch)
    after, logs = searched(start, alike)
    one = np.asarray(batch["raters"][:, 0]).mean(-1)
    rng, before = np.random.default_rng(5), jax.device_get(start.params["expertness"])
    wild = jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape).astype(np.float32), before)
    for state in (after, start.replace(params=start.params | {"expertness": wild})):
        np.testing.assert_allclose(exported(state, alike)["dfgt"], one, atol=1e-6)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, jax.device_get(after.params["expertness"]))
    # Adam moves a weight by 0.02 for any gradient; softmax's rounding leaves some of 1e-10, under its epsilon.
    assert max(jax.tree.leaves(moved)) < 0.02 and abs(float(logs["gain"])) < 1e-5


def test_a_single_rater(batch):
    """Check 3: with one rater, or with none but the data set's mask, DF-GT is that mask. Both are searched alike."""
    bare = {name: value for name, value in batch.items() if not name.startswith("rater")}
    single = bare | {"raters": batch["raters"][:, 2:3], "rater_weight": jnp.ones((8, 1))}
    state = drawn(build()[0], single)
    after, _ = searched(state, single)
    for given, mask in ((bare, batch["mask"]), (single, batch["raters"][:, 2])):
        np.testing.assert_allclose(exported(after, given)["dfgt"], np.asarray(mask).mean(-1), atol=1e-6)
    shapes = jax.eval_shape(step_of("search"), jax.random.key(1), state, bare)
    assert jax.tree.map(jnp.shape, shapes[0]) == jax.tree.map(jnp.shape, after)


def test_the_order_of_the_raters(start, found, batch):
    """Check 3: permuted raters with permuted columns of the last layer give the same DF-GT, also after a search."""
    order = np.array([3, 0, 6, 1, 2, 5, 4])
    turned = dict(batch) | {name: batch[name][:, order] for name in ("raters", "rater_weight")}
    after, _ = found
    permuted = jax.tree.map(lambda leaf: leaf, after.params["expertness"])
    permuted["layer8"] = {name: leaf[..., order] for name, leaf in permuted["layer8"].items()}
    state = after.replace(params=after.params | {"expertness": permuted})
    np.testing.assert_allclose(exported(state, turned)["dfgt"], exported(after, batch)["dfgt"], atol=1e-6)
    again, _ = searched(start, turned)
    np.testing.assert_allclose(exported(again, turned)["dfgt"], exported(after, batch)["dfgt"], atol=1e-4)


def test_a_missing_rater(start, batch):
    """Who did not draw an image has no weight there, and what stands in his place does not matter."""
    there = batch["rater_weight"].at[:, 1].set(0)
    one, other = (dict(batch) | {"rater_weight": there, "raters": batch["raters"].at[:, 1].set(v)} for v in (0, 1))
    states = [searched(start, given)[0] for given in (one, other)]
    maps = [exported(state, given) for state, given in zip(states, (one, other), strict=True)]
    np.testing.assert_array_equal(maps[0]["dfgt"], maps[1]["dfgt"])
    assert (maps[0]["expertness"][..., 1] == 0).all()


def test_only_expertness_moves(start, found, batch):
    """Check 5: every other network and every statistic is bit for bit the same; so is the expertness of the images that
    were not in the batch, while all of it moves in those that were."""
    after, _ = found
    for part in ("params", "extra"):
        before = getattr(start, part) if part == "params" else start.extra["batch_stats"]
        now = getattr(after, part) if part == "params" else after.extra["batch_stats"]
        first, second = trees.named_leaves(before), trees.named_leaves(now)
        for path in first:
            if not path.startswith("expertness"):
                np.testing.assert_array_equal(first[path], second[path], err_msg=path)
    rows = np.asarray(batch["index"])
    others = np.setdiff1d(np.arange(16), rows)
    assert len(others) == 8
    pairs = [(trees.named_leaves(s.params["expertness"])) for s in (start, after)]
    for path, old in pairs[0].items():
        np.testing.assert_array_equal(old[others], pairs[1][path][others])
        assert (np.abs(old[rows] - pairs[1][path][rows]).max(tuple(range(1, old.ndim))) > 0).all(), path
    np.testing.assert_array_equal(after.opt["expertness"][rows], STEPS)
    np.testing.assert_array_equal(after.opt["expertness"][others], 0)


def test_the_search_serves_the_diagnosis(start, found, batch):
    """Check 6: (2y - 1) times the logit rises for at least 95 % of the images, and falls for as many in reverse."""
    gain = found[0].extra["found"]["gain"][batch["index"]]
    assert (gain > 0).mean() >= 0.95 and float(found[1]["improved"]) >= 0.95
    np.testing.assert_allclose(found[1]["gain"], gain.mean(), rtol=1e-5)
    fallen = searched(start, batch, reverse=True)[0].extra["found"]["gain"][batch["index"]]
    assert (fallen < 0).mean() >= 0.95
    milder = searched(start, batch, objective="bce")[0].extra["found"]["gain"][batch["index"]]
    assert (milder > 0).mean() >= 0.95


def test_an_unknown_label_leaves_the_raters_equal(start, batch):
    after, logs = searched(start, dict(batch) | {"label": jnp.full(8, -1, jnp.int32)})
    np.testing.assert_allclose(exported(after, batch)["expertness"], 1 / 7, atol=1e-6)
    assert float(logs["gain"]) == 0


def test_together_and_one_by_one(start, found, batch):
    """Check 10: the search over a batch equals a Python loop over its images, in any order (pitfall 3: each image has
    the sign of its own label)."""
    assert len(np.unique(batch["label"])) == 2
    step, state = step_of("search"), start
    for i in (5, 0, 7, 2):
        state, _ = step(jax.random.key(1), state, {name: value[i : i + 1] for name, value in batch.items()})
        row = int(batch["index"][i])
        for path, leaf in trees.named_leaves(state.params["expertness"]).items():
            # Adam turns rounding of tiny gradients into whole steps: a few weights may be off by some steps of 0.02.
            off = np.abs(leaf[row] - trees.named_leaves(found[0].params["expertness"])[path][row])
            assert np.median(off) < 1e-4 and off.max() < 0.1, path
        np.testing.assert_allclose(
            state.extra["found"]["gain"][row], found[0].extra["found"]["gain"][row], rtol=1e-2, atol=1e-5
        )


def test_an_image_that_comes_again_keeps_what_was_found(found, batch):
    """The last batch goes on with the next pass over the data: no image is searched for twice as long."""
    again, _ = searched(found[0], {name: value[::-1] for name, value in batch.items()})
    jax.tree.map(np.testing.assert_array_equal, again.params["expertness"], found[0].params["expertness"])


def test_every_training_image_is_reached():
    """The stage is as long as one pass, whatever the batch size; 16 images in batches of 5 are 4 steps."""
    method, data, train = build()
    counted = loop.count_steps(method, data, dataclasses.replace(train, batch_size=5))
    assert [stage.steps for stage in counted.stages] == [4, 4, 4]
    batches = pipeline.train_batches(data.splits["train"], batch_size=5, seed=3)
    met = np.concatenate([next(batches)["index"] for _ in range(4)])
    batches.close()
    assert set(met) == set(range(16))


def test_how_rough_the_maps_are(start, found, batch):
    """Check 7: ExpG's maps are far smoother than free pixels, and than a free spectrum, whose 1/f is smooth itself."""
    rows, rough = batch["index"], {"expg": found[0].extra["found"]["roughness"][batch["index"]].mean()}
    for kind in ("pixel", "fourier"):
        # The same classifiers as ExpG's, other maps, here from zero.
        shapes = jax.eval_shape(build(parametrisation=kind)[0].init, jax.random.key(0), batch).params["expertness"]
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        state = start.replace(params=start.params | {"expertness": zeros})
        after, logs = searched(state, batch, parametrisation=kind)
        rough[kind] = after.extra["found"]["roughness"][rows].mean()
        assert float(logs["gain"]) > 0
    assert 0 < rough["expg"] < min(0.2 * rough["pixel"], 0.5 * rough["fourier"]), rough


def test_the_branch_begins_as_the_diagnosis_net(start):
    """Section (e): what fits is taken over, statistics too; the stem's kernel (7x7 there, 3x3 here) does not fit."""
    method, _, _ = build("take-and-give", diagnosis_width=8)
    abstract = jax.eval_shape(method.init, jax.random.key(0), spec(16))
    state = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), abstract)
    marked = state.params | {"diagnosis": jax.tree.map(lambda leaf: leaf * 2, state.params["diagnosis"])}
    after = method.stages[-1].enter(jax.random.key(0), state.replace(params=marked))
    taken = {path: float(leaf.mean()) for path, leaf in trees.named_leaves(after.params["segmenter"]["branch"]).items()}
    kept = {path for path, value in taken.items() if value == 1}
    assert kept == {"first/conv/kernel"} and set(taken.values()) == {1.0, 2.0}
    fixed, _, _ = build("take-and-give", inherit=False, diagnosis_width=8)
    same = fixed.stages[-1].enter(jax.random.key(0), state.replace(params=marked))
    assert all(float(leaf.mean()) == 1 for leaf in jax.tree.leaves(same.params["segmenter"]["branch"]))


def test_a_branch_without_statistics(start):
    """Group norm has none to take over."""
    method, _, _ = build("take-and-give", norm="group", diagnosis_width=8)
    abstract = jax.eval_shape(method.init, jax.random.key(0), spec(16))
    after = jax.eval_shape(method.stages[-1].enter, jax.random.key(0), abstract)
    assert jax.tree.structure(after) == jax.tree.structure(abstract)


def test_images_that_nobody_drew_teach_no_masks(start, batch):
    """The segmenter's loss is the mean over those that were drawn, in place of zeros for the others."""
    (stage,) = build(target="majority")[0].stages[1:]
    loss = jax.jit(lambda there: stage.step(jax.random.key(1), start, dict(batch) | there)[1]["mask_loss"])
    half = jnp.arange(8) < 4
    one, other, both = (
        float(loss({"rater_weight": jnp.where(rows[:, None], batch["rater_weight"], 0)}))
        for rows in (half, ~half, half | ~half)
    )
    assert (one + other) / 2 == pytest.approx(both, rel=1e-5)


def test_images_that_nobody_drew_teach_no_diagnosis_of_their_masks(start, batch):
    """Nor are they 0 / 0 where masks are mixed; the judge, who learns from the data set's own mask, does learn."""
    stage = build(diagnosis_mask="convex")[0].stages[0]
    names = ("diagnosis_loss", "judge_loss")
    step = jax.jit(lambda rows: [stage.step(jax.random.key(1), start, dict(batch) | rows)[1][name] for name in names])
    half = jnp.arange(8) < 4
    there = {"rater_weight": jnp.where(half[:, None], batch["rater_weight"], 0)}
    one = step(there | {"label": batch["label"]})
    other = step(there | {"label": jnp.where(half, batch["label"], 1 - batch["label"])})
    assert float(one[0]) == float(other[0]) > 0 and float(one[1]) != float(other[1])


def spec(size, batch=8):
    shape = (batch, size, size)
    return {
        "image": jax.ShapeDtypeStruct((*shape, 3), np.uint8),
        "mask": jax.ShapeDtypeStruct((*shape, 2), np.uint8),
        "raters": jax.ShapeDtypeStruct((batch, 7, size, size, 2), np.uint8),
        "rater_weight": jax.ShapeDtypeStruct((batch, 7), np.float32),
        "label": jax.ShapeDtypeStruct((batch,), np.int32),
        "index": jax.ShapeDtypeStruct((batch,), np.int32),
        "weight": jax.ShapeDtypeStruct((batch,), np.float32),
        "mask_weight": jax.ShapeDtypeStruct((batch,), np.float32),
    }


@pytest.mark.parametrize("variant", diff.VARIANTS)
def test_variants(variant, start):
    """By shapes alone: every stage of every variant traces and keeps the state's structure; networks that a comparison
    takes over from the method's own run have the same parameters in both."""
    changes, taken = diff.VARIANTS[variant]
    method, _, _ = build(**changes)
    state = jax.eval_shape(method.init, jax.random.key(0), spec(32))
    for stage in method.stages:
        after, logs = jax.eval_shape(stage.step, jax.random.key(0), state, spec(32))
        assert jax.tree.structure(after) == jax.tree.structure(state) and "loss" in logs
    shapes = [{n: jax.tree.map(jnp.shape, s.params[n]) for n in taken} for s in (state, start)]
    assert shapes[0] == shapes[1]
    assert ("expertness" in state.params) == (changes.get("target") is None) == (method.export is not None)


def test_drishti(real_data):
    """The diagnosis side on real data: the copy of Drishti-GS1 at hand has one fused mask for an image, then the
    single rater; every stage traces with what its batches hold."""
    config, data_config, train = presets.preset("smoke", "diff", "drishti")
    data = datasets.load("drishti").make(dataclasses.replace(data_config, root=str(real_data / "drishti_gs1")))
    config = dataclasses.replace(methods.fit_to(config, data), segmenter="unet")
    assert config.classes == ("normal", "glaucoma") and config.examples == len(data.splits["train"]) >= 30
    method, batch = diff.make(config), loop.batch_spec(data, train, mesh.make_mesh())
    assert "raters" not in batch
    state = jax.eval_shape(method.init, jax.random.key(0), batch)
    for stage in method.stages:
        after, logs = jax.eval_shape(stage.step, jax.random.key(0), state, batch)
        assert jax.tree.structure(after) == jax.tree.structure(state) and "loss" in logs
    assert state.extra["found"]["weights"].shape == (config.examples, 1)


def test_paper_scale():
    """The published sizes: ResNet-34s of width 64 with four channels, ExpG of 7,471 numbers for each of 400 images."""
    method = diff.make(diff.Config(segmenter="unet"))  # the other one: tests/nets/test_takegive.py
    state = jax.eval_shape(method.init, jax.random.key(0), spec(256, batch=4))
    counts = {name: trees.count(tree) for name, tree in state.params.items()}
    # torchvision's ResNet-34 with one output, a 3x3 stem instead of 7x7, and a fourth channel.
    plain = 21_285_185 - 64 * 3 * (49 - 9)
    assert counts["judge"] == plain - 64 * 9 * 2 and counts["diagnosis"] == counts["unseen"] == plain + 64 * 9
    assert counts["expertness"] == 400 * 7471
    outputs = jax.eval_shape(method.predict, jax.random.key(0), state, spec(256, batch=4))
    assert outputs["mask_probs"].shape == (4, 256, 256, 2) and outputs["cdr"].shape == (4,)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"search_steps": 0}, "--method.search-steps"),
        ({"search_lr": 0.0}, "--method.search-lr"),
        ({"temperature": 0.0}, "--method.temperature"),
        ({"decoder": 6}, "--method.decoder"),
        ({"diagnosis_steps": -1}, "--method.diagnosis-steps"),
        ({"reverse": True, "target": "majority"}, "--method.reverse"),
        ({"classes": ("a", "b", "c")}, "two classes"),
        ({"regions": ()}, "masks"),
    ],
)
def test_wrong_settings(changes, word):
    with pytest.raises(InputError, match=word):
        diff.make(dataclasses.replace(diff.Config(), **changes))
