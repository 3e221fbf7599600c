import numpy as np
import pytest
from PIL import Image

from ophjax.data import superres
from ophjax.data.pairs import halves
from ophjax.data.superres import Config
from ophjax.errors import InputError
from ophjax.transforms.resizing import resize_bytes


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def picture(i, height=50, width=67):
    return np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)


def open_folder(root, **options):
    return superres.make(Config(**(dict(root=str(root), size=16, scale=4) | options)))


@pytest.fixture
def plain(tmp_path):
    for i in range(10):
        save(tmp_path / f"eye{i}.png", picture(i))
    return tmp_path


def test_any_folder_of_images(plain):
    """Tiles from the top left corner, inputs by MATLAB's rule on the whole image, images kept whole in a split."""
    data = open_folder(plain)
    assert data.scale == 4 and "x4, x2 made by MATLAB's rule" in data.note
    seen = {part: {name.split("-")[0] for name in data.splits[part].names} for part in ("train", "val", "test")}
    assert sorted(name for names in seen.values() for name in names) == sorted(f"eye{i}" for i in range(10))
    assert len(data.splits["train"]) == 12 * len(seen["train"])  # 3 rows and 4 columns
    name = f"{min(seen['train'])}-16-32"
    example = data.splits["train"][data.splits["train"].names.index(name)]
    whole = picture(int(name[3]))[:48, :64]
    np.testing.assert_array_equal(example["target"], whole[16:32, 32:48])
    np.testing.assert_array_equal(example["image"], resize_bytes(whole, 4)[4:8, 8:12])
    np.testing.assert_array_equal(example["image_x2"], resize_bytes(whole, 2)[8:16, 16:24])
    tiles = data.splits["train"]
    of = [name.split("-")[0] for name in tiles.names]
    numbers = [int(tiles[i]["patient"]) for i in range(len(tiles))]
    assert len(set(zip(of, numbers, strict=True))) == len(set(of)) == len(set(numbers))
    assert len(open_folder(plain, step=8).splits["train"]) == 5 * 7 * len(seen["train"])
    assert "clamp, rounded False" in open_folder(plain, border="clamp", rounded=False).note


def test_benchmark_layout_is_read_as_it_is(tmp_path):
    """Stored low resolution is taken even where it is not MATLAB's; the image is cropped to it."""
    for i in range(10):
        save(tmp_path / "HR" / f"im{i}.png", picture(i))
        save(tmp_path / "LR_bicubic" / "X4" / f"im{i}x4.png", np.full((12, 16, 3), i, np.uint8))
    data = open_folder(tmp_path)
    assert "x2 made" in data.note
    example = data.splits["test"][0]
    number = int(data.splits["test"].names[0][2])
    assert (example["image"] == number).all()
    np.testing.assert_array_equal(example["image_x2"], resize_bytes(picture(number)[:48, :64], 2)[:8, :8])
    (tmp_path / "LR_bicubic" / "X4" / "im3x4.png").unlink()
    with pytest.raises(InputError, match="lacks 1 image"):
        open_folder(tmp_path)


def test_div2k_layout(tmp_path):
    for part, numbers in (("train", range(6)), ("valid", range(6, 8))):
        for i in numbers:
            save(tmp_path / f"DIV2K_{part}_HR" / f"{i:04d}.png", picture(i))
            save(tmp_path / f"DIV2K_{part}_LR_bicubic" / "X2" / f"{i:04d}x2.png", resize_bytes(picture(i)[:, :66], 2))
    data = open_folder(tmp_path, scale=2)
    assert {name.split("-")[0] for name in data.splits["test"].names} == {"0006", "0007"}
    assert "made" not in data.note
    (tmp_path / "Flickr2K_HR").mkdir()
    with pytest.raises(InputError, match="several sets"):
        open_folder(tmp_path, scale=2)


def test_inputs_without_truth(plain, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    for i in range(3):
        save(other / f"frame{i}.png", picture(50 + i, 9, 8))
    data = open_folder(plain, unpaired=str(other))
    mixed = data.splits["adapt"]
    assert len(mixed) == len(data.splits["train"]) + 3 * 4
    last = mixed[len(mixed) - 1]
    assert last["target_weight"] == 0
    np.testing.assert_array_equal(last["image"], picture(52, 9, 8)[4:8, 4:8])


def test_halves_of_the_search_share_no_image(plain):
    """Whole images in one half or the other, though tiles overlap; of one image alone the upper and the lower tiles."""
    train = open_folder(plain, step=8).splits
    names = train["search"].names
    one, other = ({names[i].split("-")[0] for i in group} for group in train["search"].groups)
    assert one and other and not one & other and len(one) - len(other) in (0, 1)
    assert sorted(i for group in train["search"].groups for i in group) == list(range(len(names)))
    alone = halves(train["train"], [3] * len(names))
    assert [len(group) for group in alone.groups] == [len(names) // 2, len(names) - len(names) // 2]
    assert max(alone.groups[0]) < min(alone.groups[1])
    assert halves(train["train"]).groups[0][:3] == [0, 2, 4]
    number = len(names) // 2  # only images 0 and 2 gave tiles
    assert list(halves(train["train"], [0] * number + [2] * (len(names) - number)).groups[0]) == list(range(number))


def test_mistakes(plain):
    with pytest.raises(InputError, match="multiples of the scale"):
        open_folder(plain, size=18)
    with pytest.raises(InputError, match="tiles of 64 do not fit"):
        open_folder(plain, size=64)
    with pytest.raises(InputError, match=r"--data\.root"):
        superres.make(Config())
    save(plain / "eye3.png", picture(3, 10, 10))
    with pytest.raises(InputError, match="Image eye3 has 8 x 8"):
        open_folder(plain)
