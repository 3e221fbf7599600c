"""GAMMA as a method: counts, options, what does not count, windows of the second look, submissions; wrong settings."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_run import drawn

import presets
from ophjax import data as datasets
from ophjax import methods, trees
from ophjax.data import challenges, incoming, pipeline
from ophjax.data.augment import centred, unit
from ophjax.errors import InputError
from ophjax.losses.classification import softmax_cross_entropy
from ophjax.losses.grading import ordinal_loss
from ophjax.methods import gamma, gammatasks
from ophjax.metrics.gamma import cup_to_disc
from ophjax.metrics.greys import GAMMA
from ophjax.nets.grader import Grader
from ophjax.train import results
from ophjax.train.report import gallery


@functools.cache
def build(**changes):
    """GAMMA at the smoke preset, one task unless others are asked for."""
    config, data_config, _ = presets.preset("smoke", "gamma")
    data = datasets.load(gamma.DATA).make(data_config)
    return gamma.make(dataclasses.replace(methods.fit_to(config, data), **({"task": "grading"} | changes))), data


@pytest.fixture(scope="module")
def batch():
    batches = pipeline.train_batches(build()[1].splits["train"], batch_size=8, seed=0)
    first = next(batches)
    batches.close()
    return {name: jnp.asarray(value) for name, value in first.items()}


def test_parameters_of_the_baselines(batch):
    """The defaults of all three tasks."""
    rows = dict(batch) | {"volume": jax.ShapeDtypeStruct((8, 64, 64, 256), jnp.uint8)}
    state = jax.eval_shape(gamma.make(gamma.Config(task="all")).init, jax.random.key(0), rows)
    counts = {name: trees.count(tree) for name, tree in state.params.items()}
    assert counts == {"grader": 43_365_827, "locator": 24_688_962, "segmenter": 2_055_203}
    assert trees.count(state.extra["batch_stats"]["segmenter"]) == 3_776


@pytest.mark.parametrize(
    "changes",
    [
        {"fusion": "interaction", "auxiliary": True, "dropout": 0.5, "flip_vertical": True, "rotate": 30.0,
         "sharpness": 0.5, "test_flips": True, "test_scales": (0.875, 1.0)},
        {"oct_branch": "volume", "oct_slices": 2, "head": "ordinal", "control": "labels", "flip": False,
         "norm": "group"},
        {"task": "fovea", "fine": 0.5, "schedule": "cosine", "legacy_point_loss": True},
        {"task": "segmentation", "segmenter": "ushape", "prior_weight": 0.1, "dice_weight": 1.0, "dtype": "bfloat16"},
    ],
    ids=["recipe", "volume", "fine", "prior"],
)  # fmt: skip
def test_variants_run(batch, changes):
    """Every option makes a finite step that moves its own net and nothing else, and predicts."""
    method, _ = build(**changes)
    state = drawn(method, batch)
    for stage in method.stages:
        after, logs = jax.jit(stage.step)(jax.random.key(1), state, batch)
        assert all(np.isfinite(float(value)) for value in logs.values())
        for name in state.params:
            same = jax.tree.map(np.array_equal, after.params[name], state.params[name])
            assert all(jax.tree.leaves(same)) == (name not in stage.trains)
    outputs = jax.jit(method.predict)(jax.random.key(2), state, batch)
    assert all(bool(jnp.isfinite(value).all()) for value in outputs.values())
    if "probs" in outputs:
        np.testing.assert_allclose(outputs["probs"].sum(1), 1, rtol=1e-5)


def loss_of(method):
    """The losses of the first stage, without its gradient."""
    step = method.stages[0].step
    return jax.jit(lambda *given: {n: x for n, x in step(*given)[1].items() if n in ("loss", "disagreement")})


@pytest.mark.parametrize("head", ["softmax", "ordinal"])
def test_agreement_is_a_term_of_its_own(batch, head):
    """Spec, section (k): with weight 0 the loss is the sum of the three heads' cross-entropies; else it is larger by
    the weighted divergence, for the ordinal head that of its two answers."""
    found = {}
    for weight in (0.0, 2.0):
        method, _ = build(auxiliary=True, agreement_weight=weight, flip=False, head=head)
        state = drawn(method, batch)
        found[weight] = loss_of(method)(jax.random.key(1), state, batch)
    outputs = 3 if head == "softmax" else 2
    net = Grader(outputs, auxiliary=True, depth=10, width=2, stem_kind="small")
    given = ({"params": state.params["grader"], "batch_stats": state.extra["batch_stats"]["grader"]},
             centred(unit(batch["image"])), batch["volume"])  # fmt: skip
    logits = jax.jit(lambda: net.apply(*given, train=True, mutable=["batch_stats"])[0])()
    each = ordinal_loss if head == "ordinal" else softmax_cross_entropy
    by_hand = sum(float(each(one, batch["label"]).mean()) for one in logits.values())
    assert len(logits) == 3 and float(found[0.0]["loss"]) == pytest.approx(by_hand, rel=1e-5)
    gap = float(found[2.0]["loss"]) - float(found[0.0]["loss"])
    assert gap == pytest.approx(2 * float(found[0.0]["disagreement"]), abs=1e-5) and gap > 0
    if head == "ordinal":
        p, q = (np.asarray(jax.nn.sigmoid(logits[name]), np.float64) for name in ("oct", "fundus"))
        apart = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
        assert float(found[0.0]["disagreement"]) == pytest.approx(apart, rel=1e-3)


def test_shuffled_labels_are_those_of_other_images(batch):
    """The control never gives an eye its own grade: of two that are known each gets the other's, at any key."""
    pair = dict(batch) | {"label": jnp.full(8, -1).at[2].set(0).at[5].set(2)}
    swapped = pair | {"label": jnp.full(8, -1).at[2].set(2).at[5].set(0)}
    small = dict(modality="fundus", flip=False)
    state = drawn(build(**small)[0], batch)
    plain, control = (loss_of(build(**small, control=control)[0]) for control in ("none", "labels"))
    wanted, own = (plain(jax.random.key(0), state, rows)["loss"] for rows in (swapped, pair))
    assert abs(wanted - own) > 1e-4
    for seed in range(4):
        np.testing.assert_allclose(control(jax.random.key(seed), state, pair)["loss"], wanted, rtol=1e-5)


