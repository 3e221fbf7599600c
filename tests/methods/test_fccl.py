"""FCCL as a whole: the checks of its spec, section (k), that the transforms' and losses' own tests do not make."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ophjax import trees
from ophjax.data.augment import centred
from ophjax.errors import InputError
from ophjax.methods import fccl
from ophjax.train import loop, mesh
from ophjax.train.checkpoint import Checkpoints
from ophjax.transforms import centroids
from ophjax.transforms.stepping import in_slices

CLASSES = ("a", "b", "c", "d")
SMOKE = fccl.SMOKE | dict(classes=CLASSES, flip=False, weight=1.0)


def config_of(**changes):
    return fccl.Config(**SMOKE | changes)


def batch_of(labels, seed=0):
    rng = np.random.default_rng(seed)
    rows = len(labels)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8)),
        "label": jnp.asarray(labels, jnp.int32),
        "weight": jnp.ones(rows),
        "index": jnp.arange(rows),
    }


# Every batch lacks a class, and class 3 comes late.
STREAM = [batch_of(labels, seed) for seed, labels in enumerate([[0, 0, 1, 1, 1, 1, 0, 1], [2] * 8, [3, 3, 3, 0] * 2])]


def start(config, batch=STREAM[0]):
    method = fccl.make(config)
    return method, loop.compile_init(method, batch, None)(jax.random.key(0))


def train(config, batches=STREAM, *, stage=-1, state=None):
    """Runs a stage over some batches; returns all states and logs."""
    method, fresh = start(config)
    states, logs = [fresh if state is None else state], []
    step = jax.jit(method.stages[stage].step)
    for batch in batches:
        new, found = step(jax.random.key(1), states[-1], batch)
        states.append(new.replace(step=new.step + 1))
        logs.append({name: float(value) for name, value in found.items()})
    return states, logs


def features(config, state, batch):
    """Logits and unit features of a batch, computed beside the method from the same net's definition."""
    net = fccl.PooledClassifier(len(CLASSES), "plain", width=config.width)
    logits, feature = net.apply({"params": state.params["classifier"]}, centred(batch["image"] / 255), train=False)
    return logits, np.asarray(centroids.normalise(feature))


@pytest.fixture(scope="module")
def ours():
    return train(config_of(ramp=0.0))


