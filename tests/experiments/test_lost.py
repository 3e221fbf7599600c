"""One of several processes is gone or cannot go on: the others end soon, with one paragraph. (Processes really killed:
BUILD_NOTES, Robustness.)"""

import threading

import jax
import pytest

import run
from ophjax.errors import InputError
from ophjax.train import mesh

GLOO = "UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:49573\nand more lines"


@pytest.fixture
def ends(monkeypatch):
    """The codes with which the process would have been ended at once."""
    codes = []
    monkeypatch.setattr(run.os, "_exit", codes.append)
    return codes


def raising(monkeypatch, error):
    def fails(argv):
        raise error

    monkeypatch.setattr(run, "run", fails)


def test_the_other_is_gone(command, ends, monkeypatch):
    raising(monkeypatch, jax.errors.JaxRuntimeError(GLOO))
    with pytest.raises(jax.errors.JaxRuntimeError):
        command()  # one process: no other can be gone
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    result = command()
    assert ends == [2]
    assert result.err.startswith("error: Another process") and result.err.count("\n") == 1
    assert "Connection closed" in result.err and "--resume" in result.err
    raising(monkeypatch, jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"))
    with pytest.raises(jax.errors.JaxRuntimeError):
        command()


def test_this_one_cannot_go_on(command, ends, monkeypatch):
    """It says so, and does not wait for the others longer than it must."""
    timers = []

    class Timer:
        def __init__(self, seconds, function, arguments):
            self.start = lambda: timers.append((seconds, function, arguments, self.daemon))

    monkeypatch.setattr(threading, "Timer", Timer)
    raising(monkeypatch, InputError("the disk is full"))
    assert command().code == 2 and timers == []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    result = command()
    assert (result.code, result.err) == (2, "error: the disk is full\n")
    assert timers == [(20, mesh.os._exit, (2,), True)]
