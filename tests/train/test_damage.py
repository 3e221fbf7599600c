"""Damaged files of a run: whichever is cut, emptied or overwritten, the message names it; older checkpoints serve."""

import io
import json
import shutil
from contextlib import closing

import jax
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from spoiled import FEW, JSON, holding, loads, spoiled
from test_checkpoint import assert_filled, make_state, target

from ophjax.data import lesions
from ophjax.errors import InputError
from ophjax.methods import fccl
from ophjax.train import loop, restore, runfolder
from ophjax.train.checkpoint import Checkpoints, take_networks
from ophjax.train.logs import EventLog, read_events
from ophjax.train.report import reading

# Checkpoints ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two checkpoints, as a run leaves them: of step 1 and, filled with twos, of step 2."""
    folder = tmp_path_factory.mktemp("whole") / "checkpoints"
    with closing(Checkpoints(folder)) as saved:
        for step in (1, 2):
            saved.save(step, make_state(step), {"done": step}, watch=0.5)
            saved.wait()
    return folder


WAYS = {
    "cut": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "noise": lambda content: np.random.default_rng(len(content)).bytes(max(len(content), 64)),
}


def uses(saved, step):
    """What a resumed run, a prediction and --start-from read of a step."""
    return (
        lambda: saved.meta(step)["done"],
        lambda: saved.restore(step, target(make_state(0))),
        lambda: saved.read(step),
        lambda: take_networks(make_state(0), [f"segmenter={saved.folder.parent}"]).params["segmenter"],
    )


def test_every_file_of_a_checkpoint(whole, tmp_path):
    """Each file of the newest checkpoint, in each way: what can be read of it is right, else one paragraph names its
    folder; the checkpoint before it is offered and whole. When the damaged folder is deleted, as the message says, the
    step can be saved anew."""
    files = sorted(path.relative_to(whole / "2") for path in (whole / "2").rglob("*") if path.is_file())
    assert {"_CHECKPOINT_METADATA", "manifest.ocdbt", "metadata", "_METADATA"} <= {path.name for path in files}
    spoils = 0
    for number, name in enumerate(files):
        for way, change in WAYS.items():
            folder = tmp_path / f"{number}-{way}" / "checkpoints"
            shutil.copytree(whole, folder)
            victim = folder / "2" / name
            victim.write_bytes(change(victim.read_bytes()))
            if name.parts == ("metrics", "metrics"):
                with pytest.raises(InputError, match="only this score is lost") as caught:
                    Checkpoints(folder)
                assert str(victim.parent) in str(caught.value)
                shutil.rmtree(victim.parent)
                spoils += 1
            with closing(Checkpoints(folder)) as saved:
                assert 1 in saved.steps(), (name, way)
                for use in uses(saved, 2):
                    try:
                        assert_filled(use(), 2)
                    except InputError as error:
                        spoils += 1
                        assert str(folder / "2") in str(error) and "\n" not in str(error), (name, way)
                assert_filled(saved.restore(1, target(make_state(0))), 1)
    assert spoils > len(files), "most damage shows"
    shutil.rmtree(folder / "2")
    with closing(Checkpoints(folder)) as saved:
        assert saved.steps() == [1] and saved.best() == 1
        assert_filled([use() for use in uses(saved, 1)], 1)
        saved.save(2, make_state(2), {"done": 2})
        saved.wait()
        assert_filled(saved.read(2), 2)


def test_one_changed_bit(tmp_path):
    """In numbers that cannot be packed any tighter, no format notices it: the sum over all bytes does."""
    folder = tmp_path / "checkpoints"
    kernel = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    state = {"params": {"net": {"kernel": jax.numpy.asarray(kernel)}}, "extra": {}}
    with closing(Checkpoints(folder)) as saved:
        saved.save(1, state, {})
        saved.wait()
        np.testing.assert_array_equal(saved.read(1)["params"]["net"]["kernel"], kernel)
    victim = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with closing(Checkpoints(folder, read_only=True)) as saved:
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
        for use in (lambda: saved.read(1), lambda: saved.restore(1, like)):
            with pytest.raises(InputError, match="not those that were saved"):
                use()
        assert saved.meta(1) == {}


