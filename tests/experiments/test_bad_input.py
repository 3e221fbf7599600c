"""Every mistake a user can make ends with one paragraph on stderr and exit code 2, never with a traceback."""

import dataclasses
import errno
import json
import os
import shutil
import struct
import zlib
from contextlib import closing
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import presets
import run
from ophjax import data as datasets
from ophjax import methods
from ophjax.data import files, phantoms
from ophjax.errors import InputError
from ophjax.methods import fccl
from ophjax.train import checkpoint, host, loop
from ophjax.train.logs import EventLog, read_events
from ophjax.train.report import page

SMOKE = ("--method", "seatrans", "--preset", "smoke")
# One network that compiles soon, with checkpoints (1 MB each) after steps 6 and 8.
SMALL = (
    "--method", "fccl", "--preset", "smoke", "--method.width", 32, "--method.steps", 8, "--train.eval-every", 6,
)  # fmt: skip


def assert_refused(result, *words):
    """Code 2, and one paragraph that holds these words."""
    assert result.code == 2, result
    assert result.err.startswith("error: ") and result.err.strip().count("\n") == 0, result.err
    for word in words:
        assert word in result.err, result.err


@pytest.fixture
def folder(tmp_path):
    """A data set of 20 images of 32 pixels with masks (rim 1, cup 2) and labels of two classes.

    Regions and shapes are those of the phantoms at the smoke preset, so that the same programs serve both.
    """
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    source = phantoms.make(phantoms.Config(size=32, masks=20, labelled=20, val=1, test=1)).splits["masks"]
    rows = ["image,label"]
    for i in range(20):
        example = source[i]
        Image.fromarray(example["image"]).save(root / "images" / f"{i:02}.png")
        Image.fromarray(example["mask"].sum(-1).astype(np.uint8)).save(root / "masks" / f"{i:02}.png")
        rows.append(f"{i:02}.png,{i % 2}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root


def on_folder(folder, *more, base=SMOKE):
    where = ("--data", "folder", "--data.root", folder, "--data.mask-code", "disc=1,2;cup=2")
    return (*base, *where, "--runs", folder.parent / "runs", *more)


# Names and options ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), ("--method", "seatrans")),
        (("--method", "seatran"), ("method 'seatran'", "Did you mean 'seatrans'")),
        ((*SMOKE, "--data", "phantom"), ("data set 'phantom'", "folder", "Did you mean 'phantoms'")),
        (("--method", "seatrans", "--preset", "huge"), ("preset 'huge'", "demo, paper, smoke")),
        ((*SMOKE, "--data.cameras", "polaroid"), ("camera 'polaroid'",)),
        ((*SMOKE, "--method.low-level", "5"), ("--method.low-level", "(5,)")),
        ((*SMOKE, "--name", "../other"), ("--name", "../other")),
        ((*SMOKE, "--train.eval-every", "0"), ("--train.eval-every is 0", "at least 1")),
        ((*SMOKE, "--train.log-every", "0"), ("--train.log-every is 0",)),
        ((*SMOKE, "--train.threads", "-1"), ("--train.threads is -1",)),
    ],
)
def test_unknown_names(command, tmp_path, argv, words):
    given = (*argv, "--runs", tmp_path / "runs") if "--method" in argv else argv
    assert_refused(command(*given), *words)
    assert not (tmp_path / "runs").exists(), "a refused command leaves nothing"


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (("--train.batch-sze", "8"), "--train.batch-size"),
        (("--train.batch-size", "many"), "many"),
        (("--method.baseline", "none-such"), "image-only"),
    ],
)
def test_unknown_options(command, argv, word):
    """The parser's own message, as one paragraph, names what it would have taken."""
    assert_refused(command(*SMOKE, *argv), word, "--help")


# The user's folder ---------------------------------------------------------------------------------------------------


