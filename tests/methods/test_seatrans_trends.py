"""SeATrans learns what it is for: the small experiment of its spec and its controls, over seeds of drawn eye grounds.

By the same command that prints the table of the README, in a process without the tests' settings.
"""

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest

import compare

pytestmark = [pytest.mark.slow, pytest.mark.trend]


def test_the_segmentation_assists(tmp_path):
    """The segmenter finds the regions (Dice above 0.8); with its features the AUC is above the image's alone, with
    those of another image of the batch it is not, and shuffled labels give chance. Seeds from 100 on are for tests."""
    variants = ("image-only", "features-shuffled", "labels-shuffled")
    options = ["--first-seed", "100", "--seeds", "3", "--runs", str(tmp_path), "--variants", *variants]
    command = [sys.executable, compare.__file__, "--method", "seatrans", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((Path(tmp_path) / "seatrans-phantoms-demo.json").read_text())
    ours, plain, mixed, chance = ([one["auc"] for one in found[name]] for name in ("seatrans", *variants))
    assert min(one[name] for one in found["seatrans"] for name in ("dice_disc", "dice_cup")) > 0.8
    assert min(a - b for a, b in zip(ours, plain, strict=True)) > 0
    assert mean(mixed) < mean(ours) and abs(mean(mixed) - mean(plain)) < (mean(ours) - mean(plain))
    assert 0.4 < mean(chance) < 0.6
