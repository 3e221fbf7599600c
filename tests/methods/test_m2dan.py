"""M2DAN as a whole: the behavioural checks of its spec, section (k), that the parts' own tests do not make."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from made_run import drawn

import presets
from ophjax import data as datasets
from ophjax import methods, trees
from ophjax.data import pipeline
from ophjax.errors import InputError
from ophjax.keys import at
from ophjax.losses.classification import softmax_cross_entropy
from ophjax.losses.critics import domain_loss
from ophjax.methods import m2dan
from ophjax.train import loop, mesh
from ophjax.transforms.reversal import reverse_gradient, sigmoid_ramp

DOMAINS = 4


@functools.cache
def build(**changes):
    """M2DAN at the smoke preset by plain gradient descent of rate 1, so that a step shows the gradient."""
    config, data_config, _ = presets.preset("smoke", "m2dan")
    data = datasets.load(m2dan.DATA).make(data_config)
    settings = {"optimiser": "sgd", "lr": 1.0, "weight_decay": 0.0, "jitter": False, "norm": "group"}
    settings |= {"domain_weight": 1.0}
    config = dataclasses.replace(methods.fit_to(config, data), **(settings | changes))
    return m2dan.make(config), data


@pytest.fixture(scope="module")
def batch():
    _, data = build()
    batches = pipeline.train_batches(data.splits["domains"], batch_size=4 * DOMAINS, seed=0)
    first = next(batches)
    batches.close()
    return {name: jnp.asarray(value) for name, value in first.items()}


@pytest.fixture(scope="module")
def start(batch):
    method, _ = build()
    return drawn(method, batch)


@functools.cache
def step_of(**changes):
    return jax.jit(build(**changes)[0].stages[0].step)


@functools.cache
def log_of(name, **changes):
    """One log of a step: what else the step does is not compiled."""
    learn = build(**changes)[0].stages[0].step
    return jax.jit(lambda key, state, batch: learn(key, state, batch)[1][name])


def moves(state, batch, *, step=2, **changes):
    """What one step of descent with rate 1 takes off each network: a multiple of its gradient, the same for all.

    (Nesterov momentum multiplies the first step by 1.9, and the schedule lowers the rate a little with the step.)
    """
    after, _ = step_of(**changes)(jax.random.key(1), state.replace(step=jnp.int32(step)), batch)
    return jax.tree.map(np.subtract, *jax.device_get((state.params, after.params)))


def close(one, other, rtol=1e-4):
    leaves = trees.named_leaves(other)
    for path, value in trees.named_leaves(one).items():
        wanted = leaves[path]
        np.testing.assert_allclose(value, wanted, rtol=rtol, atol=rtol * np.abs(wanted).max() + 1e-7, err_msg=path)


def scaled(tree, factor):
    return jax.tree.map(lambda leaf: factor * leaf, tree)


def added(one, other):
    return jax.tree.map(np.add, one, other)


def test_the_loss_comes_apart(start, batch):
    """Check 2: the critics descend a L_dom whatever the reversal; the extractor gets grad L_cls - a l grad L_dom; the
    head knows neither. With a = 0 the extractor's gradient is that of the classification loss alone."""
    strength = float(sigmoid_ramp(2 / 4))
    none, one, half = (moves(start, batch, **weight) for weight in ({"domain_weight": 0.0}, {}, {"domain_weight": 0.5}))
    late = moves(start, batch, step=4)
    ratio = float(sigmoid_ramp(1.0)) / strength
    close(one["critics"], scaled(half["critics"], 2.0))
    close(one["critics"], late["critics"])
    assert all(not leaf.any() for leaf in jax.tree.leaves(none["critics"]))
    for found in (one, half, late):
        close(found["head"], none["head"])

    def adversarial(found):
        return added(found["extractor"], scaled(none["extractor"], -1.0))

    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(adversarial(one))) > 1e-5
    close(scaled(adversarial(half), 2.0), adversarial(one), rtol=1e-3)
    close(adversarial(late), scaled(adversarial(one), ratio), rtol=1e-3)


