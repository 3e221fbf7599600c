import dataclasses

import numpy as np
import pytest
from PIL import Image

from ophjax.data import DATASETS, files, load
from ophjax.data.folder import Config, make
from ophjax.errors import InputError

STEMS = [f"eye{i:02d}" for i in range(20)]


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def table(root, rows, header="image,label"):
    (root / "labels.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


@pytest.fixture
def root(tmp_path):
    """Twenty images of 24 x 20 pixels, image i filled with i; masks of a left half; label i % 2."""
    for i, stem in enumerate(STEMS):
        save(tmp_path / "images" / f"{stem}.png", np.full((20, 24, 3), i, np.uint8))
        half = np.zeros((20, 24), np.uint8)
        half[:, :12] = 255
        save(tmp_path / "masks" / f"{stem}.png", half)
    table(tmp_path, [f"{stem}.png,{i % 2}" for i, stem in enumerate(STEMS)])
    return tmp_path


def open_folder(root, **options):
    return make(Config(root=str(root), size=16, **options))


def fails(root, match, **options):
    with pytest.raises(InputError, match=match) as caught:
        open_folder(root, **options)
    assert "\n" not in str(caught.value)  # one paragraph


def test_examples(root):
    data = open_folder(root)
    assert (data.name, data.regions, data.classes) == ("folder", ("region",), ("0", "1"))
    # 10 of each class in shares of 0.6, 0.15, 0.25: 6, 1.5 and 2.5, rounded either way.
    sizes = [len(data.splits[part]) for part in files.PARTS]
    assert sizes[0] in (11, 12, 13) and sizes[1] in (2, 3, 4) and sizes[2] in (4, 5, 6)
    seen = []
    for part in files.PARTS:
        source = data.splits[part]
        for position, name in enumerate(source.names):
            example = source[position]
            number = STEMS.index(name)
            assert example["image"].shape == (16, 16, 3) and (example["image"] == number).all()
            assert example["mask"].shape == (16, 16, 1) and example["mask"].dtype == np.uint8
            assert example["mask"][:, :8].all() and not example["mask"][:, 8:].any()
            assert example["label"] == number % 2 and example["label"].dtype == np.int32
            assert example["label"].shape == () and example["mask_weight"] == 1
            seen.append(name)
    assert sorted(seen) == STEMS
    assert data.splits["masks"] is data.splits["train"]
    assert "drawn by seed 0" in data.note


def test_some_images_without_mask(root):
    for stem in STEMS[::3]:
        (root / "masks" / f"{stem}.png").unlink()
    data = open_folder(root)
    assert set(data.splits["masks"].names) == set(data.splits["train"].names) - set(STEMS[::3])
    for part in files.PARTS:
        for position, name in enumerate(data.splits[part].names):
            example = data.splits[part][position]
            assert example["mask_weight"] == (name not in STEMS[::3])
            assert example["mask"].any() == (name not in STEMS[::3])


def test_names_without_extension_other_delimiters_and_strings(root):
    rows = [f"{stem};p{i};{'glaucoma' if i % 2 else 'healthy'}" for i, stem in enumerate(STEMS)]
    (root / "labels.csv").write_text("Image;Patient ;LABEL\n" + "\n".join(rows), encoding="utf-8-sig")
    data = open_folder(root)
    assert data.classes == ("glaucoma", "healthy")  # in alphabetical order


def test_integer_classes_are_in_numerical_order(root):
    table(root, [f"{stem},{(10, 2, 1)[i % 3]}" for i, stem in enumerate(STEMS)])
    assert open_folder(root).classes == ("1", "2", "10")


def test_mask_suffix_and_code(root):
    for stem in STEMS:
        (root / "masks" / f"{stem}.png").unlink()
        save(root / "masks" / f"{stem}_mask.png", np.full((20, 24), 2, np.uint8))
    data = open_folder(root, mask_code="disc=1,2;cup=2;rim=1")
    assert data.regions == ("disc", "cup", "rim")
    assert data.splits["train"][0]["mask"].mean((0, 1)).tolist() == [1, 1, 0]


def test_given_split_is_kept(root):
    parts = ["Train"] * 12 + ["val"] * 4 + ["test"] * 4
    table(
        root,
        [f"{s},{i % 2},{p}" for i, (s, p) in enumerate(zip(STEMS, parts, strict=True))],
        "image,label,split",
    )
    data = open_folder(root)
    assert data.splits["test"].names == STEMS[16:] and data.splits["train"].names == STEMS[:12]
    assert "as given" in data.note


def test_missing_val_is_drawn_from_train(root):
    rows = [f"{stem},{i % 2},{'test' if i < 6 else 'train'}" for i, stem in enumerate(STEMS)]
    table(root, rows, "image,label,split")
    data = open_folder(root)
    assert data.splits["test"].names == STEMS[:6]
    assert set(data.splits["val"].names) | set(data.splits["train"].names) == set(STEMS[6:])


def test_patients_stay_together(root):
    table(root, [f"{stem},{i % 2},p{i // 2}" for i, stem in enumerate(STEMS)], "image,label,patient")
    data = open_folder(root)
    owners = [{STEMS.index(name) // 2 for name in data.splits[part].names} for part in files.PARTS]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 10
    for part in files.PARTS:  # and an example says whose it is
        source = data.splits[part]
        numbers = {name: int(source[i]["patient"]) for i, name in enumerate(source.names)}
        assert all(
            (numbers[a] == numbers[b]) == (STEMS.index(a) // 2 == STEMS.index(b) // 2) for a in numbers for b in numbers
        )


def test_registry():
    assert {load(name).__name__ for name in DATASETS if name != "phantoms"} <= set(DATASETS.values())
    with pytest.raises(InputError, match=r"Unknown data set 'folde'.*Did you mean 'folder'"):
        load("folde")
    for name in DATASETS:
        config = load(name).Config()
        read = hasattr(config, "val_fraction")  # others are drawn, at sizes of their own
        assert dataclasses.is_dataclass(config) and (config.size == 256 or not read)


# Mistakes ---------------------------------------------------------------------


def test_no_root(root):
    fails("", "give its path with --data.root")
    fails(root / "nothing", r"There is no folder .*nothing")


@pytest.mark.parametrize("name", ["images", "masks"])
def test_missing_and_empty_folders(root, name):
    (root / name).rename(root / "away")
    fails(root, rf"There is no folder .*{name}")
    (root / name).mkdir()
    (root / name / "notes.txt").write_text("not an image")
    fails(root, f"{name} has no image files")


def test_missing_table(root):
    (root / "labels.csv").unlink()
    fails(root, r"There is no table .*labels\.csv")


@pytest.mark.parametrize("content", [b"", b"picture,label\neye00,1\n", b"image,label,label\n", b"\xff\xfe\x00"])
def test_bad_table(root, content):
    (root / "labels.csv").write_bytes(content)
    fails(root, "has the columns|is not UTF-8 text")


def test_table_lists_its_columns(root):
    table(root, ["eye00,1"], "picture,grade")
    fails(root, "has the columns picture, grade; it must have image, label")


ROWS = [f"{stem},{i % 2}" for i, stem in enumerate(STEMS)]


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (ROWS[1:], r"no row for 1 image\(s\): eye00\.png"),
        ([*ROWS, "eye99,1"], r"names 1 image\(s\) that are not in .*eye99"),
        ([*ROWS, "eye03.png,1"], "two rows for the image 'eye03.png'"),
        ([*ROWS[1:], "eye00,"], "no label in the row of image 'eye00'"),
        ([*ROWS[1:], "eye00"], "no label in the row of image 'eye00'"),
        ([*ROWS[1:], "../eye00.png,1"], "names the image '../eye00.png'.*without any folder"),
        ([*ROWS[1:], "/etc/passwd,1"], "without any folder"),
        ([*ROWS[1:], "..\\eye00.png,1"], "without any folder"),
        ([*ROWS[1:], ",1"], "names the image ''"),
        ([f"{stem},1" for stem in STEMS], "all of class '1'"),
        ([f"{stem},{int(i < 2)}" for i, stem in enumerate(STEMS)], "occurs in only 2"),
    ],
)
def test_bad_rows(root, rows, match):
    table(root, rows)
    fails(root, match)


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        (["train"] * 12 + ["valid"] * 8, "has the split 'valid'"),
        (["train"] * 19 + [""], "no split in the row"),
        (["val"] * 10 + ["test"] * 10, "train split .* is empty"),
        (["train", "val"] * 8 + ["test"] * 4, "train split .* all of class '0'"),
        (["train"] * 12 + ["val"] * 7 + ["test"], "test split .* 1 example"),
    ],
)
def test_bad_given_splits(root, parts, match):
    rows = [f"{s},{i % 2},{p}" for i, (s, p) in enumerate(zip(STEMS, parts, strict=True))]
    table(root, rows, "image,label,split")
    fails(root, match)


