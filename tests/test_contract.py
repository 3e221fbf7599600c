"""What every method must do, checked on each at the smoke preset. A new method is covered by its line in METHODS."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import presets
from ophjax import data as datasets
from ophjax import methods, trees
from ophjax.data import pipeline
from ophjax.methods import METHODS
from ophjax.train import loop, mesh
from ophjax.train.preempt import StopRequest

pytestmark = pytest.mark.parametrize("name", METHODS)


def build(name, **changes):
    """A method at the smoke preset with its data set; ``changes`` go to the method's configuration."""
    config, data_config, train = presets.preset("smoke", name)
    data = datasets.load(methods.load(name).DATA).make(data_config)
    config = dataclasses.replace(methods.fit_to(config, data), **changes)
    return methods.load(name).make(config), data, train


def one_batch(data, size, split="val"):
    batches = pipeline.train_batches(data.splits[split], batch_size=size, seed=0)
    batch = next(batches)
    batches.close()
    return {key: jnp.asarray(value) for key, value in batch.items()}


def placed(data, train, stage, where):
    """A batch of the stage's own stream on the devices."""
    batch = one_batch(data, train.batch_size, stage.data)
    return mesh.place({key: np.asarray(value) for key, value in batch.items()}, where)


@pytest.fixture(scope="module")
def started():
    """Fresh states by method name, made once: (method, data, train, batch, state)."""
    made = {}

    def start(name):
        if name not in made:
            method, data, train = build(name)
            batch = one_batch(data, train.batch_size)
            made[name] = (method, data, train, batch, loop.compile_init(method, batch, None)(jax.random.key(0)))
        return made[name]

    return start


def signature(tree):
    return {path: (leaf.shape, leaf.dtype, leaf.sharding) for path, leaf in trees.named_leaves(tree).items()}


def differing(one, other):
    """Paths at which two trees are not bit-equal."""
    first, second = trees.named_leaves(one), trees.named_leaves(other)
    assert first.keys() == second.keys()
    return [path for path in first if not np.array_equal(np.asarray(first[path]), np.asarray(second[path]))]


def test_init_needs_shapes_only(name, started):
    method, _, _, batch, state = started(name)
    shapes = jax.eval_shape(method.init, jax.random.key(0), batch)
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    assert state.step.dtype == jnp.int32 and not any(
        jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(state)
    ), "keys are not state"


def test_each_stage_is_traced_once_keeps_its_shape_and_learns(name, started):
    """Five steps on one batch: one trace, equal structure, types and shardings, frozen networks bit-equal, every
    trained leaf moved at some stage, the loss lower at the end."""
    method, data, train, _, state = started(name)
    where = mesh.make_mesh()
    shardings = mesh.state_shardings(state, where)
    moved: set[str] = set()
    for stage in method.stages:
        batch = placed(data, train, stage, where)
        state = jax.device_put(stage.enter(jax.random.key(1), state), shardings)
        before, known = jax.device_get(state), signature(state)
        chex.clear_trace_counter()  # it counts by name, and every step is called step
        counted = stage._replace(step=chex.assert_max_traces(stage.step, n=1))
        step = loop.compile_step(counted, where, shardings)
        losses = []
        for _ in range(5):
            state, logs = step(jax.random.key(2), state, batch)
            losses.append(float(logs["loss"]))
        assert signature(state) == known
        changed = differing(before.params, state.params)
        assert {path.split("/")[0] for path in changed} == set(stage.trains)
        moved |= set(changed)
        assert losses[-1] < losses[0], f"{stage.name}: {losses}"
    still = [path for path in trees.named_leaves(state.params) if path not in moved]
    assert not still, f"no gradient for {still}"


def test_frozen_networks_and_their_statistics_do_not_move(name, started):
    """What a stage's optimisers do not hold stays bit-equal, batch statistics included. A stage may have several
    optimisers (players in turn); each belongs to one stage, and none is idle."""
    method, data, train, _, state = started(name)
    where = mesh.make_mesh()
    shardings = mesh.state_shardings(state, where)
    used: set[str] = set()
    for stage in method.stages:
        batch = placed(data, train, stage, where)
        state = jax.device_put(state, shardings)
        before = jax.device_get(state)
        state, _ = loop.compile_step(stage, where, shardings)(jax.random.key(0), state, batch)
        frozen = set(state.params) - set(stage.trains)
        for network in frozen:
            assert not differing(before.params[network], state.params[network])
        for network in frozen & set(state.extra.get("batch_stats", {})):
            stats = (before.extra["batch_stats"][network], state.extra["batch_stats"][network])
            assert not differing(*stats), f"stage {stage.name} moved the statistics of {network}"
        held = {slot for slot in state.opt if differing(before.opt[slot], state.opt[slot])}
        assert held and not held & used, f"stage {stage.name} moved the optimisers {held}"
        used |= held
    assert used == set(state.opt)


