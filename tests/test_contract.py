"""What every method must do, checked on each at the smoke preset. A new method is covered by its line in METHODS.

Nearly all of the time goes into compiling, so a method, its programs and its undisturbed run are made once for all of
its tests. That fresh processes do the same is the business of ``tests/experiments``.
"""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import presets
import run
from ophjax import data as datasets
from ophjax import methods, trees
from ophjax.data import pipeline
from ophjax.data.sources import Dataset
from ophjax.methods import METHODS
from ophjax.train import loop, mesh
from ophjax.train.preempt import StopRequest
from ophjax.types import Method, TrainState

pytestmark = pytest.mark.parametrize("name", METHODS)


def one_batch(data, size, split="val"):
    batches = pipeline.train_batches(data.splits[split], batch_size=size, seed=0)
    batch = next(batches)
    batches.close()
    return {key: jnp.asarray(value) for key, value in batch.items()}


def placed(data, train, stage, where):
    """A batch of the stage's own stream on the devices."""
    batch = one_batch(data, train.batch_size, stage.data)
    return mesh.place({key: np.asarray(value) for key, value in batch.items()}, where)


class Programs:
    """Compiles as the loop does, but each program once, and counts how often a stage's step is traced for a mesh."""

    def __init__(self):
        self.made: dict[Any, Any] = {}
        self.traces: Counter[Any] = Counter()
        self.compile = {name: getattr(loop, name) for name in ("compile_init", "compile_step", "compile_forward")}

    def compile_init(self, method, batch, shardings):
        # For one device, whatever the mesh: its shardings are given to what it draws.
        place = ("init", method.init)
        if place not in self.made:
            self.made[place] = self.compile["compile_init"](method, batch, None)
        return lambda key: jax.device_put(self.made[place](key), shardings)

    def compile_step(self, stage, where, shardings, **options):
        place = (stage.step, where)

        def step(key, state, batch):
            self.traces[place] += 1
            return stage.step(key, state, batch)

        if place not in self.made:
            self.made[place] = self.compile["compile_step"](stage._replace(step=step), where, shardings, **options)
        return self.made[place]

    def compile_forward(self, method, where, shardings):
        place = (method.predict, where)
        if place not in self.made:
            self.made[place] = self.compile["compile_forward"](method, where, shardings)
        return self.made[place]


@pytest.fixture(scope="module", autouse=True)
def programs():
    """What the loop and the tests of this file compile."""
    shared = Programs()
    with pytest.MonkeyPatch.context() as patch:
        for name in shared.compile:
            patch.setattr(loop, name, getattr(shared, name))
        yield shared


class Started(NamedTuple):
    """A method at the smoke preset, its data set, a batch of the validation split and a fresh state.

    The state lies on the host, since a step consumes what it is given on the devices; ``shapes`` is what shapes alone
    say of it.
    """

    method: Method
    data: Dataset
    train: loop.Config
    batch: dict[str, jax.Array]
    shapes: TrainState
    state: TrainState


@pytest.fixture(scope="module")
def started(programs):
    made: dict[str, Started] = {}

    def start(name):
        if name not in made:
            config, data_config, train = presets.preset("smoke", name)
            data = datasets.load(methods.load(name).DATA).make(data_config)
            method = methods.load(name).make(methods.fit_to(config, data))
            batch, key = one_batch(data, train.batch_size), jax.random.key(0)
            shapes = jax.eval_shape(method.init, key, batch)
            shardings = mesh.state_shardings(shapes, mesh.make_mesh())
            state = jax.device_get(loop.compile_init(method, batch, shardings)(key))
            made[name] = Started(method, data, train, batch, shapes, state)
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
    _, _, _, _, shapes, state = started(name)
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    weak = [path for path, leaf in trees.named_leaves(shapes).items() if leaf.weak_type]
    assert not weak, f"a restored state has no weak types, so that steps would be compiled once more: {weak}"
    assert state.step.dtype == jnp.int32 and not any(
        jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(state)
    ), "keys are not state"


def test_each_stage_is_traced_once_keeps_its_shape_and_learns(name, started, programs):
    """Five steps on one batch: one trace, equal structure, types and shardings, frozen networks bit-equal, every
    trained leaf moved at some stage, the loss lower at the end."""
    method, data, train, _, _, state = started(name)
    where = mesh.make_mesh()
    shardings = mesh.state_shardings(state, where)
    moved: set[str] = set()
    for stage in method.stages:
        batch = placed(data, train, stage, where)
        state = jax.device_put(stage.enter(jax.random.key(1), state), shardings)
        before, known = jax.device_get(state), signature(state)
        step = loop.compile_step(stage, where, shardings)
        losses = []
        for _ in range(5):
            state, logs = step(jax.random.key(2), state, batch)
            losses.append(float(logs["loss"]))
        assert programs.traces[stage.step, where] == 1
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
    method, data, train, _, _, state = started(name)
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
    method, _, _, batch, _, state = started(name)
    where = mesh.make_mesh()
    forward = loop.compile_forward(method, where, mesh.state_shardings(state, where))
    weight = np.array([1] * 3 + [0] * 5, np.float32)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, batch["image"].shape, dtype=np.uint8)
    padded = {entry: np.asarray(value) for entry, value in batch.items()} | {"weight": weight}
    other = padded | {"image": np.where(weight[:, None, None, None] > 0, padded["image"], noise)}

    def totals(batch):
        rows, maps = forward(jax.random.key(0), state, mesh.place(batch, where))
        metrics = {entry: value for entry, value in rows.items() if entry.startswith("metric/")}
        outputs = {entry: value[:3] for entry, value in (rows | maps).items() if entry not in metrics}
        return outputs, {entry: pairs.sum(0) for entry, pairs in metrics.items()}

    chex.assert_trees_all_close(totals(padded), totals(other), rtol=1e-6)