def test_reversal_turns_the_critics_gradient(start, batch):
    """Check 2: at strength 0 nothing comes back, and what comes back at strength l points against the critics' way:
    descending it raises the critics' loss."""
    quiet, loud = (moves(start, batch, step=step)["extractor"] for step in (0, 2))
    still = moves(start, batch, domain_weight=0.0)["extractor"]
    close(quiet, still)

    def cost(params):
        _, logs = step_of()(jax.random.key(1), start.replace(params=params), batch)
        return float(logs["domain_loss"])

    extractor = jax.tree.map(lambda p, a, b: np.asarray(p) + 0.3 * (b - a), start.params["extractor"], loud, still)
    nudged = start.params | {"extractor": extractor}
    assert cost(nudged) > cost(start.params)


def test_target_labels_are_never_read(start, batch):
    """Check 6: whatever stands there, out of range included."""
    target = np.asarray(batch["domain"]) > 0
    assert (np.asarray(batch["label"])[target] == -1).all()
    other = dict(batch) | {"label": jnp.where(target, 7, batch["label"])}
    jax.tree.map(np.testing.assert_array_equal, moves(start, batch), moves(start, other))


def test_rows_may_come_in_any_order(start, batch):
    """Check 5: examples permuted with their domains give the same gradients, to rounding."""
    order = jnp.asarray(np.random.default_rng(0).permutation(len(batch["label"])))
    close(moves(start, batch), moves(start, {name: value[order] for name, value in batch.items()}), rtol=1e-3)


def test_one_device_and_eight(start, batch):
    """Check 7: rows split over eight devices, domains mixed or not, give the loss of one (batch norm included)."""
    method, _ = build(norm="batch")
    state = drawn(method, batch)
    by_domain = np.argsort(np.asarray(batch["domain"]), kind="stable")
    found = []
    for devices, orders in ((1, [slice(None)]), (8, [slice(None), by_domain])):
        where = jax.sharding.Mesh(np.array(jax.devices()[:devices]).reshape(-1, 1), ("data", "model"))
        shardings = mesh.state_shardings(state, where)
        step = loop.compile_step(method.stages[0], where, shardings)
        for order in orders:
            rows = mesh.place({name: np.asarray(value)[order] for name, value in batch.items()}, where)
            # The step gives away its state's memory.
            copy = jax.device_put(jax.device_get(state), shardings)
            found.append(jax.device_get(step(jax.random.key(0), copy, rows)[1]))
    assert len(found) == 3
    for logs in found[1:]:
        for name, value in found[0].items():
            np.testing.assert_allclose(logs[name], value, rtol=2e-4, atol=1e-6, err_msg=name)


def test_warmup_holds_the_reversal_back(start, batch):
    """Nothing is reversed before ``warmup``; then the ramp over what is left begins. All in one program."""
    step = log_of("reversal", warmup=0.5)
    found = [float(step(jax.random.key(1), start.replace(step=jnp.int32(i)), batch)) for i in range(5)]
    np.testing.assert_allclose(found, [0, 0, 0, *sigmoid_ramp(jnp.array([0.5, 1.0]))], rtol=1e-6)
    assert step._cache_size() == 1


def test_shuffled_labels_are_those_of_other_images(start, batch):
    """The control never gives an image its own label: of two source images each gets that of the other, at any key."""
    rows = np.flatnonzero(np.asarray(batch["domain"]) == 0)[:2]
    known = jnp.full_like(batch["label"], -1)
    pair, swapped = (batch | {"label": known.at[rows].set(jnp.array(labels))} for labels in ([0, 1], [1, 0]))
    wanted, other = (step_of()(jax.random.key(0), start, given)[1]["classification_loss"] for given in (swapped, pair))
    assert abs(wanted - other) > 1e-4
    control = log_of("classification_loss", control="labels")
    for seed in range(4):
        np.testing.assert_allclose(control(jax.random.key(seed), start, pair), wanted, rtol=1e-5)


