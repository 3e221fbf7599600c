"""Loaders of GAMMA in its three layouts, on trees of our own making, and of foveas, on REFUGE too."""

import shutil

import numpy as np
import official
import pytest
from made import build, examples, fails, names_once

from ophjax.data.builders import gamma
from ophjax.data.challenges import read_points, write_table
from ophjax.data.sheets import find_table, image_id
from ophjax.methods.gammatasks import write_submission

SMALL = {"size": 16, "oct_size": 8, "slices": 12, "oct_crop": 24}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("gamma")
    official.gamma_truth(root / "training_data", count=15, slices=12)
    official.gamma_truth(root / "val_data", count=2, slices=12)
    return root


@pytest.fixture
def tree(made, tmp_path):
    return shutil.copytree(made, tmp_path / "gamma")


def test_layout_of_the_zips(made):
    for root in (made / "training_data", made):
        data = build("gamma", root=root, **SMALL)
        assert len(names_once(data)) == 15 and data.regions == ("disc", "cup") and len(data.classes) == 3
    example = data.splits["train"][0]
    name = data.splits["train"].names[0]
    assert example["label"] == (int(name) - 1) % 3 and example["size"].tolist() == [90, 60]
    assert example["frame"].tolist() == [15, 0, 60, 60] and example["image"].shape == (16, 16, 3)
    np.testing.assert_allclose(example["fovea"], [49.5 + int(name), 30.25])
    volume = example["volume"]
    assert volume.shape == (8, 8, 12) and volume.dtype == np.uint8
    np.testing.assert_allclose(volume[4, 4], 10 * np.arange(12), atol=2)


def test_layout_of_the_mirrors(made, tmp_path):
    """grading/Glaucoma_grading/training, the foveas one level up; the testing part has no truth."""
    home = tmp_path / "grading" / "Glaucoma_grading"
    shutil.copytree(made / "training_data", home / "training")
    shutil.copytree(made / "val_data" / "multi-modality_images", home / "testing" / "multi-modality_images")
    (home / "training" / "fovea_localization_training_GT.xlsx").rename(home / "fovea_localization_training_GT.xlsx")
    data = build("gamma", root=tmp_path, test_root=home / "testing", **SMALL)
    assert data.splits["test"].names == ["0001", "0002"] and "foveas" not in data.note
    blind = data.splits["test"][0]
    assert blind["label"] == -1 and blind["mask_weight"] == 0 and (blind["fovea"] == -1).all()


def test_layout_of_the_fovea_task(made, tmp_path):
    for part, source in (("training", "training_data"), ("testing", "val_data")):
        (tmp_path / part / "fundus color images").mkdir(parents=True)
        for path in (made / source / "multi-modality_images").glob("*/*.jpg"):
            shutil.copy(path, tmp_path / part / "fundus color images")
    shutil.copy(made / "training_data" / "fovea_localization_training_GT.xlsx", tmp_path / "training")
    data = build("gamma", root=tmp_path, frame="whole", one_based=True, **SMALL)
    assert data.classes == () and data.regions == () and "Without grades and masks" in data.note
    example = data.splits["train"][0]
    assert "volume" not in example and example["frame"].tolist() == [0, 0, 90, 60]
    name = data.splits["train"].names[0]
    np.testing.assert_allclose(example["fovea"], [48.5 + int(name), 29.25])
    # An answer counts as the truth does: where it is right, the submission says what the table says.
    rows = [(name, example | {"fovea_found": example["fovea"]}), ("9", example | {"fovea_found": np.zeros(2)})]
    write_submission(tmp_path, rows)
    given = read_points(find_table([tmp_path / "training"], "*fovea*GT"), by_position=True)
    answers = read_points(tmp_path / "Localization_Results.csv")
    assert answers == {name: given[name], image_id("9", tmp_path): (0, 0)}


def test_masks_follow_the_frame(made):
    """The disc has 24 of 60 rows; its middle square shows the same share."""
    for frame, width in (("centre", 24 / 60), ("whole", 24 / 90)):
        data = build("gamma", root=made, frame=frame, **(SMALL | {"size": 60}))
        mask = data.splits["masks"][0]["mask"]
        assert mask[..., 0].any(1).sum() == 24 and mask[..., 0].any(0).sum() == round(60 * width)
        assert (mask[..., 1] <= mask[..., 0]).all()


def test_order_of_slices(made):
    folder = made / "training_data" / "multi-modality_images" / "0001" / "0001"
    numbers = [int(path.stem.split("_")[0]) for path in gamma.list_slices(folder, 12)]
    assert numbers == list(range(12))
    legacy = [int(path.stem.split("_")[0]) for path in gamma.list_slices(folder, 12, legacy=True)]
    assert sorted(legacy) == numbers and legacy != numbers
    assert legacy == [0, 10, 11, 1, 2, 3, 4, 5, 6, 7, 8, 9], "by the first digit, else as the folder is listed"
    strided = build("gamma", root=made, depth_stride=5, **SMALL).splits["train"][0]["volume"]
    np.testing.assert_allclose(strided[4, 4], [0, 50, 100], atol=2)


