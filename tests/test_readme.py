"""README.md keeps its word: its library example runs, and every option that its commands name exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_the_library_examples_run():
    method, transform = blocks("python")
    # The smallest nets instead of the demo's, since only the calls are the point.
    scope: dict = {}
    exec(compile(method.replace("seatrans.DEMO", "seatrans.SMOKE"), "README.md", "exec"), scope)
    assert float(scope["logs"]["loss"]) > 0
    exec(compile(transform, "README.md", "exec"), scope)
    assert all(float(abs(leaf).max()) > 0 for leaf in scope["gradients"].values())


def commands():
    text = "\n".join(blocks("bash"))
    return sorted({c.split("#")[0].strip() for c in re.findall(r"python experiments/run.py (--method .*)", text)})


@pytest.mark.parametrize("command", commands())
def test_commands_name_options_that_exist(command):
    """The help of the same method and data set lists every option of the command."""
    words = command.replace('"', "").split()
    chosen = [w for i, w in enumerate(words) if {"--method", "--data", "--preset"} & {w, words[i - 1]}]
    run = README.parent / "experiments" / "run.py"
    done = subprocess.run([sys.executable, run, *chosen, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for option in (w for w in words if w.startswith("--") and w not in ("--method", "--data", "--preset", "--help")):
        assert re.search(rf"{re.escape(option)}\b", done.stdout), option