@pytest.mark.parametrize("dropped", [0, 2, 3])
def test_shuffled_labels_in_batches_that_hold_no_whole_rounds(start, batch, dropped):
    """Nor does it ever give one a target's, which is not known: the last of the classes would be learned instead."""
    labelled = batch | {"label": jnp.where(batch["domain"] == 0, 0, -1)}
    # What is dropped are targets, which the classification does not see: nets with group norm look at images alone.
    rows = len(batch["label"]) - dropped
    assert (batch["domain"][rows:] > 0).all()
    wanted = step_of()(jax.random.key(0), start, labelled)[1]["classification_loss"]
    control = log_of("classification_loss", control="labels")
    for seed in range(4):
        found = control(jax.random.key(seed), start, {name: value[:rows] for name, value in labelled.items()})
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_source_images_without_a_label_teach_nothing(start, batch):
    """Nets with group norm and no jitter look at each image alone: what one pays is what the mean lacks without it."""
    last, rows = np.flatnonzero(np.asarray(batch["domain"]) == 0)[-1], int((np.asarray(batch["domain"]) == 0).sum())

    def paid(label):
        given = batch | {"label": batch["label"].at[last].set(label)}
        return float(step_of()(jax.random.key(0), start, given)[1]["classification_loss"])

    alone = [rows * paid(label) - (rows - 1) * paid(-1) for label in (0, 1)]
    np.testing.assert_allclose(np.exp(-np.array(alone)).sum(), 1, rtol=1e-4)


def test_focal_loss_below_one(start, batch):
    """An exponent below 1 has an infinite slope at a loss of 0, which a sure prediction reaches in float32."""
    linear = start.params["head"]["linear"]
    sure = {"linear": {"kernel": 0 * linear["kernel"], "bias": jnp.array([30.0, -30.0])}}
    rows = batch | {"label": jnp.where(batch["domain"] == 0, 0, -1)}
    state = start.replace(params=start.params | {"head": sure})
    assert np.isfinite(log_of("grad_norm", focal_gamma=0.5)(jax.random.key(0), state, rows))


def test_scores_of_a_domain():
    """Of three open angles two are recognised, of one closed angle none; what has no label is left out."""
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4], [0.1, 0.9]])
    rows = {"probs": probs, "label": np.array([0, 0, 0, 1, -1])}
    found = m2dan.score(rows)
    np.testing.assert_allclose([found["accuracy"], found["balanced_accuracy"]], [0.5, 1 / 3])
    assert m2dan.score({name: value[4:] for name, value in rows.items()}) == {}


def test_inference_needs_no_critic(start, batch):
    """Section (f): prediction is the same without the critics' parameters and without the domains."""
    method, _ = build()
    bare = start.replace(params={name: start.params[name] for name in ("extractor", "head")})
    image = {"image": batch["image"]}
    probs = [jax.jit(method.predict)(jax.random.key(0), state, image)["probs"] for state in (start, bare)]
    np.testing.assert_array_equal(*probs)
    np.testing.assert_allclose(probs[0].sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"critic": "pairwise", "domain_loss": "least-squares"},
        {"critic": "merged", "align": "fused", "conditional": True},
        {"fusion": "attention", "squeeze": True, "entropy_weight": 0.1, "focal_gamma": 2.0, "dtype": "bfloat16"},
        {"single_scale": True, "align": "branches"},
        {"pyramid": True, "layer_norm": False},
        {"baseline": "source-only"},
        {"baseline": "oracle"},
        {"control": "labels", "norm": "batch"},
    ],
    ids=lambda changes: " ".join(map(str, changes.values())),
)
def test_variants_run(batch, changes):
    """Every option makes a finite step whose gradients reach the extractor."""
    method, _ = build(**changes)
    state = drawn(method, batch)
    after, logs = jax.jit(method.stages[0].step)(jax.random.key(1), state.replace(step=jnp.int32(2)), batch)
    assert all(np.isfinite(float(value)) for value in logs.values()) and float(logs["grad_norm"]) > 0
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params["extractor"], after.params["extractor"])
    assert any(jax.tree.leaves(moved))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"kernels": ()}, "--method.kernels"),
        ({"kernels": (2, 3)}, "--method.kernels"),
        ({"domain_loss": "least-squares"}, "--method.domain-loss"),
        ({"pyramid": True, "kernels": (1, 3, 5), "levels": 2}, "--method.pyramid"),
        ({"steps": 0}, "--method.steps"),
        ({"conditional": True, "align": "branches"}, "--method.conditional"),
        ({"warmup": 1.0}, "--method.warmup"),
        ({"classes": ("open",)}, "at least two"),
        ({"domains": ("clinic",)}, "--data angles"),
        ({"domains": ()}, "has no domain"),
    ],
)
def test_wrong_settings(changes, word):
    with pytest.raises(InputError, match=word):
        m2dan.make(dataclasses.replace(m2dan.Config(), **changes))


