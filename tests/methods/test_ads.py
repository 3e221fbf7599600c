"""ADS as a whole: the game of its specification, section (k), checks 6 to 8 and 10, and wrong settings."""

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
from ophjax.methods import ads

KEY = 7


def build(**changes):
    """ADS at the smoke preset, on images as they are."""
    config, data_config, _ = presets.preset("smoke", "ads")
    data = datasets.load(ads.DATA).make(data_config)
    settings = {"gamma": (1.0, 1.0), "noise": 0.0, "lr": 1e-3}
    return ads.make(dataclasses.replace(methods.fit_to(config, data), **(settings | changes))), data


@pytest.fixture(scope="module")
def batch():
    batches = pipeline.train_batches(build()[1].splits["masks"], batch_size=8, seed=0)
    first = next(batches)
    batches.close()
    return {name: jnp.asarray(value) for name, value in first.items()}


@pytest.fixture(scope="module")
def start(batch):
    return drawn(build()[0], batch)


def stepper(batch, **changes):
    """A step on the batch that draws the same views each time it is called."""
    step = jax.jit(build(**changes)[0].stages[0].step)
    return lambda state, seed=KEY, rows=batch: step(jax.random.key(seed), state, rows)


@pytest.fixture(scope="module")
def game(batch):
    """Without the critic: what the synthesizers do, they do for disagreement's sake."""
    return stepper(batch, mi_weight=0.0)


@pytest.fixture(scope="module")
def whole(batch):
    return stepper(batch)


@pytest.fixture(scope="module")
def quiet(batch):
    """Without the adversary: the synthesizers serve the critic alone."""
    return stepper(batch, adversary_weight=0.0)


@pytest.fixture(scope="module")
def frozen(batch):
    return stepper(batch, synthesizers="frozen")


def put(state, **networks):
    return state.replace(params=state.params | networks)


def differ(one, other):
    first, second = trees.named_leaves(one), trees.named_leaves(other)
    return [path for path in first if not np.array_equal(np.asarray(first[path]), np.asarray(second[path]))]


def close(one, other):
    """Two programs: equal to rounding, which Adam's first step may magnify where a gradient is next to nothing."""
    first, second = trees.named_leaves(one), trees.named_leaves(other)
    for path, leaf in first.items():
        off = np.abs(np.asarray(leaf) - np.asarray(second[path]))
        assert (off > 1e-5).mean() < 0.02 and off.max() < 2.5e-3, path


def test_each_player_moves_its_own_way(batch, game):
    """Check 6: the segmenter's step lowers its loss, the synthesizers' step raises the disagreement, both on the views
    they were taken on; and so does a tenth of the synthesizers' step (the directional derivative)."""
    state = drawn(build(mi_weight=0.0)[0], batch)
    after, logs = game(state)
    learned = put(state, segmenter=after.params["segmenter"])
    _, seen = game(learned)
    assert float(seen["segmenter/loss"]) < float(logs["segmenter/loss"])
    # The same views in both turns: what the synthesizers met is what the segmenter would meet now.
    np.testing.assert_allclose(seen["segmenter/disagreement"], logs["synthesizers/disagreement"], rtol=1e-5)

    def disagreement(part):
        old, new = state.params["synthesizers"], after.params["synthesizers"]
        moved = jax.tree.map(lambda a, b: a + part * (b - a), old, new)
        return float(game(put(learned, synthesizers=moved))[1]["segmenter/disagreement"])

    assert disagreement(0.0) < disagreement(0.1) < disagreement(1.0)


def test_neither_step_touches_the_other_side(start, whole, frozen):
    """Check 7: the segmenter and its statistics come out of the game as they come out of its own step alone."""
    (alone, _), (both, _) = frozen(start), whole(start)
    assert not differ(alone.params["synthesizers"], start.params["synthesizers"])
    assert not differ(alone.params["critic"], start.params["critic"])
    for of in (lambda state: state.params["segmenter"], lambda state: state.extra):
        assert differ(of(both), of(start))
        close(of(both), of(alone))


def test_the_critic_hears_nothing_of_the_disagreement(start, whole, quiet):
    """Check 7: whatever the adversary's weight, the critic moves alike; the synthesizers do not."""
    (loud, _), (still, _) = whole(start), quiet(start)
    close(loud.params["critic"], still.params["critic"])
    assert differ(loud.params["synthesizers"], still.params["synthesizers"])


def test_both_copies_are_held_by_the_critic_unless_asked_otherwise(batch, start, quiet):
    """Decision 1: with the released program's reading the second synthesizer gets nothing from the critic, so without
    the adversary it stands still."""
    first = stepper(batch, adversary_weight=0.0, mi_views="first")
    for step, still in ((quiet, False), (first, True)):
        after, _ = step(start)
        second = after.params["synthesizers"]["second"], start.params["synthesizers"]["second"]
        assert (not differ(*second)) == still
        assert differ(after.params["synthesizers"]["first"], start.params["synthesizers"]["first"])


