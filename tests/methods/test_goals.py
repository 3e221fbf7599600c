"""GOALS as a method: what its specification, section (k), asks of the nets, losses and submissions; wrong settings."""

import dataclasses

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
from ophjax.losses.classification import squashed_twice
from ophjax.methods import goals


def build(data=None, **changes):
    """GOALS at the smoke preset."""
    config, data_config, _ = presets.preset("smoke", "goals")
    data = data or datasets.load(goals.DATA).make(data_config)
    return goals.make(dataclasses.replace(methods.fit_to(config, data), **changes)), data


@pytest.fixture(scope="module")
def batch():
    batches = pipeline.train_batches(build()[1].splits["masks"], batch_size=8, seed=0)
    first = next(batches)
    batches.close()
    return {name: jnp.asarray(value) for name, value in first.items()}


@pytest.mark.parametrize(
    ("changes", "segmenter", "classifier"),
    [({}, 2_055_492, 25_608_258), ({"regions": ("disc", "cup")}, 2_055_203, 25_608_258)],
)
def test_parameters_of_the_baselines(batch, changes, segmenter, classifier):
    """The defaults are the baselines; with two regions the segmenter is that of GAMMA, smaller by 289."""
    method = goals.make(dataclasses.replace(goals.Config(), **changes))
    state = jax.eval_shape(method.init, jax.random.key(0), batch)
    assert trees.count(state.params["segmenter"]) == segmenter
    assert trees.count(state.extra["batch_stats"]["segmenter"]) == 3_776
    assert trees.count(state.params["classifier"]) == classifier


@pytest.mark.parametrize(("p", "golden"), [(1.0, 0.503204), (0.5, 0.724077), (0.0, 1.003204)])
def test_loss_of_the_baseline(p, golden):
    logits = jnp.log(jnp.array([[p, 1 - p]]) + 1e-30)
    np.testing.assert_allclose(squashed_twice(logits, jnp.array([0])), [golden], atol=1e-6)


@pytest.mark.parametrize("segmenter", ["ushape", "unet", "ordered"])
def test_outputs(batch, segmenter):
    """Probabilities leave room for the background; profiles count the pixels that each layer won."""
    method, data = build(segmenter=segmenter, segmenter_width=1, classifier_width=2)
    state = drawn(method, batch)
    outputs = jax.jit(method.predict)(jax.random.key(1), state, batch)
    probs = outputs["mask_probs"]
    assert probs.shape == batch["mask"].shape and float(probs.min()) >= 0 and float(probs.sum(-1).max()) <= 1 + 1e-5
    best = jnp.concatenate([1 - probs.sum(-1, keepdims=True), probs], -1).argmax(-1)
    for i, name in enumerate(data.regions):
        np.testing.assert_array_equal(outputs[f"profile_{name}"], (best == i + 1).sum(1))
        np.testing.assert_allclose(outputs["thickness"][:, i], outputs[f"profile_{name}"].mean(1), rtol=1e-5)
    pairs = jax.jit(method.metrics)(outputs, batch)
    assert {f"{kind}_{name}" for kind in ("dice", "med", "med_both") for name in data.regions} < set(pairs)
    if segmenter == "ordered":
        np.testing.assert_array_equal(pairs["ordered"][0], 1)


