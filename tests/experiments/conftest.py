"""Runs of run.py inside the test process, and a finished smoke run that many tests look at."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from made_run import drawn

import ophjax
import run
from ophjax.train import host, loop
from ophjax.train.logs import read_events
from ophjax.train.report import page


class Result(NamedTuple):
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def command(monkeypatch, capsys) -> Command:
    """Calls run.py's main as the shell would: ``command("--method", "seatrans")``, in this process."""
    # The tests have a cache of compiled programs of their own.
    monkeypatch.setattr(host, "prepare_compiler", lambda: None)

    def call(*argv: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["run.py", *map(str, argv)])
        capsys.readouterr()
        try:
            code = run.main()
        except SystemExit as leaving:  # how tyro and argparse refuse an option
            code = leaving.code
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def redraws(monkeypatch):
    """Draws no report, which takes longer than the steps; holds the last event at each redraw instead."""
    seen = []

    def write_report(folder):
        seen.append([event["event"] for event in read_events(folder / "metrics.jsonl")][-1])

    monkeypatch.setattr(page, "write_report", write_report)
    return seen


write_report = page.write_report


def write_at_end(folder):
    """Draws the report of a finished run, and none while it goes on."""
    last = [event["event"] for event in read_events(folder / "metrics.jsonl")][-1]
    return write_report(folder) if last == "finish" else None


@pytest.fixture
def one_report(monkeypatch):
    """Runs in this process draw their report once."""
    monkeypatch.setattr(page, "write_report", write_at_end)


def draw_init(method, batch, shardings):
    """Stands in for ``loop.compile_init`` where the question is not how a run starts: nothing is compiled."""
    state = jax.device_put(drawn(method, batch), shardings)
    return lambda key: state


@pytest.fixture
def drawn_start(monkeypatch):
    """Runs in this process begin with drawn numbers."""
    monkeypatch.setattr(loop, "compile_init", draw_init)


@pytest.fixture
def untrained(drawn_start, monkeypatch):
    """Nor do they learn: each stage's step is traced for what its stream gives, and neither compiled nor run."""

    def compile_step(stage, mesh, shardings, **options):
        traced = []

        def step(key, state, batch):
            if not traced:
                traced.append(jax.eval_shape(stage.step, key, state, batch))
            return state.replace(step=state.step + 1), {"loss": jnp.zeros(())}

        return step

    monkeypatch.setattr(loop, "compile_step", compile_step)


SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "8",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "PYTHONPATH": os.pathsep.join(
        [str(Path(ophjax.__file__).parents[1]), str(Path(run.__file__).parent), os.environ.get("PYTHONPATH", "")]
    ),
}
"""The settings of the tests' own process for another one, so that both share compiled programs."""


QUICK = Path(__file__).with_name("quick.py")


@pytest.fixture(scope="session")
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts run.py (by way of quick.py) in a process of its own and returns it; what still runs after the tests is
    killed.

    ``blocks`` is the most that it may write to one file, in blocks of 512 bytes.
    """
    started: list[subprocess.Popen[str]] = []

    def call(
        *argv: object, blocks: int | str = "unlimited", script: Path | str = QUICK, **environment: str
    ) -> subprocess.Popen[str]:
        cache = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
        process = subprocess.Popen(
            ["sh", "-c", f'ulimit -f {blocks} && exec "$@"', "sh", sys.executable, script, *map(str, argv)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | SETTINGS | cache | environment,
        )
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def shell(start) -> Command:
    """Like ``command``, in a process of its own."""

    def call(*argv: object, **options: Any) -> Result:
        process = start(*argv, **options)
        out, err = process.communicate(timeout=300)
        return Result(process.returncode, out, err)

    return call


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., None]:
    """Waits until something is so; the process must live as long."""

    def call(process: subprocess.Popen[str], happened: Callable[[], object], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not happened():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)

    return call


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory) -> Path:
    """The folder of a finished run: SeATrans on phantoms at the smoke preset. Not to be changed; copy it."""
    runs = tmp_path_factory.mktemp("runs")
    argv = ["--method", "seatrans", "--preset", "smoke", "--train.eval-every", "4", "--runs", str(runs)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "prepare_compiler", lambda: None)
        patch.setattr(loop, "compile_init", draw_init)
        patch.setattr(page, "write_report", write_at_end)
        assert run.run([*argv, "--name", "first"]) == 0
    return runs / "first"
