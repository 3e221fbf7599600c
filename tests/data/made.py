"""Trees of files made by the tests of loaders, and what each of these tests asks."""

import pytest
from PIL import Image

from ophjax.data import load
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
