"""README.md keeps its word: its library example runs, and every option that its commands name exists."""

import contextlib
import functools
import io
import re
from pathlib import Path

import flax.linen as nn
import pytest
from made_hyper import write_run

import run
from ophjax import methods

README = Path(__file__).parent.parent / "README.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_the_library_examples_run(tmp_path, monkeypatch):
    hyper, artefact, method, transform = blocks("python")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    write_run(tmp_path / "runs" / "eyes")
    scope: dict = {"my_module": nn.Dense(3)}
    exec(compile(hyper, "README.md", "exec"), scope)
    assert scope["variables"]["params"]["kernel"].shape == (3, 3)
    # An artefact takes a trained run; its own tests load one by these words.
    exec(compile(artefact.splitlines()[0], "README.md", "exec"), scope)
    assert callable(scope["load"]) and 'load("model")' in artefact
    # The smallest nets instead of the demo's, since only the calls are the point.
    scope = {}
    exec(compile(method.replace("fccl.DEMO", "fccl.SMOKE"), "README.md", "exec"), scope)
    assert float(scope["logs"]["loss"]) > 0
    exec(compile(transform, "README.md", "exec"), scope)
    assert all(float(abs(leaf).max()) > 0 for leaf in scope["gradients"].values())


def commands():
    text = "\n".join(blocks("bash"))
    return sorted({c.split("#")[0].strip() for c in re.findall(r"python experiments/run.py (--method .*)", text)})


def test_runs_that_commands_take_are_made_by_others():
    """By their --name, or by the name that a run has without one; NAME and its like stand for any run."""
    made = {name for command in commands() for name in re.findall(r"--name (\S+)", command)}
    made |= {
        f"{name}-{methods.load(name).DATA}-demo-seed0" for name in methods.METHODS if f"--method {name}" in commands()
    }
    taken = {name for name in re.findall(r"\bruns/([\w-]+)", "\n".join(blocks("bash"))) if not name.isupper()}
    assert taken and taken <= made


@functools.cache
def help_of(*words):
    """What --help prints for a method and a data set."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as leaving:
        run.parse([*words, "--help"])
    assert not leaving.value.code
    return said.getvalue()


@pytest.mark.parametrize("command", commands())
def test_commands_name_options_that_exist(command):
    """The help of the same method and data set lists every option of the command."""
    words = command.replace('"', "").split()
    text = help_of(*(w for i, w in enumerate(words) if {"--method", "--data", "--preset"} & {w, words[i - 1]}))
    for option in (w for w in words if w.startswith("--") and w not in ("--method", "--data", "--preset", "--help")):
        assert re.search(rf"{re.escape(option)}\b", text), option
