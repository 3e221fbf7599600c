"""Comparisons: every variant of every method is a command that run.py takes."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

import compare
import presets
import run
import tables
from ophjax import data as datasets
from ophjax import methods
from ophjax.data import DATASETS
from ophjax.errors import InputError, OtherRunError

VARIANTS = [(method, name) for method in methods.METHODS for name in methods.load(method).VARIANTS]


@pytest.mark.parametrize(("method", "variant"), VARIANTS)
def test_a_variant_is_a_command(method, variant):
    """The options give back the changes that they were made of."""
    changes, _ = methods.load(method).VARIANTS[variant]
    _, options = run.parse(["--method", method, "--preset", "smoke", *presets.flags("method", changes)])
    assert {name: dataclasses.asdict(options.method)[name] for name in changes} == changes


SCORES = {
    "ours": [{"dice": 0.8, "dice_low": 0.7, "auc": 0.9}, {"dice": 0.6, "dice_low": 0.5, "auc": 0.7}],
    "plain": [{"dice": 0.5, "dice_low": 0.4}, {"dice": 0.4, "dice_low": 0.3}],
}


def test_the_table_follows_the_methods_columns():
    """The first column is compared seed by seed; intervals are left out; a score that is missing leaves a gap."""
    head, _, ours, plain = tables.table(SCORES, ("dice", "auc")).splitlines()
    assert head == "| variant | dice | auc | dice: ours minus this [bootstrap interval] | least, most | seeds |"
    assert ours == "| ours | 0.700 ± 0.141 | 0.800 ± 0.141 |  |  | 2 |"
    assert plain == "| plain | 0.450 ± 0.071 |  | 0.250 ± 0.071 [+0.200, +0.300] | +0.200, +0.300 | 2 |"


def test_a_score_that_is_no_number_leaves_a_gap(tmp_path):
    """None is what the log has for NaN. A seed without a score takes its variant out of that column and difference."""
    none = [{"dice": 0.5}, {"dice": None}]
    scores = {"ours": [{"auc": None}, {"dice": 0.6}], "plain": SCORES["plain"]}
    assert tables.table(scores, ("dice",)).splitlines()[2:] == [
        "| ours |  |  |  | 2 |",
        "| plain | 0.450 ± 0.071 |  |  | 2 |",
    ]
    gaps = {"ours": SCORES["ours"], "none": none, "plain": SCORES["plain"]}
    _, _, ours, broken, plain = tables.table(gaps, ("dice", "auc")).splitlines()
    assert ours.startswith("| ours | 0.700") and broken == "| none |  |  |  |  | 2 |" and "[+0.200, +0.300]" in plain
    tables.draw(gaps, ("dice",), tmp_path / "gaps.png")
    with pytest.raises(InputError, match="columns are auc_x, but the runs have dice, auc"):
        tables.table(SCORES, ("auc_x",))


@pytest.mark.parametrize("data", DATASETS)
def test_the_seed_of_the_data_is_an_option_that_it_has(data):
    words = compare.data_seed(data, 3)
    fields = {field.name for field in dataclasses.fields(datasets.load(data).Config)}
    assert words[1:] == ["3"] * bool(words)
    assert {word.removeprefix("--data.").replace("-", "_") for word in words[:1]} <= fields
    assert bool(words) == bool({"seed", "split_seed"} & fields)


def test_the_interval_of_paired_differences_covers_their_mean():
    """As often as it says: of normal differences with mean 0.3 it leaves the mean out about once in twenty times (a
    little more often, the bootstrap being too narrow for few seeds)."""
    rng = np.random.default_rng(1)
    found = [tables.interval(list(rng.normal(0.3, 1, 20)), samples=500) for _ in range(400)]
    missed = np.mean([not low <= 0.3 <= high for low, high in found])
    assert 0.03 < missed < 0.12


def test_runs_of_several_versions_are_told(tmp_path):
    """A finished run is not made again, whatever it was made with."""
    for name, version in (("one", "0.10.2"), ("two", "0.10.2"), ("three", "0.12.0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"versions": {"jax": version, "numpy": "2.0"}}))
    assert compare.mixed_versions([tmp_path / "one", tmp_path / "two"]) == ""
    told = compare.mixed_versions([tmp_path / name for name in ("one", "two", "three")])
    assert told.strip() == "Made with several versions: jax 0.10.2, 0.12.0."


def test_tables_go_to_their_places(tmp_path):
    (tmp_path / "fccl-lesions-demo.json").write_text(json.dumps({"fccl": [{"psnr": 30.0}]}))
    page = tmp_path / "PAGE.md"
    page.write_text(
        "before\n<!-- fccl-lesions-demo -->\nold\n<!-- end -->\nafter\n<!-- ads-organs-demo -->\nx\n<!-- end -->\n"
    )
    with pytest.raises(InputError, match="is no comparison"):  # fccl's columns are not there
        tables.run([str(page), "--runs", str(tmp_path)])
    assert "old" in page.read_text()
    scores = {"fccl": [{"accuracy": 0.5}, {"accuracy": 0.7}]}
    (tmp_path / "fccl-lesions-demo.json").write_text(json.dumps(scores))
    assert "fccl-lesions-demo" in tables.run([str(page), "--runs", str(tmp_path)])
    text = page.read_text()
    assert "old" not in text and "| fccl | 0.600 ± 0.141 |" in text and text.count("<!-- end -->") == 2
    assert text.startswith("before\n") and "after\n<!-- ads-organs-demo -->\nx\n" in text


def test_the_figure_is_drawn(tmp_path):
    tables.draw(SCORES, ("dice", "auc"), tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.size[0] == 1300 and np.asarray(picture.convert("L")).std() > 5


def test_a_label_keeps_comparisons_apart(tmp_path, monkeypatch):
    """It is in the names of runs and table; without it a run in another's folder is told how to be kept apart. The
    scores are there even where no table can be made of them."""
    names = []

    def fake(argv):
        names.append(argv[argv.index("--name") + 1])
        if (tmp_path / names[-1]).exists():
            raise OtherRunError("It belongs to another run. Give another --name.")
        (tmp_path / names[-1]).mkdir()
        (tmp_path / names[-1] / "config.json").write_text('{"versions": {}}')
        event = {"event": "test", "scores": {"kappa": 0.5} if "xor" in argv else {"unheard": 0.5}}
        (tmp_path / names[-1] / "metrics.jsonl").write_text(json.dumps(event) + "\n")
        return 0

    monkeypatch.setattr(run, "run", fake)
    words = ["--method", "gamma", "--seeds", "1", "--runs", str(tmp_path), "--variants", "additive"]
    with pytest.raises(InputError, match="No table"):
        compare.compare(words)
    assert json.loads((tmp_path / "gamma-eyes-demo.json").read_text())["additive"] == [{"unheard": 0.5}]
    with pytest.raises(InputError, match="another --label"):
        compare.compare([*words, "--data.rule", "xor"])
    said = compare.compare([*words, "--data.rule", "xor", "--label", "xor"])
    assert "| gamma | 0.500 |" in said and (tmp_path / "gamma-eyes-demo-xor.json").exists()
    assert names[-2:] == ["gamma-eyes-demo-xor-gamma-0", "gamma-eyes-demo-xor-additive-0"]
    page = tmp_path / "PAGE.md"
    page.write_text("<!-- gamma-eyes-demo-xor -->\n<!-- end -->\n")
    assert tables.run([str(page), "--runs", str(tmp_path)]) == f"{page}: gamma-eyes-demo-xor"
    with pytest.raises(InputError, match="expected letters"):
        compare.compare([*words, "--label", "a/b"])


def test_variants_whose_split_is_missing_are_told_first(tmp_path):
    """A folder of images alone has no inputs of another kind to adapt to."""
    (tmp_path / "images").mkdir()
    for i in range(10):
        picture = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(picture).save(tmp_path / "images" / f"{i}.png")
    words = ["--method", "dualsr", "--data", "superres", "--preset", "smoke", "--runs", str(tmp_path / "runs")]
    words += ["--data.root", str(tmp_path / "images"), "--data.size", "32", "--data.scale", "2"]
    options, rest = compare.arguments(words)
    every = ["dualsr", *methods.load("dualsr").VARIANTS]
    assert compare.lacking(options, every, rest) == {"adapted": "adapt"}
    assert compare.lacking(options, every, [*rest, "--data.unpaired", str(tmp_path / "images")]) == {}
    with pytest.raises(InputError, match=r"'superres' lacks, .*: adapted \(adapt\)"):
        compare.compare([*words, "--variants", "adapted"])
    assert not (tmp_path / "runs").exists()


def test_seeds_together_are_one_run_of_each_variant(tmp_path, monkeypatch, capsys):
    """``--together`` trains a variant's seeds in one run and takes apart what it says of each."""
    commands = []

    def fake(argv):
        commands.append(argv)
        folder = tmp_path / argv[argv.index("--name") + 1]
        folder.mkdir()
        (folder / "config.json").write_text('{"versions": {}}')
        event = {
            "event": "test",
            "scores": {"accuracy": 0.9},
            "seeds": {"3": {"accuracy": 0.5}, "4": {"accuracy": 0.7}},
        }
        (folder / "metrics.jsonl").write_text(json.dumps(event) + "\n")
        return 0

    monkeypatch.setattr(run, "run", fake)
    words = ["--method", "fccl", "--variants", "erm", "--seeds", "2", "--first-seed", "3", "--together"]
    monkeypatch.setattr("sys.argv", ["compare.py", *words, "--runs", str(tmp_path)])
    assert compare.main() == 0
    assert len(commands) == 2 and all(argv[argv.index("--seeds") + 1] == "2" for argv in commands)
    assert "| erm | 0.600 ± 0.141 | 0.000 ± 0.000" in capsys.readouterr().out
