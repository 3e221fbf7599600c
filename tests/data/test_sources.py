from __future__ import annotations

import numpy as np
import pytest

from ophjax.data.sources import Arrays, Balanced, Joined, Subset, Unlabelled


def source(prefix, labels):
    labels = np.array(labels, np.int32)
    return Arrays([f"{prefix}{i}" for i in range(len(labels))], {"image": 10 * labels + 1, "label": labels})


def test_unlabelled_hides_masks_too():
    masks = Arrays(["a"], {"label": np.ones(1, np.int32), "mask": np.ones((1, 2, 2, 1), np.uint8)})
    hidden = Unlabelled(masks)[0]
    assert not hidden["mask"].any() and hidden["mask"].shape == (2, 2, 1) and hidden["mask_weight"] == 0
    assert masks[0]["mask"].all()


def test_unlabelled_hides_labels_and_nothing_else():
    known = source("a", [2, 0])
    hidden = Unlabelled(known)
    assert len(hidden) == 2 and hidden.names == ["a0", "a1"]
    assert [int(example["label"]) for example in (hidden[0], hidden[1])] == [-1, -1]
    assert hidden[0]["label"].dtype == np.int32 and hidden[0]["label"].shape == ()
    assert hidden[0]["image"] == known[0]["image"]
    assert known[0]["label"] == 2  # what lies beneath is not changed


def test_joined_places_parts_one_after_the_other():
    joined = Joined([source("a", [0, 1, 2]), source("b", []), source("c", [1, 0])])
    assert len(joined) == 5 and joined.names == ["a0", "a1", "a2", "c0", "c1"]
    assert [list(group) for group in joined.groups] == [[0, 1, 2], [], [3, 4]]
    assert [int(joined[i]["label"]) for i in range(5)] == [0, 1, 2, 1, 0]
    # An empty part keeps its number.
    assert [int(joined[i]["domain"]) for i in range(5)] == [0, 0, 0, 2, 2]
    assert joined[4]["domain"].dtype == np.int32 and joined[4]["domain"].shape == ()
    for outside in (-1, 5):
        with pytest.raises(IndexError, match=f"Example {outside} of 5"):
            joined[outside]


def test_joined_counts_from_where_it_is_told():
    joined = Joined([source("a", [0]), source("b", [1])], first=1)
    assert [int(joined[i]["domain"]) for i in range(2)] == [1, 2]


def test_joined_of_a_part_of_a_joined_source_numbers_anew():
    inner = Joined([source("a", [0, 1]), source("b", [1, 0])])
    outer = Joined([Subset(inner, [3, 2]), Subset(inner, [0])])
    assert outer.names == ["b1", "b0", "a0"]
    assert [int(outer[i]["domain"]) for i in range(3)] == [0, 0, 1]


def test_balanced_groups_by_label():
    rare = source("a", [2, 0, 2, 2, 5])
    balanced = Balanced(rare)
    assert balanced.groups == [[1], [0, 2, 3], [4]]
    assert len(balanced) == 5 and balanced.names == rare.names
    assert balanced[4]["label"] == 5
