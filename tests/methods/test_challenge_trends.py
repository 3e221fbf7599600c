"""What GOALS and GAMMA learn on drawn scans and pairs, over seeds: the small experiments of their specifications.

By the same command that prints the tables of the README, in a process without the tests' settings.
"""

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest

import compare
from ophjax.data import eyes
from ophjax.methods import goals
from ophjax.train.logs import read_events

pytestmark = pytest.mark.trend

# Seeds of 100 and up are for building and testing; reported comparisons use lower ones.
SEEDS = ("--first-seed", "100", "--seeds", "3")


def call(script, *argv):
    path = Path(compare.__file__).parent / script
    done = subprocess.run([sys.executable, path, *map(str, argv)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def table(tmp_path, method, data, variants, *rest):
    """Test scores of each seed, by variant."""
    call("compare.py", "--method", method, *SEEDS, "--runs", tmp_path, "--variants", *variants, *rest)
    return json.loads((tmp_path / f"{method}-{data}-demo.json").read_text())


def test_layers_and_glaucoma(tmp_path):
    """The U-Net's Dice is above 0.9 and its edges within a pixel, and it is better than the U-shape
    without skips; layers are in their order; glaucoma is found from the image and from the first layer's thickness,
    and not from shuffled labels."""
    found = table(tmp_path, "goals", "bscans", ("ushape", "ordered", "labels-shuffled"))
    for scores in found["goals"]:
        assert min(scores[f"dice_{name}"] for name in goals.LAYERS) > 0.88 and scores["dice"] > 0.9
        assert max(scores[f"med_{name}"] for name in goals.LAYERS) < 1 and scores["ordered"] > 0.99
    assert min(scores["ordered"] for scores in found["ordered"]) == 1
    for one, other in zip(found["goals"], found["ushape"], strict=True):
        assert one["dice"] > other["dice"] > 0.7
    assert mean(scores["auc"] for scores in found["goals"]) > 0.8
    assert min(scores["auc_thickness"] for scores in found["goals"]) > 0.95
    assert 0.3 < mean(scores["auc"] for scores in found["labels-shuffled"]) < 0.7


def test_both_modalities_tell_what_neither_does(tmp_path):
    """Fused grading beats each modality by 0.15 kappa, and these stay under their computed ceilings (with a margin of
    0.06 for 400 cases)."""
    found = table(tmp_path, "gamma", "eyes", ("fundus-only", "oct-only"))
    ceiling = eyes.ceilings()["tuned"]
    for both, one, other in zip(found["gamma"], found["fundus-only"], found["oct-only"], strict=True):
        best = max(one["kappa"], other["kappa"])
        assert both["kappa"] >= 0.8 and both["kappa"] >= best + 0.15 and best <= ceiling + 0.06


def test_an_interaction_needs_more_than_a_sum(tmp_path):
    """On the rule xor a linear layer on both branches learns nothing, a hidden layer on their product does."""
    found = table(tmp_path, "gamma", "eyes", ("additive",), "--data.rule", "xor")
    assert mean(scores["kappa"] for scores in found["gamma"]) > 0.8
    assert abs(mean(scores["kappa"] for scores in found["additive"])) < 0.15


def test_real_layers_are_learned_by_heart(real_data, tmp_path):
    """The circle scan alone: an overfit shows that image, mask and loss fit together."""
    where = ("--data", "octlayers", "--data.root", real_data / "oct_layers" / "circumpapillary_spectralis")
    sizes = ("--data.device", "spectralis", "--data.size", "128", "--data.width", "96", "--train.batch-size", "2")
    steps = ("--method.segmenter-steps", "200", "--method.no-flip", "--runs", tmp_path, "--name", "one")
    call("run.py", "--method", "goals", *where, *sizes, *steps)
    scores = next(e["scores"] for e in read_events(tmp_path / "one" / "metrics.jsonl") if e["event"] == "test")
    assert scores["dice_rnfl"] > 0.9 and scores["dice_gcipl"] > 0.9


def test_the_fovea_is_found(tmp_path):
    """A dark spot at any place: mean normalised distance under 0.03 (GAMMA spec, section (k))."""
    found = table(tmp_path, "gamma", "eyes", ("gamma",), "--method.task", "fovea")
    assert max(scores["fovea_distance"] for scores in found["gamma"]) < 0.03


@pytest.mark.parametrize("segmenter", ["unet", "ushape"])
def test_disc_and_cup_are_found(segmenter, tmp_path):
    """Disc Dice above 0.9 and an error of the vertical cup-to-disc ratio under 0.08, also for the baseline."""
    words = ("--method.task", "segmentation", "--method.segmenter", segmenter)
    for scores in table(tmp_path, "gamma", "eyes", ("gamma",), *words)["gamma"]:
        assert scores["dice_disc"] > 0.9 and scores["cdr_error"] < 0.08
