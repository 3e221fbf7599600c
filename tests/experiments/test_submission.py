"""From a challenge's official layout to a submission, by one command, and to its score by another."""

import jax
import official

from ophjax.data import challenges
from ophjax.train import results
from ophjax.types import Method


def test_several_processes_write_none_and_say_so(tmp_path, monkeypatch, capsys):
    written = []
    method = Method(*[None] * 6, submit=lambda folder, examples: written.append(folder))
    results.write_submission(method, tmp_path, iter(()))
    assert written == [tmp_path / "submission"] and not capsys.readouterr().out
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    results.write_submission(method, tmp_path, iter(()))
    assert len(written) == 1 and "No submission was written" in capsys.readouterr().out
    results.write_submission(method._replace(submit=None), tmp_path, iter(()))
    assert not capsys.readouterr().out


def test_goals(tmp_path, command, untrained, one_report):
    """From the official layout to a submission at the original size, which the evaluator reads."""
    official.goals_truth(tmp_path / "Train", count=16)
    official.goals_truth(tmp_path / "Validation", count=3)
    runs = ("--runs", tmp_path / "runs", "--name", "one", "--train.eval-every", "100")
    where = ("--data.root", tmp_path / "Train", "--data.test-root", tmp_path / "Validation", "--data.width", "48")
    result = command("--method", "goals", "--data", "goals", "--preset", "smoke", *where, *runs)
    assert result.code == 0, result.err
    submission = tmp_path / "runs" / "one" / "submission"
    assert len(list((submission / "Layer_Segmentations").iterdir())) == 3
    found = challenges.score_goals(tmp_path / "Validation", submission)
    assert 0 <= found.scores["dice"] <= 1 and 0 <= found.scores["auc"] <= 1 and not found.remarks
    page = (tmp_path / "runs" / "one" / "report.html").read_text()
    assert "Thickness of the layers" in page and "choroid: thickness in rows" in page


def test_gamma(tmp_path, command, untrained, redraws):
    """All three tasks, their stages fed with twelve of fifteen made eyes; the answers to three others."""
    official.gamma_truth(tmp_path / "training_data", count=15, slices=4)
    official.gamma_truth(tmp_path / "val_data", count=3, slices=4)
    where = ("--data.root", tmp_path / "training_data", "--data.test-root", tmp_path / "val_data")
    sizes = ("--data.slices", "4", "--data.oct-size", "16", "--data.size", "32")
    steps = ("--method.steps", "2", "--method.locator-steps", "2", "--method.segmenter-steps", "2")
    runs = ("--runs", tmp_path / "runs", "--name", "one")
    result = command("--method", "gamma", "--data", "gamma", "--preset", "smoke", *where, *sizes, *steps, *runs)
    assert result.code == 0, result.err
    found = challenges.score_gamma(tmp_path / "val_data", tmp_path / "runs" / "one" / "submission")
    assert not found.remarks and set(found.scores) > {"kappa", "fovea_distance", "dice_cup", "total"}
