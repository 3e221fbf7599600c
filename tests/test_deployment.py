"""Every method outside the training loop: from a run's folder alone it predicts new images as the method itself does,
and becomes an artefact that agrees with that, for any number of images and on several platforms."""

import csv
import json
import os
import re
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from made_run import Made, make_run, write_inputs
from PIL import Image

import export as exporting
import predict
from ophjax.data import incoming
from ophjax.errors import InputError
from ophjax.methods import METHODS
from ophjax.metrics.ranking import choose_classes
from ophjax.train import export
from ophjax.train.predict import Predictor


class Known(NamedTuple):
    """A run, two examples of its validation split as a batch, and what its method answers on them."""

    made: Made
    batch: dict[str, np.ndarray]
    outputs: dict[str, Any]


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    found: dict[str, Known] = {}

    def make(name):
        if name not in found:
            head = {"head": "ordinal"} if name == "gamma" else {}  # its grades are not the most probable ones
            made = make_run(name, tmp_path_factory.mktemp(name) / "run", **head)
            examples = [made.data.splits["val"][i] for i in range(2)]
            batch = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
            outputs = jax.device_get(jax.jit(made.method.predict)(jax.random.key(0), made.state, batch))
            found[name] = Known(made, batch, outputs)
        return found[name]

    return make


def read_rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.parametrize("name", METHODS)
def test_predictions_are_the_methods_own(name, known, tmp_path, capsys):
    """Two images and a broken file: outputs as ``predict`` gives them, the broken file counted and listed, code 3."""
    made, _, outputs = known(name)
    write_inputs(made, tmp_path / "new")
    broken = tmp_path / "new" / ("multi-modality_images/0009/0009.jpg" if name == "gamma" else "broken.png")
    broken.parent.mkdir(exist_ok=True)
    broken.write_bytes(b"no image")
    out = tmp_path / "out"
    assert predict.run(["--run", str(made.folder), "--input", str(tmp_path / "new"), "--out", str(out)]) == 3
    assert "1 file(s) were skipped" in capsys.readouterr().err
    skipped = read_rows(out / "skipped.csv")
    assert [row["file"] for row in skipped] == [str(broken)]
    rows = read_rows(out / "predictions.csv")
    names = ["0001", "0002"] if name == "gamma" else ["case0", "case1"]
    assert [row["name"] for row in rows] == names
    about = json.loads((out / "predict.json").read_text())
    assert (about["predicted"], about["skipped"], about["checkpoint"]) == (2, 1, 1)

    for i, row in enumerate(rows):
        if "probs" in outputs:
            classes = made.config.classes
            found = [float(row[f"prob_{label}"]) for label in classes]
            np.testing.assert_allclose(found, outputs["probs"][i], atol=2e-5)
            chosen = choose_classes(outputs["probs"][i][None], ordinal=made.method.ordinal)
            assert row["predicted"] == classes[chosen[0]] and about["ordinal"] == made.method.ordinal
        if "mask_probs" in outputs:
            mask = np.asarray(Image.open(out / "masks" / f"{names[i]}.png"))
            probs, values = outputs["mask_probs"][i], about["mask_values"]
            assert mask.shape == probs.shape[:2] and set(np.unique(mask)) <= set(values.values())
            with np.load(out / "arrays" / f"{names[i]}.npz") as arrays:
                stored = arrays["mask_probs"]
            np.testing.assert_allclose(stored, probs, atol=1e-3)
            last = made.config.regions[-1]
            sure = np.abs(probs[..., -1] - 0.5) > 1e-3
            if not made.method.exclusive:
                np.testing.assert_array_equal((mask == values[last])[sure], (probs[..., -1] > 0.5)[sure])
            assert (out / "overlays" / f"{names[i]}.png").is_file()
        if "restored" in outputs:
            picture = np.asarray(Image.open(out / "pictures" / f"{names[i]}.png")).astype(int)
            assert np.abs(picture - outputs["restored"][i]).max() <= 1
        if "fovea_found" in outputs:
            found = [float(row[f"fovea_found_{k}"]) for k in range(2)]
            np.testing.assert_allclose(found, outputs["fovea_found"][i], rtol=1e-4)


def test_slices_of_a_volume_go_through_together(tmp_path, monkeypatch):
    """One file of 20 slices is one batch, not one for each slice (or for each row of devices)."""
    nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed (extra medical)")
    made, sizes, real = make_run("fccl", tmp_path / "run"), [], Predictor.__call__
    monkeypatch.setattr(Predictor, "__call__", lambda self, rows: sizes.append(len(rows)) or real(self, rows))
    values = np.random.default_rng(0).random((8, 6, 20), np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "mr.nii.gz")
    assert predict.run(["--run", str(made.folder), "--input", str(tmp_path / "mr.nii.gz"), "--no-overlays"]) == 0
    assert sizes == [20]
    assert len(read_rows(made.folder / "predicted" / "mr.nii" / "predictions.csv")) == 20


