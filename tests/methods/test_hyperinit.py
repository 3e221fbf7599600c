"""The hyper-initializer's training: objectives, controls, errors, and what its experiments must show."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_run import drawn

import presets
from ophjax.data import shapes
from ophjax.errors import InputError
from ophjax.methods import hyperinit
from ophjax.methods.hyperinit import SMOKE, VARIANTS, Config, ghn_config, make, served
from ophjax.train.logs import read_events
from ophjax.train.seeds import side_by_side

CLASSES = shapes.TASKS["source"]


def settings(**changes):
    return dataclasses.replace(
        Config(), **SMOKE | {"families": ("plain", "unet"), "classes": CLASSES, "regions": ("lesion",)} | changes
    )


def batch(count=8, size=16):
    examples = [shapes.draw(0, i, size, "source") for i in range(count)]
    ones = jnp.ones(count)
    stacked = {name: jnp.stack([example[name] for example in examples]) for name in examples[0]}
    return stacked | {"weight": ones, "mask_weight": ones, "index": jnp.arange(count)}


def test_unlabelled_objectives_learn_and_score_without_truth():
    """Contrast for classifiers, denoising for U-Nets; no label or mask is looked at."""
    method = make(settings(objective="contrastive", dense_objective="denoise", projection=8))
    data = batch()
    unknown = jnp.full_like(data["label"], -1)
    blind = data | {"label": unknown, "mask": jnp.zeros_like(data["mask"]), "mask_weight": jnp.zeros(8)}
    state = drawn(method, data)
    assert set(state.params) == {"hyper", "projection"}
    step = jax.jit(method.stages[0].step)
    moved, logs = step(jax.random.key(1), state, data)
    same, _ = step(jax.random.key(1), state, blind)
    for one, two in zip(jax.tree.leaves(moved.params), jax.tree.leaves(same.params), strict=True):
        np.testing.assert_array_equal(one, two)
    assert np.isfinite(float(logs["loss"]))
    assert not np.array_equal(moved.params["projection"]["first"], state.params["projection"]["first"])
    outputs = jax.jit(method.predict)(jax.random.key(2), moved, blind)
    assert outputs["views"].shape == (8, 2, 8) and outputs["error"].shape == (8, 1)
    found = method.metrics(outputs, blind)
    gathered = {name: np.asarray(value / count) for name, (value, count) in found.items()}
    scores = method.scores(gathered)
    assert 0 <= scores["retrieval"] <= 1 and scores["restored"] < 0
    assert method.watch == "retrieval"


@pytest.mark.parametrize(
    ("objective", "shapes"),
    [("supervised", {"probs": (8, 4), "child_probs": (8, 4)}), ("contrastive", {"views": (8, 2, 3 * 8)})],
)
def test_seeds_together_answer_with_probabilities(objective, shapes):
    """Three seeds of one classifier, by shapes alone: no class numbers that a mean would mix up."""
    method = make(settings(objective=objective, projection=8, families=("plain",), pool=1, meta_batch=1))
    data, key = batch(), jax.random.key(0)
    together = side_by_side(method, (0, 1, 2))
    found = jax.eval_shape(together.predict, key, jax.eval_shape(together.init, key, data), data)
    assert {name: value.shape for name, value in found.items()} == shapes


def test_each_childs_accuracy_is_of_the_mean_probabilities():
    """Two seeds call an image of class 0 a 0 and a 2; the surer one is right. The other child is always wrong."""
    seeds = np.array([[[0.7, 0.1, 0.2, 0.0, 0, 1, 0, 0]], [[0.3, 0.2, 0.5, 0.0, 0, 1, 0, 0]]])
    probs = seeds.mean(0).repeat(2, 0)
    gathered = {"child_probs": probs, "probs": probs.reshape(2, 2, 4).mean(1), "label": np.zeros(2, int)}
    found = make(settings(families=("plain",))).scores(gathered)
    assert (found["accuracy_plain1"], found["accuracy_plain2"], found["accuracy"]) == (1, 0, 0.5)


def test_images_without_a_label_are_not_scored():
    probs = np.array([[0.7, 0.1, 0.2, 0.0], [0.1, 0.6, 0.2, 0.1], [0.9, 0.1, 0.0, 0.0]])
    gathered = {"child_probs": np.tile(probs, 2), "probs": probs, "label": np.array([0, -1, 1])}
    method = make(settings(families=("plain",)))
    found = method.scores(gathered)
    assert found["accuracy"] == found["accuracy_plain1"] == 0.5
    known = {name: value[[0, 2]] for name, value in gathered.items()}
    assert found == method.scores(known)
    assert method.scores(gathered | {"label": np.full(3, -1)}) == {}


def test_shuffled_labels_are_the_only_thing_a_control_changes():
    """Of two images each gets the other's label; where both have the same one nothing changes."""
    pair, key = batch(2), jax.random.key(1)
    one, two = (
        make(settings(families=("plain",), pool=1, meta_batch=1, flip=False, control=control))
        for control in ("none", "labels")
    )
    state = drawn(one, pair)

    def loss_of(method):
        """The child's loss for labels; no gradient of it is compiled."""
        child_loss = jax.jit(lambda label: method.stages[0].step(key, state, pair | {"label": label})[1]["child_loss"])
        return lambda *labels: float(child_loss(jnp.array(labels)))

    plain, shuffled = loss_of(one), loss_of(two)
    assert shuffled(0, 1) == pytest.approx(plain(1, 0), rel=1e-5) and abs(shuffled(0, 1) - plain(0, 1)) > 1e-4
    assert shuffled(0, 0) == pytest.approx(plain(0, 0), rel=1e-5)