def test_loss_and_centroids_of_each_step(ours):
    """Checks 1, J7, J9: the contrast of step t is against the centroids of step t - 1, zero where the class is new, and
    the centroids then move with the features of the same forward pass."""
    states, logs = ours
    config = config_of()
    mean, seen = np.zeros(states[0].extra["centroids"].mean.shape), np.zeros(4, bool)
    for before, after, log, batch in zip(states[:-1], states[1:], logs, STREAM, strict=True):
        logits, z = features(config, before, batch)
        labels = np.asarray(batch["label"])
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        terms = []
        for n in np.flatnonzero(seen[labels]):
            mu = mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
            terms.append(np.log(np.exp(z[n] @ mu[seen].T / 0.1).sum()) - z[n] @ mu[labels[n]] / 0.1)
        contrast = np.mean(terms) if terms else 0.0
        # Cosines rounded at 1e-7, divided by 0.1, through a net that is compiled in two ways.
        np.testing.assert_allclose(log["cross_entropy"], cross_entropy, rtol=1e-5)
        np.testing.assert_allclose(log["contrast"], contrast, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(log["loss"], cross_entropy + contrast, rtol=1e-4)
        for k in np.unique(labels):
            batch_mean = z[labels == k].mean(0)
            mean[k] = 0.9 * mean[k] + 0.1 * batch_mean if seen[k] else batch_mean
            seen[k] = True
        np.testing.assert_allclose(after.extra["centroids"].mean, mean, atol=1e-5)
        assert log["classes_seen"] == seen.sum()
    assert [log["contrast"] > 0 for log in logs] == [False, False, True]


def test_the_weight_rises_in_a_line():
    """The ramp: nothing in the first step, all of it after its share of training; the counter of steps says where."""
    config = config_of(ramp=0.5, steps=4)
    method, state = start(config)
    state = state.replace(
        extra=state.extra | {"centroids": centroids.Centroids(mean=jnp.eye(4, 32), count=jnp.ones(4, jnp.int32))}
    )
    step = jax.jit(method.stages[0].step)
    for done, share in ((0, 0.0), (1, 0.5), (2, 1.0), (3, 1.0)):
        _, logs = step(jax.random.key(0), state.replace(step=jnp.int32(done)), STREAM[0])
        np.testing.assert_allclose(logs["loss"], logs["cross_entropy"] + share * logs["contrast"], rtol=1e-6)
        assert logs["contrast"] > 0.1


def test_the_contrast_reaches_the_trunk_and_not_the_head(ours):
    """Check 5: the head's gradient is that of the cross-entropy alone. With plain gradient descent a step is the
    gradient; the two programs round differently."""
    state = ours[0][-1]
    moved = {}
    for baseline in ("none", "erm"):
        method = fccl.make(
            config_of(baseline=baseline, ramp=0.0, optimiser="sgd", betas=(0.0, 0.0), weight_decay=0.0, lr=1.0)
        )
        fresh = state.replace(opt=jax.eval_shape(method.init, jax.random.key(0), STREAM[0]).opt)
        fresh = fresh.replace(opt=jax.tree.map(lambda spec: jnp.zeros(spec.shape, spec.dtype), fresh.opt))
        after, _ = jax.jit(method.stages[0].step)(jax.random.key(1), fresh, STREAM[0])
        moved[baseline] = jax.tree.map(jnp.subtract, after.params["classifier"], state.params["classifier"])
    chex.assert_trees_all_close(moved["none"]["linear"], moved["erm"]["linear"], rtol=1e-4, atol=1e-6)
    for name, leaf in trees.named_leaves(moved["none"]["backbone"]).items():
        assert np.abs(leaf - trees.named_leaves(moved["erm"]["backbone"])[name]).max() > 1e-3, name


def test_without_weight_it_is_erm():
    """Check 6: bit for bit after three steps, while the centroids still move."""
    plain, _ = train(config_of(baseline="erm"))
    unweighted, logs = train(config_of(weight=0.0, ramp=0.0))
    jax.tree.map(np.testing.assert_array_equal, plain[-1].params, unweighted[-1].params)
    assert logs[-1]["contrast"] > 0 and logs[-1]["loss"] == logs[-1]["cross_entropy"]
    for states in (plain, unweighted):
        counts = [state.extra["centroids"].count.tolist() for state in states]
        assert counts == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [2, 1, 1, 1]]


VARIED = {
    "bfloat16": dict(dtype="bfloat16"),
    "supcon": dict(baseline="supcon"),
    "center": dict(baseline="center", weight=0.01),
    "epoch": dict(centroid_mode="epoch", examples=16),
    "batch": dict(centroid_mode="batch"),
    "batch-gradient": dict(centroid_mode="batch-gradient"),
    "learned": dict(centroid_mode="learned"),
    "projection": dict(projection=5),
    "vit": dict(trunk="vit", vit_patch=8, vit_width=16, vit_depth=2, dtype="bfloat16"),
    "balanced": dict(class_balanced=True, instance_negatives=True),
    "augmented": dict(flip=True, crop=0.7, jitter=1.0, optimiser="sgd", schedule="cosine", control="labels"),
}


@pytest.fixture(scope="module")
def varied():
    return {}


@pytest.mark.parametrize("name", VARIED)
def test_every_option_trains_on_finite_numbers(name, varied):
    """Check 7: absent classes, batches of one class, bfloat16 trunks, in every variant; centroids stay float32."""
    states, logs = varied[name] = train(config_of(ramp=0.0, **VARIED[name]))
    assert all(np.isfinite(value) for log in logs for value in log.values())
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(states[-1]))
    assert states[-1].extra["centroids"].mean.dtype == jnp.float32
    changed = [
        path
        for path, leaf in trees.named_leaves(states[-1].params).items()
        if not np.array_equal(leaf, trees.named_leaves(states[0].params)[path])
    ]
    assert set(changed) == set(trees.named_leaves(states[0].params)), "every leaf learns"


