"""SeATrans as a whole: the behavioural checks of its spec, section (k), that the nets' own tests do not make."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_run import drawn

import presets
from ophjax import data as datasets
from ophjax import trees
from ophjax.data import pipeline
from ophjax.errors import InputError
from ophjax.methods import seatrans


def config_of(**changes):
    """The smoke preset with both of the default's steered stages, of which the preset itself has one."""
    config, data_config, _ = presets.preset("smoke", "seatrans", "phantoms")
    data = datasets.load("phantoms").make(data_config)
    fixed = {"regions": data.regions, "classes": data.classes, "low_level": (1, 2)}
    return dataclasses.replace(config, **(fixed | changes)), data


@pytest.fixture(scope="module")
def batch():
    _, data = config_of()
    batches = pipeline.eval_batches(data.splits["train"], batch_size=8)
    first = next(iter(batches))
    batches.close()
    return {name: jnp.asarray(value) for name, value in first.items()}


@pytest.fixture(scope="module")
def begun(batch):
    """The diagnosis nets of SeATrans and of the image-only baseline as they begin with one key."""
    methods = [seatrans.make(config_of(baseline=baseline)[0]) for baseline in ("none", "image-only")]
    return jax.jit(lambda key: [method.init(key, batch).params["diagnosis"] for method in methods])(jax.random.key(0))


@pytest.fixture(scope="module")
def ours(batch, begun):
    """SeATrans at the smoke preset, without flips and drop-path, and a state whose diagnosis net is a fresh one."""
    config, _ = config_of(flip=False, drop_path=0.0)
    method = seatrans.make(config)
    state = drawn(method, batch)
    return method, state.replace(params=state.params | {"diagnosis": begun[0]})


@pytest.fixture(scope="module")
def shuffled(batch):
    """The same with the segmenter's features shuffled across the batch before the diagnosis net sees them."""
    config, _ = config_of(flip=False, drop_path=0.0, control="features")
    return seatrans.make(config)


@pytest.fixture(scope="module")
def states(ours, batch):
    """The states after none, one, two and three steps of the diagnosis stage."""
    method, state = ours
    step, found = jax.jit(method.stages[-1].step), [state]
    for _ in range(3):
        found.append(step(jax.random.key(1), found[-1], batch)[0])
    return found


def assert_same_probs(one, other):
    np.testing.assert_array_equal(np.asarray(one["probs"]), np.asarray(other["probs"]))


def test_identity_at_the_start(ours, begun, batch):
    """Check 1: with the same key, SeATrans begins as the image-only baseline: max|Δ| = 0, since W0 is zero."""
    method, state = ours
    plain = seatrans.make(config_of(flip=False, baseline="image-only")[0])
    jax.tree.map(np.testing.assert_array_equal, begun[0]["backbone"], begun[1]["backbone"])
    # Statistics as they are after the start: what both nets predict with.
    stats = {"diagnosis": state.extra["batch_stats"]["diagnosis"]}
    start = state.replace(params={"diagnosis": begun[1]}, extra={"batch_stats": stats})
    assert_same_probs(
        jax.jit(method.predict)(jax.random.key(2), state, batch),
        jax.jit(plain.predict)(jax.random.key(2), start, batch),
    )


def test_dynamic_on_the_segmentation(ours, shuffled, states, batch):
    """Check 2: other segmentation features change nothing at the start, and the prediction after three steps."""
    method, state = ours
    predict, predict_shuffled = jax.jit(method.predict), jax.jit(shuffled.predict)

    def both(state):
        return (f(jax.random.key(3), state, batch) for f in (predict, predict_shuffled))

    assert_same_probs(*both(state))
    straight, mixed = (np.asarray(outputs["probs"]) for outputs in both(states[-1]))
    # Rounding moves a probability by 1e-7; three steps of 1e-3 on W0 move it by far more.
    assert np.abs(straight - mixed).max() > 1e-5


def loss_of(stage, name="loss"):
    """One log of a stage's step: its gradient is not compiled."""
    return jax.jit(lambda key, state, batch: stage.step(key, state, batch)[1][name])


def moved(before, after):
    """Paths of the leaves that a step changed: Adam moves every weight whose gradient is not zero by about lr."""
    first, second = trees.named_leaves(before), trees.named_leaves(after)
    return {path for path in first if not np.array_equal(first[path], second[path])}


