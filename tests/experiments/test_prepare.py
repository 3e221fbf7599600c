"""The command that checks and prepares data sets."""

import csv
import dataclasses

import numpy as np
import pytest
from made_source import counted
from PIL import Image

import prepare
from ophjax import data as datasets
from ophjax.errors import InputError


@pytest.fixture
def own(tmp_path):
    """A folder data set of twenty images, one of them in training and test alike."""
    rng, rows = np.random.default_rng(0), ["image,label,split"]
    for part in ("images", "masks"):
        (tmp_path / "own" / part).mkdir(parents=True)
    for i in range(20):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        if i == 19:
            pixels = np.asarray(Image.open(tmp_path / "own" / "images" / "p00.png"))
        Image.fromarray(pixels).save(tmp_path / "own" / "images" / f"p{i:02}.png")
        Image.fromarray(np.full((20, 24), 255 * (i % 2), np.uint8)).save(tmp_path / "own" / "masks" / f"p{i:02}.png")
        rows.append(f"p{i:02},{'ab'[i % 2]},{'train' if i < 12 else 'val' if i < 16 else 'test'}")
    (tmp_path / "own" / "labels.csv").write_text("\n".join(rows))
    return tmp_path / "own"


def test_check_and_write_and_train_from_it(own, tmp_path, capsys):
    assert prepare.run(["folder", "--source", str(own), "--data.size", "16"]) == 0
    checked = capsys.readouterr().out
    assert "train      12 examples; 12 with mask; 6 a, 6 b" in checked
    assert "1 image(s) of test are in a training split too" in checked and "No problems." in checked
    out = tmp_path / "out"
    words = ["folder", "--source", str(own), "--out", str(out), "--data.size", "16"]
    assert prepare.run(words) == 0
    assert checked.splitlines()[:3] == capsys.readouterr().out.splitlines()[:3]
    config = datasets.load("folder").Config(root=str(out), size=16)
    found = datasets.make("folder", config)
    direct = datasets.make("folder", dataclasses.replace(config, root=str(own)))
    for i in range(12):
        np.testing.assert_array_equal(found.splits["train"][i]["image"], direct.splits["train"][i]["image"])
    assert prepare.run(words) == 0  # a finished one stays as it is


@pytest.mark.parametrize(("bytes_each", "most"), [(0, 64), (1 << 27, 4), (1 << 30, 1)])
def test_few_large_examples_are_read_at_a_time(bytes_each, most):
    """Half a gigabyte of them, or one."""
    source, read = counted(bytes_each)
    found = prepare.read("train", source, 0, [])
    for _ in range(most):
        next(found)
    assert len(read) == most
    assert len(list(found)) == 100 - most


def test_bad_examples_are_left_out_and_listed(own, tmp_path, capsys):
    """Files that are cut off, or empty as after a download that broke off, in several splits."""
    for name, left in (("p03", 200), ("p13", 200), ("p14", 0)):
        path = own / "images" / f"{name}.png"
        path.write_bytes(path.read_bytes()[:left])
    (own / "masks" / "p05.png").write_bytes((own / "images" / "p05.png").read_bytes())  # no mask
    words = ["folder", "--source", str(own), "--data.size", "16"]
    assert prepare.run(words) == 3 and "4 problem(s)" in capsys.readouterr().err
    out = tmp_path / "out"
    assert prepare.run([*words, "--out", str(out)]) == 3
    said = capsys.readouterr()
    assert "4 problem(s)" in said.err and "p13.png cannot be decoded" in said.err
    assert "train      10 examples" in said.out and "val        2 examples" in said.out
    rows = {tuple(row[:2]) for row in csv.reader((out / "problems.csv").read_text().splitlines())}
    assert rows == {
        ("train", "p03"),
        ("train", "p05"),
        ("masks", "p03"),
        ("masks", "p05"),
        ("val", "p13"),
        ("val", "p14"),
    }


def test_as_a_tfds_data_set(own, tmp_path, capsys):
    """The same report, the same examples in a run by the folder of --out, and the catalogue's terms beside them."""
    assert prepare.run(["folder", "--source", str(own), "--data.size", "16"]) == 0
    checked = capsys.readouterr().out.splitlines()
    out = tmp_path / "out"
    words = ["folder", "--source", str(own), "--out", str(out), "--format", "tfds", "--data.size", "16"]
    assert prepare.run(words) == 0
    said = capsys.readouterr().out.splitlines()
    home = out / "folder" / "1.0.0"
    assert said[:-2] == checked[:-1] and said[-2].startswith(f"{home}: ") and "yours" in (home / "LICENSE").read_text()
    config = datasets.load("folder").Config(root=str(out / "folder"), size=16)
    found, direct = (
        datasets.make("folder", one) for one in (config, dataclasses.replace(config, root=str(own)))
    )  # fmt: skip
    for name, value in direct.splits["val"][1].items():
        np.testing.assert_array_equal(found.splits["val"][1][name], value)
    with pytest.raises(InputError, match="TFDS adds nothing"):
        prepare.run(words)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["imagenet", "--source", "."], "Unknown data set 'imagenet'"),
        (["ph2", "--source", "nowhere"], "no folder nowhere"),
        (["ph2"], r"give its path with --data\.root"),
        (["folder", "--data.colour", "red"], r"Unrecognized options: --data\.colour, red\. .* --data folder --help"),
        (["folder", "--data.size", "abc"], r"Error parsing --data\.size: .* 'abc'"),
        (["xrays", "--source", "."], r"Give --data\.pneumonia FILE --data\.shenzhen DIR instead"),
        (["folder", "--shard-mb", "0"], "at least 1"),
    ],
)
def test_mistakes(words, match):
    with pytest.raises(InputError, match=match):
        prepare.run(words)


def test_list_says_where_data_come_from(capsys):
    assert prepare.run(["list"]) == 0
    assert "drive.grand-challenge.org" in capsys.readouterr().out


def test_a_real_set(real_data, tmp_path, capsys):
    """PH2 of OPHJAX_DATA, checked and prepared: all examples, no problem."""
    out = tmp_path / "out"
    assert prepare.run(["ph2", "--source", str(real_data / "ph2"), "--out", str(out), "--data.size", "32"]) == 0
    said = capsys.readouterr().out
    assert "No problems." in said and "nevus" in said
