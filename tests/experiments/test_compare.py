"""Comparisons: every variant of every method is a command that run.py takes."""

import dataclasses

import pytest

import compare
import run
from ophjax import methods

VARIANTS = [(method, name) for method in methods.METHODS for name in methods.load(method).VARIANTS]


@pytest.mark.parametrize(("method", "variant"), VARIANTS)
def test_a_variant_is_a_command(method, variant):
    """The options give back the changes that they were made of."""
    changes, _ = methods.load(method).VARIANTS[variant]
    _, options = run.parse(["--method", method, "--preset", "smoke", *compare.flags(changes)])
    assert {name: dataclasses.asdict(options.method)[name] for name in changes} == changes


def test_the_table_follows_the_methods_columns():
    """The first column is compared seed by seed; intervals are left out; a score that is missing leaves a gap."""
    scores = {
        "ours": [{"dice": 0.8, "dice_low": 0.7, "auc": 0.9}, {"dice": 0.6, "dice_low": 0.5, "auc": 0.7}],
        "plain": [{"dice": 0.5, "dice_low": 0.4}, {"dice": 0.4, "dice_low": 0.3}],
    }
    head, _, ours, plain = compare.table(scores, ("dice", "auc")).splitlines()
    assert head == "| variant | dice | auc | dice: ours minus this | seeds |"
    assert ours == "| ours | 0.700 ± 0.141 | 0.800 ± 0.141 |  | 2 |"
    assert plain == "| plain | 0.450 ± 0.071 |  | 0.250 ± 0.071 (min +0.200, max +0.300) | 2 |"