def home(tree):
    return tree / "training_data"


def slices(tree):
    return home(tree) / "multi-modality_images" / "0003" / "0003"


def grey(tree, value, size=(60, 90)):
    official.save(home(tree) / "Disc_Cup_Mask" / "0003.png", np.full(size, value, np.uint8))


def table(tree, what, header, row):
    official.write_xlsx(home(tree) / f"{what}_training_GT.xlsx", [header, row])


def rename(tree, name):
    (slices(tree) / "5_image.jpg").rename(slices(tree) / name)


def no_truth(tree):
    for path in home(tree).iterdir():
        if path.suffix == ".xlsx":
            path.unlink()
    shutil.rmtree(home(tree) / "Disc_Cup_Mask")


GRADES = ["data", "non", "early", "mid_advanced"]
MISTAKES = {
    "slice missing": (lambda tree: (slices(tree) / "5_image.jpg").unlink(), r"0003 lacks 1 of 12 .* 5_image.jpg"),
    "slice too many": (lambda tree: rename(tree, "12_image.jpg"), "12_image.jpg is not"),
    "slice twice": (lambda tree: shutil.copy(slices(tree) / "5_image.jpg", slices(tree) / "05_image.jpg"), "5_image"),
    "slice by another name": (lambda tree: rename(tree, "image_5.jpg"), "image_5.jpg is not a B-scan"),
    "slice of another size": (
        lambda tree: official.save(slices(tree) / "5_image.jpg", np.zeros((9, 9), np.uint8)), "5_image.jpg",
    ),
    "no slices": (lambda tree: shutil.rmtree(slices(tree)), "0003"),
    "no fundus": (lambda tree: (slices(tree).parent / "0003.jpg").unlink(), "0003.jpg"),
    "no mask": (lambda tree: (home(tree) / "Disc_Cup_Mask" / "0003.png").unlink(), "0003.jpg"),
    "grey level": (lambda tree: grey(tree, 127), "0003.png"),
    "size of a mask": (lambda tree: grey(tree, 0, (6, 9)), "0003.png"),
    "grades": (lambda tree: table(tree, "glaucoma_grading", GRADES, [1, 1, 1, 0]), "grading_.*xlsx has 1, 1, 0"),
    "columns": (lambda tree: table(tree, "fovea_localization", ["case", "x", "y"], [1, 2, 3]), "columns case"),
    "foveas missing": (lambda tree: table(tree, "fovea_localization", ["data", "x", "y"], [1, 2, 3]), "fovea for 14"),
    "no truth": (no_truth, "no truth"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(tree, name):
    spoil, match = MISTAKES[name]
    spoil(tree)
    fails("gamma", match, root=home(tree), **SMALL)


def test_foveas_of_refuge(real_data):
    """Three pictures are too few for three parts; as a set without a drawn test they are read by the table."""
    root = real_data / "refuge_mini" / "REFUGE-Validation400"
    data = build("foveas", size=64, root=root, val_fraction=0.34, test_fraction=0.33)
    found = {name: row for part in ("train", "val", "test")
             for name, row in zip(data.splits[part].names, examples(data.splits[part]), strict=True)}  # fmt: skip
    assert sorted(found) == ["V0001", "V0002", "V0006"]
    np.testing.assert_allclose(found["V0002"]["fovea"], [1131.07, 834.53], rtol=1e-6)
    for row in found.values():
        assert row["size"].tolist() == [1634, 1634]
        x, y = (row["fovea"] / 1634 * 64).astype(int)
        middle = row["image"][16:48, 16:48].astype(int).sum(-1)
        assert row["image"][y - 1 : y + 2, x - 1 : x + 2].astype(int).sum(-1).mean() < np.median(middle), (
            "the fovea is dark"
        )


def test_foveas_of_a_folder(tmp_path):
    for i in range(6):
        official.save(tmp_path / f"V{i}.png", np.full((20, 30, 3), 90, np.uint8))
    rows = [(f"V{i}.png", 0, 10.5 + i, 9) for i in range(6)]
    write_table(tmp_path / "labels_and_fovea.csv", ("ImgName", "Glaucoma Label", "Fovea_X", "Fovea_Y"), rows)
    data = build("foveas", root=tmp_path, frame="centre")
    example = data.splits["train"][0]
    assert example["frame"].tolist() == [5, 0, 20, 20] and example["size"].tolist() == [30, 20]
    write_table(tmp_path / "labels_and_fovea.csv", ("ImgName", "Fovea_X", "Fovea_Y"), [("V0", "", 3)])
    fails("foveas", "no coordinates in the row of 'V0'", root=tmp_path)
    write_table(tmp_path / "labels_and_fovea.csv", ("ImgName", "Fovea_X", "Fovea_Y"), [("V0", 2, 3)])
    fails("foveas", "no fovea for 5", root=tmp_path)
