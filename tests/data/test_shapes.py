"""Drawn shapes: the same by seed and index, two tasks without a common class, masks that cover what is bright."""

import numpy as np
import pytest

from ophjax.data import shapes
from ophjax.errors import InputError


def test_examples_are_fixed_by_seed_and_index():
    one, two = (shapes.draw(3, 5, 24, "source") for _ in range(2))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not np.array_equal(one["image"], shapes.draw(4, 5, 24, "source")["image"])
    assert one["image"].shape == (24, 24, 3) and one["mask"].shape == (24, 24, 1)


@pytest.mark.parametrize("task", shapes.TASKS)
def test_classes_take_turns_and_lie_within_their_masks(task):
    data = shapes.make(shapes.Config(size=32, task=task, train=24, val=8, test=8))
    assert [int(data.splits["train"][i]["label"]) for i in range(8)] == [0, 1, 2, 3] * 2
    assert data.classes == shapes.TASKS[task] and data.regions == ("lesion",)
    for i in range(24):
        example = data.splits["train"][i]
        grey, inside = example["image"][..., 0].astype(float), example["mask"][..., 0] == 1
        bright = grey > 0.35 * 255 + 0.5 * (np.quantile(grey, 0.99) - 0.35 * 255) + 20
        assert 0.03 < inside.mean() < 0.6
        assert inside[bright].mean() > 0.9


def test_tasks_and_splits_share_nothing():
    assert not set(shapes.TASKS["source"]) & set(shapes.TASKS["target"])
    data = shapes.make(shapes.Config(size=16, train=4, val=4, test=4))
    names = [name for split in ("train", "val", "test") for name in data.splits[split].names]
    assert len(set(names)) == 12
    with pytest.raises(IndexError):
        shapes.Shapes(range(3), shapes.Config())[3]


@pytest.mark.parametrize("change", [dict(size=8), dict(seed=-1), dict(train=0), dict(test=200_000)])
def test_impossible_settings_are_refused(change):
    with pytest.raises(InputError):
        shapes.make(shapes.Config(**change))
