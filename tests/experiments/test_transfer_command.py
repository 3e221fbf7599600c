"""Few-shot transfer by its command: which trials it keeps, which it takes up again, what it refuses."""

import json
from types import SimpleNamespace

import pytest

import transfer as command
from ophjax.errors import InputError
from ophjax.train import host, hyper
from ophjax.train import transfer as few

WORDS = ["--nets", "resnet", "--shots", "1", "--rates", "0.1", "--starts", "he", "hyper", "--seeds", "2"]
DATA = ["--data.size", "16", "--data.task", "target", "--data.train", "16", "--data.val", "4", "--data.test", "4"]


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Calls the command with networks that are never made; returns the trials that it ran."""
    ran = []

    class Bench:
        def __init__(self, name, data, *, steps, batch_size):
            self.name = name

        def start(self, kind, key, ghn, params, **options):
            return params

        def trial(self, start, shots, seed, rate, variables, *shots_of):
            ran.append((start, seed, variables))
            return few.Trial(self.name, shots, seed, start, rate, [1.0], 0.5, 0.5)

    monkeypatch.setattr(few, "Bench", Bench)
    monkeypatch.setattr(few, "draw", lambda trials, path: None)
    monkeypatch.setattr(hyper, "load_hyper", lambda folder: (SimpleNamespace(), folder.name))
    monkeypatch.setattr(host, "prepare_compiler", lambda: None)

    def run(*words):
        ran.clear()
        assert command.transfer(["--runs", "a", "b", "--out", str(tmp_path), *WORDS, *DATA, *words]) == 0
        return sorted(ran)

    return run


def test_a_line_cut_off_is_run_again(call, tmp_path):
    """A kill in the middle of a line loses that trial and no other, now and at every later call."""
    path = tmp_path / "trials.jsonl"
    assert call() == [("he", 0, "a"), ("he", 1, "b"), ("hyper", 0, "a"), ("hyper", 1, "b")]
    whole = path.read_text()
    assert call() == [] and path.read_text() == whole
    path.write_text(whole[:-9])
    assert call() == [("hyper", 1, "b")]
    assert call() == []
    path.write_text(whole[:20])
    assert len(call()) == 4 and call() == []


def test_trials_of_other_seeds_have_other_runs(call, tmp_path):
    """Seed 1 goes with the second run where 0 is first, with the first where 1 is: not to be mixed in one file."""
    assert call()[1] == ("he", 1, "b")
    with pytest.raises(InputError, match="other options"):
        call("--first-seed", "1")
    path = tmp_path / "trials.jsonl"
    first, *rest = path.read_text().splitlines()
    older = {name: value for name, value in json.loads(first).items() if name != "first_seed"}
    path.write_text("\n".join([json.dumps(older), *rest, ""]))
    assert call() == []


def test_a_batch_has_an_image(call):
    with pytest.raises(InputError, match="--batch-size"):
        call("--batch-size", "0")
