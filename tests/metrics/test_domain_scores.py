"""Scores by domain."""

import numpy as np
import pytest

from ophjax.errors import InputError
from ophjax.metrics.domain_scores import by_domain, check_names, named


def count(rows):
    """A score with an interval: the mean of the labels."""
    mean = float(rows["label"].mean())
    return {"share": mean, "share_low": mean - 0.1, "share_high": mean + 0.1}


def test_targets_count_alike():
    """A target of four rows and one of one row weigh the same; the source does not count."""
    gathered = {"label": np.array([1, 1, 0, 0, 0, 0, 1]), "domain": np.array([0, 0, 1, 1, 1, 1, 2])}
    found = by_domain(gathered, ("clinic", "mist", "dim"), count)
    assert found["share"] == 0.5 and found["share_worst"] == 0.0
    assert (found["share_clinic"], found["share_mist"], found["share_dim"]) == (1.0, 0.0, 1.0)
    assert found["share_dim_low"] == 0.9
    assert "share_low" not in found, "the mean over targets has no interval of its own"


def test_a_split_without_targets_and_a_single_domain():
    rows = {"label": np.array([1, 0]), "domain": np.array([0, 0])}
    found = by_domain(rows, ("clinic", "mist"), count)
    assert set(found) == {"share_clinic", "share_clinic_low", "share_clinic_high"}
    assert by_domain({"label": np.array([1, 0])}, (), count)["share"] == 0.5


def test_a_cosine_has_no_worst():
    found = by_domain({"label": np.arange(3), "domain": np.arange(3)}, ("a", "b", "c"), lambda _: {"own_cosine": 0.5})
    assert found == {f"own_cosine{end}": 0.5 for end in ("", "_a", "_b", "_c")}


def test_names():
    assert named("dice_cup", "mist") == "dice_cup_mist" and named("auc_high", "mist") == "auc_mist_high"


@pytest.mark.parametrize("name", ["low", "high", "worst", "clinic_low", "a_high"])
def test_names_that_would_read_as_marks(name):
    """``auc_low`` is the lower end of auc, whatever domain may be called so."""
    with pytest.raises(InputError, match=f"A domain cannot be called '{name}'"):
        check_names("domain", ["clinic", name])
    check_names("domain", ["lower", "highland", "low-dose", "worst-light", "low_dose"])


def test_a_target_that_lacks_a_score():
    """It counts in the scores that it has, and in no mean of the others."""

    def some(rows):
        return {"auc": 0.5} | ({"dice": 0.8} if rows["label"][0] else {})

    found = by_domain({"label": np.array([1, 1, 0]), "domain": np.array([0, 1, 2])}, ("a", "b", "c"), some)
    assert found["dice"] == found["dice_worst"] == 0.8 and found["auc"] == 0.5 and "dice_c" not in found
