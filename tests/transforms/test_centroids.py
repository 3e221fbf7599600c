"""Class centroids: FCCL spec, section (k), checks 1 and 8, and the safe norm of check 7."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ophjax.train import mesh as meshes
from ophjax.transforms import centroids
from ophjax.transforms.centroids import ClassSums, class_sums, directions, no_centroids, normalise, update

CLASSES, WIDTH = 4, 6


def stream_of_batches(steps=20, rows=12):
    """Features and labels; class 3 comes late, some classes are absent from some batches, some rows have no label."""
    rng = np.random.default_rng(0)
    for step in range(steps):
        present = [k for k in range(CLASSES) if (step + k) % 3 and (k < 3 or step > 7)]
        labels = rng.choice([*present, -1], rows)
        yield rng.normal(size=(rows, WIDTH)).astype(np.float32), labels.astype(np.int32)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99])
def test_equal_to_a_moving_average_class_by_class(momentum):
    """Check 1, and the closed form m^T b_0 + (1 - m) sum_t m^(T - t) b_t over the batches in which a class is."""
    state = no_centroids(CLASSES, WIDTH)
    means: list[list[np.ndarray]] = [[] for _ in range(CLASSES)]
    step = jax.jit(lambda state, x, y: update(state, class_sums(normalise(x), y, CLASSES), momentum=momentum))
    for features, labels in stream_of_batches():
        before, state = state, step(state, features, labels)
        z = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
        for k in range(CLASSES):
            if (labels == k).any():
                means[k].append(z[labels == k].mean(0))
            else:
                np.testing.assert_array_equal(state.mean[k], before.mean[k], "an absent class stays bit for bit")
    for k, found in enumerate(means):
        expected = found[0]
        for mean in found[1:]:
            expected = momentum * expected + (1 - momentum) * mean
        last = len(found) - 1
        closed = momentum**last * found[0]
        closed += (1 - momentum) * sum((momentum ** (last - t) * found[t] for t in range(1, last + 1)), np.zeros(WIDTH))
        # float32 rounds to 6e-8; twenty steps of it stay below 1e-6.
        np.testing.assert_allclose(state.mean[k], expected, atol=1e-6)
        np.testing.assert_allclose(state.mean[k], closed, atol=1e-6)
        assert int(state.count[k]) == len(found) > 3
    assert (np.linalg.norm(state.mean, axis=1) <= 1 + 1e-6).all()


def test_unseen_classes_are_zero_and_say_so():
    state = update(no_centroids(3, 2), class_sums(jnp.ones((2, 2)), jnp.array([2, -1]), 3), momentum=0.9)
    assert state.seen.tolist() == [False, False, True] and state.count.dtype == jnp.int32
    np.testing.assert_allclose(directions(state), [[0, 0], [0, 0], [0.5**0.5, 0.5**0.5]], rtol=1e-6)


def test_sums_of_parts_are_those_of_the_whole():
    """So that micro-batches can be added up before the one update; means of parts could not."""
    features, labels = next(stream_of_batches(rows=16))
    whole = class_sums(features, labels, CLASSES)
    parts = [class_sums(features[i : i + 4], labels[i : i + 4], CLASSES) for i in range(0, 16, 4)]
    added = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    chex.assert_trees_all_close(whole, added, rtol=1e-6, atol=1e-6)


def test_normalise_is_safe():
    """Check 7: rows of any positive length become unit vectors; a zero row stays zero and has the gradient zero."""
    x = jnp.array([[3.0, 4.0], [3e-5, 4e-5], [3e9, 4e9], [0.0, 0.0]])
    np.testing.assert_allclose(normalise(x), [[0.6, 0.8]] * 3 + [[0, 0]], rtol=1e-6)
    gradient = jax.grad(lambda x: normalise(x)[:, 0].sum())(x)
    assert np.isfinite(gradient).all() and not gradient[3].any() and gradient[0].any()
    # (I - z z^T) e_0 / |x|, for the first row.
    np.testing.assert_allclose(gradient[0], (np.eye(2) - np.outer([0.6, 0.8], [0.6, 0.8]))[0] / 5, rtol=1e-5)
    assert normalise(x.astype(jnp.bfloat16)).dtype == jnp.float32


def test_the_state_has_no_gradient():
    """Check 5: nothing flows through an update or through the centroids as they are read."""
    features, labels = next(stream_of_batches())

    def read(features, mean):
        state = no_centroids(CLASSES, WIDTH).replace(mean=mean)
        return (update(state, class_sums(features, labels, CLASSES), momentum=0.9).mean + directions(state)).sum()

    mean = jnp.asarray(np.random.default_rng(2).normal(size=(CLASSES, WIDTH)), jnp.float32)
    for gradient in jax.grad(read, (0, 1))(jnp.asarray(features), mean):
        assert not gradient.any()


def one_class_on_one_shard():
    """32 rows in shards of four: all of class 0 on the first shard, class 1 scattered unevenly, class 3 nowhere."""
    features = np.random.default_rng(1).normal(size=(32, WIDTH)).astype(np.float32)
    labels = np.array([0] * 4 + [1, 2, 2, 2] + [2] * 20 + [1, 1, 1, 2], np.int32)
    return features, labels


def test_sharded_equals_one_device():
    """Check 8: under jit over a sharded batch, and inside shard_map with the sums added up."""
    features, labels = one_class_on_one_shard()
    state = no_centroids(CLASSES, WIDTH).replace(mean=jnp.ones((CLASSES, WIDTH)), count=jnp.array([1, 0, 2, 1]))

    def step(state, features, labels):
        return update(state, class_sums(features, labels, CLASSES), momentum=0.9)

    def step_on_a_shard(state, features, labels):
        sums: ClassSums = jax.lax.psum(class_sums(features, labels, CLASSES), "data")
        return update(state, sums, momentum=0.9)

    mesh = meshes.make_mesh()
    expected = jax.jit(step)(state, features, labels)
    placed = jax.device_put((features, labels), meshes.split_rows(mesh))
    plain = jax.jit(step)(jax.device_put(state, meshes.replicated(mesh)), *placed)
    rows, whole = PartitionSpec("data"), PartitionSpec()
    by_hand = jax.shard_map(step_on_a_shard, mesh=mesh, in_specs=(whole, rows, rows), out_specs=whole)
    # Sums in another order: a few roundings of 1e-7.
    chex.assert_trees_all_close(plain, expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(jax.jit(by_hand)(state, *placed), expected, rtol=1e-5, atol=1e-6)


def test_a_mean_of_shard_means_would_be_wrong():
    """The reason for the sums: what a mean over devices gives is far from the mean over the batch."""
    features, labels = one_class_on_one_shard()
    whole = class_sums(features, labels, CLASSES).mean
    shards = [class_sums(features[i : i + 4], labels[i : i + 4], CLASSES).mean for i in range(0, 32, 4)]
    assert np.abs(np.mean(shards, 0) - whole).max() > 0.1


def test_float32_inside():
    state = update(
        no_centroids(2, 3), class_sums(jnp.ones((4, 3), jnp.bfloat16), jnp.array([0, 0, 1, 1]), 2), momentum=0.5
    )
    assert state.mean.dtype == jnp.float32
    assert centroids.directions(state).dtype == jnp.float32