def test_class_missing_in_train(root):
    labels = [i % 2 for i in range(12)] + [0, 1, 2, 0, 0, 1, 0, 1]
    parts = ["train"] * 12 + ["val"] * 4 + ["test"] * 4
    table(root, [f"{s},{x},{p}" for s, x, p in zip(STEMS, labels, parts, strict=True)], "image,label,split")
    fails(root, "train split .* no example of class '2'")


def test_patient_in_two_splits(root):
    parts = ["train"] * 12 + ["val"] * 4 + ["test"] * 4
    rows = [f"{s},{i % 2},{p},p{i // 8}" for i, (s, p) in enumerate(zip(STEMS, parts, strict=True))]
    table(root, rows, "image,label,split,patient")
    fails(root, "Patient 'p1' has images in the train and in the val split")


def test_two_files_of_one_name(root):
    save(root / "images" / "eye00.bmp", np.zeros((20, 24, 3), np.uint8))
    fails(root, r"both eye00\.bmp and eye00\.png")


def test_mask_without_image_and_two_masks(root):
    save(root / "masks" / "other.png", np.zeros((20, 24), np.uint8))
    fails(root, r"1 mask\(s\) have no image of the same name: other\.png")
    (root / "masks" / "other.png").rename(root / "masks" / "eye00_mask.png")
    fails(root, r"eye00\.png has two masks")


