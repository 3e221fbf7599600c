"""Loaders of GOALS and of the other devices' layers, on trees in their layouts and on the real sets at hand."""

import numpy as np
import official
import pytest
from made import build, examples, fails, names_once
from PIL import Image

from ophjax.data import look
from ophjax.data.challenges import write_table
from ophjax.errors import InputError


@pytest.fixture
def tree(tmp_path):
    official.goals_truth(tmp_path / "GOALS2022-Train" / "Train", count=20)
    official.goals_truth(tmp_path / "GOALS2022-Validation", count=3)
    return tmp_path


def test_official_layout(tree):
    for root in (tree / "GOALS2022-Train" / "Train", tree / "GOALS2022-Train", tree):
        data = build("goals", size=40, width=56, root=root)
        assert len(names_once(data)) == 20 and data.classes == ("normal", "glaucoma")
    rows = dict(zip(data.splits["train"].names, examples(data.splits["train"]), strict=True))
    assert len(rows) == 12 and len(data.splits["test"]) == 4
    for name, row in rows.items():
        assert row["image"].shape == (40, 56, 3) and row["size"].tolist() == [110, 80] and row["mask_weight"] == 1
        thick = 8 - 3 * (int(name) % 2)
        assert row["label"] == int(name) % 2
        rows_of = row["mask"].sum((0, 1)) / 56
        assert rows_of.sum() == (thick + 9 + 14 + 1) // 2 and abs(rows_of[0] - thick / 2) <= 0.5 and rows_of[2] == 7
    # At the size of the file the masks are as drawn.
    full = build("goals", size=80, width=110, root=tree)
    name = full.splits["train"].names[0]
    drawn = official.layers(thick=8 - 3 * (int(name) % 2))
    assert np.array_equal(full.splits["train"][0]["mask"], np.eye(4, dtype=np.uint8)[drawn][..., 1:])


@pytest.mark.parametrize("written", [7, "7", "0007", "0007.png"])
def test_names_of_images_in_the_table(tree, written):
    home = tree / "GOALS2022-Train" / "Train"
    rows = [["ImgName", "GC_Label"], *([written if i == 7 else i, i % 2] for i in range(1, 21))]
    official.write_xlsx(home / "Train_GC_GT.xlsx", rows)
    data = build("goals", root=tree)
    assert sorted(names_once(data))[6] == "0007"


def test_masks_of_three_channels(tree):
    path = tree / "GOALS2022-Train" / "Train" / "Layer_Masks" / "0001.png"
    grey = np.asarray(Image.open(path))
    Image.fromarray(np.repeat(grey[..., None], 3, -1)).save(path)
    assert len(build("goals", root=tree).splits["masks"]) == 12


def test_a_set_without_answers_is_the_test(tree):
    data = build("goals", root=tree / "GOALS2022-Train", test_root=tree / "GOALS2022-Validation")
    assert data.splits["test"].names == ["0001", "0002", "0003"] and len(data.splits["train"]) == 18
    example = data.splits["test"][0]
    assert example["label"] == -1 and example["mask_weight"] == 0 and not example["mask"].any()


def test_the_training_set_is_not_the_one_without_answers(tree):
    """The folder around both is given twice: what is left beside the training set is the test."""
    train = tree / "GOALS2022-Train" / "Train"
    for root in (tree, train):
        data = build("goals", root=root, test_root=tree)
        assert data.splits["test"].names == ["0001", "0002", "0003"] and len(data.splits["train"]) == 18
    match = r"holds the training set .*GOALS2022-Train.Train and no other\. Give .* --data\.test-root"
    for test_root in (train, tree / "GOALS2022-Train"):
        fails("goals", match, root=tree, test_root=test_root)
    train.rename(tree / "copy")  # another copy of the training set beside it
    official.goals_truth(tree / "A-Train", count=20)
    data = build("goals", root=tree / "copy", test_root=tree)
    assert len(data.splits["test"]) == 3


def test_bad_files_show_at_once_or_later(tree):
    path = tree / "GOALS2022-Train" / "Train" / "Image" / "0003.png"
    path.write_bytes(path.read_bytes()[:2000])
    fails("goals", r"0003\.png cannot be decoded", root=tree)
    with look.later():
        source = build("goals", root=tree, val_fraction=0.1, test_fraction=0.1).splits["train"]
    assert "0003" in source.names and len(source) == 16
    for i, name in enumerate(source.names):
        if name != "0003":
            assert source[i]["image"].any()
    with pytest.raises(InputError, match=r"0003\.png cannot be decoded"):
        source[source.names.index("0003")]


