"""What all drawn data sets of several domains keep."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ophjax.data import angles, domains, lesions, load, organs
from ophjax.errors import InputError

MODULES = {"lesions": lesions, "organs": organs, "angles": angles}
SEED = 111

pytestmark = pytest.mark.parametrize("name", MODULES)


def data(name, **options):
    module = MODULES[name]
    return module.make(module.Config(**{"size": 32, "seed": SEED, "train": 4, "val": 2, "test": 3, **options}))


def same(one, two):
    return one.keys() == two.keys() and all(np.array_equal(one[key], two[key]) for key in one)


def test_registered_and_described(name):
    assert load(name) is MODULES[name]
    made, count = data(name), len(MODULES[name].Config().domains)
    assert made.name == name and made.domains == MODULES[name].Config().domains
    assert {split: len(source) for split, source in made.splits.items() if split in ("train", "val", "test")} == {
        "train": 4,
        "val": 2 * count,
        "test": 3 * count,
    }
    assert ("masks" in made.splits) == bool(made.regions)
    assert ("domains" in made.splits) == ("labelled" in made.splits) == bool(made.classes)


@pytest.mark.parametrize("preset", ["DEMO", "SMOKE"])
def test_presets_are_small(name, preset):
    module = MODULES[name]
    config = dataclasses.replace(module.Config(), **getattr(module, preset))
    assert config.size <= 64
    module.make(config)  # lazily: nothing is drawn


@pytest.mark.parametrize("size", [32, 51])
def test_examples_keep_the_contract(name, size):
    made = data(name, size=size)
    expected = {"image": ("uint8", (size, size, 3))}
    if made.regions:
        expected["mask"] = ("uint8", (size, size, len(made.regions)))
    if made.classes:
        expected["label"] = ("int32", ())
    example = made.splits["train"][1]
    assert {key: (value.dtype.name, value.shape) for key, value in example.items()} == expected
    assert set(made.splits["test"][0]) == {*expected, "domain"}
    if made.regions:
        assert set(np.unique(example["mask"])) == {0, 1}


def test_an_example_depends_on_seed_domain_and_index_alone(name):
    made = data(name)
    other = data(name, train=7, val=5, test=6, domains=(made.domains[-1], made.domains[0]))
    one, two = made.splits["test"], other.splits["test"]
    # The first domain's tests begin at 0 in one and at 6, after the other's, in two.
    for i in (2, 0):
        assert same(one[i], two[6 + i] | {"domain": np.int32(0)})
        assert one.names[i] == two.names[6 + i]
    assert other.splits["train"].names[:4] != made.splits["train"].names
    assert not np.array_equal(one[0]["image"], one[1]["image"])
    assert not np.array_equal(one[0]["image"], data(name, seed=SEED + 1).splits["test"][0]["image"])


def test_no_scene_occurs_twice(name):
    made = data(name)
    names = [name for split in ("train", "val", "test") for name in made.splits[split].names]
    if made.classes:
        assert made.splits["domains"].names == made.splits["labelled"].names
        assert made.splits["domains"].names[:4] == made.splits["train"].names
        names += made.splits["domains"].names[4:]
    # A name ends with its index, which alone gives the scene.
    indices = [name.rsplit("-", 1)[1] for name in names]
    assert len(set(indices)) == len(indices) == 4 * (len(made.domains) if made.classes else 1) + 5 * len(made.domains)


def test_domains_are_numbered_and_targets_unlabelled(name):
    made = data(name)
    count = len(made.domains)
    assert [int(example["domain"]) for example in made.splits["test"]] == sorted([*range(count)] * 3)
    if made.classes:
        mixed, known = made.splits["domains"], made.splits["labelled"]
        assert [int(example["domain"]) for example in mixed] == sorted([*range(count)] * 4)
        assert {int(example["label"]) for example in list(mixed)[4:]} == {-1}
        assert min(int(example["label"]) for example in [*known, *list(mixed)[:4]]) >= 0
        for i in range(len(mixed)):
            assert np.array_equal(mixed[i]["image"], known[i]["image"])


def test_a_scene_is_the_same_in_every_domain_and_looks_different(name):
    module = MODULES[name]
    for index in range(6):
        views = [module.draw(SEED, index, domain, 64) for domain in module.Config().domains]
        for view in views[1:]:
            assert view.keys() == views[0].keys()
            assert all(np.array_equal(view[key], views[0][key]) for key in view if key != "image")
            # The weakest shift, faded lesions, moves the picture by 14 levels; two takes of one clinic would by 6.
            assert np.abs(view["image"].astype(float) - views[0]["image"]).mean() > 12


def test_size_changes_pixels_and_nothing_else(name):
    module = MODULES[name]
    for index in range(6):
        small, large = (module.draw(SEED, index, module.Config().domains[0], size) for size in (64, 128))
        if "label" in small:
            assert small["label"] == large["label"]
        shrunk = large["image"].reshape(64, 2, 64, 2, 3).mean((1, 3))
        # Noise and edges differ by 4 to 8 levels, two scenes by 20 and more.
        other = module.draw(SEED, index + 6, module.Config().domains[0], 64)
        assert np.abs(shrunk - small["image"]).mean() < 10
        assert np.abs(shrunk - other["image"]).mean() > 15


def test_images_fill_the_grey_scale_without_being_cut_off(name):
    module = MODULES[name]
    for domain in module.Config().domains:
        images = np.stack([module.draw(SEED, index, domain, 48)["image"] for index in range(12)])
        # The palest, device-b, has 13; a picture that is one grey with its noise has 6.
        assert images.std() > 10
        # The brightest, the other device-d, has 4 percent.
        assert (images == 255).mean() < 0.05


def test_a_class_that_cannot_be_shown(name):
    count = len(MODULES[name].make(MODULES[name].Config()).classes)
    if count:
        with pytest.raises(InputError, match=f"{count - 1} training pictures .* {count} classes"):
            data(name, train=count - 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 31}, "size 31 .* at least 32 pixels"),
        ({"train": 0}, "0 pictures .* --data.train"),
        ({"val": -1}, "-1 pictures .* --data.val"),
        ({"test": domains.ROOM + 1}, "100001 pictures .* --data.test"),
        ({"seed": -1}, "seed of .* is -1"),
        ({"domains": ()}, "No domain was given"),
        ({"domains": ("mars",)}, "Unknown domain of .* 'mars'. Known: "),
    ],
)
def test_config_mistakes_are_told(name, options, words):
    with pytest.raises(InputError, match=words):
        data(name, **options)


def test_a_domain_named_twice_is_told(name):
    first = MODULES[name].Config().domains[0]
    with pytest.raises(InputError, match=f"names {first} more than once"):
        data(name, domains=(first, first))


def test_one_domain_is_enough_for_a_plain_data_set(name):
    made = data(name, domains=MODULES[name].Config().domains[1:2])
    assert len(made.splits["test"]) == 3 and made.splits["train"].names[0].startswith(made.domains[0])
    with pytest.raises(IndexError):
        made.splits["train"][4]
