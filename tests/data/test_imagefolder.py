"""One sub-folder for each class: classes by name, splits by seed, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from ophjax.data import imagefolder
from ophjax.errors import InputError


def write(root, **counts):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((20, 24, 3), 10 * i, np.uint8)).save(root / name / f"{i}.png")
    return imagefolder.Config(root=str(root), size=16)


def test_classes_are_the_folders_and_splits_share_nothing(tmp_path):
    data = imagefolder.make(write(tmp_path, hand=10, chest=10))
    assert data.classes == ("chest", "hand") and data.regions == ()
    names = {part: set(source.names) for part, source in data.splits.items()}
    assert sum(len(found) for found in names.values()) == 20 and len(set.union(*names.values())) == 20
    example = data.splits["train"][0]
    assert example["image"].shape == (16, 16, 3) and example["label"].dtype == np.int32
    for source in data.splits.values():
        assert all(data.classes[int(source[i]["label"])] == source.names[i].split("/")[0] for i in range(len(source)))
    chosen = imagefolder.make(imagefolder.Config(root=str(tmp_path), size=16, classes=("hand", "chest")))
    assert chosen.classes == ("hand", "chest")


def test_what_is_no_such_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="sub-folders one"):
        imagefolder.make(write(tmp_path / "a", one=3))
    with pytest.raises(InputError, match="no image files"):
        imagefolder.make(write(tmp_path / "b", one=3, two=0))
    config = write(tmp_path / "c", one=4, two=4)
    with pytest.raises(InputError, match="three"):
        imagefolder.make(imagefolder.Config(root=config.root, size=16, classes=("one", "three")))
    with pytest.raises(InputError, match="4096"):
        imagefolder.make(imagefolder.Config(root=config.root, size=5))
    (tmp_path / "c" / "one" / "0.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"0\.png"):
        imagefolder.make(imagefolder.Config(root=config.root, size=16))


def test_mednist(real_data):
    data = imagefolder.make(imagefolder.Config(root=str(real_data / "mednist" / "MedNIST"), size=32))
    assert data.classes == ("AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT")
    assert sum(len(data.splits[part]) for part in ("train", "val", "test")) == 1200
