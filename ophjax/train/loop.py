"""The one train loop. Every method runs through it; none has a loop of its own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ophjax import trees
from ophjax.data import pipeline
from ophjax.data.sources import Balanced, Dataset, Source
from ophjax.errors import InputError, check_options
from ophjax.keys import at
from ophjax.nets.recompute import recomputed
from ophjax.train import host
from ophjax.train import mesh as meshes
from ophjax.train.checkpoint import Checkpoints, check_networks, take_networks
from ophjax.train.evaluate import Forward, compile_forward, gather
from ophjax.train.logs import EventLog, StepLog
from ophjax.train.preempt import StopRequest
from ophjax.train.seeds import Abreast, root_of
from ophjax.transforms.stepping import in_slices
from ophjax.types import Batch, Key, Logs, Method, Stage, TrainState


@dataclasses.dataclass(frozen=True)
class Config:
    """How a method is trained, whatever the method."""

    seed: int = 0
    """Seed of initialisation, order of examples, augmentation and dropout."""
    seeds: int = 1
    """Seeds trained side by side in one program, from ``seed`` on; at the test they are an ensemble."""
    batch_size: int = 16
    """Examples per step, over all devices and processes."""
    eval_every: int = 500
    """Steps between evaluations on the validation split (each is followed by a checkpoint)."""
    log_every: int = 20
    """Steps between lines in metrics.jsonl. Every step is checked for NaN."""
    keep: int = 2
    """Checkpoints kept, beside the best one."""
    threads: int = 4
    """Threads that read and decode images."""
    model_parallel: int = 1
    """Devices over which large parameters are split; the others split the batch."""
    remat: bool = False
    """Compute what the residual blocks of dual regression hold inside again in the backward pass instead of keeping it:
    less memory, more work, the same numbers. Other methods have no use for it."""
    accumulate: int = 1
    """Slices that a batch is cut into: their gradients are averaged and one step is made, which takes the memory of one
    slice's activations. What looks across rows (batch norm, contrasts, centroids, losses averaged over weighted rows)
    sees one slice at a time: only for the other losses this is the step of the whole batch. Searches (of diff, of
    dualsr's compression) take the batch whole."""

    @property
    def all_seeds(self) -> range:
        """The seeds trained side by side."""
        return range(self.seed, self.seed + self.seeds)


def check(config: Config) -> None:
    """Raises InputError for counts below 1; ``batch_spec`` checks what devices and data must agree with."""
    counts = ("seeds", "batch_size", "eval_every", "log_every", "keep", "threads")
    rules = {name.replace("_", "-"): (getattr(config, name) >= 1, "at least 1") for name in counts}
    check_options(config, rules, part="train")


class Fitted(NamedTuple):
    """What training leaves in memory: the final state, the compiled forward pass, and whether it was stopped."""

    state: TrainState
    forward: Forward
    mesh: Mesh
    stopped: bool


class Place(NamedTuple):
    """Where a run stands: number of the stage, steps done in it, steps done before it, state of its data stream."""

    stage: int = 0
    done: int = 0
    before: int = 0
    stream: Any = None


class Run(NamedTuple):
    """What stays the same while a run goes on."""

    method: Method
    data: Dataset
    config: Config
    mesh: Mesh
    shardings: Any
    root: Key
    forward: Forward
    log: EventLog
    saved: Checkpoints
    about: dict[str, Any]
    redraw: Callable[[], Any]


def fit(
    method: Method,
    data: Dataset,
    config: Config,
    folder: Path,
    *,
    about: dict[str, Any],
    resume: bool = False,
    redraw: Callable[[], Any] = lambda: None,
    start_from: Sequence[str] = (),
    start: Callable[[Key, Batch], Callable[[TrainState], TrainState]] | None = None,
) -> Fitted:
    """Trains a method through all its stages and leaves checkpoints and metrics.jsonl in ``folder``.

    Args:
      about: written into each checkpoint beside its place (method, configuration, versions).
      resume: go on from the newest checkpoint in ``folder``, where there is one.
      redraw: called after each checkpoint, in the first process (the report).
      start_from: networks taken over from other runs, see ``take_networks``; not read again on resuming.
      start: given a key and the shapes of a batch, prepares what changes the fresh state before ``start_from`` does (a
        hypernetwork, see ``train.hyper``); not called on resuming.

    Raises:
      InputError: a count of the configuration is below 1, batch and devices or stages do not fit, a stage's split is
        empty, the checkpoint belongs to something else, or a network that was to be taken over is not there or has
        other shapes; all of it before anything is compiled.
      DivergedError: a loss or gradient became NaN or infinite; the last good checkpoint is kept.
    """
    check(config)
    mesh = meshes.make_mesh(model=config.model_parallel)
    meshes.connect(mesh)
    for stage in method.stages:
        require(data, stage.data)
        if config.batch_size % stage.multiple:
            raise InputError(
                f"--train.batch-size is {config.batch_size}, but the stage {stage.name} of this run needs a multiple "
                f"of {stage.multiple}."
            )
    method = count_steps(method, data, config)
    root = root_of(config.seed)
    # Shapes first: whatever does not fit is found before memory is used.
    batch = batch_spec(data, config, mesh)
    abstract = jax.eval_shape(method.init, root, batch)
    shardings = meshes.state_shardings(abstract, mesh)
    log = EventLog(folder / "metrics.jsonl" if jax.process_index() == 0 else None)
    saved = Checkpoints(folder / "checkpoints", keep=config.keep)
    run = Run(
        method, data, config, mesh, shardings, root, compile_forward(method, mesh, shardings), log, saved, about, redraw
    )
    # Whatever ends the run, what is being saved is saved to its end.
    with closing(log), closing(saved), StopRequest() as stop:
        newest = saved.steps()[-1:] if resume else []
        if newest:
            place = place_of(method, saved.meta(newest[0]), about)
            state = saved.restore(newest[0], meshes.with_shardings(abstract, shardings))
            log.write("resume", stage=method.stages[place.stage].name, step=newest[0])
        else:
            place = Place()
            check_networks(abstract, start_from, seeds=config.seeds)
            change = start(at(root, "start"), batch) if start else lambda state: state
            state = change(compile_init(method, batch, shardings)(at(root, "init")))
            state = take_networks(state, start_from, seeds=config.seeds)
            counts = {name: trees.count(tree) for name, tree in abstract.params.items()}
            log.write("start", devices=jax.device_count(), mesh=dict(mesh.shape), parameters=counts)
        while True:
            state, done = run_stage(run, place, state, stop)
            stage = method.stages[place.stage]
            if done < stage.steps or place.stage + 1 == len(method.stages):
                break
            place = Place(place.stage + 1, 0, place.before + stage.steps)
        saved.wait()
        stopped = done < stage.steps
        log.write("stop" if stopped else "trained", stage=stage.name, step=place.before + done)
    return Fitted(state, run.forward, mesh, stopped)


def run_stage(run: Run, place: Place, state: TrainState, stop: StopRequest) -> tuple[TrainState, int]:
    """Runs one stage from its place to its end, or until a stop is asked for; returns the steps done in it."""
    config, stage, done = run.config, run.method.stages[place.stage], place.done
    first, last = jax.process_index() == 0, place.stage + 1 == len(run.method.stages)
    if place.stream is None:
        # Once per stage: a run that resumes inside the stage has this behind it.
        state = jax.device_put(stage.enter(at(run.root, "enter", stage.name), state), run.shardings)
        run.log.write("stage", stage=stage.name, step=place.before, steps=stage.steps)
    batches = open_stream(run, stage)
    if place.stream is not None:
        batches.set_state(place.stream)
    step = compile_step(stage, run.mesh, run.shardings, slices=config.accumulate, remat=config.remat)
    lines = StepLog(
        run.log, stage.name, total=stage.steps, before=place.before, done=done, every=config.log_every,
        batch_size=config.batch_size * config.seeds, quiet=not first, kept=run.saved.steps,
    )  # fmt: skip
    with closing(batches), closing(lines):
        while True:
            asked = stop.asked or run.saved.should_stop(place.before + done)
            fresh = done > place.done
            due = fresh and (done == stage.steps or done % config.eval_every == 0)
            if due or (asked and fresh):
                lines.flush()  # a loss that is NaN must end the run before anything is saved
                # Evaluated on the old state, since the next step takes its memory.
                score = evaluate(run, stage, state, place.before + done, lines) if due else None
                # The data stream is saved before it moves, so that after a restart the next batch comes again.
                meta = {"stage": stage.name, "done": done, "before": place.before, "stream": batches.get_state()}
                run.saved.save(place.before + done, state, run.about | meta, watch=score if last else None)
                run.log.write("save", stage=stage.name, step=place.before + done)
                if first:
                    run.redraw()
                lines.restart()
            if asked or done == stage.steps:
                return state, done
            state, logs = step(run.root, state, meshes.place(next(batches), run.mesh))
            if done == place.done:
                host.release_memory()  # what compiling took
            done += 1
            lines.note(done, logs)  # reads the steps before this one, while this one runs


def open_stream(run: Run, stage: Stage) -> Any:
    """Opens a stage's stream of training batches: this process's rows, seed by seed abreast where there are several."""
    config, source = run.config, require(run.data, stage.data)
    rows, part, parts = meshes.local_share(run.mesh, config.batch_size)
    streams = [
        pipeline.train_batches(
            Balanced(source) if stage.balanced else source,
            batch_size=rows,
            seed=int(jax.random.bits(at(root_of(seed), "data", stage.name)) >> 1),
            process=(part, parts),
            threads=max(config.threads // config.seeds, 1),
        )
        for seed in config.all_seeds
    ]
    return streams[0] if len(streams) == 1 else Abreast(streams)


def evaluate(run: Run, stage: Stage, state: TrainState, step: int, lines: StepLog) -> float | None:
    """Scores the validation split, logs it, and returns the watched score where it is a number.

    Raises:
      DivergedError: the predictions are not numbers.
    """
    batches = eval_split(run.data, "val", run.config, run.mesh)

    def check(sums: dict[str, float]) -> None:
        lines.check(step, {f"{name} of the validation split": total for name, total in sums.items()})

    scores = run.method.scores(gather(run.forward, at(run.root, "val"), state, batches, run.mesh, check=check))
    run.log.write("eval", split="val", stage=stage.name, step=step, **scores)
    watched = scores.get(run.method.watch, math.nan)
    return watched if math.isfinite(watched) else None


def compile_step(stage: Stage, mesh: Mesh, shardings: Any, *, slices: int = 1, remat: bool = False) -> Any:
    """Compiles a stage's step. It counts itself, and the old state's memory is given to the new one.

    ``slices`` and ``remat`` are ``accumulate`` and ``remat`` of ``Config``.
    """

    def step(key: Key, state: TrainState, batch: Batch) -> tuple[TrainState, Logs]:
        with in_slices((slices, mesh.shape["data"])), recomputed(remat):
            state, logs = stage.step(at(key, stage.name, state.step), state, batch)
        return state.replace(step=state.step + 1), {name: value.astype(jnp.float32) for name, value in logs.items()}

    whole = meshes.replicated(mesh)
    return jax.jit(
        step,
        in_shardings=(whole, shardings, meshes.split_rows(mesh)),
        out_shardings=(shardings, whole),
        donate_argnums=1,
    )


def compile_init(method: Method, batch: Batch, shardings: Any) -> Callable[[Key], TrainState]:
    """Compiles ``method.init`` for a batch of zeros: no network's start depends on an image.

    It runs once, so the compiler is told not to optimise: that takes a third of the time.
    """

    def init(key: Key) -> TrainState:
        return method.init(key, {name: jnp.zeros(spec.shape, spec.dtype) for name, spec in batch.items()})

    return jax.jit(init, out_shardings=shardings, compiler_options={"xla_backend_optimization_level": 0})


def count_steps(method: Method, data: Dataset, config: Config) -> Method:
    """Gives stages that are counted in passes over their data their number of steps."""
    return method._replace(
        stages=tuple(
            stage._replace(steps=stage.passes * -(-len(require(data, stage.data)) // config.batch_size))
            if stage.passes
            else stage
            for stage in method.stages
        )
    )


def abstract_state(method: Method, data: Dataset, config: Config) -> TrainState:
    """The shapes and types of a fresh state. Nothing is computed or compiled."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(method.init, key, batch_spec(data, config, meshes.make_mesh(model=config.model_parallel)))


def batch_spec(data: Dataset, config: Config, mesh: Mesh) -> Any:
    """The shapes and types of a global batch of this data set.

    Raises:
      InputError: it does not divide over devices and slices.
    """
    with closing(eval_split(data, "val", config, mesh)) as batches:
        batch = next(batches)
    ways = mesh.shape["data"]
    if config.accumulate < 1 or config.batch_size % (ways * config.accumulate):
        raise InputError(
            f"--train.accumulate is {config.accumulate}; expected at least 1, and a --train.batch-size (now "
            f"{config.batch_size}) that is a multiple of it times {ways}, the ways in which devices split a batch."
        )
    return meshes.spec_of(batch, config.batch_size)


def eval_split(data: Dataset, split: str, config: Config, mesh: Mesh) -> Any:
    """The padded batches of a split that this process reads."""
    rows, part, parts = meshes.local_share(mesh, config.batch_size)
    source = require(data, split)
    return pipeline.eval_batches(source, batch_size=rows, process=(part, parts), threads=config.threads)


def require(data: Dataset, split: str) -> Source:
    """The named split of a data set; an error that lists the splits where it is missing or empty."""
    if split not in data.splits or not len(data.splits[split]):
        sizes = ", ".join(f"{name}: {len(source)}" for name, source in data.splits.items())
        raise InputError(
            f"Data set {data.name!r} has no examples in its split {split!r} (its splits: {sizes}). {data.note} Give it "
            "more examples, or larger fractions for its splits."
        )
    return data.splits[split]


def place_of(method: Method, meta: dict[str, Any], about: dict[str, Any]) -> Place:
    """Finds where to go on from a checkpoint's meta.

    Raises:
      InputError: the checkpoint is of another method, data set or configuration.
    """
    for name in ("method", "data", "config"):
        if meta.get(name) != about.get(name):
            raise InputError(
                f"The checkpoint is of another run: its {name} is {meta.get(name)}, this run's {about.get(name)}. Put "
                "the run's own checkpoints back, or give another --name."
            )
    names = [stage.name for stage in method.stages]
    if meta["stage"] not in names:
        raise InputError(
            f"The checkpoint was saved in stage {meta['stage']!r}, but this method's stages are {', '.join(names)}. "
            "Run the command that stands in the run's config.json, or give another --name."
        )
    return Place(names.index(meta["stage"]), meta["done"], meta["before"], meta["stream"])