def assert_trees_nearly_equal(one, other):
    """One Adam step moves a weight by about lr whatever its gradient, so rounding may flip tiny gradients' signs:
    nearly all weights agree closely, and none is further off than two steps."""
    ours, theirs = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (one, other))
    off = np.abs(ours - theirs)
    assert (off > 1e-5).mean() < 0.02 and off.max() < 2.5e-3


def one_device():
    return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))


def fit(start, folder, *, stop_at=None, resume=False):
    """Runs the loop; ``stop_at`` raises the stop flag at that evaluation, as a signal would."""
    method, data, train, *_ = start
    if not stop_at and not resume:  # nothing is read from the checkpoints between
        train = dataclasses.replace(train, eval_every=10**6)
    folder.mkdir(exist_ok=True)
    calls, flag = [], []

    def redraw():
        calls.append(1)
        if len(calls) == stop_at:
            flag[0].asked = True

    enter = StopRequest.__enter__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopRequest, "__enter__", lambda self: flag.append(self) or enter(self))
        return loop.fit(method, data, train, folder, about={}, resume=resume, redraw=redraw)


@pytest.fixture(scope="module")
def whole(started, tmp_path_factory):
    """Folder and final state, on the host, of a method's run on all devices that nothing interrupts."""
    made: dict[str, tuple[Path, Any]] = {}

    def run(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = folder, jax.device_get(fit(started(name), folder).state)
        return made[name]

    return run


def losses(folder):
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {event["step"]: event["loss"] for event in events if event["event"] == "train"}


def test_stop_save_restore_continue_is_bit_exact(name, started, whole, tmp_path):
    """Stopped at every second checkpoint and resumed each time: the same bits as in one go."""
    folder, state = whole(name)
    parts = fit(started(name), tmp_path, stop_at=1)
    assert parts.stopped
    stops = 0
    while parts.stopped:
        stops += 1
        parts = fit(started(name), tmp_path, stop_at=2, resume=True)
    assert stops >= 1
    assert not differing(state, parts.state)
    assert losses(folder) == losses(tmp_path)


def test_eight_devices_and_two_seeds_by_vmap_equal_one(name, started):
    """Each stage's first step: loss and new weights agree to rounding. Later steps drift, since Adam magnifies it.

    The first stage's step on one device runs for two seeds side by side, by ``vmap``. Each must be what eight devices
    make of that seed alone: neither the devices nor the other seed change anything.
    """
    method, data, train, _, _, state = started(name)
    # The second seed's start is the first's, moved a little: what init draws is not the point here.
    states = [state, state.replace(params=jax.tree.map(lambda leaf: leaf * 1.01, state.params))]
    seeds = (5, 6)

    def on(where, stage):
        step = loop.compile_step(stage, where, mesh.state_shardings(state, where))
        batch = placed(data, train, stage, where)

        def run(seed, state):
            state, logs = step(jax.random.key(seed), state, batch)
            return state.params, logs["loss"]

        return run

    for number, stage in enumerate(method.stages):
        begun = [jax.device_get(stage.enter(jax.random.key(1), one)) for one in states]
        run = on(one_device(), stage)
        if number:
            expected = [run(seeds[0], begun[0])]
        else:
            with jax.debug_key_reuse(False):  # the checker cannot follow keys under vmap
                both = jax.jit(jax.vmap(run))(np.array(seeds), jax.tree.map(lambda *leaves: np.stack(leaves), *begun))
            expected = [jax.tree.map(lambda leaf, i=i: leaf[i], jax.device_get(both)) for i in (0, 1)]
        run = on(mesh.make_mesh(), stage)
        for seed, start, (params, loss) in zip(seeds, begun, expected, strict=False):
            ours, other = run(seed, start)
            np.testing.assert_allclose(other, loss, rtol=1e-4 if number else 1e-5, err_msg=stage.name)
            assert_trees_nearly_equal(ours, params)


def test_help_explains_every_option(name, capsys):
    with pytest.raises(SystemExit) as leaving:
        run.parse(["--method", name, "--help"])
    assert not leaving.value.code
    text = capsys.readouterr().out
    for field in dataclasses.fields(methods.load(name).Config):
        assert f"--method.{field.name.replace('_', '-')}" in text