def test_mask_of_another_size(root):
    save(root / "masks" / "eye05.png", np.zeros((24, 20), np.uint8))
    fails(root, r"eye05\.png is 24 x 20 pixels, but its mask .*eye05\.png is 20 x 24")


def test_no_mask_in_train(root):
    table(
        root,
        [f"{s},{i % 2},{'train' if i < 10 else 'test'}" for i, s in enumerate(STEMS)],
        "image,label,split",
    )
    for stem in STEMS[:10]:
        (root / "masks" / f"{stem}.png").unlink()
    fails(root, "None of the .* training images .* has a mask")


def test_bad_files_show_at_once_in_a_small_set(root):
    save(root / "masks" / "eye07.png", np.full((20, 24), 7, np.uint8))
    fails(root, r"eye07\.png holds the pixel values 7, but")
    (root / "masks" / "eye07.png").unlink()
    noise = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    save(root / "images" / "eye07.png", noise)
    content = (root / "images" / "eye07.png").read_bytes()
    (root / "images" / "eye07.png").write_bytes(content[: len(content) // 2])
    fails(root, r"eye07\.png cannot be decoded")


def test_bad_files_of_a_large_set_show_when_read(root, monkeypatch):
    monkeypatch.setattr(files, "CHECKED_PIXELS", 5 * 20 * 24)
    save(root / "masks" / "eye19.png", np.full((20, 24), 7, np.uint8))
    data = open_folder(root)
    (part,) = [part for part in files.PARTS if "eye19" in data.splits[part].names]
    with pytest.raises(InputError, match=r"eye19\.png holds the pixel values 7"):
        data.splits[part][data.splits[part].names.index("eye19")]


@pytest.mark.parametrize("size", [0, -4, 15, 5000])
def test_bad_size(root, size):
    with pytest.raises(InputError, match=f"The image size is {size}"):
        make(Config(root=str(root), size=size))


def test_bad_fractions_and_code(root):
    fails(root, "split fractions", val_fraction=0.5, test_fraction=0.6)
    fails(root, "Unknown mask code", mask_code="refug")