def huge_png(path: Path, width: int, height: int) -> None:
    """Writes a PNG of a few bytes whose header claims a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def edit_labels(root, change):
    path = root / "labels.csv"
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def spoil_mask(root, value):
    mask = np.zeros((32, 32), np.uint8)
    mask[3, 4] = value
    Image.fromarray(mask).save(root / "masks" / "07.png")


PARTS = ("val", "test")
MISTAKES = {
    "no images folder": (lambda root: shutil.rmtree(root / "images"), ("no folder", "images")),
    "no masks folder": (lambda root: shutil.rmtree(root / "masks"), ("no folder", "masks")),
    "no image": (lambda root: [path.unlink() for path in (root / "images").iterdir()], ("no image files",)),
    "no table": (lambda root: (root / "labels.csv").unlink(), ("no table", "labels.csv")),
    "not an image": (lambda root: (root / "images" / "07.png").write_bytes(b"not an image"), ("07.png", "decoded")),
    "half an image": (
        lambda root: (root / "images" / "07.png").write_bytes((root / "images" / "07.png").read_bytes()[:300]),
        ("07.png", "decoded"),
    ),
    "110 megapixels": (lambda root: huge_png(root / "images" / "07.png", 11_000, 10_000), ("07.png", "100 megapixels")),
    "mask of another size": (
        lambda root: Image.fromarray(np.zeros((32, 30), np.uint8)).save(root / "masks" / "07.png"),
        ("07.png", "32 x 32", "30 x 32"),
    ),
    "unknown code": (lambda root: spoil_mask(root, 9), ("07.png", "0, 9", "disc=1,2;cup=2", "--data.mask-code")),
    "mask without image": (lambda root: (root / "images" / "07.png").unlink(), ("07.png",)),
    "missing label": (lambda root: edit_labels(root, lambda rows: rows[:-1]), ("19.png", "labels")),
    "empty label": (lambda root: edit_labels(root, lambda rows: [*rows[:-1], "19.png,"]), ("19.png", "no label")),
    "two labels": (lambda root: edit_labels(root, lambda rows: [*rows, rows[3]]), ("two rows", "02.png")),
    "label of no image": (lambda root: edit_labels(root, lambda rows: [*rows, "99.png,0"]), ("99.png",)),
    "one class": (
        lambda root: edit_labels(root, lambda rows: [rows[0], *(row[:-1] + "0" for row in rows[1:])]),
        ("all of class '0'", "two classes"),
    ),
    "no label column": (lambda root: edit_labels(root, lambda rows: ["image,diagnosis", *rows[1:]]), ("diagnosis",)),
    "empty train split": (
        lambda root: edit_labels(
            root, lambda rows: ["image,label,split", *(f"{row},{PARTS[i // 10]}" for i, row in enumerate(rows[1:]))]
        ),
        ("train split", "empty"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_folder(command, folder, mistake):
    spoil, words = MISTAKES[mistake]
    spoil(folder)
    assert_refused(command(*on_folder(folder)), *words)
    assert not (folder.parent / "runs").exists(), "a refused command leaves nothing"


def test_missing_folder(command, tmp_path):
    assert_refused(command(*SMOKE, "--data", "folder"), "--data.root")
    assert_refused(command(*on_folder(tmp_path / "nowhere")), "no folder", "nowhere", "--data.root")


@pytest.mark.parametrize("option", ["--data.val", "--data.test", "--data.masks"])
def test_empty_split_of_phantoms(command, tmp_path, option):
    assert_refused(command(*SMOKE, "--runs", tmp_path, option, 0), option, "0 phantoms")


def test_empty_split_of_a_folder(command, folder):
    """Nothing is left to train on, or nothing to validate on."""
    assert_refused(command(*on_folder(folder, "--data.val-fraction", 0)), "fractions", "above 0")
    assert_refused(command(*on_folder(folder, "--data.val-fraction", 0.75)), "fractions", "training")


def test_what_a_later_stage_lacks_is_told_at_once(tmp_path):
    """Not after the stages before it have been trained."""
    config, data_config, train = presets.preset("smoke", "fccl")
    data = datasets.load("lesions").make(data_config)
    method = methods.load("fccl").make(methods.fit_to(config, data))
    method = method._replace(stages=(*method.stages, method.stages[0]._replace(name="late", data="adapt")))
    with pytest.raises(InputError, match="no examples in its split 'adapt'"):
        loop.fit(method, data, train, tmp_path, about={})
    assert not list(tmp_path.iterdir())


# Devices and run folders ---------------------------------------------------------------------------------------------


def test_batch_and_devices(command, tmp_path):
    """Eight virtual devices split no batch of 12, nor do they make groups of three; the mended command then runs on."""
    result = command(*SMOKE, "--runs", tmp_path, "--name", "x", "--train.batch-size", 12)
    assert_refused(result, "batch size is 12", "8 ways", "--train.batch-size")
    result = command(*SMOKE, "--runs", tmp_path, "--name", "x", "--train.model-parallel", 3)
    assert_refused(result, "8 devices", "--train.model-parallel")
    result = command(*SMOKE, "--runs", tmp_path, "--name", "x", "--train.accumulate", 3)
    # No word of the folder of the command before, which had not begun.
    assert_refused(result, "--train.accumulate is 3", "--train.batch-size", "8")


def test_folder_of_something_else(command, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name in ("mine", "file"):
        assert_refused(command(*SMOKE, "--runs", tmp_path, "--name", name), name, "--name")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == (tmp_path / "file").read_text() == "precious"


def unfinished(folder: Path, copy: Path) -> Path:
    """Copies a run as if it had been killed before its test."""
    shutil.copytree(folder, copy)
    lines = [json.dumps(e) for e in read_events(folder / "metrics.jsonl") if e["event"] not in ("test", "finish")]
    (copy / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return copy


def again(command, run_folder, *more):
    return command(*SMALL, "--runs", run_folder.parent, "--name", run_folder.name, *more)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """The folder of a finished run of SMALL, without its report. Not to be changed; copy it."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "prepare_compiler", lambda: None)
        patch.setattr(page, "write_report", lambda folder: folder)
        assert run.run([*map(str, SMALL), "--runs", str(runs), "--name", "small"]) == 0
    return runs / "small"


