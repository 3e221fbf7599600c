import numpy as np
import pytest

from ophjax.data.split import split
from ophjax.errors import InputError

THIRDS = (0.6, 0.15, 0.25)


def singles(*counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    return labels, [f"image{i:03d}" for i in range(len(labels))]


def test_each_position_comes_once():
    labels, groups = singles(18, 32)
    parts = split(labels, groups, fractions=THIRDS, seed=0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(50))
    assert all((np.diff(part) > 0).all() for part in parts)


@pytest.mark.parametrize("seed", range(5))
def test_classes_keep_their_shares(seed):
    labels, groups = singles(18, 32)
    for part, share in zip(split(labels, groups, fractions=THIRDS, seed=seed), THIRDS, strict=True):
        # Less than one image away from the exact share: what the docstring promises for single images.
        assert np.all(np.abs(np.bincount(labels[part]) - share * np.array([18, 32])) < 1)


def test_rare_class_reaches_every_part():
    labels, groups = singles(3, 60)
    for part in split(labels, groups, fractions=THIRDS, seed=1):
        assert (labels[part] == 0).sum() == 1


def test_patients_are_not_divided():
    rng = np.random.default_rng(0)
    groups = [f"p{i}" for i in rng.integers(0, 60, 200)]
    labels = rng.integers(0, 2, 200)
    parts = split(labels, groups, fractions=THIRDS, seed=3)
    owners = [{groups[i] for i in part} for part in parts]
    assert not (owners[0] & owners[1] or owners[0] & owners[2] or owners[1] & owners[2])
    for part, share in zip(parts, THIRDS, strict=True):
        # A patient has 3.3 images on average; 7 of them is the largest here, so no part misses by more.
        assert abs(len(part) - share * 200) <= 7


def test_seed_decides_and_order_does_not():
    labels, groups = singles(20, 20)
    first = split(labels, groups, fractions=THIRDS, seed=0)
    again = split(labels[::-1], groups[::-1], fractions=THIRDS, seed=0)
    other = split(labels, groups, fractions=THIRDS, seed=1)
    assert [{groups[i] for i in part} for part in first] == [{groups[39 - i] for i in part} for part in again]
    assert set(first[2].tolist()) != set(other[2].tolist())


def test_golden_split_stays():
    # Written down from the first run: users' published splits must not move with a new version.
    labels, groups = singles(5, 5)
    parts = split(labels, groups, fractions=(0.5, 0.5), seed=0)
    assert parts[1].tolist() == [2, 4, 5, 6]


@pytest.mark.parametrize("fractions", [(0.5, 0.6), (1.0, 0.0), (1.2, -0.2)])
def test_impossible_fractions(fractions):
    with pytest.raises(InputError, match="fractions"):
        split(*singles(5, 5), fractions=fractions, seed=0)


def test_negative_seed():
    with pytest.raises(InputError, match="seed is -1"):
        split(*singles(5, 5), fractions=(0.5, 0.5), seed=-1)


def test_too_few_of_a_class():
    with pytest.raises(InputError, match="Class 0 occurs in only 2"):
        split(*singles(2, 30), fractions=THIRDS, seed=0)


def test_one_patient_holds_a_class():
    labels = np.array([0] * 6 + [1] * 6)
    groups = ["same"] * 6 + [f"p{i}" for i in range(6)]
    with pytest.raises(InputError, match="Class 0 occurs in only 1"):
        split(labels, groups, fractions=(0.5, 0.5), seed=0)


def test_settled_groups_stay_and_count():
    """Forty groups of two classes, seven of them settled: the parts keep their shares, the others are drawn."""
    labels, groups = np.arange(40) % 2, [f"g{i}" for i in range(40)]
    settled = {f"g{i}": 2 for i in range(6)} | {"g6": 1, "elsewhere": 0}
    parts = split(labels, groups, fractions=(0.6, 0.15, 0.25), seed=0, settled=settled)
    assert [len(part) for part in parts] == [24, 6, 10]
    assert {0, 1, 2, 3, 4, 5} <= set(parts[2].tolist()) and 6 in parts[1]
    free = split(labels, groups, fractions=(0.6, 0.15, 0.25), seed=0, settled={})
    for one, other in zip(free, split(labels, groups, fractions=(0.6, 0.15, 0.25), seed=0), strict=True):
        np.testing.assert_array_equal(one, other)
