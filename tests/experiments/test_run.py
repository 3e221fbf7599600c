"""The command: what a run leaves, what a second one does, networks from other runs, the dry run, every variant."""

import csv
import dataclasses
import functools
import json
from contextlib import closing

import jax
import numpy as np
import pytest
from made_run import drawn_like

import presets
from ophjax import data as datasets
from ophjax import methods, trees
from ophjax.data import pipeline
from ophjax.methods import seatrans
from ophjax.train import loop
from ophjax.train.checkpoint import Checkpoints
from ophjax.train.estimate import describe
from ophjax.train.logs import read_events
from ophjax.types import TrainState

SMOKE = ("--method", "seatrans", "--preset", "smoke")


def events(folder, kind):
    return [event for event in read_events(folder / "metrics.jsonl") if event["event"] == kind]


def test_what_a_run_leaves(smoke_run):
    config = json.loads((smoke_run / "config.json").read_text())
    assert config["method"] == "seatrans" and config["preset"] == "smoke" and "--name first" in config["command"]
    assert config["config"]["method"]["regions"] == config["regions"] == ["disc", "cup"]
    assert config["versions"]["jax"] == jax.__version__ and config["note"]
    written = {path.name: path.stat().st_mtime_ns for path in smoke_run.iterdir() if path.is_file()}
    assert min(written, key=written.get) == "config.json", "before anything is built"
    assert written.keys() == {"config.json", "metrics.jsonl", "predictions.csv", "samples.npz", "report.html"}

    with (smoke_run / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["name"] for row in rows}) == len(rows) == config["splits"]["test"] == 16
    assert {"label", "prob", "predicted", "dice_disc", "dice_cup"} <= rows[0].keys()
    assert {row["predicted"] for row in rows} <= {"0", "1"} and all(0 <= float(row["prob"]) <= 1 for row in rows)

    with np.load(smoke_run / "samples.npz", allow_pickle=False) as samples:
        assert samples["image"].shape == (8, 32, 32, 3) and samples["image"].dtype == np.uint8
        assert samples["mask"].shape == samples["mask_probs"].shape == (8, 32, 32, 2)
        assert samples["attention"].shape == (8, 1, 32, 32), "one map for each steered stage"
        assert len(json.loads(str(samples["attention_names"]))) == 1
        assert samples["index"].tolist() == [0, 2, 4, 6, 9, 11, 13, 15], "from all over the split"
        # Six digits are written.
        shown = [float(rows[i]["prob"]) for i in samples["index"]]
        np.testing.assert_allclose(samples["probs"][:, 1], shown, atol=1e-6)

    assert [event["step"] for event in events(smoke_run, "train")] == list(range(1, 9))
    assert [event["stage"] for event in events(smoke_run, "stage")] == ["segmenter", "diagnosis"]
    (test,) = events(smoke_run, "test")
    assert {"auc", "accuracy", "sensitivity", "specificity", "f1", "dice_disc", "iou_cup"} <= test["scores"].keys()
    assert 0 <= test["scores"]["dice_disc_low"] <= test["scores"]["dice_disc"] <= test["scores"]["dice_disc_high"] <= 1
    page = (smoke_run / "report.html").read_text()
    assert "finished" in page and "--name first" in page and "<script" not in page


def test_the_same_command_again_does_nothing(command, smoke_run):
    before = sorted((path, path.stat().st_mtime_ns) for path in smoke_run.rglob("*"))
    for more in ((), ("--resume",)):
        result = command(*SMOKE, "--train.eval-every", 4, "--runs", smoke_run.parent, "--name", "first", *more)
        assert result.code == 0 and "finished" in result.out and not result.err
    assert sorted((path, path.stat().st_mtime_ns) for path in smoke_run.rglob("*")) == before


