"""Real processes: killed at any moment or asked to stop, a run goes on with --resume as if it had never been."""

import random
import signal
import time
from contextlib import closing

import numpy as np
import pytest

from ophjax import trees
from ophjax.train.checkpoint import Checkpoints
from ophjax.train.logs import read_events

pytestmark = pytest.mark.slow

# A checkpoint after every third step; the contract stops and resumes methods of several stages in one process.
COMMAND = ("--method", "fccl", "--preset", "smoke", "--method.steps", 12, "--train.eval-every", 3)


def final(folder):
    """The last state, leaf by leaf, and the loss of every step; of a step run twice the later one."""
    with closing(Checkpoints(folder / "checkpoints", read_only=True)) as saved:
        assert saved.steps()[-1] == 12
        state = trees.named_leaves(saved.read(12))
    return state, {e["step"]: e["loss"] for e in read_events(folder / "metrics.jsonl") if e["event"] == "train"}


def kinds(folder):
    return [event["event"] for event in read_events(folder / "metrics.jsonl")]


def assert_same(one, other):
    state, losses = one
    assert losses == other[1]
    assert state.keys() == other[0].keys()
    assert [path for path in state if not np.array_equal(state[path], other[0][path])] == []


@pytest.fixture(scope="module")
def whole(shell, tmp_path_factory):
    """What a run leaves that nothing interrupts."""
    runs = tmp_path_factory.mktemp("whole")
    result = shell(*COMMAND, "--runs", runs, "--name", "run")
    assert result.code == 0, result.err
    return final(runs / "run")


def test_kill(start, shell, wait_for, whole, tmp_path):
    """Killed twice (no handler runs), each time at a moment drawn by chance after a new checkpoint: the final state,
    optimiser and statistics included, is that of the uninterrupted run bit for bit, and so are all losses."""
    folder = tmp_path / "run"
    known: set[str] = set()

    def checkpoints():
        return {path.name for path in (folder / "checkpoints").glob("*") if path.name.isdecimal()}

    for more in ((), ("--resume",)):
        process = start(*COMMAND, "--runs", tmp_path, "--name", "run", *more)
        wait_for(process, lambda known=known: checkpoints() - known)
        time.sleep(random.uniform(0, 0.5))
        process.kill()
        process.communicate()
        known = checkpoints()
        assert "finish" not in kinds(folder), "killed in time"
    result = shell(*COMMAND, "--runs", tmp_path, "--name", "run", "--resume")
    assert result.code == 0, result.err
    assert kinds(folder).count("resume") == 2
    assert_same(final(folder), whole)


def test_asked_to_stop(start, shell, wait_for, whole, tmp_path):
    """SIGTERM, and after --resume Ctrl-C: each time saved at the step it had come to, with code 75."""
    folder = tmp_path / "run"
    for number, more in ((signal.SIGTERM, ()), (signal.SIGINT, ("--resume",))):
        process = start(*COMMAND, "--runs", tmp_path, "--name", "run", *more)
        before = kinds(folder).count("save")
        wait_for(process, lambda before=before: kinds(folder).count("save") > before)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 75, err
        assert out.splitlines()[-1].count("--resume") == 1 and "Traceback" not in err
        assert kinds(folder)[-1] == "stop"
    result = shell(*COMMAND, "--runs", tmp_path, "--name", "run", "--resume")
    assert result.code == 0, result.err
    assert_same(final(folder), whole)