def test_a_feature_of_zero_is_harmless(ours):
    """Check 7: dead units give f = 0 for every image; loss and gradients stay finite."""
    state = ours[0][-1]
    backbone = state.params["classifier"]["backbone"]
    dead = backbone | {"conv3": {"kernel": 0 * backbone["conv3"]["kernel"], "bias": backbone["conv3"]["bias"] - 9}}
    state = state.replace(params={"classifier": state.params["classifier"] | {"backbone": dead}})
    for changes in ({}, VARIED["supcon"], VARIED["center"], VARIED["batch-gradient"]):
        _, (logs,) = train(config_of(ramp=0.0, **changes), STREAM[:1], state=state)
        assert all(np.isfinite(value) for value in logs.values()), changes


def test_eight_devices_equal_one(ours):
    """Check 8: loss, gradient norm and centroids of two steps whose batches put one class on the first devices only."""
    where = mesh.make_mesh()
    batches = [batch_of([0, 0, 0, *[2] * 11, 1, 2], seed) for seed in (5, 6)]
    method, state = start(config_of(ramp=0.0))
    one, logs_of_one = train(config_of(ramp=0.0), batches)
    shardings = mesh.state_shardings(state, where)
    step, state = loop.compile_step(method.stages[0], where, shardings), jax.device_put(state, shardings)
    for batch, expected in zip(batches, logs_of_one, strict=True):
        placed = mesh.place({name: np.asarray(value) for name, value in batch.items()}, where)
        assert len(placed["image"].sharding.device_set) == 8
        state, logs = step(jax.random.key(1), state, placed)
        for name in ("loss", "contrast", "grad_norm"):
            # The second loss has one step of Adam behind it, which magnifies the rounding of tiny gradients.
            np.testing.assert_allclose(logs[name], expected[name], rtol=1e-3, atol=1e-6, err_msg=name)
        assert expected["contrast"] == 0 or batch is batches[1]
    np.testing.assert_allclose(state.extra["centroids"].mean, one[-1].extra["centroids"].mean, atol=1e-4)
    assert state.extra["centroids"].count.tolist() == [2, 2, 2, 0]


def test_a_checkpoint_brings_the_centroids_back(varied, tmp_path):
    """Check 9, for the variant with the largest state; prediction only reads it (it returns no state)."""
    state = varied["epoch"][0][-1] if "epoch" in varied else train(config_of(**VARIED["epoch"]))[0][-1]
    saved = Checkpoints(tmp_path)
    saved.save(3, state, {})
    saved.wait()
    again = saved.restore(3, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state))
    saved.close()
    assert jax.tree.structure(again) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_prediction_leaves_the_state_and_reads_the_centroids(ours):
    """Check 9: cosines with the centroids, -1 for a class never seen; by choice the nearest centroid decides."""
    state = ours[0][2]  # class 3 has not come yet
    before = jax.tree.map(np.array, state)
    methods = [fccl.make(config_of(predict=who)) for who in ("head", "centroid")]
    outputs, by_centroid = (jax.jit(method.predict)(jax.random.key(0), state, STREAM[2]) for method in methods)
    jax.tree.map(np.testing.assert_array_equal, before, state)
    logits, z = features(config_of(), state, STREAM[2])
    np.testing.assert_allclose(outputs["probs"], jax.nn.softmax(logits), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(outputs["cosines"], by_centroid["cosines"], atol=1e-6)
    mean = np.asarray(state.extra["centroids"].mean)[:3]
    expected = z @ (mean / np.linalg.norm(mean, axis=1, keepdims=True)).T
    np.testing.assert_allclose(outputs["cosines"][:, :3], expected, atol=1e-5)
    assert (outputs["cosines"][:, 3] == -1).all()
    assert (by_centroid["probs"].argmax(1) == expected.argmax(1)).all()


def test_one_program_for_all_batches():
    """Check 10: whatever classes a batch holds and whatever was seen, the step is traced once."""
    method, state = start(config_of())
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(method.stages[0].step, n=1))
    for batch in STREAM:
        state, _ = step(jax.random.key(0), state, batch)


