"""FCCL learns what it is for: the trends of its spec, section (k), checks 11 and 12, on pictures of lesions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ophjax.data import lesions, pipeline
from ophjax.methods import fccl
from ophjax.transforms import centroids

# Seeds of 100 and up are for building and testing; reported comparisons use lower ones.
SEEDS = (100, 101, 102)
STEPS = 800


@pytest.fixture(scope="module")
def optimised():
    """The compiler's full work, which these minutes of steps are worth."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@functools.cache
def pictures(seed):
    data = lesions.make(lesions.Config(size=32, seed=seed, test=200))

    def whole(split):
        batches = pipeline.eval_batches(data.splits[split], batch_size=len(data.splits[split]))
        batch = next(iter(batches))
        batches.close()
        return {name: jnp.asarray(value) for name, value in batch.items() if name not in ("mask", "mask_weight")}

    return whole("train"), whole("test")


def trained_scores(**changes):
    """Scores by seed; all of a training is one program, in which batches are drawn with replacement."""
    names = dict(classes=lesions.CLASSES, domains=tuple(lesions.LOOKS))
    method = fccl.make(fccl.Config(**fccl.DEMO | names | dict(steps=STEPS) | changes))

    def train(key, source):
        def one(state, i):
            rows = jax.random.randint(jax.random.fold_in(key, i), (32,), 0, len(source["label"]))
            state, _ = method.stages[0].step(key, state, {name: value[rows] for name, value in source.items()})
            return state.replace(step=state.step + 1), None

        return jax.lax.scan(one, method.init(key, source), jnp.arange(STEPS))[0]

    train, predict, found = jax.jit(train), jax.jit(method.predict), []
    for seed in SEEDS:
        source, test = pictures(seed)
        with jax.debug_key_reuse(False):  # the same key in every step, of which nothing here draws anything
            state = train(jax.random.key(seed), source)
            outputs = predict(jax.random.key(0), state, test)
        mu = np.asarray(centroids.directions(state.extra["centroids"]))
        scores = method.scores({name: np.asarray(value) for name, value in ({**test, **outputs}).items()})
        found.append(scores | {"between": float((mu @ mu.T)[~np.eye(4, dtype=bool)].mean())})
    return {name: np.array([one[name] for one in found]) for name in found[0]}


@pytest.mark.slow
@pytest.mark.trend
def test_trends(optimised):
    """Checks 11 and 12, over three seeds against cross-entropy alone, everything else being equal: the classes of the
    source are tighter and further apart; unseen domains gain at least 0.02 of accuracy, the source loses at most
    0.02."""
    ours, plain = trained_scores(), trained_scores(baseline="erm")
    assert (ours["own_cosine_clinic"] - ours["between"] > plain["own_cosine_clinic"] - plain["between"]).all()
    assert (ours["between"] < plain["between"]).all()
    assert (ours["accuracy"] - plain["accuracy"]).mean() >= 0.02
    assert (ours["accuracy_clinic"] - plain["accuracy_clinic"]).mean() >= -0.02
    assert (plain["accuracy_clinic"] > 0.6).all(), "chance is 0.25: the comparison is between nets that have learned"
