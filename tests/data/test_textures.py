import itertools

import numpy as np
import pytest

from ophjax.data import pipeline, textures
from ophjax.data.pairs import input_only, name_of, pyramid, steps, with_inputs
from ophjax.data.sources import Arrays
from ophjax.data.textures import Config
from ophjax.errors import InputError
from ophjax.transforms.resizing import resize_bytes


def test_examples_are_pyramids():
    data = textures.make(Config(size=32, train=4, val=2, test=2, unpaired=3))
    assert data.scale == 4 and (data.regions, data.classes) == ((), ())
    example = data.splits["train"][1]
    assert {name: value.shape for name, value in example.items()} == {
        "image": (8, 8, 3), "image_x2": (16, 16, 3), "target": (32, 32, 3), "target_weight": (),
    }  # fmt: skip
    np.testing.assert_array_equal(example["image"], resize_bytes(example["target"], 4))
    np.testing.assert_array_equal(example["image_x2"], resize_bytes(example["target"], 2))
    assert example["target"].std() > 10
    again = textures.make(Config(size=32, train=2, val=2, test=2, unpaired=3)).splits["train"][1]
    np.testing.assert_array_equal(again["target"], example["target"])
    firsts = [data.splits[part][0]["target"] for part in ("train", "val", "test")]
    assert all((a != b).any() for a, b in itertools.pairwise(firsts))


def test_search_batches_hold_both_halves_in_turn():
    data = textures.make(Config(size=32, scale=2, train=10, val=2, test=2))
    stream = pipeline.train_batches(data.splits["search"], batch_size=4, seed=0)
    for _ in range(5):
        assert (next(stream)["index"] % 2).tolist() == [0, 1, 0, 1]
    stream.close()


def test_three_of_ten_rows_have_no_truth():
    data = textures.make(Config(size=32, scale=2, train=14, val=2, test=2, unpaired=6))
    stream = pipeline.train_batches(data.splits["adapt"], batch_size=20, seed=0)
    batch = next(stream)
    stream.close()
    assert batch["target_weight"].sum() == 14
    blank = batch["target_weight"] == 0
    assert (batch["target"][blank] == 0).all() and batch["image"][blank].std() > 10


def test_test_inputs_of_the_other_kind():
    made = {
        kind: textures.make(Config(size=32, train=2, val=2, test=2, unpaired=3, test_inputs=kind)).splits
        for kind in ("bicubic", "nearest")
    }
    example, usual = (made[kind]["test"][1] for kind in ("nearest", "bicubic"))
    np.testing.assert_array_equal(example["target"], usual["target"])
    np.testing.assert_array_equal(example["image"], example["target"][::4, ::4])
    np.testing.assert_array_equal(example["image_x2"], example["target"][::2, ::2])
    assert (example["image"] != usual["image"]).any() and set(example) == set(usual)
    for part in ("train", "val"):
        np.testing.assert_array_equal(made["nearest"][part][1]["image"], made["bicubic"][part][1]["image"])


def test_names_of_scales():
    assert [name_of(times, 8) for times in steps(8)] == ["image", "image_x2", "image_x4", "target"]
    assert set(pyramid(np.zeros((16, 16, 3), np.uint8), 8)) == set(input_only(np.zeros((2, 2, 3), np.uint8), 8))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (dict(scale=3), "--data.scale 2, 4 or 8"),
        (dict(size=30), "multiple of the scale"),
        (dict(test=0), "Each split holds"),
        (dict(seed=-1), "seed"),
        (dict(train=1), "two halves"),
    ],
)
def test_what_cannot_be_drawn(changes, match):
    with pytest.raises(InputError, match=match):
        textures.make(Config(**changes))


def test_too_few_for_the_mixture():
    few = Arrays(["a", "b"], {"image": np.zeros((2, 4, 4, 3), np.uint8)})
    with pytest.raises(InputError, match="Adaptation mixes 7 paired"):
        with_inputs(few, few)