def test_centroids_of_an_epoch(varied):
    """Mode epoch: nothing before the epoch's end, then the mean over all of its features, then again from nothing."""
    states, logs = varied["epoch"] if "epoch" in varied else train(config_of(ramp=0.0, **VARIED["epoch"]))
    assert states[1].extra["centroids"].count.tolist() == [0] * 4 and logs[1]["contrast"] == 0
    known = states[2].extra["centroids"]
    z = np.concatenate(
        [features(config_of(), state, batch)[1] for state, batch in zip(states[:2], STREAM[:2], strict=True)]
    )
    labels = np.concatenate([batch["label"] for batch in STREAM[:2]])
    for k in range(3):
        np.testing.assert_allclose(known.mean[k], z[labels == k].mean(0), atol=1e-5)
    assert known.count.tolist() == [1, 1, 1, 0] and not states[2].extra["sums"].number.any()
    assert states[3].extra["sums"].number.tolist() == [2, 0, 0, 6]
    assert logs[2]["contrast"] > 0


def test_centroids_of_an_epoch_whose_last_batch_comes_in_slices():
    """Mode epoch under accumulation: the slice that ends the epoch is not the epoch."""
    method, state = start(config_of(centroid_mode="epoch", examples=16))
    with in_slices((2, 1)):
        step = jax.jit(method.stages[0].step)
        for batch in STREAM[:2]:
            state, _ = step(jax.random.key(1), state, batch)
    assert state.extra["centroids"].count.tolist() == [1, 1, 1, 0] and not state.extra["sums"].number.any()


def test_images_without_a_label_teach_nothing(ours):
    """Label -1: the loss is that of the others, no centroid hears of them, and scores leave them out."""
    step, state = jax.jit(fccl.make(config_of(ramp=0.0)).stages[0].step), ours[0][-1]
    known = {name: value[:6] for name, value in STREAM[0].items()}
    some = STREAM[0] | {"label": STREAM[0]["label"].at[6:].set(-1)}
    (one, logs), (other, wanted) = (step(jax.random.key(1), state, batch) for batch in (some, known))
    for name in ("cross_entropy", "contrast"):
        np.testing.assert_allclose(logs[name], wanted[name], rtol=1e-5)
    supcon, none = fccl.make(config_of(baseline="supcon")), {"label": jnp.full(8, -1, jnp.int32)}
    assert jax.jit(supcon.stages[0].step)(jax.random.key(1), state, STREAM[0] | none)[1]["contrast"] == 0
    epoch = fccl.make(config_of(centroid_mode="epoch", examples=8))
    begun = loop.compile_init(epoch, STREAM[0], None)(jax.random.key(0))
    after, _ = jax.jit(epoch.stages[0].step)(jax.random.key(1), begun, some)
    assert after.extra["centroids"].count.tolist() == [1, 1, 0, 0] and after.extra["looked"] == 0
    np.testing.assert_allclose(one.extra["centroids"].mean, other.extra["centroids"].mean, atol=1e-6)
    rows = {"probs": np.eye(4)[[0, 1, 3]], "cosines": np.eye(4)[[0, 1, 3]], "label": np.array([0, 1, -1])}
    assert fccl.score(rows, ordinal=False)["accuracy"] == 1
    assert fccl.score({name: value[2:] for name, value in rows.items()}, ordinal=False) == {}


def test_shuffled_labels_are_those_of_other_images(ours):
    """The control never gives an image its own label: of two images each gets that of the other, at any key."""
    pair = {name: value[:2] for name, value in STREAM[0].items()} | {"label": jnp.array([0, 1])}
    plain, control = (jax.jit(fccl.make(config_of(control=name)).stages[0].step) for name in ("none", "labels"))
    wanted = plain(jax.random.key(0), ours[0][-1], pair | {"label": jnp.array([1, 0])})[1]["cross_entropy"]
    assert abs(wanted - plain(jax.random.key(0), ours[0][-1], pair)[1]["cross_entropy"]) > 1e-4
    for seed in range(4):
        found = control(jax.random.key(seed), ours[0][-1], pair)[1]["cross_entropy"]
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_learned_directions_are_the_centroids_of_the_outputs():
    """Mode learned: cosines are with the vectors that the contrast trains, all of them there from the start."""
    config = config_of(centroid_mode="learned", predict="centroid")
    method, state = start(config)
    outputs = jax.jit(method.predict)(jax.random.key(0), state, STREAM[0])
    _, z = features(config, state, STREAM[0])
    expected = z @ np.asarray(centroids.normalise(state.params["proxies"]["directions"])).T
    np.testing.assert_allclose(outputs["cosines"], expected, atol=1e-5)
    np.testing.assert_allclose(outputs["probs"], jax.nn.softmax(expected / config.temperature), rtol=1e-3)