def test_what_is_not_known_does_not_count(batch):
    half = jnp.arange(8) < 4
    rows = dict(batch) | {"label": jnp.where(half, batch["label"], -1), "mask_weight": half.astype(jnp.float32),
                          "fovea": jnp.where(half[:, None], batch["fovea"], -1.0)}  # fmt: skip
    method, _ = build(task="fovea")
    state = drawn(method, rows)
    step = jax.jit(method.stages[0].step)
    after, logs = step(jax.random.key(1), state, rows)
    # A fovea that is not to be seen, (0, 0), is no point to learn; for the score it is a point as any other.
    unseen = rows | {"fovea": jnp.maximum(rows["fovea"], 0.0)}
    assert float(step(jax.random.key(1), state, unseen)[1]["loss"]) == float(logs["loss"])
    assert np.isfinite(float(logs["loss"])) and all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(after.params))
    outputs = jax.jit(method.predict)(jax.random.key(2), state, rows)
    metrics = jax.jit(method.metrics)
    value, count = metrics(outputs, rows)["fovea_distance"]
    assert count.tolist() == [1] * 4 + [0] * 4 and value[4:].tolist() == [0] * 4
    assert metrics(outputs, unseen)["fovea_distance"][1].tolist() == [1] * 8


def test_fovea_in_pixels_of_the_original(batch):
    """The frame's corner and size bring shares back to the original; the distance is normalised by its size."""
    method, _ = build(task="fovea")
    state = drawn(method, batch)
    predict = jax.jit(method.predict)
    whole = predict(jax.random.key(1), state, batch)["fovea_found"] / 32
    frame = jnp.tile(jnp.array([[496, 0, 2000, 2000]]), (8, 1))
    moved = predict(jax.random.key(1), state, dict(batch) | {"frame": frame})["fovea_found"]
    np.testing.assert_allclose(moved, jnp.array([[496.0, 0.0]]) + 2000 * whole, rtol=1e-5)
    rows = dict(batch) | {"frame": frame, "size": jnp.tile(jnp.array([[2992, 2000]]), (8, 1)), "fovea": moved}
    rows["fovea"] = moved + jnp.array([[29.92, 0.0]])
    pair = jax.jit(method.metrics)({"fovea_found": moved}, rows)["fovea_distance"]
    np.testing.assert_allclose(pair[0], 0.01, rtol=1e-3)