def test_gradient_routing(states):
    """Check 3: the frozen segmenter gets no gradient. Of the SeA-blocks only the projection W0, which is zero, gets one
    in the first step, since all else is behind it; in the second step everything does."""
    for state in states[1:]:
        assert not moved(states[0].params["segmenter"], state.params["segmenter"])
        assert not moved(states[0].extra["batch_stats"]["segmenter"], state.extra["batch_stats"]["segmenter"])
    first, second = (moved(states[i].params["diagnosis"], states[i + 1].params["diagnosis"]) for i in (0, 1))
    everything = set(trees.named_leaves(states[0].params["diagnosis"]))
    blocks = {path for path in everything if path.startswith("fusion")}
    assert len(blocks) > 20
    assert {path for path in first if path in blocks} == {f"fusion{level}/blocks/write/kernel" for level in (1, 2)}
    assert everything - second == set()


def test_a_segmenter_that_is_not_frozen_is_trained(batch):
    """Check 3, the other way: its parameters are then the optimiser's, with Adam's two moments each, and move."""
    sizes, few = {}, {"low_level": (1,), "scales": (3,)}  # one block: what is trained does not hang on their number
    for frozen in (True, False):
        config, _ = config_of(freeze_segmenter=frozen, **few)
        state = drawn(seatrans.make(config), batch)
        sizes[frozen] = trees.count(state.opt["diagnosis"])
    assert sizes[False] - sizes[True] == 2 * trees.count(state.params["segmenter"])
    after, logs = jax.jit(seatrans.make(config).stages[-1].step)(jax.random.key(1), state, batch)
    total = logs["diagnosis_loss"] + config.segmentation_weight * logs["segmentation_loss"]
    np.testing.assert_allclose(logs["loss"], total, rtol=1e-6)
    assert moved(state.params["segmenter"], after.params["segmenter"]) == set(
        trees.named_leaves(state.params["segmenter"])
    )


def test_labels_not_known_and_labels_shuffled():
    """Label -1 teaches nothing and is not scored; the control gives each of two images the other's label."""
    config, _ = config_of(flip=False, drop_path=0.0, baseline="image-only", norm="group", positive_weight=1.0)
    rng = np.random.default_rng(0)
    rows = {
        "image": jnp.asarray(rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)),
        "label": jnp.array([1, 0]),
        "index": jnp.arange(2),
    }
    plain, control = (seatrans.make(dataclasses.replace(config, control=name)) for name in ("none", "labels"))
    state, losses = drawn(plain, rows), [loss_of(method.stages[-1], "diagnosis_loss") for method in (plain, control)]

    def paid(*labels, loss=losses[0]):
        return float(loss(jax.random.key(0), state, rows | {"label": jnp.array(labels)}))

    first, second = paid(1, -1), paid(-1, 0)
    np.testing.assert_allclose(paid(1, 0), (first + second) / 2, rtol=1e-5)
    assert paid(-1, -1) == 0
    np.testing.assert_allclose(paid(1, 0, loss=losses[1]), paid(0, 1), rtol=1e-5)
    gathered = {"probs": np.array([[0.9, 0.1], [0.2, 0.8], [0.1, 0.9]]), "label": np.array([0, 1, -1])}
    assert plain.scores(gathered)["accuracy"] == 1
    assert plain.scores({name: value[2:] for name, value in gathered.items()}) == {}


@pytest.mark.parametrize(("size", "depth"), [((256, 256), 34), ((224, 224), 10), ((45, 51), 10), ((33, 64), 10)])
def test_sizes(size, depth):
    """Check 8, by shapes: the sizes the paper's field uses, and odd ones, at the paper's widths."""
    method = seatrans.make(seatrans.Config(depth=depth, segmenter_depth=depth))
    batch = {
        "image": jax.ShapeDtypeStruct((2, *size, 3), np.uint8),
        "mask": jax.ShapeDtypeStruct((2, *size, 2), np.uint8),
        "label": jax.ShapeDtypeStruct((2,), np.int32),
    }
    state = jax.eval_shape(method.init, jax.random.key(0), batch)
    outputs = jax.eval_shape(method.predict, jax.random.key(0), state, batch)
    assert outputs["probs"].shape == (2, 2) and outputs["mask_probs"].shape == (2, *size, 2)
    assert outputs["attention_stage1"].shape == outputs["attention_stage2"].shape == (2, *size)


