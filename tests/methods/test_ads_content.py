"""ADS at work on the drawn organs: checks 8 to 13 of its specification, section (k). Small nets, few steps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import presets
from ophjax import data as datasets
from ophjax import methods
from ophjax.data import pipeline
from ophjax.data.augment import unit
from ophjax.data.scans import z_score
from ophjax.keys import at
from ophjax.losses.adversarial import patch_nce
from ophjax.methods import ads
from ophjax.nets.critic import PatchCritic
from ophjax.nets.synthesizer import DomainSynthesizer, random_network
from ophjax.train import loop

pytestmark = [pytest.mark.slow, pytest.mark.trend]

SEED = 100
KERNELS = (1, 3, 1, 1)


@functools.cache
def organs():
    """The demo's data, and all of its training images in eight batches of eight."""
    data = datasets.load("organs").make(dataclasses.replace(presets.preset("demo", "ads")[1], seed=SEED))
    batches = pipeline.train_batches(data.splits["masks"], batch_size=8, seed=0)
    found = [{name: jnp.asarray(value) for name, value in next(batches).items()} for _ in range(8)]
    batches.close()
    return data, found


def build(**changes):
    """The demo's ADS with a smaller segmenter."""
    config = methods.fit_to(presets.preset("demo", "ads")[0], organs()[0])
    return ads.make(dataclasses.replace(config, **({"width": 4, "depth": 2, "lr": 3e-3} | changes)))


def begin(method):
    return loop.compile_init(method, organs()[1][0], None)(jax.random.key(SEED))


def train(method, state, steps, *, keep=()):
    """Runs a method for some steps; the networks named in ``keep`` stay as they are. Returns the last logs too."""

    def step(state, batch):
        new, logs = method.stages[0].step(at(jax.random.key(SEED), "step", state.step), state, batch)
        if "segmenter" in keep:
            new = new.replace(extra=state.extra)
        kept = {name: state.params[name] for name in keep}
        slots = {name: state.opt[name] for name in keep}
        return new.replace(step=state.step + 1, params=new.params | kept, opt=new.opt | slots), logs

    # The tests' settings compile fast and run slowly; here most of the time is spent running.
    options = {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": False}
    step, logs = jax.jit(step, compiler_options=options), {}
    for number in range(steps):
        state, logs = step(state, organs()[1][number % 8])
    return state, {name: float(value) for name, value in logs.items()}


def source_images():
    return jnp.concatenate([z_score(unit(batch["image"])) for batch in organs()[1]])


def synthetic(state, seed=0):
    """What both synthesizers make of all images: [2, n, h, w, 3]."""
    apply = jax.jit(DomainSynthesizer(kernel_sizes=KERNELS).apply)
    copies = state.params["synthesizers"]
    keys = jax.random.split(jax.random.key(seed), 2)
    made = [apply({"params": copies[name]}, source_images(), key) for name, key in zip(copies, keys, strict=True)]
    return np.stack(made)


def explained(x, r, bins=32):
    """Share of the variance of an image that the mean over the pixels of equal synthetic brightness explains."""
    edges = np.quantile(r, np.linspace(0, 1, bins + 1)[1:-1])
    which = np.searchsorted(edges, r.ravel())
    count = np.maximum(np.bincount(which, minlength=bins), 1)
    mean = np.bincount(which, x.ravel(), minlength=bins) / count
    return 1 - np.mean((x.ravel() - mean[which]) ** 2) / x.var()


def steepness(x):
    down, across = np.gradient(x)
    return np.hypot(down, across).ravel()


def content(state):
    """R^2 and the correlation of gradient magnitudes, each a mean over images, copies and channels."""
    images, made = np.asarray(source_images())[..., 0], synthetic(state)
    pairs = [(x, made[c, i, ..., k]) for c in range(2) for i, x in enumerate(images[:32]) for k in range(3)]
    edges = [np.corrcoef(steepness(x), steepness(r))[0, 1] for x, r in pairs]
    return np.mean([explained(x, r) for x, r in pairs]), np.mean(edges)


@functools.cache
def judge():
    """A critic that has never met the synthesizers: trained on random networks' images, then left alone."""
    critic = PatchCritic(width=8, features=64, patches=64)
    images, tx = source_images(), optax.adam(1e-3)
    params = jax.jit(critic.init)(jax.random.key(1), images[:1], jax.random.key(2))

    def cost(params, key, x, r):
        known, asked = (critic.apply(params, image, at(key, "places")) for image in (x, r))
        return jnp.stack([patch_nce(asked[tap], known[tap]).mean() for tap in known]).mean()

    @jax.jit
    def step(params, opt, key, x):
        grads = jax.grad(cost)(params, key, x, random_network(at(key, "view"), x))
        updates, opt = tx.update(grads, opt)
        return optax.apply_updates(params, updates), opt

    opt = tx.init(params)
    for number in range(150):
        first = 8 * (number % 8)
        params, opt = step(params, opt, jax.random.key(number), images[first : first + 8])
    return jax.jit(functools.partial(cost, params))


def judged(state):
    images, made = source_images()[:32], synthetic(state)
    return float(np.mean([judge()(jax.random.key(9), images, made[copy][:32]) for copy in (0, 1)]))


@functools.cache
def taught():
    """A state whose segmenter has learned on views of untrained synthesizers, and the three content scores then."""
    method = build(synthesizers="frozen")
    state, _ = train(method, begin(build()), 120)
    return state.replace(step=jnp.zeros((), jnp.int32))


@functools.cache
def played(mi, adversary, steps=200):
    """The synthesizers after playing alone against the taught segmenter, and the logs of their first and last step."""
    method, known = build(mi_weight=mi, adversary_weight=adversary), taught()
    state = begin(method)
    state = state.replace(params=state.params | {"segmenter": known.params["segmenter"]}, extra=known.extra)
    _, first = train(method, state, 1, keep=("segmenter",))
    state, last = train(method, state, steps, keep=("segmenter",))
    return state, first, last


def test_content():
    """Check 9, and 8 and 10 beside it."""
    before = content(taught()), judged(taught())
    print("before", before)
    for mi, adversary in ((10.0, 100.0), (0.0, 100.0), (10.0, 0.0)):
        state, first, last = played(mi, adversary)
        print(
            mi,
            adversary,
            content(state),
            judged(state),
            {k: (first[k], last[k]) for k in last if "synth" in k},
            synthetic(state).std(0).mean(),
            flush=True,
        )