def test_ratio_of_masks_equals_the_host(batch):
    method, _ = build(task="segmentation")
    found = jnp.roll(batch["mask"], 2, 1).at[0].set(0).at[1, ..., 1].set(0)
    pairs = jax.jit(method.metrics)({"mask_probs": found.astype(jnp.float32)}, batch)
    ours, theirs = (np.asarray(mask.sum(-1)) for mask in (found, batch["mask"]))
    by_hand = [abs(cup_to_disc(a) - cup_to_disc(b)) for a, b in zip(ours, theirs, strict=True)]
    np.testing.assert_allclose(pairs["cdr_error"][0], by_hand, atol=1e-6)
    same = jax.jit(method.metrics)({"mask_probs": batch["mask"].astype(jnp.float32)}, batch)
    np.testing.assert_allclose(same["dice_cup"][0], 1)


def test_scores_where_nothing_is_known():
    method, _ = build(task="all")
    rows = {name: np.full(4, np.nan) for name in ("fovea_distance", "dice_disc", "dice_cup", "cdr_error")}
    rows |= {"label": np.full(4, -1), "probs": np.full((4, 3), 1 / 3)}
    assert method.scores(rows) == {}
    perfect = {"fovea_distance": np.zeros(4), "dice_disc": np.ones(4), "dice_cup": np.ones(4), "cdr_error": np.zeros(4),
               "label": np.array([0, 1, 2, 1]), "probs": np.eye(3)[[0, 1, 2, 1]]}  # fmt: skip
    found = method.scores(perfect)
    assert found["total"] == pytest.approx(10) and found["kappa"] == 1


def test_an_ordinal_head_is_scored_and_submitted_by_its_answers(tmp_path):
    """Where P(at least 1) is above one half the grade is 1, though 0 may be the most probable."""
    method, _ = build(head="ordinal")
    probs, labels = np.array([[0.4, 0.3, 0.3], [0.6, 0.2, 0.2], [0.1, 0.3, 0.6]]), np.array([1, 0, 2])
    found = method.scores({"label": labels, "probs": probs})
    assert found["kappa"] == found["accuracy"] == found["f1"] == 1
    assert found["auc"] == build()[0].scores({"label": labels, "probs": probs})["auc"] < 1
    method.submit(tmp_path, [(str(i), {"probs": row}) for i, row in enumerate(probs)])
    table = (tmp_path / "Classification_Results.csv").read_text().splitlines()
    assert table[1:] == ["0,0,1,0", "1,1,0,0", "2,0,0,1"]
    assert method.ordinal and not build()[0].ordinal
    samples = {"image": np.zeros((3, 2, 2, 3)), "label": labels, "probs": probs}
    assert gallery.choose(samples)[0] == [0] and gallery.choose(samples | {"predicted": labels})[0] == []


def test_an_ordinal_heads_grades_are_those_of_the_runs_files(tmp_path, monkeypatch):
    """predictions.csv and samples.npz, of which the report is made, hold the grades that were scored."""
    probs = np.array([[0.4, 0.3, 0.3], [0.6, 0.2, 0.2]])
    rows = {"index": np.arange(2), "label": np.array([1, 0]), "probs": probs}
    for name, value in dict(eval_split=None, gather=rows, draw_samples={"probs": probs}, export_maps={},
                            write_submission=None, require=SimpleNamespace(names=["a", "b"])).items():  # fmt: skip
        monkeypatch.setattr(results, name, lambda *_, value=value: value)
    fitted, config = SimpleNamespace(forward=None, state=SimpleNamespace(step=3), mesh=None), SimpleNamespace(seed=0)
    for head, expected in (("ordinal", ["1", "0"]), ("softmax", ["0", "0"])):
        method = build(head=head)[0]
        assert results.conclude(method, None, config, tmp_path, fitted)["accuracy"] == (1 if head == "ordinal" else 0.5)
        table = (tmp_path / "predictions.csv").read_text().splitlines()
        assert [row.split(",")[-1] for row in table[1:]] == expected
        with np.load(tmp_path / "samples.npz") as samples:
            kept = samples["predicted"].tolist() if "predicted" in samples else None
        assert kept == ([1, 0] if head == "ordinal" else None)


