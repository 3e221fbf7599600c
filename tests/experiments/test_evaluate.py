"""The command evaluate.py: what it prints, its exit codes, that it needs no accelerator library, and its speed."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import official
from PIL import Image

import evaluate
from ophjax.metrics.greys import GOALS, encode


def call(monkeypatch, capsys, *argv):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, argv)])
    code = evaluate.main()
    return code, *capsys.readouterr()


def test_gamma(tmp_path, monkeypatch, capsys):
    official.gamma_truth(tmp_path / "truth")
    official.gamma_submission(tmp_path / "answer")
    where = ("gamma", "--truth", tmp_path / "truth", "--submission", tmp_path / "answer")
    code, out, err = call(monkeypatch, capsys, *where)
    assert (code, err) == (0, "") and "total                10" in out
    code, out, _ = call(monkeypatch, capsys, *where, "--json", "--tasks", "grading")
    found = json.loads(out)
    assert code == 0 and found["scores"]["kappa"] == 1 and found["challenge"] == "gamma"
    (tmp_path / "answer" / "Disc_Cup_Segmentations" / "0002.bmp").unlink()
    code, out, err = call(monkeypatch, capsys, *where, "--missing", "worst")
    assert code == 0 and err.startswith("note: ") and "0002" in err
    for more, word in (((), "0002"), (("--size", "big"), "--size")):
        code, out, err = call(monkeypatch, capsys, *where, *more)
        assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1 and word in err


def test_goals_says_that_there_is_no_total(tmp_path, monkeypatch, capsys):
    official.goals_truth(tmp_path / "truth")
    official.goals_submission(tmp_path / "answer")
    code, out, _ = call(
        monkeypatch, capsys, "goals", "--truth", tmp_path / "truth", "--submission", tmp_path / "answer"
    )
    assert code == 0 and "No total" in out and "med_both_choroid" in out


def test_it_needs_no_accelerator_library(tmp_path):
    """In a fresh process that refuses them."""
    official.goals_truth(tmp_path / "truth")
    official.goals_submission(tmp_path / "answer")
    official.gamma_truth(tmp_path / "gamma")
    official.gamma_submission(tmp_path / "gamma-answer")
    code = f"""
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "jaxlib", "flax", "optax", "grain", "orbax", "tensorflow_datasets", "tyro"):
            raise ImportError("refused: " + name)
sys.meta_path.insert(0, Refuse())
import evaluate
for name, truth, answer in (("goals", "truth", "answer"), ("gamma", "gamma", "gamma-answer")):
    sys.argv = ["evaluate.py", name, "--truth", {str(tmp_path)!r} + "/" + truth, "--submission",
                {str(tmp_path)!r} + "/" + answer]
    assert evaluate.main() == 0
"""
    folder = Path(evaluate.__file__).parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr


def test_a_hundred_full_masks_take_less_than_thirty_seconds(tmp_path, monkeypatch, capsys):
    """800 x 1100 pixels, wavy layers, ten different pairs; other work on the same cores has its part in the time."""
    rng, rows = np.random.default_rng(0), np.arange(800)[:, None]
    for name in ("truth/Layer_Masks", "answer/Layer_Segmentations"):
        (tmp_path / name).mkdir(parents=True)
    for i in range(10):
        tops = np.cumsum(np.concatenate([np.full((1, 1100), 200), 40 + rng.integers(0, 3, (5, 1100))]), 0)
        depth = sum((rows >= top).astype(np.uint8) for top in tops)
        for name, shift in (("truth/Layer_Masks", 0), ("answer/Layer_Segmentations", 2)):
            grey = encode(np.array([0, 1, 2, 0, 0, 3, 0], np.uint8)[np.roll(depth, shift, 0)], GOALS)
            first = tmp_path / name / f"{10 * i + 1:04}.png"
            Image.fromarray(grey).save(first, compress_level=1)
            for copy in range(2, 11):
                shutil.copy(first, first.with_stem(f"{10 * i + copy:04}"))
    start = time.perf_counter()
    where = ("--truth", tmp_path / "truth", "--submission", tmp_path / "answer")
    code, out, _ = call(monkeypatch, capsys, "goals", *where)
    taken = time.perf_counter() - start
    assert code == 0 and "dice" in out
    print(f"100 masks: {taken:.1f} s")
    assert taken < 30