def test_exclusive_regions_take_the_most_probable():
    probs = np.array([[[0.4, 0.35], [0.2, 0.3], [0.3, 0.6]]], np.float32)
    levels = (0, (1, 2))
    whole = (0, 0, 3, 1)
    assert incoming.to_mask(probs, (3, 1), whole, levels, exclusive=True).tolist() == [[1, 0, 2]]
    assert incoming.to_mask(probs, (3, 1), whole, levels, exclusive=False).tolist() == [[0, 0, 2]]
    framed = incoming.to_mask(probs, (5, 2), (1, 1, 3, 1), (255, (1, 2)), exclusive=True)
    assert framed.tolist() == [[255] * 5, [255, 1, 255, 2, 255]]


@pytest.mark.parametrize("name", METHODS)
def test_the_artefact_agrees_with_predict(name, known, tmp_path):
    made, batch, expected = known(name)
    said = exporting.run(["--run", str(made.folder), "--out", str(tmp_path / "out")])
    assert "for cpu, cuda, tpu" in said
    model = export.load(tmp_path / "out")
    found = model(**{key: batch[key] for key in model.about["inputs"]})
    assert found.keys() == expected.keys() == model.about["outputs"].keys()
    for output, value in expected.items():
        if value.dtype == np.uint8:  # images: a rounding may fall to either side
            assert np.abs(np.asarray(found[output], int) - np.asarray(value, int)).max() <= 1
        else:
            np.testing.assert_allclose(found[output], value, rtol=1e-5, atol=1e-5, err_msg=output)
    assert model.about["ordinal"] == made.method.ordinal == (name == "gamma")
    # Only what prediction reads is there: no critics, no synthesizer, no optimiser.
    assert {path.split("/")[0] for path in model.weights} <= {"params", "extra"}
    unread = {"m2dan": "critics", "ads": "synthesizers", "dualsr": "dual"}.get(name)
    assert unread is None or not any(path.startswith(f"params/{unread}/") for path in model.weights)


@pytest.fixture(scope="module")
def artefact(tmp_path_factory):
    home = tmp_path_factory.mktemp("export")
    made = make_run("fccl", home / "run")
    (home / "run" / "metrics.jsonl").write_text(
        '{"event": "test", "step": 1, "scores": {"accuracy": 0.75, "accuracy_low": 0.6, "accuracy_high": 0.9}}\n'
    )
    exporting.run(["--run", str(made.folder), "--out", str(home / "out"), "--licence", "CC0"])
    return home / "out"


def test_the_cards_snippet_needs_jax_and_safetensors_alone(artefact):
    """The code out of the card, in a process that refuses ophjax, flax, optax, orbax and Grain; three images."""
    text = (artefact / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert len(code.strip().splitlines()) == 10
    refuse = """
import sys
from importlib.abc import MetaPathFinder
class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ophjax", "flax", "optax", "orbax", "grain", "tyro"):
            raise ImportError("refused: " + name)
sys.meta_path.insert(0, Refuse())
"""
    command = [sys.executable, "-c", refuse + code]
    cpu = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=artefact, capture_output=True, text=True, check=False, env=cpu)
    assert done.returncode == 0, done.stderr
    assert "'probs': (3, 4)" in done.stdout


def test_the_card_says_what_it_is(artefact):
    text = (artefact / "README.md").read_text()
    for words in (
        "# fccl on lesions",
        "| accuracy | 0.7500 | 0.6000 to 0.9000 |",
        "no medical device",
        "Weights: CC0",
        "b x 32 x 32 x 3",
    ):
        assert words in text


def test_another_checkpoints_scores_are_not_told(artefact):
    """The test event is of the run's last state, step 1 here."""
    run = artefact.parent / "run"
    assert export.test_scores(run, 1)["accuracy"] == 0.75 and export.test_scores(run, 2) == {}
    about = export.load(artefact).about
    assert "above one half" in export.card({**about, "ordinal": True}) and "above one half" not in export.card(about)
    assert "There are none" in export.card({**about, "scores": {}}) and "There are none" not in export.card(about)


def test_a_batch_size_is_compiled_once(artefact):
    model = export.load(artefact)
    for rows in (1, 3, 1, 3):
        assert model(image=np.zeros((rows, 32, 32, 3), np.uint8))["probs"].shape == (rows, 4)
    assert model.program._cache_size() == 2


def test_what_does_not_fit_is_told(artefact, tmp_path):
    model = export.load(artefact)
    with pytest.raises(InputError, match="needs image as uint8"):
        model(image=np.zeros((1, 16, 16, 3), np.uint8))
    with pytest.raises(InputError, match="is no exported model"):
        export.load(tmp_path)
    for name in ("program.jaxexport", "weights.safetensors", "model.json"):
        (tmp_path / name).write_bytes((artefact / name).read_bytes())
    (tmp_path / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="it is damaged"):
        export.load(tmp_path)
