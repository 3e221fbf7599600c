import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from made_source import counted

from ophjax.data.pipeline import eval_batches, train_batches
from ophjax.data.sources import Arrays, Balanced, Cached, Joined, Subset, Unlabelled
from ophjax.errors import InputError


def numbers(count, **extra):
    """A source whose example i has an image filled with i and label i % 3."""
    arrays = {
        "image": np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8),
        "mask": np.zeros((count, 4, 4, 1), np.uint8),
        "label": np.arange(count, dtype=np.int32) % 3,
        **extra,
    }
    return Arrays([f"n{i}" for i in range(count)], arrays)


def take(batches, count):
    return [next(batches) for _ in range(count)]


def indices(batches):
    return [batch["index"].tolist() for batch in batches]


def flat(batches):
    return np.concatenate([batch["index"] for batch in batches]).tolist()


def equal(first, second):
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])


def test_batch_contents():
    batches = train_batches(numbers(10), batch_size=4, seed=0)
    batch = next(batches)
    batches.close()
    shapes = {key: (array.shape, array.dtype.name) for key, array in batch.items()}
    assert shapes == {
        "image": ((4, 4, 4, 3), "uint8"),
        "mask": ((4, 4, 4, 1), "uint8"),
        "label": ((4,), "int32"),
        "weight": ((4,), "float32"),
        "mask_weight": ((4,), "float32"),
        "index": ((4,), "int32"),
    }
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])
    np.testing.assert_array_equal(batch["label"], batch["index"] % 3)
    assert (batch["weight"] == 1).all() and (batch["mask_weight"] == 1).all()


def test_mask_weight_of_the_source_is_kept():
    known = np.array([0, 1, 0, 1, 1], np.float32)
    for batches in (
        train_batches(numbers(5, mask_weight=known), batch_size=5, seed=0),
        eval_batches(numbers(5, mask_weight=known), batch_size=5),
    ):
        batch = next(batches)
        np.testing.assert_array_equal(batch["mask_weight"], known[batch["index"]])
        batches.close()


def test_every_epoch_holds_everything_in_a_new_order():
    batches = train_batches(numbers(12), batch_size=4, seed=3)
    epochs = [flat(take(batches, 3)) for _ in range(4)]
    batches.close()
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_batches_run_over_the_end_of_an_epoch():
    batches = train_batches(numbers(5), batch_size=8, seed=0)
    seen = flat(take(batches, 5))  # 40 places: each of 5 examples in each of 8 epochs
    batches.close()
    assert np.bincount(seen).tolist() == [8] * 5


def test_seed_decides():
    def first(seed):
        batches = train_batches(numbers(30), batch_size=10, seed=seed)
        order = indices(take(batches, 3))
        batches.close()
        return order

    assert first(1) == first(1) != first(2)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_the_batches_of_one(count):
    source = numbers(17)
    whole = train_batches(source, batch_size=4 * count, seed=5)
    slices = [train_batches(source, batch_size=4, seed=5, process=(i, count)) for i in range(count)]
    for _ in range(12):  # almost three epochs, whose ends fall inside batches
        parts = flat(next(part) for part in slices)
        assert sorted(parts) == sorted(next(whole)["index"].tolist())
    for batches in (whole, *slices):
        batches.close()


@pytest.mark.parametrize("domains", [False, True], ids=["one domain", "three domains"])
def test_resume_is_exact_at_every_position(domains):
    def fresh():
        source, size = (three_domains(), 4) if domains else (numbers(11), 3)
        return train_batches(source, batch_size=size, seed=7, process=(1, 2))

    batches = fresh()
    states, stream = [], []
    for _ in range(9):
        states.append(json.dumps(batches.get_state()))
        stream.append(next(batches))
    batches.close()
    for position, state in enumerate(states):
        resumed = fresh()
        resumed.set_state(json.loads(state))
        for expected in stream[position:]:
            equal(next(resumed), expected)
        resumed.set_state(json.loads(states[0]))  # backwards, on an iterator that has run
        equal(next(resumed), stream[0])
        resumed.close()


