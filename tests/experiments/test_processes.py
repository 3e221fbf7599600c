"""Two processes on loopback with gloo: against one process of as many devices, and asked to stop."""

import csv
import json
import re
import signal
import socket
from contextlib import closing

import jax
import numpy as np
import pytest

import run
from ophjax.train.checkpoint import Checkpoints
from ophjax.train.logs import read_events

pytestmark = pytest.mark.slow

# Small programs and one stage, since both processes compile all of them; two steps.
COMMAND = ("--method", "fccl", "--preset", "smoke", "--method.lr", 1e-3, "--method.steps", 2, "--name", "run")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def train_events(folder):
    return [event for event in read_events(folder / "metrics.jsonl") if event["event"] == "train"]


def losses(folder):
    events = train_events(folder)
    assert [event["step"] for event in events] == [1, 2], "written by one process"
    return np.array([event["loss"] for event in events])


def final_params(folder):
    with closing(Checkpoints(folder / "checkpoints", read_only=True)) as saved:
        return saved.read(saved.steps()[-1])["params"]


def test_two_processes_equal_one(start, command, redraws, tmp_path):
    where = ("--distributed", "--coordinator", f"127.0.0.1:{free_port()}", "--processes", 2)
    processes = [
        start(
            *COMMAND, "--runs", tmp_path / "two", *where, "--process", i, script=run.__file__, JAX_NUM_CPU_DEVICES="4"
        )
        for i in range(2)
    ]
    assert command(*COMMAND, "--runs", tmp_path / "one").code == 0
    outputs = [process.communicate(timeout=500) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    # Gloo writes its line in pieces, between which another may begin.
    said = [[line for line in out.splitlines() if not re.search(r"\[Gloo\]|peer ranks", line)] for out, _ in outputs]
    assert said[0][-1].startswith("Report:") and said[1] == [], "only the first process speaks"

    one, two = (tmp_path / name / "run" for name in ("one", "two"))
    # The first step computes the same from the same numbers, but for the order of sums over devices. After it the
    # states differ by Adam's steps on gradients that are zero but for rounding.
    np.testing.assert_allclose(losses(one)[0], losses(two)[0], rtol=1e-4)
    np.testing.assert_allclose(losses(one)[1], losses(two)[1], rtol=1e-2)
    tables = [list(csv.DictReader((folder / "predictions.csv").read_text().splitlines())) for folder in (one, two)]
    assert len(tables[0]) == 32
    assert [(row["name"], row["label"]) for row in tables[0]] == [(row["name"], row["label"]) for row in tables[1]]
    with np.load(one / "samples.npz") as expected, np.load(two / "samples.npz") as found:
        np.testing.assert_array_equal(expected["image"], found["image"])
        np.testing.assert_allclose(expected["probs"], found["probs"], atol=2e-3)
    assert {path.name for path in one.iterdir()} | {"report.html"} == {path.name for path in two.iterdir()}
    assert json.loads((two / "config.json").read_text())["command"].endswith("--process 0")
    # What two processes saved, one reads. Two steps move a weight by no more than twice the learning rate of 1e-3.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=4e-3), final_params(one), final_params(two))


def test_two_processes_asked_to_stop(start, wait_for, tmp_path):
    """SIGTERM: both save the same step and end with code 75; after --resume come the losses of a run left alone.

    The run is of so many steps that none of it can end before the signal is heard, which takes a second or two. The run
    left alone is stopped as well, but only past the last step of the other.
    """
    command = (
        "--method", "fccl", "--preset", "smoke", "--method.steps", 100_000, "--train.eval-every", 100_000,
        "--name", "run",
    )  # fmt: skip

    def train_until(step, runs, *more):
        """Signals both processes once ``step`` is written down; returns the losses and the steps of the checkpoints."""
        folder = runs / "run"
        where = ("--distributed", "--coordinator", f"127.0.0.1:{free_port()}", "--processes", 2)
        processes = [
            start(*command, "--runs", runs, *where, "--process", i, *more, JAX_NUM_CPU_DEVICES="1") for i in range(2)
        ]
        wait_for(processes[0], lambda: any(e["step"] >= step for e in train_events(folder)), seconds=500)
        for process in processes:
            process.send_signal(signal.SIGTERM)
        outputs = [process.communicate(timeout=300) for process in processes]
        assert [process.returncode for process in processes] == [75, 75], outputs
        assert outputs[0][0].splitlines()[-1].count("--resume") == 1
        events = list(read_events(folder / "metrics.jsonl"))
        assert events[-1]["event"] == "stop"
        saves = [e["step"] for e in events if e["event"] == "save"]
        assert saves[-1] == events[-1]["step"], "saved at the step it had come to"
        return {e["step"]: e["loss"] for e in train_events(folder)}, saves

    first, (halfway,) = train_until(2, tmp_path / "stopped")
    assert list(first) == list(range(1, halfway + 1))
    both, (_, last) = train_until(halfway + 5, tmp_path / "stopped", "--resume")
    assert list(both) == list(range(1, last + 1)) and last >= halfway + 5, "each step once"
    alone, _ = train_until(last, tmp_path / "alone")
    assert both == {step: alone[step] for step in both}


def test_processes_that_are_not_all_named(shell, tmp_path):
    result = shell(*COMMAND, "--runs", tmp_path, "--distributed", "--processes", 2)
    assert result.code == 2 and "Give all three" in result.err and result.err.count("\n") == 1
