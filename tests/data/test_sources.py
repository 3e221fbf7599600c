from __future__ import annotations

import numpy as np
import pytest

from ophjax.data.pipeline import eval_batches
from ophjax.data.sources import Arrays, Balanced, Cached, Chained, Grouped, Joined, Subset, Unlabelled, size_of


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


def test_balanced_leaves_out_what_has_no_known_class():
    assert Balanced(source("a", [1, -1, 0, -1])).groups == [[2], [0]]
    assert Balanced(source("a", [-1, -1])).groups == [[0, 1]]


def test_all_sources_pass_on_how_large_examples_are():
    small, large = source("a", [0, 1]), source("b", [0, 1])
    large.example_bytes = 1 << 27
    for around in (
        Subset(large, [0]), Unlabelled(large), Cached(large), Grouped(large, [[0], [1]]), Balanced(large),
        Chained([small, large]), Joined([large, small]),
    ):  # fmt: skip
        assert size_of(around) == 1 << 27, type(around)
    assert size_of(Chained([small])) == size_of(Joined([])) == 0


class Counted(Arrays):
    """Counts how often each example is read."""

    def __init__(self, *args):
        super().__init__(*args)
        self.reads = np.zeros(len(self), int)

    def __getitem__(self, index):
        self.reads[index] += 1
        return super().__getitem__(index)


def counted(count):
    images = np.arange(count * 12, dtype=np.uint8).reshape(count, 2, 2, 3)
    return Counted([str(i) for i in range(count)], {"image": images})


def test_cache_reads_once_within_its_limit():
    source = counted(10)
    cached = Cached(source, limit_bytes=4 * 12)
    for _ in range(3):
        for i in range(10):
            np.testing.assert_array_equal(cached[i]["image"], counted(10)[i]["image"])
    assert source.reads.tolist() == [1] * 4 + [3] * 6
    assert cached.names == source.names and len(cached) == 10


def test_cache_cannot_be_spoilt():
    cached = Cached(counted(2))
    first = cached[0]
    first["more"] = np.zeros(1)
    with pytest.raises(ValueError, match="read-only"):
        first["image"][:] = 0
    assert set(cached[0]) == {"image"}


def test_cache_under_threads():
    cached = Cached(counted(20), limit_bytes=10 * 12)
    for batch in eval_batches(cached, batch_size=4, threads=4):
        np.testing.assert_array_equal(batch["image"], counted(20)._arrays["image"][batch["index"]])


def test_subset():
    subset = Subset(counted(10), np.array([7, 2]))
    assert subset.names == ["7", "2"] and len(subset) == 2
    assert subset[1]["image"][0, 0, 0] == 24


def test_arrays_of_unequal_length():
    with pytest.raises(ValueError, match="2 names, but image has 3 rows"):
        Arrays(["a", "b"], {"image": np.zeros((3, 2))})