@pytest.mark.parametrize("size", [1, 7, 8, 9, 16])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_evaluation_sees_each_example_once(size, count):
    source = numbers(size)
    runs = [list(eval_batches(source, batch_size=4, process=(i, count))) for i in range(count)]
    assert len({len(run) for run in runs}) == 1
    assert len(runs[0]) == -(-size // (4 * count))
    rows = [row for run in runs for batch in run for row in zip(batch["index"], batch["weight"], strict=True)]
    assert sorted(index for index, weight in rows if weight == 1) == list(range(size))
    assert all((index == -1) == (weight == 0) for index, weight in rows)
    for run in runs:
        for batch in run:
            assert batch["image"].shape == (4, 4, 4, 3)
            padding = batch["weight"] == 0
            assert not batch["mask_weight"][padding].any() and not batch["image"][padding].any()


def test_evaluation_keeps_the_order():
    assert indices(eval_batches(numbers(6), batch_size=4)) == [[0, 1, 2, 3], [4, 5, -1, -1]]


@pytest.mark.parametrize("make", [eval_batches, lambda *a, **k: train_batches(*a, seed=0, **k)])
def test_errors_of_the_source_arrive(make):
    class Broken(Arrays):
        def __getitem__(self, index):
            raise InputError("picture 3 cannot be decoded")

    broken = Broken(["a", "b"], {})
    batches = make(broken, batch_size=2)
    with pytest.raises(InputError, match="picture 3 cannot be decoded"):
        next(batches)
    batches.close()


def test_mistakes():
    with pytest.raises(InputError, match="split is empty"):
        train_batches(numbers(0), batch_size=2, seed=0)
    with pytest.raises(InputError, match="split is empty"):
        eval_batches(numbers(0), batch_size=2)
    with pytest.raises(InputError, match="batch size is 0"):
        eval_batches(numbers(3), batch_size=0)
    for seed in (-1, 1 << 32):
        with pytest.raises(InputError, match="The seed is"):
            train_batches(numbers(3), batch_size=2, seed=seed)
    with pytest.raises(ValueError, match="process 2 of 2"):
        eval_batches(numbers(3), batch_size=2, process=(2, 2))


def loaders():
    return [thread for thread in threading.enumerate() if thread.name.startswith("grain-prefetch")]


def settle():
    # A thread ends a moment after its pool was told to; five seconds is far more than it needs.
    deadline = time.monotonic() + 5
    while loaders() and time.monotonic() < deadline:
        time.sleep(0.01)
    return loaders()


def test_close_ends_the_threads():
    assert not settle()
    batches = train_batches(numbers(8), batch_size=2, seed=0, threads=3)
    next(batches)
    assert loaders()
    batches.close()
    assert not settle()
    for _ in eval_batches(numbers(8), batch_size=2, threads=3):
        pass
    assert not settle()  # run to its end and dropped: nobody needs to close it


def test_little_is_read_ahead():
    """The buffer is bounded: whole data sets must not pile up in memory."""
    read = []

    class Counting(Arrays):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    source = Counting([str(i) for i in range(100)], {"image": np.zeros((100, 2, 2, 3), np.uint8)})
    batches = train_batches(source, batch_size=2, seed=0, threads=2)
    next(batches)
    time.sleep(0.2)
    batches.close()
    assert len(read) <= 2 * (1 + 2 + 2)  # the batch taken, and the buffer of threads + 2


@pytest.mark.parametrize(("bytes_each", "ahead"), [(1 << 27, 2), (1 << 30, 1), (0, 5)])
def test_fewer_large_batches_are_read_ahead(bytes_each, ahead):
    """Half a gigabyte of them, or one; what a source says of itself is heard through those around it."""
    source, read = counted(bytes_each)
    batches = train_batches(Subset(Cached(source), range(100)), batch_size=2, seed=0, threads=3)
    next(batches)
    time.sleep(0.2)
    batches.close()
    assert 2 * (1 + ahead - 1) <= len(read) <= 2 * (1 + ahead)


def test_exit_without_close_is_quiet():
    script = (
        "import warnings; warnings.simplefilter('error')\n"
        "import numpy as np\n"
        "from ophjax.data.pipeline import train_batches\n"
        "from ophjax.data.sources import Arrays\n"
        "source = Arrays(list('abc'), {'image': np.zeros((3, 2, 2, 3), np.uint8)})\n"
        "batches = train_batches(source, batch_size=2, seed=0)\n"
        "next(batches)\n"
    )
    # 60 s: an exit that hangs on a thread would never end.
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


# Groups -------------------------------------------------------------------------


def three_domains():
    """12, 5 and 2 examples; positions 0 to 11, 12 to 16, 17 and 18."""
    return Joined([numbers(12), Unlabelled(numbers(5)), Unlabelled(numbers(2))])


def test_domains_have_equal_shares_of_every_batch():
    source = three_domains()
    batches = train_batches(source, batch_size=6, seed=2)
    seen = take(batches, 20)
    batches.close()
    for batch in seen:
        assert batch["domain"].dtype == np.int32 and batch["domain"].tolist() == [0, 1, 2, 0, 1, 2]
        labelled = batch["domain"] == 0
        np.testing.assert_array_equal(batch["label"], np.where(labelled, batch["index"] % 3, -1))
        np.testing.assert_array_equal(batch["domain"], np.searchsorted([11, 16], batch["index"]))
    # 40 rows of each: full epochs of 12, 5 and 2, each in an order of its own, and the rest of one.
    for domain, size in enumerate((12, 5, 2)):
        rows = [i for batch in seen for i in batch["index"][batch["domain"] == domain].tolist()]
        epochs = [rows[start : start + size] for start in range(0, 40 - size + 1, size)]
        assert all(sorted(epoch) == list(source.groups[domain]) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_domains_take_turns_over_the_ends_of_batches():
    batches = train_batches(three_domains(), batch_size=4, seed=0)
    domains = np.concatenate([batch["domain"] for batch in take(batches, 6)])
    batches.close()
    assert domains.tolist() == [0, 1, 2] * 8


def test_processes_share_the_batches_of_several_domains():
    source = three_domains()
    whole = train_batches(source, batch_size=6, seed=5)
    halves = [train_batches(source, batch_size=3, seed=5, process=(i, 2)) for i in range(2)]
    for _ in range(12):
        expected, parts = next(whole), [next(half) for half in halves]
        for key in expected:
            np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), expected[key])
    for batches in (whole, *halves):
        batches.close()