def test_folder_of_another_run(command, small_run, tmp_path):
    """Another option, another method, half a config.json: the run in the folder is left alone."""
    run_folder = unfinished(small_run, tmp_path / "run")
    before = sorted((path, path.stat().st_mtime_ns) for path in run_folder.rglob("*"))
    result = again(command, run_folder, "--resume", "--method.lr", "0.5")
    assert_refused(result, "method.lr was 0.003, now 0.5", "--name")
    assert_refused(again(command, run_folder), "unfinished", "--resume")
    assert sorted((path, path.stat().st_mtime_ns) for path in run_folder.rglob("*")) == before
    config = json.loads((run_folder / "config.json").read_text())
    (run_folder / "config.json").write_text(json.dumps(config | {"method": "other"}))
    assert_refused(again(command, run_folder, "--resume"), "method was 'other', now 'fccl'")
    (run_folder / "config.json").write_text('{"method": ')
    assert_refused(again(command, run_folder, "--resume"), "config.json cannot be read")


def test_checkpoint_of_another_run(command, shell, small_run, tmp_path):
    """Checkpoints put in from elsewhere, under the right config.json: of another configuration, or other shapes."""
    run_folder = unfinished(small_run, tmp_path / "run")
    meta = run_folder / "checkpoints" / "8" / "meta" / "metadata"
    entries = json.loads(meta.read_text())
    entries["config"]["method"]["lr"] = 0.5
    meta.write_text(json.dumps(entries))
    assert_refused(again(command, run_folder, "--resume"), "checkpoint is of another run", "config")
    # The same meta on a wider net: only the shapes tell.
    config = json.loads((run_folder / "config.json").read_text())
    config["config"]["method"]["width"] = entries["config"]["method"]["width"] = 48
    entries["config"]["method"]["lr"] = config["config"]["method"]["lr"]
    meta.write_text(json.dumps(entries))
    (run_folder / "config.json").write_text(json.dumps(config))
    result = again(shell, run_folder, "--resume", "--method.width", 48)
    assert_refused(result, f"Checkpoint {run_folder / 'checkpoints' / '8'}", "does not fit")


