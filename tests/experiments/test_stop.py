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
STEPS = 15
COMMAND = ("--method", "fccl", "--preset", "smoke", "--method.steps", STEPS, "--train.eval-every", 3, "--name", "run")


def final(folder):
    """The last state, leaf by leaf, and the loss of every step; of a step run twice the later one."""
    with closing(Checkpoints(folder / "checkpoints", read_only=True)) as saved:
        assert saved.steps()[-1] == STEPS
        state = trees.named_leaves(saved.read(STEPS))
    return state, {e["step"]: e["loss"] for e in read_events(folder / "metrics.jsonl") if e["event"] == "train"}


def kinds(folder):
    return [event["event"] for event in read_events(folder / "metrics.jsonl")]


def test_killed_and_asked_to_stop(start, shell, command, redraws, wait_for, tmp_path):
    """One run, begun and three times resumed: killed (no handler runs) at a moment drawn by chance after a checkpoint;
    by SIGTERM and by Ctrl-C saved at the step it had come to, with code 75; then left alone. The final state, optimiser
    and statistics included, is that of an uninterrupted run bit for bit, and so are all losses."""
    folder = tmp_path / "stopped" / "run"
    given = (*COMMAND, "--runs", folder.parent)

    def until_saved(*more):
        """Starts a process and waits for its next checkpoint."""
        before = kinds(folder).count("save")
        process = start(*given, *more)
        wait_for(process, lambda: kinds(folder).count("save") > before)
        return process

    process = until_saved()
    wait_for(process, (folder / "checkpoints" / "3").exists)
    time.sleep(random.uniform(0, 0.5))
    process.kill()
    process.communicate()
    assert "stop" not in kinds(folder) and "finish" not in kinds(folder), "killed in time"
    for number in (signal.SIGTERM, signal.SIGINT):
        process = until_saved("--resume")
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 75, err
        assert out.splitlines()[-1].count("--resume") == 1 and "Traceback" not in err
        assert kinds(folder)[-1] == "stop"
    result = shell(*given, "--resume")
    assert result.code == 0, result.err
    assert kinds(folder).count("resume") == 3

    assert command(*COMMAND, "--runs", tmp_path / "whole").code == 0
    (state, losses), (expected, alone) = final(folder), final(tmp_path / "whole" / "run")
    assert losses == alone and state.keys() == expected.keys()
    assert [path for path in state if not np.array_equal(state[path], expected[path])] == []
