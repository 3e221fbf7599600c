"""SeATrans as a whole: the behavioural checks of its spec, section (k), that the nets' own tests do not make."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import presets
from ophjax import data as datasets
from ophjax import trees
from ophjax.data import pipeline
from ophjax.errors import InputError
from ophjax.methods import seatrans
from ophjax.train import loop


def config_of(**changes):
    config, data_config, _ = presets.preset("smoke", "seatrans", "phantoms")
    data = datasets.load("phantoms").make(data_config)
    return dataclasses.replace(config, **({"regions": data.regions, "classes": data.classes} | changes)), data


@pytest.fixture(scope="module")
def batch():
    _, data = config_of()
    batches = pipeline.eval_batches(data.splits["train"], batch_size=8)
    first = next(iter(batches))
    batches.close()
    return {name: jnp.asarray(value) for name, value in first.items()}


@pytest.fixture(scope="module")
def ours(batch):
    """SeATrans at the smoke preset, without flips and drop-path, and its fresh state."""
    config, _ = config_of(flip=False, drop_path=0.0)
    method = seatrans.make(config)
    return method, loop.compile_init(method, batch, None)(jax.random.key(0))


@pytest.fixture(scope="module")
def shuffled(batch):
    """The same with the segmenter's features shuffled across the batch before the diagnosis net sees them."""
    config, _ = config_of(flip=False, drop_path=0.0, control="features")
    return seatrans.make(config)


@pytest.fixture(scope="module")
def trained(ours, batch):
    """The state after three steps of the diagnosis stage."""
    method, state = ours
    step = jax.jit(method.stages[-1].step)
    for _ in range(3):
        state, _ = step(jax.random.key(1), state, batch)
    return state


def assert_same_probs(one, other):
    np.testing.assert_array_equal(np.asarray(one["probs"]), np.asarray(other["probs"]))


def test_identity_at_the_start(ours, batch):
    """Check 1: with the same key, SeATrans begins as the image-only baseline: max|Δ| = 0, since W0 is zero."""
    method, state = ours
    config, _ = config_of(flip=False, baseline="image-only")
    plain = seatrans.make(config)
    start = loop.compile_init(plain, batch, None)(jax.random.key(0))
    with_blocks, without = state.params["diagnosis"]["backbone"], start.params["diagnosis"]["backbone"]
    jax.tree.map(np.testing.assert_array_equal, with_blocks, without)
    # Statistics as they are after the start: what both nets predict with.
    assert_same_probs(
        jax.jit(method.predict)(jax.random.key(2), state, batch), jax.jit(plain.predict)(jax.random.key(2), start, batch)
    )


def test_dynamic_on_the_segmentation(ours, shuffled, trained, batch):
    """Check 2: other segmentation features change nothing at the start, and the prediction after three steps."""
    method, state = ours
    predict, predict_shuffled = jax.jit(method.predict), jax.jit(shuffled.predict)
    key = jax.random.key(3)
    assert (np.asarray(jax.random.permutation(key, 8)) != np.arange(8)).any(), "the key must move something"
    assert_same_probs(predict(key, state, batch), predict_shuffled(key, state, batch))
    straight, mixed = (np.asarray(f(key, trained, batch)["probs"]) for f in (predict, predict_shuffled))
    # Rounding moves a probability by 1e-7; three steps of 1e-3 on W0 move it by far more.
    assert np.abs(straight - mixed).max() > 1e-5


def gradients(method, state, batch):
    """Gradients of the diagnosis stage, read off one step of plain gradient descent of rate 1."""
    import optax

    from ophjax.transforms.bundling import bundle

    del optax, bundle
    raise NotImplementedError