# Rotated moons (spec, section (k), experiment 1): the transform alone, on a net of three layers ----------------------


def moons(seed, degrees, count=600):
    """Two half circles with noise 0.1, turned about their middle."""
    rng = np.random.default_rng([seed, degrees])
    angle, label = rng.uniform(0, np.pi, count), rng.integers(0, 2, count)
    points = np.stack([np.cos(angle), np.sin(angle)], -1)
    points[label == 1] = [1.0, 0.5] - points[label == 1]
    points = points + rng.normal(0, 0.1, points.shape) - [0.5, 0.25]
    turn = np.deg2rad(degrees)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return jnp.asarray(points @ rotation, jnp.float32), jnp.asarray(label, jnp.int32)


def perceptron(key, sizes):
    keys = jax.random.split(key, len(sizes) - 1)
    shapes = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return [(jax.random.normal(k, (m, n)) * (2 / m) ** 0.5, jnp.zeros((1, n))) for k, m, n in shapes]


def feed(layers, x):
    for i, (kernel, bias) in enumerate(layers):
        x = x @ kernel + bias
        x = jax.nn.relu(x) if i + 1 < len(layers) else x
    return x


def adapt(key, weight, domains, steps=3000, rows=64):
    """Accuracies on source, +25 and +45 degrees after adversarial training with this weight (0: source only)."""
    points, labels = domains  # [3, n, 2], [3, n]
    params = {
        "features": perceptron(at(key, "features"), (2, 32, 32)),
        "head": perceptron(at(key, "head"), (32, 2)),
        "critic": perceptron(at(key, "critic"), (32, 64, 3)),
    }
    tx = optax.adam(1e-3)
    domain = jnp.repeat(jnp.arange(3), rows)

    def loss(params, chosen, strength):
        x = jnp.take_along_axis(points, chosen[:, :, None], 1).reshape(-1, 2)
        features = jax.nn.relu(feed(params["features"], x))
        known = softmax_cross_entropy(feed(params["head"], features[:rows]), labels[0][chosen[0]]).mean()
        guesses = feed(params["critic"], reverse_gradient(features, strength))
        return known + weight * domain_loss(guesses, domain, critic="multiclass").mean()

    def step(carry, i):
        params, opt = carry
        chosen = jax.random.randint(at(key, "rows", i), (3, rows), 0, points.shape[1])
        grads = jax.grad(loss)(params, chosen, sigmoid_ramp(i / steps))
        updates, opt = tx.update(grads, opt)
        return (optax.apply_updates(params, updates), opt), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))
    features = jax.nn.relu(feed(params["features"], points.reshape(-1, 2)))
    guess = feed(params["head"], features).argmax(-1).reshape(labels.shape)
    return (guess == labels).mean(1)


@pytest.mark.slow
def test_rotated_moons():
    """Over three seeds the targets gain at least 5 points (the spec measured 14.9 over six) and the source stays."""
    run, found = jax.jit(adapt), {0.0: [], 3.0: []}
    for seed in (10, 11, 12):
        domains = [jnp.stack(parts) for parts in zip(*(moons(seed, degrees) for degrees in (0, 25, 45)), strict=True)]
        with jax.debug_key_reuse(False):  # the checker does not follow keys into scan
            for weight, scores in found.items():
                scores.append(run(jax.random.key(seed), weight, domains))
    plain, adapted = (np.array(scores) for scores in found.values())
    assert adapted[:, 1:].mean() - plain[:, 1:].mean() >= 0.05
    assert adapted[:, 0].mean() >= 0.95