def test_seed_decides_over_several_domains():
    def first(seed):
        batches = train_batches(three_domains(), batch_size=9, seed=seed)
        order = indices(take(batches, 4))
        batches.close()
        return order

    assert first(1) == first(1) != first(2)
    # The domains' seeds follow one another: the last one's must wrap around.
    assert first((1 << 32) - 1) == first((1 << 32) - 1)


@pytest.mark.parametrize("sizes", [(4, 0), (0, 4), (3, 0, 2)])
def test_an_empty_domain_is_told(sizes):
    with pytest.raises(
        InputError, match=rf"One of the {len(sizes)} domains .* is empty \({', '.join(map(str, sizes))} "
    ):
        train_batches(Joined([numbers(size) for size in sizes]), batch_size=2, seed=0)


@pytest.mark.parametrize("shape", [(5, 4, 3), (4, 4, 1)])
def test_domains_of_different_sizes_or_channels_are_told(shape):
    """A source of the user's own that does not stretch its images: one paragraph, not a stack trace of NumPy's."""
    other = numbers(3, image=np.zeros((3, *shape), np.uint8))
    batches = train_batches(Joined([numbers(3), other]), batch_size=4, seed=0)
    with pytest.raises(InputError, match=r"differ in the shape of 'image': \(4, 4, .* one size and the same channels"):
        next(batches)
    batches.close()


def test_rare_classes_take_their_turns():
    labels = np.array([0] * 9 + [1] * 2 + [2], np.int32)
    batches = train_batches(Balanced(numbers(12, label=labels)), batch_size=6, seed=0)
    seen = take(batches, 9)
    batches.close()
    for batch in seen:
        assert np.bincount(batch["label"]).tolist() == [2, 2, 2]
        np.testing.assert_array_equal(batch["label"], labels[batch["index"]])
    # 18 rows of each class: twice the nine, nine times the two, eighteen times the one.
    assert np.bincount(flat(seen)).tolist() == [2] * 9 + [9] * 2 + [18]


def test_evaluation_of_several_domains_is_in_order():
    rows = list(eval_batches(three_domains(), batch_size=8))
    assert flat(rows) == [*range(19), *[-1] * 5]
    assert np.concatenate([batch["domain"] for batch in rows])[:19].tolist() == [0] * 12 + [1] * 5 + [2] * 2