def test_families_that_the_data_cannot_serve_are_left_out():
    assert served(settings(regions=())) == ("plain",)
    assert served(settings(classes=("only",))) == ("unet",)
    assert served(settings(regions=(), dense_objective="denoise")) == ("plain", "unet")
    assert ghn_config(settings()).classes == 4
    assert ghn_config(settings(objective="contrastive")).classes == 0
    assert ghn_config(settings(families=("unet",))).classes == 0


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (dict(families=("lstm",)), "unet"),
        (dict(norms=("layer",)), "group"),
        (dict(families=("unet",), regions=()), "families"),
        (dict(pool=1, meta_batch=2), "meta-batch"),
        (dict(widest=12), "widest"),
        (dict(norms=()), "norms"),
        (dict(lr=0.0), "lr"),
        (dict(warmup=1.0), "warmup"),
        (dict(heads=3), "heads"),
    ],
)
def test_impossible_settings_are_refused(change, word):
    with pytest.raises(InputError, match=word):
        jax.eval_shape(make(settings(**change)).init, jax.random.key(0), batch())


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_steps(name):
    """Shapes only: each variant is a method whose step keeps the state's structure."""
    method = make(settings(**VARIANTS[name][0] | dict(meta_batch=1, pool=1, families=("plain",))))
    data = batch()
    state = jax.eval_shape(method.init, jax.random.key(0), data)
    after, logs = jax.eval_shape(method.stages[0].step, jax.random.key(1), state, data)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert {"loss", "child_loss", "worst_child"} <= set(logs)


@pytest.mark.trend
def test_one_architecture_is_learned_by_its_hypernetwork_alone():
    """Check 13: above 95 % on 256 training images, the child itself never trained; shuffled labels stay below that."""
    reached = {}
    data = batch(256, 24)
    for control in ("none", "labels"):
        config = settings(
            width=32, layers=2, heads=4, channels=16, side=3, families=("residual",), norms=("batch",), pool=1,
            meta_batch=1, widest=16, lr=2e-3, steps=300, control=control,
        )  # fmt: skip
        method = make(config)
        state = jax.jit(method.init)(jax.random.key(0), data)
        step = jax.jit(method.stages[0].step)
        for number in range(300):
            rows = np.random.default_rng(number).permutation(256)[:64]
            state, _ = step(jax.random.key(number), state, {name: value[rows] for name, value in data.items()})
        probs = jax.jit(method.predict)(jax.random.key(0), state, data)["child_probs"]  # of the one child
        reached[control] = float((probs.argmax(-1) == data["label"]).mean())
    assert reached["none"] > 0.95
    assert reached["labels"] < 0.6


def test_the_paper_is_named():
    assert hyperinit.PAPER["arxiv"] == "2206.03661"


@pytest.mark.trend
def test_networks_that_the_pool_never_held_answer_untrained(tmp_path):
    """Check 15, with a pool of 24: the parameters predicted for unseen networks do the source task far above chance
    (0.25), without any training of theirs. On the command line, as the README has it; a quarter of an hour."""
    folder = Path(presets.__file__).parent

    def call(script, *argv):
        done = subprocess.run([sys.executable, folder / script, *argv], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    seed = ("--data.seed", "100")
    pool = ("--method.pool", "24", "--method.families", "plain", "residual", "dense", "inverted")
    run = ("--method", "hyperinit", "--train.seed", "100", *seed, "--method.steps", "2500", *pool)
    call("run.py", *run, "--runs", str(tmp_path), "--name", "pool")
    tested = next(e for e in read_events(tmp_path / "pool" / "metrics.jsonl") if e["event"] == "test")
    assert tested["scores"]["accuracy"] > 0.7, tested  # of the pool's own nets
    found = call("transfer.py", "--runs", str(tmp_path / "pool"), "--nets", "resnet", "densenet", "--untuned", *seed)
    scores = {line.split()[0]: float(line.split()[2]) for line in found.splitlines()}
    assert scores["resnet"] > 0.5 and scores["densenet"] > 0.5, scores
