"""Trees of files made by the tests of loaders, and what each of these tests asks."""

import numpy as np
import pytest
from PIL import Image

from ophjax.data import load, pipeline
from ophjax.errors import InputError


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def build(name, size=16, **options):
    module = load(name)
    return module.make(module.Config(size=size, **{key: plain(value) for key, value in options.items()}))


def plain(value):
    return str(value) if hasattr(value, "joinpath") else value


def fails(name, match, **options):
    with pytest.raises(InputError, match=match) as caught:
        build(name, **options)
    assert "\n" not in str(caught.value)  # one paragraph


def examples(source):
    return [source[i] for i in range(len(source))]


def names_once(data):
    """The splits of a data set share no image but those that are the same split."""
    parts = [data.splits.get("domains", data.splits["train"]), data.splits["val"], data.splits["test"]]
    names = [name for part in parts for name in part.names]
    assert len(names) == len(set(names))
    return names


def assert_same_example(one, other):
    """Equal entries, types and shapes."""
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])
        assert one[key].dtype == other[key].dtype and one[key].shape == other[key].shape


def assert_same_data(found, data):
    """Prepared data are the loader's: what is known of the set, its splits, names, groups, examples and batches."""
    assert found._replace(splits={}) == data._replace(splits={})
    assert found.splits.keys() == data.splits.keys()
    for split, source in data.splits.items():
        assert found.splits[split].names == source.names
        for i in range(len(source)):
            assert_same_example(found.splits[split][i], source[i])
        ours, theirs = (getattr(one, "groups", None) for one in (found.splits[split], source))
        assert ours == (None if theirs is None else [list(group) for group in theirs])
    batches = [next(pipeline.train_batches(one.splits["train"], batch_size=4, seed=3)) for one in (found, data)]
    assert_same_example(*batches)