def test_seeded_centroids():
    """A first pass over the data sets the centroids and trains nothing; the ramp begins after it."""
    config = config_of(seed_steps=2, steps=4, ramp=1.0)
    method, _ = start(config)
    assert [(stage.name, stage.trains) for stage in method.stages] == [
        ("centroids", ()),
        ("classifier", ("classifier",)),
    ]
    states, logs = train(config, STREAM[:2], stage=0)
    jax.tree.map(np.testing.assert_array_equal, states[0].params, states[-1].params)
    state = method.stages[1].enter(jax.random.key(0), states[-1])
    known = state.extra["centroids"]
    z = np.concatenate([features(config, states[0], batch)[1] for batch in STREAM[:2]])
    labels = np.concatenate([batch["label"] for batch in STREAM[:2]])
    for k in range(3):
        np.testing.assert_allclose(known.mean[k], z[labels == k].mean(0), atol=1e-5)
    assert known.count.tolist() == [1, 1, 1, 0] and logs[-1]["classes_seen"] == 3
    _, (first, second) = train(config, STREAM[:2], state=state)
    np.testing.assert_allclose(first["loss"], first["cross_entropy"], rtol=1e-6)
    np.testing.assert_allclose(second["loss"], second["cross_entropy"] + 0.25 * second["contrast"], rtol=1e-5)
    assert first["contrast"] > 0


def test_scores_by_domain_and_of_one_domain():
    """Means over the targets, the source apart and watched; without domains the plain names."""
    probs = np.eye(4)[[0, 1, 2, 3, 0, 1, 2, 2, 0, 0, 0, 0]] * 0.6 + 0.1
    cosines = np.tile([[0.9, 0.3, 0.3, 0.0]], (12, 1))
    gathered = {
        "probs": probs,
        "cosines": cosines,
        "label": np.arange(12) % 4,
        "domain": np.repeat([0, 1, 2], 4),
    }
    method = fccl.make(config_of(domains=("clinic", "cast", "dark"), ordinal=True))
    found = method.scores(gathered)
    assert method.watch == "auc_clinic" and found["auc_clinic"] == 1
    assert (found["accuracy_clinic"], found["accuracy_cast"], found["accuracy_dark"]) == (1, 0.75, 0.25)
    assert found["accuracy"] == 0.5 and found["accuracy_worst"] == 0.25 and found["kappa_clinic"] == 1
    np.testing.assert_allclose(found["own_cosine_clinic"], 0.375)
    np.testing.assert_allclose(found["other_cosine_clinic"], 0.375)
    assert found["agreement_clinic"] == 0.25 and found["agreement_dark"] == 1
    alone = fccl.make(config_of())
    del gathered["domain"]
    assert alone.watch == "auc"
    np.testing.assert_allclose(alone.scores(gathered)["accuracy"], 8 / 12)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(temperature=0.0), "temperature"),
        (dict(momentum=1.0), "momentum"),
        (dict(momentum=-0.1), "momentum"),
        (dict(weight=-1.0), "weight"),
        (dict(ramp=1.5), "ramp"),
        (dict(projection=0), "projection"),
        (dict(projection=8, baseline="erm"), "projection"),
        (dict(centroid_mode="learned", baseline="erm"), "centroid-mode"),
        (dict(examples=0), "examples"),
        (dict(crop=0.0), "crop"),
        (dict(trunk="resnet", width=3), "width"),
        (dict(trunk="vit", vit_width=96), "vit-width"),
        (dict(trunk="vit", vit_depth=0), "vit-depth"),
        (dict(trunk="vit", vit_patch=0), "vit-patch"),
        (dict(classes=("only",)), "at least two"),
    ],
)
def test_wrong_settings_are_refused(changes, named):
    with pytest.raises(InputError, match=named):
        fccl.make(config_of(**changes))


def test_variants_are_all_valid():
    for changes, taken in fccl.VARIANTS.values():
        fccl.check(fccl.Config(**changes))
        assert not taken
    fccl.check(fccl.Config(**fccl.DEMO))