def test_network_from_another_run(command, drawn_start, monkeypatch, smoke_run, tmp_path):
    """The segmenter of a finished run, its batch statistics included, is what a run without a stage for it begins with
    (that such a network then stays as it is, the contract tests)."""
    begun = []

    def run_stage(run, place, state, stop):
        begun.append((run.method.stages[place.stage].name, state))
        return state, 0

    monkeypatch.setattr(loop, "run_stage", run_stage)
    given = (*SMOKE, "--runs", tmp_path, "--name", "taken", "--method.segmenter-steps", 0)
    assert command(*given, "--start-from", f"segmenter={smoke_run}").code == 75
    ((name, state),) = begun
    assert name == "diagnosis"
    with closing(Checkpoints(smoke_run / "checkpoints", read_only=True)) as saved:
        source = saved.read(saved.steps()[-1])
    for old, new in (
        (source["params"], state.params),
        (source["extra"]["batch_stats"], state.extra["batch_stats"]),
    ):
        assert trees.count(old["segmenter"]) > 0
        jax.tree.map(np.testing.assert_array_equal, old["segmenter"], new["segmenter"])
        assert any(
            (a != b).any()
            for a, b in zip(jax.tree.leaves(old["diagnosis"]), jax.tree.leaves(new["diagnosis"]), strict=True)
        )


@pytest.mark.parametrize(
    ("source", "words"),
    [("segmenter=nowhere", "expected NETWORK=RUN_FOLDER"), ("critic={run}", "has the networks diagnosis, segmenter")],
)
def test_wrong_networks_are_refused(command, monkeypatch, smoke_run, tmp_path, source, words):
    """Before anything is compiled and before there is a folder."""
    monkeypatch.setattr(loop, "compile_init", None)
    source = source.format(run=smoke_run)
    result = command(*SMOKE, "--runs", tmp_path, "--name", "x", "--start-from", source)
    assert result.code == 2 and words in result.err and source in result.err and result.err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_a_stop_before_the_first_step_saves_nothing_and_says_so(command, monkeypatch, tmp_path):
    state = TrainState(step=jax.numpy.zeros((), "int32"), params={}, opt={}, extra={})
    monkeypatch.setattr(loop, "fit", lambda *_, **__: loop.Fitted(state, None, None, stopped=True))
    result = command("--method", "fccl", "--preset", "smoke", "--runs", tmp_path)
    assert result.code == 75 and "nothing to save" in result.out and result.out.strip().endswith("--resume")


def test_dry_run(command, tmp_path):
    """As JSON the last line is one object; in words the same numbers stand. Nothing is written."""
    # Two stages that compile soon.
    small = ("--method", "dualsr", "--preset", "smoke", "--method.ratio", 0, "--method.blocks", 1)
    result = command(*small, "--runs", tmp_path / "runs", "--dry-run", "--json")
    assert result.code == 0, result.err
    plan = json.loads(result.out.splitlines()[-1])
    assert (plan["method"], plan["data"], plan["preset"]) == ("dualsr", "textures", "smoke")
    assert plan["mesh"] == {"data": 8, "model": 1} and plan["devices"] == 8 and plan["platform"] == "cpu"
    assert [stage["name"] for stage in plan["stages"]] == ["dual", "training"]
    assert plan["batch_size"] == 8 and plan["image"] == [16, 16, 3]
    assert plan["flops_per_step"] == max(stage["flops_per_step"] for stage in plan["stages"]) > 1e6
    assert plan["bytes_per_device"] > 4 * sum(plan["networks"].values()), "parameters alone are float32"
    # Parameters and Adam's two moments of each network, four bytes each, and some hundred numbers of statistics.
    assert plan["state_bytes"] == pytest.approx(12 * sum(plan["networks"].values()), rel=0.02)
    words = describe(plan)
    assert "data 8 x model 1" in words and f"primal: {plan['networks']['primal']:,} parameters" in words
    assert not (tmp_path / "runs").exists()


@functools.cache
def phantoms():
    """The phantoms of the smoke preset, a batch of them, and SeATrans's configuration."""
    config, data_config, train = presets.preset("smoke", "seatrans", "phantoms")
    data = datasets.load("phantoms").make(data_config)
    with closing(pipeline.eval_batches(data.splits["train"], batch_size=train.batch_size)) as batches:
        return methods.fit_to(config, data), next(batches)