def test_padding_rows_change_nothing(name, started):
    """Three real rows score the same beside five rows of padding as beside five other images of weight 0."""
    method, _, _, batch, state = started(name)
    weight = jnp.array([1.0] * 3 + [0.0] * 5)
    rng = np.random.default_rng(0)
    noise = jnp.asarray(rng.integers(0, 256, batch["image"].shape, dtype=np.uint8))
    padded = dict(batch) | {"weight": weight}
    other = padded | {"image": jnp.where(weight[:, None, None, None] > 0, batch["image"], noise)}

    @jax.jit
    def totals(batch):
        outputs = method.predict(jax.random.key(0), state, batch)
        sums = {k: (v.sum(), n.sum()) for k, (v, n) in method.metrics(outputs, batch).items()}
        return {name: output[:3] for name, output in outputs.items()}, sums

    chex.assert_trees_all_close(totals(padded), totals(other), rtol=1e-6)


def test_two_seeds_by_vmap_equal_two_runs(name, started):
    method, data, train, _, state = started(name)
    batch = one_batch(data, train.batch_size, method.stages[0].data)
    # The second seed's start is the first's, moved a little: what init draws is not the point here.
    states = [state, state.replace(params=jax.tree.map(lambda leaf: leaf * 1.01, state.params))]
    keys = jax.random.split(jax.random.key(5), 2)
    step = method.stages[0].step

    def run(key, state):
        state, logs = step(key, state, batch)
        return state.params, logs["loss"]

    with jax.debug_key_reuse(False):  # the checker cannot follow keys under vmap
        together = jax.jit(jax.vmap(run))(keys, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))
    alone = [jax.jit(run)(key, state) for key, state in zip(keys, states, strict=True)]
    for i, (params, loss) in enumerate(alone):
        np.testing.assert_allclose(together[1][i], loss, rtol=1e-5)
        # One Adam step moves a weight by about lr whatever its gradient, so rounding may flip tiny gradients'
        # signs: nearly all weights agree closely, and none is further off than two steps.
        ours = jnp.concatenate([x[i].ravel() for x in jax.tree.leaves(together[0])])
        theirs = jnp.concatenate([x.ravel() for x in jax.tree.leaves(params)])
        off = jnp.abs(ours - theirs)
        assert float((off > 1e-5).mean()) < 0.02 and float(off.max()) < 2.5e-3


def fit(name, folder, *, devices=None, stop_at=None, resume=False, monkeypatch=None, **changes):
    """Runs the loop; ``stop_at`` raises the stop flag at that evaluation, as a signal would."""
    method, data, train = build(name, **changes)
    folder.mkdir(exist_ok=True)
    calls = []

    def redraw():
        calls.append(1)
        if stop_at is not None and len(calls) == stop_at:
            flag[0].asked = True

    flag = []
    enter = StopRequest.__enter__
    monkeypatch.setattr(StopRequest, "__enter__", lambda self: flag.append(self) or enter(self))
    if devices:
        real = mesh.make_mesh
        small = jax.sharding.Mesh(np.array(jax.devices()[:devices]).reshape(-1, 1), ("data", "model"))
        monkeypatch.setattr(mesh, "make_mesh", lambda data=None, model=1: small if devices else real(data, model))
    return loop.fit(method, data, train, folder, about={}, resume=resume, redraw=redraw)


def losses(folder):
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {event["step"]: event["loss"] for event in events if event["event"] == "train"}


def test_stop_save_restore_continue_is_bit_exact(name, tmp_path, monkeypatch):
    """Stopped at every second checkpoint and resumed each time: the same bits as in one go."""
    whole = fit(name, tmp_path / "whole", monkeypatch=monkeypatch)
    parts = fit(name, tmp_path / "parts", stop_at=1, monkeypatch=monkeypatch)
    assert parts.stopped
    stops = 0
    while parts.stopped:
        stops += 1
        parts = fit(name, tmp_path / "parts", stop_at=2, resume=True, monkeypatch=monkeypatch)
    assert stops >= 1
    assert not differing(whole.state, parts.state)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_eight_devices_equal_one(name, tmp_path, monkeypatch):
    """Losses of the first steps agree to rounding; later ones drift, since Adam magnifies rounding."""
    with monkeypatch.context() as patch:
        fit(name, tmp_path / "one", devices=1, monkeypatch=patch)
    fit(name, tmp_path / "eight", monkeypatch=monkeypatch)
    one, eight = losses(tmp_path / "one"), losses(tmp_path / "eight")
    assert one.keys() == eight.keys()
    np.testing.assert_allclose(one[1], eight[1], rtol=1e-4)
    np.testing.assert_allclose(list(one.values()), list(eight.values()), rtol=0.1)


def test_help_explains_every_option(name):
    run = Path(presets.__file__).parent / "run.py"
    done = subprocess.run(
        [sys.executable, run, "--method", name, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    config = methods.load(name).Config
    for field in dataclasses.fields(config):
        assert f"--method.{field.name.replace('_', '-')}" in done.stdout
