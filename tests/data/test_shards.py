"""Prepared data sets: the same examples as the loader's own, resumed, refused where they do not fit."""

import dataclasses
import importlib.util
import json
import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from made import assert_same_data, assert_same_example

from ophjax import data as datasets
from ophjax.data import catalogue, shards
from ophjax.data.sources import Balanced
from ophjax.errors import InputError


def plain(split, source, first):
    return ((i, source[i]) for i in range(first, len(source)))


def made(name, **options):
    module = datasets.load(name)
    config = module.Config(size=32, **options)
    return config, module.make(config)


@pytest.mark.parametrize("name", ["phantoms", "lesions"])
def test_examples_are_those_of_the_loader(name, tmp_path):
    """Every split, groups (domains in turn) included; an example in several splits is stored once."""
    sizes = dict(train=6, val=4, test=4) if name == "lesions" else dict(masks=4, labelled=6, val=4, test=4)
    config, data = made(name, **sizes)
    shards.prepare(data, config, tmp_path / "out", shard_bytes=3000, examples=plain)
    assert len(list((tmp_path / "out").glob("*.array_record"))) > 1
    found = shards.read(tmp_path / "out", name, config)
    assert_same_data(found, data)
    assert len(Balanced(found.splits["train"])) == len(data.splits["train"])


class Stop(Exception):
    pass


def test_an_interrupted_writer_goes_on(tmp_path):
    config, data = made("phantoms", masks=4, labelled=8, val=4, test=4)
    reads = []

    def until(most):
        def examples(split, source, first):
            for pair in plain(split, source, first):
                if len(reads) == most:
                    raise Stop
                reads.append((split, pair[0]))
                yield pair

        return examples

    with pytest.raises(Stop):
        shards.prepare(data, config, tmp_path, shard_bytes=3000, examples=until(9))
    with pytest.raises(InputError, match="no whole prepared data set"):
        shards.read(tmp_path, "phantoms", config)
    before = len(reads)
    shards.prepare(data, config, tmp_path, shard_bytes=3000, examples=until(10_000))
    total = sum(len(source) for source in data.splits.values())
    assert len(reads) - before < total  # finished files were not made again
    found = shards.read(tmp_path, "phantoms", config)
    for split, source in data.splits.items():
        for i in range(len(source)):
            assert_same_example(found.splits[split][i], source[i])


def test_what_does_not_fit_is_refused(tmp_path):
    config, data = made("phantoms", masks=2, labelled=4, val=2, test=2)
    home = tmp_path / "out"
    shards.prepare(data, config, home, examples=plain)
    with pytest.raises(InputError, match=r"Give --data\.size 32"):
        shards.read(home, "phantoms", dataclasses.replace(config, size=64))
    with pytest.raises(InputError, match="give --data phantoms"):
        shards.read(home, "eyes", config)
    with pytest.raises(InputError, match="other options or from other files"):
        shards.prepare(data, dataclasses.replace(config, size=64), home, examples=plain)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something else"):
        shards.prepare(data, config, tmp_path / "full", examples=plain)
    about = json.loads((home / "dataset.json").read_text())
    for change in ({"shards": ["../secret"]}, {"format": 9}, {"shards": about["shards"][:0]}):
        (home / "dataset.json").write_text(json.dumps(about | change))
        with pytest.raises(InputError, match="no whole prepared data set"):
            shards.read(home, "phantoms", config)


def test_options_that_are_paths_are_known_by_their_names(tmp_path, monkeypatch):
    """A folder that is called as another option's value changes nothing; the loaders' own words tell paths."""
    for name, module in datasets.DATASETS.items():
        text = Path(importlib.util.find_spec(module).origin).read_text()
        told = set(re.findall(r'^    (\w+): str = ""\n    """(?:The f|F)(?:older|ile)', text, re.MULTILINE))
        assert told <= set(shards.PATHS), name
    monkeypatch.chdir(tmp_path)
    config = datasets.load("medmnist").Config(root=str(tmp_path), set="bloodmnist")
    before = shards.options_of(config)
    (tmp_path / "bloodmnist").mkdir()
    (tmp_path / "bloodmnist" / shards.ABOUT).write_text("{}")
    assert before == shards.options_of(config) == {"set": "bloodmnist", "size": 64}
    assert shards.home_of(config) is None
    assert shards.home_of(dataclasses.replace(config, root="bloodmnist")) == Path("bloodmnist")


def test_records_need_no_pickle():
    with pytest.raises(ValueError, match="allow_pickle"):
        shards.unpack(shards.pack({"image": np.array([{}], object)}))
    example = {"image": np.arange(6, dtype=np.uint8).reshape(1, 2, 3), "label": np.asarray(-1, np.int32)}
    assert_same_example(shards.unpack(shards.pack(example)), example)
    assert shards.digest(example) != shards.digest(example | {"label": np.asarray(1, np.int32)})


def test_the_catalogue_names_loaders_and_their_layout():
    text = catalogue.describe()
    for name, entry in catalogue.ENTRIES.items():
        assert entry.loader in datasets.DATASETS and catalogue.layout(entry)
        source = "" if name in ("xrays", "abdomen") else " --source DIR"  # those have several folders
        assert f"prepare.py {name}{source}{' ' * bool(entry.options)}{entry.options}\n" in text
        options = {f"--data.{field.name.replace('_', '-')}" for field in
                   dataclasses.fields(datasets.load(entry.loader).Config)}  # fmt: skip
        assert {word for word in entry.options.split() if word.startswith("--")} <= options, name
    published = {name for name, module in datasets.DATASETS.items() if "builders" in module}
    assert published <= {entry.loader for entry in catalogue.ENTRIES.values()}
    with pytest.raises(InputError, match="Known: refuge"):
        catalogue.find("imagenet")
    assert list(islice(catalogue.ENTRIES, 1)) == ["refuge"]