def test_damaged_checkpoint(command, shell, small_run, tmp_path):
    """Half of the notes beside the state, then half of its numbers: the message names the checkpoint. The numbers are
    read in a process of its own, since TensorStore's threads complain into whatever runs next."""
    run_folder = unfinished(small_run, tmp_path / "run")
    newest = run_folder / "checkpoints" / "8"
    notes = newest / "meta" / "metadata"
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    for victim, way in ((notes, command), (largest, shell)):
        whole = victim.read_bytes()
        victim.write_bytes(whole[: len(whole) // 2])
        assert_refused(again(way, run_folder, "--resume"), str(newest), "elete that folder")
        victim.write_bytes(whole)


# While a run goes on -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("eval_every", "step"), [(2, 3), (1, 2)])
def test_divergence(command, redraws, drawn_start, monkeypatch, tmp_path, eval_every, step):
    """A learning rate of 1e30 breaks the second stage: in the loss of its second step, or, where the state is evaluated
    before that, in the predictions after the first. The checkpoint of the first stage stays."""

    def make(config, make=fccl.make):
        """FCCL whose first step is an ordinary one, in a stage of its own."""
        method, calm = (make(dataclasses.replace(config, lr=lr)) for lr in (config.lr, 1e-3))
        (first,), (second,) = calm.stages, method.stages
        return method._replace(stages=(first._replace(name="calm", steps=1), second))

    monkeypatch.setattr(fccl, "make", make)
    absurd = ("--method.width", 8, "--method.lr", "1e30", "--train.eval-every", eval_every)
    result = command(*SMALL, *absurd, "--runs", tmp_path, "--name", "x")
    assert_refused(result, "Stage 'classifier'", f"at step {step}", "last good checkpoint is that of step 1")
    assert [e["step"] for e in read_events(tmp_path / "x" / "metrics.jsonl") if e["event"] == "diverged"] == [step]
    assert redraws[-1] == "diverged", "the report shows it"
    with closing(checkpoint.Checkpoints(tmp_path / "x" / "checkpoints", read_only=True)) as kept:
        assert kept.steps() == [1]
        leaves = jax.tree.leaves(kept.read(1)["params"])
    assert all(np.isfinite(leaf).all() for leaf in leaves)


@pytest.mark.parametrize("name", ["report.html", "predictions.csv"])
def test_full_disk_under_the_results(command, one_report, small_run, tmp_path, name):
    """The device that is always full stands in for one file; when it is gone, --resume finishes the run."""
    run_folder = unfinished(small_run, tmp_path / "run")
    (run_folder / "predictions.csv").unlink()
    (run_folder / f"{name}.part").symlink_to("/dev/full")
    result = again(command, run_folder, "--resume")
    assert_refused(result, str(run_folder / name), os.strerror(errno.ENOSPC), "--resume")
    assert again(command, run_folder, "--resume").code == 0
    assert (run_folder / "predictions.csv").read_bytes() == (small_run / "predictions.csv").read_bytes()


def test_full_disk_under_the_log(tmp_path):
    log = EventLog(tmp_path / "metrics.jsonl")
    log.write("start")
    log.close()
    (tmp_path / "full.jsonl").symlink_to("/dev/full")
    log = EventLog(tmp_path / "full.jsonl")
    with pytest.raises(InputError, match=os.strerror(errno.ENOSPC)):
        log.write("train", step=1)
    log.close()  # raises nothing more


def test_full_disk_under_a_checkpoint(command, shell, redraws, small_run, tmp_path):
    """No file of the process may grow beyond 400 kB: room for the report, not for a checkpoint (1 MB). The
    older checkpoint stays whole, and with room again the run ends as if nothing had been."""
    run_folder = unfinished(small_run, tmp_path / "run")
    shutil.rmtree(run_folder / "checkpoints" / "8")
    for name in ("predictions.csv", "samples.npz"):  # the report has no pictures without samples
        (run_folder / name).unlink()
    result = again(lambda *argv: shell(*argv, blocks=800), run_folder, "--resume")
    assert_refused(result, str(run_folder / "checkpoints"), os.strerror(errno.EFBIG), "--resume")
    with closing(checkpoint.Checkpoints(run_folder / "checkpoints", read_only=True)) as kept:
        assert kept.steps() == [6]
        kept.read(6)
    assert again(command, run_folder, "--resume").code == 0
    assert (run_folder / "predictions.csv").read_bytes() == (small_run / "predictions.csv").read_bytes()


def test_data_deleted_under_the_run(command, redraws, folder, monkeypatch):
    """Too large for the cache, the images are read again and again; one vanishes after the first checkpoint. Grain's
    threads hand the message on, and with the file back the run goes on."""
    monkeypatch.setattr(files, "CHECKED_PIXELS", 0)
    monkeypatch.setattr(files, "Cached", lambda source: source)
    images, away = folder / "images", folder / "away"
    monkeypatch.setattr(page, "write_report", lambda _: images.rename(away) if images.exists() else None)
    few = ("--method.steps", 4, "--train.eval-every", 2, "--name", "x")
    result = command(*on_folder(folder, *few, base=SMALL))
    assert_refused(result, "no image file", str(images))
    away.rename(images)
    monkeypatch.setattr(page, "write_report", lambda _: None)
    assert command(*on_folder(folder, *few, "--resume", base=SMALL)).code == 0
    events = [e["event"] for e in read_events(folder.parent / "runs" / "x" / "metrics.jsonl")]
    assert events.count("resume") == 1 and events[-1] == "finish"
