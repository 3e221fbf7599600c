"""Every method's runs predict new images from the run's folder alone, as the method itself does."""

import csv
import json

import jax
import numpy as np
import pytest
from made_run import make_run, write_inputs
from PIL import Image

import predict
from ophjax.data import incoming
from ophjax.methods import METHODS
from ophjax.train.predict import Predictor


def read_rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.parametrize("name", METHODS)
def test_predictions_are_the_methods_own(name, tmp_path, monkeypatch, capsys):
    """Two images and a broken file: outputs as ``predict`` gives them, the broken file counted and listed, code 3."""
    made = make_run(name, tmp_path / "run")
    examples = write_inputs(made, tmp_path / "new")
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

    batch = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
    outputs = jax.device_get(jax.jit(made.method.predict)(jax.random.key(0), made.state, batch))
    for i, row in enumerate(rows):
        if "probs" in outputs:
            classes = made.config.classes
            found = [float(row[f"prob_{label}"]) for label in classes]
            np.testing.assert_allclose(found, outputs["probs"][i], atol=2e-5)
            assert row["predicted"] == classes[int(outputs["probs"][i].argmax())]
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
