"""Every method's runs become artefacts that agree with prediction, for any number of images, on several platforms."""

import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from made_run import make_run

import export as exporting
from ophjax.errors import InputError
from ophjax.methods import METHODS
from ophjax.train import export


@pytest.mark.parametrize("name", METHODS)
def test_the_artefact_agrees_with_predict(name, tmp_path):
    made = make_run(name, tmp_path / "run")
    said = exporting.run(["--run", str(made.folder), "--out", str(tmp_path / "out")])
    assert "for cpu, cuda, tpu" in said
    model = export.load(tmp_path / "out")
    examples = [made.data.splits["val"][i] for i in range(2)]
    batch = {key: np.stack([example[key] for example in examples]) for key in model.about["inputs"]}
    whole = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
    expected = jax.jit(made.method.predict)(jax.random.key(0), made.state, whole)
    found = model(**batch)
    assert found.keys() == expected.keys() == model.about["outputs"].keys()
    for output, value in expected.items():
        if value.dtype == np.uint8:  # images: a rounding may fall to either side
            assert np.abs(np.asarray(found[output], int) - np.asarray(value, int)).max() <= 1
        else:
            np.testing.assert_allclose(found[output], value, rtol=1e-5, atol=1e-5, err_msg=output)
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
