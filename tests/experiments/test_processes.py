"""Two processes of four devices each, on loopback with gloo, against one process of eight."""

import csv
import json
import socket
from contextlib import closing

import jax
import numpy as np
import pytest

from ophjax.train.checkpoint import Checkpoints
from ophjax.train.logs import read_events

pytestmark = pytest.mark.slow

SMOKE = ("--method", "seatrans", "--preset", "smoke")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def losses(folder):
    events = [event for event in read_events(folder / "metrics.jsonl") if event["event"] == "train"]
    assert [event["step"] for event in events] == list(range(1, 9)), "written by one process"
    return np.array([event["loss"] for event in events])


def test_two_processes_equal_one(start, smoke_run, tmp_path):
    where = ("--distributed", "--coordinator", f"127.0.0.1:{free_port()}", "--processes", 2)
    processes = [
        start(*SMOKE, "--runs", tmp_path, "--name", "first", *where, "--process", i, JAX_NUM_CPU_DEVICES="4")
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=500) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "Report:" in outputs[0][0] and outputs[1][0] == "", "only the first process speaks"

    # The first step of a stage computes the same from the same numbers, but for the order of sums over devices. Later
    # steps drift, since Adam magnifies rounding.
    one, two = losses(smoke_run), losses(tmp_path / "first")
    np.testing.assert_allclose(one[0], two[0], rtol=1e-4)
    np.testing.assert_allclose(one, two, rtol=0.1)
    tables = [list(csv.DictReader((run / "predictions.csv").open())) for run in (smoke_run, tmp_path / "first")]
    assert [(row["name"], row["label"]) for row in tables[0]] == [(row["name"], row["label"]) for row in tables[1]]
    with np.load(smoke_run / "samples.npz") as expected, np.load(tmp_path / "first" / "samples.npz") as found:
        np.testing.assert_array_equal(expected["image"], found["image"])
    assert {path.name for path in (tmp_path / "first").iterdir()} == {path.name for path in smoke_run.iterdir()}
    assert json.loads((tmp_path / "first" / "config.json").read_text())["command"].endswith("--process 0")

    # What two processes saved, one reads.
    with closing(Checkpoints(tmp_path / "first" / "checkpoints", read_only=True)) as saved:
        params = saved.read(saved.steps()[-1])["params"]
    with closing(Checkpoints(smoke_run / "checkpoints", read_only=True)) as saved:
        expected = saved.read(saved.steps()[-1])["params"]
    assert jax.tree.structure(params) == jax.tree.structure(expected)


def test_processes_that_are_not_all_named(shell, tmp_path):
    result = shell(*SMOKE, "--runs", tmp_path, "--distributed", "--processes", 2)
    assert result.code == 2 and "Give all three" in result.err and result.err.count("\n") == 1
