"""Contrastive losses: FCCL spec, section (k), checks 2, 3, 4, 5, 7 and 8, and the two baselines by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ophjax.errors import InputError
from ophjax.losses.classification import softmax_cross_entropy
from ophjax.losses.contrast import (
    center_loss,
    class_shares,
    contrast_centroids,
    has_centroid,
    supervised_contrast,
    weighted_mean,
)
from ophjax.train import mesh as meshes
from ophjax.transforms.centroids import normalise

ROWS, CLASSES, WIDTH = 12, 5, 7
SEEN = jnp.array([True, True, False, True, True])
TAU = 0.1


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture
def given():
    """Features of any length, labels of all classes and one unknown, unit centroids."""
    labels = jnp.array([0, 1, 2, 3, 4, 0, 0, 3, 1, 4, 2, -1])
    return normal(0, ROWS, WIDTH), labels, normalise(normal(1, CLASSES, WIDTH))


@partial(jax.jit, static_argnames=("tau", "instance_negatives"))
def fccl(features, labels, mu, *, seen=SEEN, tau=TAU, **options):
    """The loss as FCCL uses it: the mean over the examples whose class was seen."""
    each = contrast_centroids(normalise(features), labels, mu, seen=seen, temperature=tau, **options)
    return weighted_mean(each, has_centroid(labels, seen))


def test_invariances(given):
    """Check 2: the order of the batch, the length of the features, rotation, and renaming of the classes."""
    features, labels, mu = given
    loss = fccl(features, labels, mu)
    order = np.random.default_rng(2).permutation(ROWS)
    turn, _ = jnp.linalg.qr(normal(3, WIDTH, WIDTH))
    names = jnp.array([3, 0, 4, 1, 2])
    # Class c is now called names[c]; the unknown stay unknown.
    renamed = jnp.where(labels >= 0, names[labels], -1)
    same = {
        "order": fccl(features[order], labels[order], mu),
        "length": fccl(features * jnp.exp(normal(4, ROWS, 1)), labels, mu),
        "rotation": fccl(features @ turn, labels, mu @ turn),
        "names": fccl(features, renamed, mu[jnp.argsort(names)], seen=SEEN[jnp.argsort(names)]),
    }
    for what, value in same.items():
        # Cosines are rounded at 1e-7 and divided by 0.1.
        np.testing.assert_allclose(value, loss, rtol=3e-6, err_msg=what)
    assert abs(fccl(features, jnp.roll(labels, 1), mu) - loss) > 0.1, "it does depend on the labels"


def test_it_is_a_cosine_classifier(given):
    """Check 3: cross-entropy of logits z . mu / temperature, without bias."""
    features, labels, mu = given
    labels = jnp.maximum(labels, 0)
    each = contrast_centroids(normalise(features), labels, mu, seen=jnp.ones(CLASSES, bool), temperature=TAU)
    expected = softmax_cross_entropy(normalise(features) @ mu.T / TAU, labels)
    np.testing.assert_allclose(each, expected, rtol=1e-5, atol=1e-6)


def test_limits(given):
    """Check 4: log of the number of seen classes where all centroids are one or the temperature is high, 0 with one
    seen class or none, and never outside log(1 + (n - 1) e^(-+2 / temperature))."""
    features, labels, mu = given
    number = int(SEEN.sum())
    np.testing.assert_allclose(fccl(features, labels, jnp.broadcast_to(mu[:1], mu.shape)), np.log(number), rtol=1e-5)
    np.testing.assert_allclose(fccl(features, labels, mu, tau=1e6), np.log(number), rtol=1e-5)
    one = jnp.arange(CLASSES) == 3
    assert fccl(features, labels, mu, seen=one) == 0
    assert fccl(features, labels, mu, seen=jnp.zeros(CLASSES, bool)) == 0
    for tau in (0.1, 0.5, 2.0):
        axis = jnp.eye(WIDTH)[:1]
        # All at the own centroid with the others opposite, and the other way round.
        poles = jnp.concatenate([axis] + [-axis] * (number - 1))
        best, worst = (np.log1p((number - 1) * np.exp(sign * 2 / tau)) for sign in (-1, 1))
        ends = [
            contrast_centroids(side * axis, jnp.array([0]), poles, seen=jnp.ones(number, bool), temperature=tau)[0]
            for side in (1, -1)
        ]
        # Near 0 the difference of two numbers of size 1 / tau is left: 1e-6 of rounding.
        np.testing.assert_allclose(ends, [best, worst], rtol=1e-5, atol=2e-6)
        each = contrast_centroids(normalise(features), labels, mu, seen=SEEN, temperature=tau)
        counted = each[has_centroid(labels, SEEN)]
        assert (counted > best).all() and (counted < worst).all()


def test_gradient_by_hand(given):
    """Check 5: (sum_c p_c mu_c - mu_y) / (n temperature), through the norm (I - z z^T) / |f|; else nothing."""
    features, labels, mu = given
    found = jax.grad(fccl)(features, labels, mu)
    f, m = np.asarray(features, np.float64), np.asarray(mu, np.float64)
    z = f / np.linalg.norm(f, axis=1, keepdims=True)
    odds = np.where(SEEN, np.exp(z @ m.T / TAU), 0)
    p = odds / odds.sum(1, keepdims=True)
    counted = np.asarray(has_centroid(labels, SEEN))
    of_z = (p @ m - m[labels]) / (counted.sum() * TAU) * counted[:, None]
    expected = (of_z - z * (of_z * z).sum(1, keepdims=True)) / np.linalg.norm(f, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert not found[~counted].any() and found[counted].any(1).all()


@jax.jit
@jax.value_and_grad
def baselines(features, labels, mu, seen):
    """Supervised contrast and center loss together."""
    return (supervised_contrast(normalise(features), labels) + center_loss(features, labels, mu, seen=seen)).sum()


def test_finite_everywhere(given):
    """Check 7: features of zero, no class seen, a batch of one class, unseen rows of zeros, bfloat16."""
    features, labels, mu = given
    cases = {
        "zero features": (features.at[:3].set(0.0), labels, mu, SEEN),
        "nothing seen": (features, labels, jnp.zeros_like(mu), jnp.zeros(CLASSES, bool)),
        "one class": (features, jnp.full_like(labels, 3), mu, SEEN),
        "one unseen class": (features, jnp.full_like(labels, 2), mu, SEEN),
        "unknown only": (features, jnp.full_like(labels, -1), mu, SEEN),
        "zero centroid": (features, labels, mu * SEEN[:, None], SEEN),
        "bfloat16": (features.astype(jnp.bfloat16), labels, mu, SEEN),
    }
    kinds = [partial(fccl, instance_negatives=flag) for flag in (False, True)]
    graded = [jax.jit(jax.value_and_grad(kind, (0, 2))) for kind in kinds]
    for name, (features, labels, mu, seen) in cases.items():
        for loss in graded:
            value, grads = loss(features, labels, mu, seen=seen)
            assert value.dtype == jnp.float32 and np.isfinite(value), name
            assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in grads), name
        value, gradient = baselines(features, labels, mu, seen)
        assert np.isfinite(value) and np.isfinite(np.asarray(gradient, np.float32)).all(), name


def test_sharded_equals_one_device(given):
    """Check 8: losses and gradients over eight devices, all of class 0 on the first."""
    mesh = meshes.make_mesh()
    features, labels = normal(5, 16, WIDTH), jnp.array([0, 0, *[3] * 9, *[1, 4, 2, 1, -1]])
    mu = given[2]

    def together(features, labels, mu):
        z = normalise(features)
        return (
            fccl(features, labels, mu)
            + fccl(features, labels, mu, instance_negatives=True)
            + supervised_contrast(z, labels).mean()
            + weighted_mean(center_loss(features, labels, mu, seen=SEEN), class_shares(labels, CLASSES))
        )

    step = jax.jit(jax.value_and_grad(together))
    value, gradient = step(features, labels, mu)
    placed = jax.device_put((features, labels), meshes.split_rows(mesh))
    sharded_value, sharded_gradient = step(*placed, jax.device_put(mu, meshes.replicated(mesh)))
    assert len(placed[0].sharding.device_set) == 8
    np.testing.assert_allclose(sharded_value, value, rtol=1e-6)
    np.testing.assert_allclose(sharded_gradient, gradient, rtol=1e-4, atol=1e-6)


def test_instance_negatives_by_hand(given):
    features, labels, mu = given
    each = contrast_centroids(normalise(features), labels, mu, seen=SEEN, temperature=TAU, instance_negatives=True)
    f = np.asarray(features, np.float64)
    z = f / np.linalg.norm(f, axis=1, keepdims=True)
    for n in range(ROWS):
        if not bool(has_centroid(labels, SEEN)[n]):
            assert each[n] == 0
            continue
        negatives = [z[n] @ mu[c] for c in range(CLASSES) if SEEN[c]]
        negatives += [z[n] @ z[k] for k in range(ROWS) if labels[k] not in (labels[n], -1)]
        expected = np.log(np.exp(np.array(negatives) / TAU).sum()) - z[n] @ mu[labels[n]] / TAU
        np.testing.assert_allclose(each[n], expected, rtol=1e-5, atol=1e-5)


def test_supervised_contrast_by_hand(given):
    """Khosla et al., equation 2, in loops; class 2 of these labels has one example, which therefore counts 0."""
    features = given[0]
    labels = jnp.array([0, 1, 2, 3, 4, 0, 0, 3, 1, 4, -1, -1])
    each = supervised_contrast(normalise(features), labels, temperature=0.2)
    f = np.asarray(features, np.float64)
    z = f / np.linalg.norm(f, axis=1, keepdims=True)
    for i in range(ROWS):
        others = [a for a in range(ROWS) if a != i]
        positives = [p for p in others if labels[p] == labels[i] and labels[i] >= 0]
        total = np.log(sum(np.exp(z[i] @ z[a] / 0.2) for a in others))
        expected = -np.mean([z[i] @ z[p] / 0.2 - total for p in positives]) if positives else 0.0
        np.testing.assert_allclose(each[i], expected, rtol=1e-5, atol=1e-5)


def test_center_loss_by_hand():
    features = jnp.array([[1.0, 2.0], [0.0, 0.0], [5.0, 5.0], [1.0, 1.0]])
    centers = jnp.array([[1.0, 0.0], [0.0, 3.0]])
    each = center_loss(features, jnp.array([0, 0, 1, -1]), centers, seen=jnp.array([True, False]))
    np.testing.assert_allclose(each, [4.0, 1.0, 0.0, 0.0])


def test_means():
    labels = jnp.array([0, 0, 0, 2, -1])
    np.testing.assert_allclose(class_shares(labels, 3), [1 / 3, 1 / 3, 1 / 3, 1, 0], rtol=1e-6)
    # Mean over class 0 is 2, over class 2 it is 8: the classes count the same.
    values = jnp.array([1.0, 2.0, 3.0, 8.0, 100.0])
    np.testing.assert_allclose(weighted_mean(values, class_shares(labels, 3)), 5.0, rtol=1e-6)
    assert weighted_mean(values, jnp.zeros(5)) == 0


def test_wrong_input_is_refused(given):
    features, labels, mu = given
    with pytest.raises(InputError, match="temperature"):
        contrast_centroids(features, labels, mu, seen=SEEN, temperature=0.0)
    with pytest.raises(InputError, match="temperature"):
        supervised_contrast(features, labels, temperature=-1.0)
    with pytest.raises(InputError, match="same feature space"):
        contrast_centroids(features, labels, mu[:, :3], seen=SEEN)
    with pytest.raises(InputError, match="Pool"):
        contrast_centroids(features[:, None], labels, mu, seen=SEEN)
    with pytest.raises(InputError, match="integer"):
        center_loss(features, labels.astype(jnp.float32), mu, seen=SEEN)