@functools.cache
def made(variant):
    """A variant by its place in VARIANTS, the shapes of its state, and its diagnosis step, traced once for all tests.

    Without flips and dropped paths: the loss of one batch is then compared with itself.
    """
    config, batch = phantoms()
    method = seatrans.make(dataclasses.replace(config, flip=False, drop_path=0.0, **VARIANTS[variant]))
    return method, jax.eval_shape(method.init, jax.random.key(0), batch), jax.jit(method.stages[-1].step)


def test_the_paper_preset():
    """Golden numbers, by shapes alone. The segmenter is a U-Net on a ResNet-34 with two regions (what timm-style
    decoders add to torchvision's 21,284,672 backbone is in its own test). The diagnosis net is that ResNet-34 with one
    output (512 weights and a bias) and the SeA-blocks of its first two stages, 64 and 128 channels wide."""
    config, data_config, train = presets.preset("paper", "seatrans", "phantoms")
    method = seatrans.make(config)
    size = (train.batch_size, data_config.size, data_config.size)
    batch = {
        "image": jax.ShapeDtypeStruct((*size, 3), np.uint8),
        "mask": jax.ShapeDtypeStruct((*size, 2), np.uint8),
        "label": jax.ShapeDtypeStruct(size[:1], np.int32),
    }
    params = jax.eval_shape(method.init, jax.eval_shape(lambda: jax.random.key(0)), batch).params
    assert trees.count(params["segmenter"]) == 22_010_690
    parts = {name: trees.count(tree) for name, tree in params["diagnosis"].items()}
    assert parts == {"backbone": 21_284_672 + 512 + 1, "fusion1": 524_288, "fusion2": 1_697_280}


VARIANTS = [
    {"baseline": "image-only", "classes": ("none", "early", "late"), "norm": "group", "dtype": "bfloat16"},
    {"baseline": "mask-concat", "control": "labels", "freeze_segmenter": False, "schedule": "cosine"},
    {"baseline": "same-scale", "control": "features", "low_level": (2,)},
    {"baseline": "single-attention", "scales": (1, 3), "stem": "small"},
    {"scale_fusion": "concat", "encoder_query": "diag", "low_level": (3,), "scales": (0, 1)},
]
each_variant = pytest.mark.parametrize(
    "variant", range(len(VARIANTS)), ids=["-".join(map(str, changes.values())) for changes in VARIANTS]
)


@each_variant
def test_every_variant_fits_together(variant):
    """By shapes alone: the start, the diagnosis step, which leaves every shape as it was, prediction and metrics."""
    changes, (_, batch), (method, state, step) = VARIANTS[variant], phantoms(), made(variant)
    key = jax.random.key(0)
    assert ("segmenter" in state.params) == (changes.get("baseline") != "image-only")
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}
    after, logs = step.eval_shape(key, state, batch)
    before, now = ({n: (v.shape, v.dtype) for n, v in trees.named_leaves(tree).items()} for tree in (state, after))
    assert before == now and logs["loss"].shape == ()
    outputs = jax.eval_shape(method.predict, key, state, batch)
    assert outputs["probs"].shape == (8, len(changes.get("classes", ("no", "yes"))))
    assert {value.dtype for value in outputs.values()} == {np.dtype(np.float32)}
    maps = {f"attention_stage{level}": (8, 32, 32) for level in changes.get("low_level", (1,))}
    if changes.get("baseline", "none") not in ("none", "same-scale") or changes.get("encoder_query") == "diag":
        maps = {}  # no encoder looks at the diagnosis tokens
    assert {name: value.shape for name, value in outputs.items() if name.startswith("attention")} == maps
    assert ("dice_disc" in jax.eval_shape(method.metrics, outputs, batch)) == ("segmenter" in state.params)


@pytest.mark.slow
@each_variant
def test_every_variant_learns(variant):
    """Each option in at least one of five: four diagnosis steps on one batch bring its loss down."""
    (_, batch), (_, shapes, step) = phantoms(), made(variant)
    state = drawn_like(shapes)
    batch = batch | {"label": (np.arange(8) % 2).astype(np.int32)}
    losses = []
    for _ in range(4):
        state, logs = step(jax.random.key(1), state, batch)
        losses.append(float(logs["loss"]))
    assert np.isfinite(losses).all() and losses[-1] < losses[0], losses