def test_an_odd_size_runs():
    """Check 8, in numbers: probabilities add up, masks lie in [0, 1], attention has its peak at 1."""
    config, _ = config_of()
    method = seatrans.make(config)
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (2, 45, 51, 3), dtype=np.uint8)),
        "mask": jnp.zeros((2, 45, 51, 2), jnp.uint8),
        "label": jnp.zeros(2, jnp.int32),
    }
    state = drawn(method, batch)
    outputs = jax.device_get(jax.jit(method.predict)(jax.random.key(0), state, batch))
    np.testing.assert_allclose(outputs["probs"].sum(-1), 1, rtol=1e-6)  # one float32 rounding of each
    assert outputs["mask_probs"].shape == (2, 45, 51, 2)
    assert 0 <= outputs["mask_probs"].min() <= outputs["mask_probs"].max() <= 1
    for level in (1, 2):
        looked = outputs[f"attention_stage{level}"]
        assert (looked >= 0).all()
        np.testing.assert_allclose(looked.max((1, 2)), 1, rtol=1e-6)  # divided by itself, as compiled


@pytest.mark.parametrize(("depth", "count"), [(18, 11_177_025), (34, 21_285_185), (50, 23_510_081)])
def test_plain_parameter_counts(depth, count):
    """Golden: torchvision's ResNets (11,689,512, 21,797,672 and 25,557,032 parameters) with one output, not 1000."""
    method = seatrans.make(seatrans.Config(baseline="image-only", depth=depth))
    batch = {"image": jax.ShapeDtypeStruct((2, 64, 64, 3), np.uint8)}
    state = jax.eval_shape(method.init, jax.random.key(0), batch)
    assert {name: trees.count(tree) for name, tree in state.params.items()} == {"diagnosis": count}


def sizes_of(**changes):
    """Parameters of each network, and names of their batch statistics, by shapes alone."""
    config, _ = config_of(**changes)
    batch = {"image": jax.ShapeDtypeStruct((2, 64, 64, 3), np.uint8)}
    state = jax.eval_shape(seatrans.make(config).init, jax.random.key(0), batch)
    return {name: trees.count(tree) for name, tree in state.params.items()}, state.extra["batch_stats"]


def test_every_decision_is_an_option():
    """What each changes in size, by hand for tokens of 8 and 16 channels (stages 1 and 2), four blocks each."""
    plain, _ = sizes_of()
    # Two attention layers a block; a feed-forward layer has 2 r C^2 weights and r C + C biases.
    wider, _ = sizes_of(feed_forward_ratio=4)
    assert wider["diagnosis"] - plain["diagnosis"] == 4 * 2 * sum(2 * c * c + c for c in (8, 16))
    # A position table has 16 tokens (4 at the coarsest scale) of C / heads numbers, for the four scales and blocks.
    fewer, _ = sizes_of(heads=(1, 1, 1))
    tables = 4 + 16 + 16 + 16 + 4 * 16
    assert fewer["diagnosis"] - plain["diagnosis"] == tables * (8 - 8 // 2 + 16 - 16 // 4)
    # Narrower tokens are the diagnosis net's alone, group norm without statistics the segmenter's.
    narrow, stats = sizes_of(token_width=8, segmenter_norm="group")
    assert narrow["diagnosis"] < plain["diagnosis"] and narrow["segmenter"] == plain["segmenter"]
    assert not stats["segmenter"] and stats["diagnosis"]
    stages = {flag: seatrans.make(config_of(balanced=flag)[0]).stages for flag in (False, True)}
    assert [stage.balanced for stage in stages[True]] == [False, True] and not stages[False][-1].balanced


def test_the_weight_of_the_dice_loss(ours, batch):
    """Without it the first stage's loss is smaller by a Dice loss, which lies in [0, 1] for each of two regions."""
    method, state = ours
    without = seatrans.make(config_of(flip=False, drop_path=0.0, dice_weight=0.0)[0])
    both, alone = (float(loss_of(one.stages[0])(jax.random.key(0), state, batch)) for one in (method, without))
    assert 0.1 < both - alone < 2


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"low_level": ()}, "--method.low-level"),
        ({"low_level": (2, 1)}, "--method.low-level"),
        ({"positive_weight": 0.0}, "--method.positive-weight"),
        ({"balanced": True, "control": "labels"}, "--method.balanced"),
        ({"segmentation_weight": -1.0}, "--method.segmentation-weight"),
        ({"scales": (4,)}, "--method.scales"),
        ({"steps": 0}, "--method.steps"),
        ({"segmenter_steps": -1}, "--method.segmenter-steps"),
        ({"heads": (2, 0, 8)}, "--method.heads"),
        ({"betas": (0.9, 1.0)}, "--method.betas"),
        ({"feed_forward_ratio": 0}, "--method.feed-forward-ratio"),
        ({"classes": ("all",)}, "at least two"),
    ],
)
def test_wrong_settings(changes, word):
    with pytest.raises(InputError, match=word):
        seatrans.make(seatrans.Config(**changes))