def test_truth_scores_perfectly(batch):
    method, data = build()
    outputs = {"mask_probs": batch["mask"].astype(jnp.float32)}
    pairs = jax.jit(method.metrics)(outputs, batch)
    for name in data.regions:
        np.testing.assert_allclose(pairs[f"dice_{name}"][0], 1)
        np.testing.assert_allclose(pairs[f"med_both_{name}"][0], 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"segmenter": "ordered", "dice_weight": 1.0, "segmenter_norm": "group", "schedule": "cosine", "steps": 0},
        {"classifier_sees": "layers", "flip_vertical": True, "rotate": 30.0, "zoom": 0.05, "segmenter_steps": 0},
        {"legacy_loss": True, "control": "labels", "flip": False, "classifier_norm": "group", "hidden": 0,
         "dtype": "bfloat16", "segmenter_steps": 0},
    ],
    ids=lambda changes: " ".join(map(str, changes.values())),
)  # fmt: skip
def test_variants_run(batch, changes):
    """Every option makes a finite step of the one stage that is left, which moves its own net and nothing else."""
    method, _ = build(segmenter_width=1, levels=1, classifier_width=2, **changes)
    state = drawn(method, batch)
    (stage,) = method.stages
    assert stage.name == ("classifier" if changes.get("segmenter_steps") == 0 else "segmenter")
    after, logs = jax.jit(stage.step)(jax.random.key(1), state, batch)
    assert all(np.isfinite(float(value)) for value in logs.values())
    for name in state.params:
        same = jax.tree.map(np.array_equal, after.params[name], state.params[name])
        assert all(jax.tree.leaves(same)) == (name != stage.name)


def test_unknown_labels_and_masks_do_not_count(batch):
    method, _ = build(segmenter="unet", segmenter_width=1, levels=1, classifier_width=2)
    state = drawn(method, batch)
    half = jnp.array([1.0] * 4 + [0.0] * 4)
    rows = dict(batch) | {"mask_weight": half, "label": jnp.where(half > 0, batch["label"], -1)}
    spoiled = rows | {"mask": jnp.where(half[:, None, None, None] > 0, batch["mask"], 1 - batch["mask"])}
    for stage in method.stages:
        step = jax.jit(stage.step)
        one, other = (step(jax.random.key(1), state, given)[1] for given in (rows, spoiled))
        assert float(one["loss"]) == float(other["loss"]) > 0


def test_shuffled_labels_are_those_of_other_images(batch):
    """The control never gives a scan its own label: of two that are known each gets the other's, at any key."""
    pair = dict(batch) | {"label": jnp.full(8, -1).at[2].set(0).at[5].set(1)}
    swapped = pair | {"label": jnp.full(8, -1).at[2].set(1).at[5].set(0)}
    small = dict(segmenter_steps=0, segmenter_width=1, levels=1, classifier_width=2, flip=False)
    methods = [build(**small, **changes)[0] for changes in ({}, {"control": "labels"})]
    state = drawn(methods[0], batch)
    plain, control = (jax.jit(lambda *given, m=m: m.stages[0].step(*given)[1]["loss"]) for m in methods)
    wanted = plain(jax.random.key(0), state, swapped)
    assert abs(wanted - plain(jax.random.key(0), state, pair)) > 1e-4
    for seed in range(4):
        np.testing.assert_allclose(control(jax.random.key(seed), state, pair), wanted, rtol=1e-5)


def test_scores_where_nothing_is_known(batch):
    method, data = build()
    n = 6
    rows = {f"{kind}_{name}": np.full(n, np.nan) for kind in ("dice", "med", "med_both") for name in data.regions}
    rows |= {"ordered": np.full(n, np.nan), "label": np.full(n, -1), "probs": np.full((n, 2), 0.5),
             "thickness": np.ones((n, 3))}  # fmt: skip
    assert method.scores(rows) == {}
    known = rows | {"label": np.array([0, 1, 0, 1, -1, -1]), "thickness": np.arange(18.0).reshape(6, 3)}
    found = method.scores(known)
    assert found["auc"] == 0.5 and found["auc_thickness"] == 0.25


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"regions": ()}, "no masks"),
        ({"classes": ("one",)}, "nothing to learn"),
        ({"classes": (), "segmenter_steps": 0}, "nothing to learn"),
        ({"steps": 0, "segmenter_steps": 0}, "nothing to learn"),
        ({"zoom": 1.0}, "--method.zoom"),
        ({"softness": 0.0}, "--method.softness"),
        ({"levels": 0}, "--method.levels"),
        ({"dice_weight": -1.0}, "--method.dice-weight"),
    ],
)
def test_wrong_settings(changes, word):
    with pytest.raises(InputError, match=word):
        goals.make(dataclasses.replace(goals.Config(), **changes))