# config.json and metrics.jsonl ---------------------------------------------------------------------------------------

ABOUT = {
    "command": "python experiments/run.py --method fccl", "method": "fccl", "data": "lesions", "preset": "smoke",
    "config": runfolder.plain_config(method=fccl.Config(**fccl.SMOKE), data=lesions.Config(), train=loop.Config()),
    "versions": {}, "regions": [], "classes": ["a", "b"], "example": {"image": [[32, 32, 3], "uint8"]},
}  # fmt: skip


@st.composite
def changed(draw):
    """config.json with one value, at any depth, replaced by some other JSON."""
    about = json.loads(json.dumps(ABOUT))
    place, name = about, draw(st.sampled_from(sorted(about)))
    while isinstance(place[name], dict) and place[name] and draw(st.integers(0, 4)):
        place = place[name]
        name = draw(st.sampled_from(sorted(place)))
    place[name] = draw(JSON)
    return json.dumps(about).encode()


def restored(path):
    """Reads a run's folder that has no checkpoint: the last thing to be missed."""
    with pytest.raises(InputError) as caught:
        restore.restore(path.parent)
    if "no checkpoint yet" not in str(caught.value):
        raise caught.value


@FEW
@given(spoiled(json.dumps(ABOUT).encode()) | changed())
@example(b"[" * 100_000)
@example(b"[]")
def test_config(content):
    with holding("config.json", content) as path:
        loads(restored, path)
        (path.parent / "metrics.jsonl").write_text('{"event": "start"}\n')
        loads(lambda path: runfolder.claim(path.parent, ABOUT, resume=True), path)
        assert path.read_bytes() == content, "nothing is overwritten"
        reading.read_run(path.parent)


def test_whole_config():
    with holding("config.json", json.dumps(ABOUT).encode()) as path:
        assert loads(restored, path)
        (path.parent / "metrics.jsonl").touch()  # the log is there before the first event
        for about in (ABOUT, ABOUT | {"data": "phantoms"}, ABOUT):
            assert runfolder.claim(path.parent, about, resume=False) == "new"
            assert json.loads(path.read_text()) == about
        (path.parent / "metrics.jsonl").write_text('{"event": "start"}\n')
        assert runfolder.claim(path.parent, ABOUT, resume=True) == "resumed"


EVENTS = [
    {"event": "start"},
    {"event": "train", "stage": "all", "step": 1, "loss": 0.5},
    {"event": "resume", "step": 1},
]
LINES = "".join(json.dumps(event) + "\n" for event in EVENTS).encode()


@FEW
@given(spoiled(LINES) | st.lists(JSON).map(lambda lines: "\n".join(map(json.dumps, lines)).encode()))
@example(LINES + b"[" * 100_000)
@example(LINES + b'{"event": "resume", "step": [1]}\n')
def test_metrics(content):
    """What is no line of it is passed over, and what is written behind it is read."""
    with holding("metrics.jsonl", content) as path:
        run = reading.read_run(path.parent)
        assert all(isinstance(event, dict) for event in run.events) and not run.notes
        log = EventLog(path)
        log.write("finish")
        log.close()
        assert list(read_events(path))[-1]["event"] == "finish"


def packed():
    stream = io.BytesIO()
    np.savez_compressed(stream, image=np.arange(300).reshape(10, 30), names=np.array(["a", "b"]))
    return stream.getvalue()


@FEW
@given(spoiled(packed()))
@example(packed()[:-30])
def test_samples(content):
    """The report leaves out what it cannot read, and says so."""
    with holding("samples.npz", content) as path:
        run = reading.read_run(path.parent)
        assert run.notes or run.samples