def test_patients_stay_together(tree):
    home = tree / "GOALS2022-Train" / "Train"
    write_table(home / "eyes.csv", ("ImgName", "Patient"), [(i, f"p{(i - 1) // 2}") for i in range(1, 21)])
    data = build("goals", root=tree, patients="eyes.csv")
    for part in ("train", "val", "test"):
        eyes = [(int(name) - 1) // 2 for name in data.splits[part].names]
        assert all(eyes.count(eye) == 2 for eye in eyes)
        said = [int(data.splits[part][i]["patient"]) for i in range(len(eyes))]
        assert len(set(zip(eyes, said, strict=True))) == len(set(eyes)) == len(set(said))


def test_without_labels_there_are_no_classes(tree):
    (tree / "GOALS2022-Train" / "Train" / "Train_GC_GT.xlsx").unlink()
    data = build("goals", root=tree)
    assert data.classes == () and "layers only" in data.note


def home(tree):
    return tree / "GOALS2022-Train" / "Train"


MISTAKES = {
    "no such folder": (lambda tree: (home(tree) / "Image").rename(home(tree) / "Images"), "'Image'"),
    "no mask": (lambda tree: (home(tree) / "Layer_Masks" / "0003.png").unlink(), "0003.png"),
    "no image": (lambda tree: (home(tree) / "Image" / "0003.png").unlink(), "0003"),
    "grey level": (
        lambda tree: Image.fromarray(np.full((80, 110), 81, np.uint8)).save(home(tree) / "Layer_Masks" / "0003.png"),
        "0003.png holds the pixel values 81",
    ),
    "size": (
        lambda tree: Image.fromarray(np.full((8, 11), 80, np.uint8)).save(home(tree) / "Layer_Masks" / "0003.png"),
        "0003.png differ in size",
    ),
    "label": (
        lambda tree: official.write_xlsx(home(tree) / "Train_GC_GT.xlsx", [["ImgName", "GC_Label"], [1, 2]]),
        "Train_GC_GT.xlsx has labels other",
    ),
    "labels missing": (
        lambda tree: official.write_xlsx(home(tree) / "Train_GC_GT.xlsx", [["ImgName", "GC_Label"], [1, 1]]),
        r"Train_GC_GT.xlsx has no label for 19 .*0002.png",
    ),
    "columns": (
        lambda tree: official.write_xlsx(home(tree) / "Train_GC_GT.xlsx", [["Name", "GC_Label"], [1, 1]]),
        "Train_GC_GT.xlsx has the columns name, gc_label",
    ),
    "two tables": (lambda tree: (home(tree) / "Train_GC_GT.csv").write_text(""), "Train_GC_GT.csv"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(tree, name):
    spoil, match = MISTAKES[name]
    spoil(tree)
    fails("goals", match, root=home(tree) if name == "no such folder" else tree)


@pytest.mark.parametrize(
    ("device", "place", "train", "other"),
    [
        ("nr206", "NR206", 2, 2),
        ("cirrus", "onh_cirrus_example", 1, 1),
        ("spectralis", "circumpapillary_spectralis", 1, 0),
    ],
)
def test_real_layers(real_data, device, place, train, other):
    data = build("octlayers", size=128, width=96, root=real_data / "oct_layers" / place, device=device)
    assert data.regions == ("rnfl", "gcipl") and data.classes == ()
    assert len(data.splits["train"]) == train and len(data.splits["val"]) == (other or train)
    for example in examples(data.splits["train"]):
        mask = example["mask"]
        assert mask.shape == (128, 96, 2) and not mask.all(-1).any()
        rows = np.arange(128)[:, None]
        middles = [(rows * mask[..., i]).sum(0) / np.maximum(mask[..., i].sum(0), 1) for i in (0, 1)]
        both = mask.any(0).all(-1)
        # The peripapillary scan passes over the disc, where there is no GCIPL.
        assert both.mean() > 0.5 and (middles[0] < middles[1])[both].mean() > 0.97, "RNFL lies above GCIPL"
        bright = [example["image"][..., 0][mask[..., i] > 0].mean() for i in (0, 1)]
        assert bright[0] > bright[1], "RNFL is the brighter one"


def test_layers_of_other_devices_on_made_trees(tmp_path):
    """The layouts without the real scans: codes mapped, wrong ones refused."""
    colours = np.zeros((16, 12, 3), np.uint8)
    colours[3:6], colours[6:9], colours[9:12] = (255, 0, 0), (128, 128, 0), (255, 255, 0)
    for part in ("train", "val"):
        official.save(tmp_path / "a" / part / "NORMAL1.png", np.full((16, 12), 90, np.uint8))
        official.save(tmp_path / "a" / f"{part}_labels" / "NORMAL1.png", colours)
    mask = build("octlayers", size=16, width=12, root=tmp_path / "a").splits["train"][0]["mask"]
    assert mask[..., 0].sum() == mask[..., 1].sum() == 36 and mask[4, 0].tolist() == [1, 0]
    official.save(tmp_path / "a" / "val_labels" / "NORMAL1.png", np.zeros((16, 12, 3), np.uint8))
    fails("octlayers", "NORMAL1.png lacks the colours", root=tmp_path / "a")
    layers = np.repeat(np.array([240] * 4 + [0] * 4 + [30] * 4 + [60] * 4, np.uint8), 12).reshape(16, 12)
    official.save(tmp_path / "b" / "train" / "img" / "1.png", layers)
    official.save(tmp_path / "b" / "train" / "mask" / "1.png", layers)
    data = build("octlayers", size=16, width=12, root=tmp_path / "b", device="cirrus")
    assert data.splits["test"][0]["mask"].sum((0, 1)).tolist() == [48, 48] and "the same scans" in data.note
    official.save(tmp_path / "b" / "train" / "mask" / "1.png", layers + 1)
    fails("octlayers", "1.png holds the pixel values 1", root=tmp_path / "b", device="cirrus")
    fails("octlayers", "no training scans", root=tmp_path / "b", device="spectralis")