def test_grades_that_are_not_the_official_ones_are_not_submitted(tmp_path):
    gammatasks.write_submission(tmp_path, [("0101", {"probs": np.array([0.1, 0.9])})])
    assert not list(tmp_path.iterdir())


def test_masks_are_put_back_around_their_frame(tmp_path):
    """Decision 10: the middle square goes back to its place, background around it, codes only."""
    probs = np.zeros((8, 8, 2), np.float16)
    probs[2:6, 2:6, 0], probs[3:5, 3:5, 1] = 1, 1
    example = {"mask_probs": probs, "frame": np.array([16, 0, 64, 64]), "size": np.array([96, 64]),
               "probs": np.array([0.1, 0.7, 0.2]), "fovea_found": np.array([40.25, 30.0])}  # fmt: skip
    gammatasks.write_submission(tmp_path, [("0101", example)])
    classes = challenges.read_grey(tmp_path / "Disc_Cup_Segmentations" / "0101.bmp", GAMMA)
    assert classes.shape == (64, 96) and (classes == 2).sum() == 16 * 16 and (classes > 0).sum() == 32 * 32
    assert classes[16, 32] == 1 and classes[16, 31] == 0 and classes[32, 48] == 2
    grades = (tmp_path / "Classification_Results.csv").read_text().splitlines()
    assert grades == ["data,non,early,mid_advanced", "0101,0,1,0"]
    assert (tmp_path / "Localization_Results.csv").read_text().splitlines()[1] == "0101,40.2500,30.0000"


def test_masks_of_new_images_are_those_that_are_scored():
    """Where rim and cup share what the background does not have, the most probable decides, not one half."""
    cup, rim, _ = np.random.default_rng(0).dirichlet((1, 1, 1), (16, 16)).astype(np.float32).transpose(2, 0, 1)
    probs = np.stack([cup + rim, cup], -1)
    found, whole = {}, (0, 0, 16, 16)
    for kind in (build()[0].exclusive, False):
        found[kind] = incoming.to_mask(probs, (16, 16), whole, (0, (1, 2)), exclusive=kind)
    np.testing.assert_array_equal(found["nested"], gammatasks.chosen(probs))
    assert (found["nested"] != found[False]).mean() > 0.05


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"classes": ()}, "grading needs"),
        ({"task": "segmentation", "regions": ("lesion",)}, "disc and cup"),
        ({"fine": 1.0}, "--method.fine"),
        ({"dropout": 1.0}, "--method.dropout"),
        ({"test_scales": ()}, "--method.test-scales"),
        ({"oct_branch": "volume", "depth": 50}, "--method.depth"),
        ({"steps": 0}, "--method.steps"),
        ({"sharpness": -1.0}, "--method.sharpness"),
        ({"auxiliary": True, "modality": "oct"}, "--method.auxiliary"),
    ],
)
def test_wrong_settings(changes, word):
    with pytest.raises(InputError, match=word):
        gamma.make(dataclasses.replace(gamma.Config(), **changes))


def test_a_set_without_volumes_cannot_be_graded(batch):
    rows = {name: value for name, value in batch.items() if name != "volume"}
    with pytest.raises(InputError, match="no volume, which the task grading needs"):
        jax.eval_shape(build()[0].init, jax.random.key(0), rows)


def test_the_fundus_alone_needs_no_volume(batch):
    rows = {name: value for name, value in batch.items() if name != "volume"}
    method, _ = build(modality="fundus", oct_slices=2, test_flips=True)
    state = jax.eval_shape(method.init, jax.random.key(0), rows)
    after, _ = jax.eval_shape(method.stages[0].step, jax.random.key(0), state, rows)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert jax.eval_shape(method.predict, jax.random.key(0), state, rows)["probs"].shape == (8, 3)


def test_windows_of_the_second_look(batch):
    """Trained on windows around the fovea alone, the refiner's answer lies inside its window, which lies in the image:
    whatever the nets say, the point found is within half a window of the first guess or of the image's border."""
    method, _ = build(task="fovea", fine=0.25)
    state = drawn(method, batch)
    coarse, _ = build(task="fovea")
    key = jax.random.key(1)
    guess = jax.jit(coarse.predict)(key, state, batch)["fovea_found"]
    found = jax.jit(method.predict)(key, state, batch)["fovea_found"]
    corner = jnp.clip(jnp.round(guess - 4), 0, 24)
    assert bool(((found >= corner) & (found <= corner + 8)).all())
