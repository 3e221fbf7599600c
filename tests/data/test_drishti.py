"""Drishti-GS1 as released: full frames, soft maps of four experts, crops around the disc."""

import shutil

import numpy as np
import pytest
from PIL import Image

from ophjax.data.builders import drishti
from ophjax.errors import InputError

WIDTH, HEIGHT = 200, 120
SIDES = {"OD": (20, 16, 12, 8), "cup": (8, 6, 4, 2)}
"""Sides of the squares that at least 1, 2, 3 and 4 experts have marked, in pixels."""
LEVELS = (64, 128, 191, 255)
NAMES = [f"drishtiGS_{i:03d}" for i in range(1, 33)]


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def middle(i):
    """Where the disc of image i lies; that of the last lies near a corner."""
    return (194, 7) if i == len(NAMES) - 1 else (40 + 3 * i, 50 + i)


def frame(i):
    """Every pixel says where it is, and in which image."""
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    return np.stack([x, y, np.full_like(x, i)], -1).astype(np.uint8)


def soft_map(i, region):
    drawn = np.zeros((HEIGHT, WIDTH), np.uint8)
    x, y = middle(i)
    for side, level in zip(SIDES[region], LEVELS, strict=True):
        drawn[max(y - side // 2, 0) : y + side // 2, x - side // 2 : x + side // 2] = level
    return drawn


def make_tree(root, *, flat=False, test_masks="GT"):
    """The official layout; glaucoma is every other image."""
    for i, name in enumerate(NAMES):
        part, masks = ("Training", "GT") if i < 20 else ("Test", test_masks)
        place = "" if flat else ("NORMAL", "GLAUCOMA")[i % 2]
        save(root / part / "Images" / place / f"{name}.png", frame(i))
        for region in SIDES:
            save(root / part / masks / name / "SoftMap" / f"{name}_{region}segSoftmap.png", soft_map(i, region))
        (root / part / masks / name / "AvgBoundary").mkdir()
    if flat:
        rows = [f"{name}.png,{i % 2}" for i, name in enumerate(NAMES)]
        (root / "labels.csv").write_text("\n".join(["image,glaucoma", *rows]))


def build(root, size=24, **options):
    return drishti.make(drishti.Config(root=str(root), size=size, **options))


def examples(data):
    """All examples by name."""
    return {n: data.splits[p][i] for p in ("train", "val", "test") for i, n in enumerate(data.splits[p].names)}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Not to be changed; copy it."""
    root = tmp_path_factory.mktemp("drishti")
    make_tree(root)
    return root


def test_crops_of_full_frames(tree):
    """Two diameters of the disc that three of four have marked are 24 pixels here: nothing is resized."""
    data = build(tree)
    assert data.regions == ("disc", "cup") and data.classes == ("normal", "glaucoma")
    assert data.splits["test"].names == NAMES[20:] and len(data.splits["train"]) + len(data.splits["val"]) == 20
    assert "2 diameters around its given disc, in the test split too" in data.note
    found = examples(data)
    assert sorted(found) == NAMES
    for i, name in enumerate(NAMES):
        example, (x, y) = found[name], middle(i)
        assert example["label"] == i % 2 and example["mask_weight"] == 1
        # The square around the disc at the corner is moved into the frame.
        left, top = min(x - 12, WIDTH - 24), max(y - 12, 0)
        np.testing.assert_array_equal(example["image"], frame(i)[top : top + 24, left : left + 24])
        for channel, region in enumerate(SIDES):
            marked = soft_map(i, region)[top : top + 24, left : left + 24] >= LEVELS[2]
            np.testing.assert_array_equal(example["mask"][..., channel], marked)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_flat_images_with_a_table(tree, tmp_path, depth):
    """The same examples where the images lie flat, the test's masks in Test_GT and all under folders of one name."""
    root = tmp_path.joinpath(*["Drishti-GS1_files"] * depth)
    make_tree(root, flat=True, test_masks="Test_GT")
    if depth == 1:
        (root / "labels.csv").rename(tmp_path / "labels.csv")
    found, expected = examples(build(tmp_path)), examples(build(tree))
    assert found.keys() == expected.keys()
    for name, example in found.items():
        assert all((example[key] == expected[name][key]).all() for key in ("image", "mask", "label"))


@pytest.mark.parametrize("agreement", [1, 2, 3, 4])
def test_agreement(tree, agreement):
    """Marked is what at least so many experts have marked, and the crop follows the disc found so."""
    sides = SIDES["OD"][agreement - 1], SIDES["cup"][agreement - 1]
    example = examples(build(tree, agreement=agreement, size=2 * sides[0]))[NAMES[0]]
    assert [int(channel.sum()) for channel in np.moveaxis(example["mask"], -1, 0)] == [side**2 for side in sides]
    assert example["image"][sides[0], sides[0]].tolist() == [*middle(0), 0], "the disc is in the middle"


@pytest.mark.parametrize(
    ("crop", "width", "height"), [(0.0, 200, 120), (1.0, 12, 12), (5.0, 60, 60), (100.0, 120, 120)]
)
def test_crop(tree, crop, width, height):
    """The side is in diameters, no longer than the frame's shorter side; 0 is the whole frame, stretched."""
    image = examples(build(tree, crop=crop))[NAMES[0]]["image"].astype(int)
    # Each pixel says where it is: their spread is that of the square, less the outermost new pixel.
    spread = np.ptp(image[..., :2], (0, 1))
    assert spread == pytest.approx([width * 23 / 24, height * 23 / 24], abs=2)
    assert ("diameters" in build(tree, crop=crop).note) == bool(crop)


def test_soft_maps_of_nearly_the_same_size(tree, tmp_path):
    """A soft map one percent smaller is stretched to its frame; a smaller one is refused."""
    root = shutil.copytree(tree, tmp_path / "copy")
    path = root / "Training" / "GT" / NAMES[0] / "SoftMap" / f"{NAMES[0]}_ODsegSoftmap.png"
    save(path, soft_map(0, "OD")[:-1, :-2])
    example = examples(build(root))[NAMES[0]]
    np.testing.assert_allclose(example["image"][12, 12, :2], middle(0), atol=1)
    save(path, soft_map(0, "OD")[:, :-3])
    with pytest.raises(InputError, match=r"is 200 x 120 pixels, but its mask .* is 197 x 120"):
        build(root)


def empty_disc(root):
    path = root / "Training" / "GT" / NAMES[3] / "SoftMap" / f"{NAMES[3]}_ODsegSoftmap.png"
    save(path, np.full((HEIGHT, WIDTH), 128, np.uint8))  # two of four experts: no majority


MISTAKES = {
    "no parts": (lambda root: [shutil.rmtree(root / part) for part in drishti.OFFICIAL], "neither Training/ nor Test/"),
    "no images": (lambda root: shutil.rmtree(root / "Test" / "Images"), r"no folder .*Images"),
    "no masks": (lambda root: shutil.rmtree(root / "Test" / "GT"), r"Test has no folder of masks: neither GT/"),
    "two layouts": (lambda root: (root / "Test" / "GT_roi").mkdir(), r"only one has GT_roi"),
    "no soft map": (
        lambda root: (root / "Test" / "GT" / NAMES[25] / "SoftMap" / f"{NAMES[25]}_cupsegSoftmap.png").unlink(),
        rf"{NAMES[25]}\.png has no mask: there is no .*_cupsegSoftmap",
    ),
    "no image": (
        lambda root: (root / "Test" / "Images" / "NORMAL" / f"{NAMES[24]}.png").unlink(),
        rf"1 folder\(s\) of masks .* have no image in .*Images.*: {NAMES[24]}\.",
    ),
    "beside the folders": (
        lambda root: (root / "Test" / "Images" / "NORMAL" / f"{NAMES[24]}.png").rename(
            root / "Test" / "Images" / f"{NAMES[24]}.png"
        ),
        rf"or in its folders GLAUCOMA and NORMAL where it has such: {NAMES[24]}\.",
    ),
    "in both folders": (
        lambda root: save(root / "Training" / "Images" / "GLAUCOMA" / f"{NAMES[0]}.png", frame(0)),
        rf"NORMAL/{NAMES[0]}\.png is also there as .*GLAUCOMA",
    ),
    "in both parts": (lambda root: shutil.copytree(root / "Test", root / "Training", dirs_exist_ok=True), "come twice"),
    "no disc": (empty_disc, rf"{NAMES[3]}_ODsegSoftmap\.png is empty.*--data\.crop 0"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(tree, tmp_path, mistake):
    root = shutil.copytree(tree, tmp_path / "copy")
    spoil, words = MISTAKES[mistake]
    spoil(root)
    with pytest.raises(InputError, match=words) as caught:
        build(root)
    assert "\n" not in str(caught.value)  # one paragraph


def test_no_disc_is_no_matter_for_whole_frames(tree, tmp_path):
    root = shutil.copytree(tree, tmp_path / "copy")
    empty_disc(root)
    assert not examples(build(root, crop=0))[NAMES[3]]["mask"][..., 0].any()


def test_no_labels(tmp_path):
    make_tree(tmp_path, flat=True)
    rows = (tmp_path / "labels.csv").read_text().splitlines()
    (tmp_path / "labels.csv").write_text("\n".join(rows[:-1]))
    with pytest.raises(InputError, match=rf"labels\.csv has no row for image .*{NAMES[-1]}"):
        build(tmp_path)
    (tmp_path / "labels.csv").unlink()
    with pytest.raises(InputError, match=r"no table .*labels\.csv, and 32 images lie in no folder .*diagnosis\.xlsx"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"crop": 0.5}, "crop is 0.5"),
        ({"crop": -2.0}, "crop is -2.0"),
        ({"crop": float("nan")}, "crop is nan"),
        ({"agreement": 0}, "agreement is 0"),
        ({"agreement": 5}, "agreement is 5"),
    ],
)
def test_options_out_of_range(tree, options, words):
    with pytest.raises(InputError, match=words):
        build(tree, **options)


def test_the_code_takes_levels_that_are_a_little_off():
    """Levels between two shares go to the nearer one."""
    code = drishti.soft_code(3)
    table = np.isin(np.arange(256), code.regions["disc"])
    assert table[[159, 187, 191, 192, 252, 255]].all() and not table[[0, 63, 64, 127, 128, 158]].any()
    assert set(code.background) | set(code.regions["cup"]) == set(range(256))
