"""Runs brought back from their folder: old ones, broken ones; batches that do not fit."""

import json
import shutil

import jax
import numpy as np
import pytest
from made_run import make_run

from ophjax import trees
from ophjax.errors import InputError
from ophjax.train import predict
from ophjax.train.restore import restore


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_run("fccl", tmp_path_factory.mktemp("runs") / "fccl")


def test_a_run_comes_back_without_its_data(made):
    found = restore(made.folder, which="best")
    assert found.classes == made.config.classes and found.config == made.config
    for name in ("params", "extra"):
        ours, theirs = (trees.named_leaves(getattr(one, name)) for one in (found.state, made.state))
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[path], theirs[path]) for path in ours)
    assert predict.entries_read(found) == {"image"}


@pytest.mark.parametrize("name", ["fccl", "selfcal", "dualsr", "gamma"])
def test_older_runs_do_not_say_their_shapes(name, tmp_path):
    """Runs written before config.json described an example: what is needed follows from the data set's options."""
    made = make_run(name, tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    told = restore(tmp_path).example
    del about["example"]
    (tmp_path / "config.json").write_text(json.dumps(about))
    found = restore(tmp_path)
    shapes = {entry: (spec.shape, spec.dtype) for entry, spec in found.example.items()}
    assert {entry: (spec.shape, spec.dtype) for entry, spec in told.items()}.items() <= shapes.items()
    assert trees.count(found.state.params) == trees.count(made.state.params)


def test_no_best_checkpoint_is_told(made, tmp_path):
    """Stages before the last have no score, nor has a score that is no number; the newest is not taken instead."""
    shutil.copytree(made.folder, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("*/metrics"):
        shutil.rmtree(path)
    with pytest.raises(InputError, match="--checkpoint newest"):
        restore(tmp_path / "run", which="best")
    assert restore(tmp_path / "run").step == 1


def change(made, tmp_path, **entries):
    about = json.loads((made.folder / "config.json").read_text())
    method = about["config"]["method"] | entries
    about["config"]["method"] = method
    (tmp_path / "config.json").write_text(json.dumps(about))
    (tmp_path / "checkpoints").symlink_to(made.folder / "checkpoints")


def test_what_does_not_fit_is_told(made, tmp_path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="is no run"):
        restore(tmp_path)
    change(made, tmp_path, width=16)
    with pytest.raises(InputError, match=r"does not fit its config\.json: params/"):
        restore(tmp_path)
    (tmp_path / "checkpoints").unlink()
    change(made, tmp_path, magic=1)
    with pytest.raises(InputError, match="no option magic any more"):
        restore(tmp_path)


def test_batches_shrink_until_they_fit(made, monkeypatch):
    """By XLA's account, and where the device runs out of memory; always a multiple of the devices."""
    found = restore(made.folder)
    examples = [{"image": np.full(found.example["image"].shape, i, np.uint8)} for i in range(5)]
    whole = predict.Predictor(found, batch_size=30)
    expected = whole(examples)
    assert whole.batch_size == 32
    monkeypatch.setattr(predict, "free_bytes", lambda: 1)
    tight = predict.Predictor(found, batch_size=32)
    outputs = tight(examples)
    assert tight.batch_size == jax.device_count()
    for one, other in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(one["probs"], other["probs"], atol=1e-6)

    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(tight, "_program", full)
    tight.batch_size = 16
    assert len(tight(examples)) == 5 and tight.batch_size == 8
    monkeypatch.setattr(tight, "_compile", full)
    monkeypatch.setattr(tight, "_program", None)
    with pytest.raises(InputError, match="fit into memory"):
        tight(examples)