def test_views_are_drawn_anew_with_each_key(start, whole):
    first, again, other = (whole(start, seed)[1]["segmenter/disagreement"] for seed in (1, 1, 2))
    assert float(first) == float(again) != float(other)


def test_prediction_needs_the_segmenter_alone(batch, start):
    """Section (f): synthesizers and critic are thrown away; the probabilities leave room for the background."""
    method, _ = build()
    bare = start.replace(params={"segmenter": start.params["segmenter"]})
    predict, image = jax.jit(method.predict), {"image": batch["image"]}
    probs = [predict(jax.random.key(0), state, image)["mask_probs"] for state in (start, bare)]
    np.testing.assert_array_equal(*probs)
    assert probs[0].shape == batch["mask"].shape and float(probs[0].sum(-1).max()) <= 1 + 1e-5


def test_images_without_a_mask_do_not_count(batch, start, frozen):
    """They still take part in the disagreement, which needs no truth."""
    found = []
    for mask in (batch["mask"], 1 - batch["mask"]):
        known = jnp.array([1.0] * 4 + [0.0] * 4)
        rows = dict(batch) | {"mask": jnp.concatenate([batch["mask"][:4], mask[4:]]), "mask_weight": known}
        found.append(frozen(start, rows=rows)[1])
    assert float(found[0]["loss"]) == float(found[1]["loss"]) > 0


@pytest.mark.parametrize("absent", ["mask", "mask_weight", "image"])
def test_a_batch_that_lacks_something_is_no_accident(batch, start, whole, absent):
    """Without any region, without any mask, of black images: losses and steps stay finite."""
    after, logs = whole(start, rows=dict(batch) | {absent: jnp.zeros_like(batch[absent])})
    assert all(np.isfinite(float(value)) for value in logs.values())
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(after.params))


def test_the_synthesizers_own_rate(batch, start, whole):
    """It scales their step and no other."""
    (after, _), (slow, _) = whole(start), stepper(batch, synthesizer_rate=0.25)(start)
    close(after.params["critic"], slow.params["critic"])
    close(after.params["segmenter"], slow.params["segmenter"])

    def moved(state):
        return jax.tree.map(jnp.subtract, state.params["synthesizers"], start.params["synthesizers"])

    for one, other in zip(jax.tree.leaves(moved(after)), jax.tree.leaves(moved(slow)), strict=True):
        np.testing.assert_allclose(other, 0.25 * one, atol=2e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"baseline": "erm", "norm": "group", "flip": True, "gamma": (0.5, 4.5), "dtype": "bfloat16"},
        {"baseline": "cutout", "schedule": "root"},
        {"baseline": "gin"},
        {"baseline": "randconv", "schedule": "cosine"},
        {"synthesizers": "shared", "weights": "free", "mi_weight": 0.0, "zoom": 0.2, "shear": 0.5, "elastic": 1.0},
        {"style_noise": 0, "mi_image": "mixed", "adversary_segmentation": 0.1, "noise": 0.1, "dtype": "bfloat16"},
    ],
    ids=lambda changes: " ".join(map(str, changes.values())),
)
def test_variants_run(batch, changes):
    """Every option makes a finite step that moves all it should."""
    method, _ = build(**changes)
    state = drawn(method, batch)
    after, logs = jax.jit(method.stages[0].step)(jax.random.key(1), state, batch)
    assert all(np.isfinite(float(value)) for value in logs.values())
    moved = {path.split("/")[0] for path in differ(after.params, state.params)}
    assert moved == set(method.stages[0].trains)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"regions": ()}, "no masks"),
        ({"kernel_sizes": ()}, "--method.kernel-sizes"),
        ({"kernel_sizes": (1, 2)}, "--method.kernel-sizes"),
        ({"temperature": 0.0}, "--method.temperature"),
        ({"taps": ()}, "--method.taps"),
        ({"taps": ("pixels", "pixels")}, "none twice"),
        ({"taps": ("pixel",)}, "'pixels'"),
        ({"patches": 1}, "--method.patches"),
        ({"hidden": 1}, "deviation"),
        ({"gamma": (2.0, 1.0)}, "--method.gamma"),
        ({"mi_weight": -1.0}, "--method.mi-weight"),
        ({"steps": 0}, "--method.steps"),
    ],
)
def test_wrong_settings(changes, word):
    with pytest.raises(InputError, match=word):
        ads.make(dataclasses.replace(ads.Config(), **changes))


def test_more_patches_than_an_image_has(batch):
    with pytest.raises(InputError, match="has 1024"):
        jax.eval_shape(build(patches=1025)[0].init, jax.random.key(0), batch)
