"""ISIC, TN3K and MedMNIST in trees of our own making, in the layouts they are handed out in."""

import numpy as np
import pytest
from made import build, examples, fails, names_once, save

SPOT = np.zeros((20, 24), np.uint8)
SPOT[5:15, 6:18] = 255


def colour(i):
    return np.full((20, 24, 3), i, np.uint8)


def isic2016(root, merged):
    for part, count in (("Training", 12), ("Test", 4)):
        name = f"ISBI2016_ISIC_Part{'3B' if merged else '1'}_{part}"
        masks = f"{name}_Data" if merged else f"{name}_GroundTruth"
        rows = []
        for i in range(count):
            stem = f"ISIC_{len(part)}{i:06}"
            save(root / f"{name}_Data" / f"{stem}.jpg", colour(i))
            save(root / masks / f"{stem}_Segmentation.png", SPOT)
            label = ("benign", "malignant")[i % 2] if part == "Training" else f"{i % 2}.0"
            rows.append(f"{stem},{label}")
        table = f"{name}_GroundTruth.csv" if merged else f"ISBI2016_ISIC_Part3_{part}_GroundTruth.csv"
        (root / table).write_text("\n".join(rows))


@pytest.mark.parametrize("merged", [True, False])
def test_isic_2016(merged, tmp_path):
    isic2016(tmp_path, merged)
    data = build("isic", root=tmp_path)
    assert (data.regions, data.classes) == (("lesion",), ("benign", "malignant"))
    assert len(names_once(data)) == 16 and len(data.splits["test"]) == 4
    assert [int(one["label"]) for one in examples(data.splits["test"])] == [0, 1, 0, 1]
    one = data.splits["train"][0]
    assert one["mask"].mean() == pytest.approx(SPOT.mean() / 255, abs=0.05)
    lost = next(tmp_path.rglob("*_Segmentation.png"))
    lost.unlink()
    fails("isic", "has no mask", root=tmp_path)
    (tmp_path / "empty").mkdir()
    fails("isic", "holds no ISBI2016", root=tmp_path / "empty")


def test_isic_2018(tmp_path):
    for part, count in (("Training", 14), ("Validation", 2)):
        rows = ["image,MEL,NV,BCC,AKIEC,BKL,DF,VASC"]
        for i in range(count):
            stem = f"ISIC_{i:07}{part[0]}"
            save(tmp_path / f"ISIC2018_Task1-2_{part}_Input" / f"{stem}.jpg", colour(i))
            save(tmp_path / f"ISIC2018_Task1_{part}_GroundTruth" / f"{stem}_segmentation.png", SPOT)
            save(tmp_path / f"ISIC2018_Task3_{part}_Input" / f"{stem}.jpg", colour(i))
            rows.append(f"{stem}," + ",".join("1.0" if k == i % 7 else "0.0" for k in range(7)))
        truth = tmp_path / f"ISIC2018_Task3_{part}_GroundTruth"
        truth.mkdir()
        (truth / f"{truth.name}.csv").write_text("\n".join(rows))
    lesions = build("isic", root=tmp_path, edition="2018-lesions")
    assert (lesions.regions, lesions.classes, len(lesions.splits["val"])) == (("lesion",), (), 2)
    assert lesions.splits["masks"].names == lesions.splits["train"].names
    classes = build("isic", root=tmp_path, edition="2018-classes", test_fraction=0.5)
    assert classes.classes[0] == "MEL" and "masks" not in classes.splits and len(names_once(classes)) == 16
    assert sorted(int(one["label"]) for one in examples(classes.splits["train"])) == list(range(7))
    rows[1] = rows[1].replace("1.0", "0.0")
    (truth / f"{truth.name}.csv").write_text("\n".join(rows))
    fails("isic", "no single 1", root=tmp_path, edition="2018-classes")


@pytest.mark.parametrize("folder", ["ISIC2018_Task3_Training_GroundTruth", "."])
def test_isic_2018_keeps_lesions_whole(folder, tmp_path):
    """84 images of 42 lesions; without the table of lesions the note says so."""
    rows, lesions = ["image,MEL,NV,BCC,AKIEC,BKL,DF,VASC"], ["image,lesion_id,diagnosis_confirm_type"]
    for i in range(84):
        stem = f"ISIC_{i:07}"
        save(tmp_path / "ISIC2018_Task3_Training_Input" / f"{stem}.jpg", colour(i))
        rows.append(f"{stem}," + ",".join("1.0" if k == i // 2 % 7 else "0.0" for k in range(7)))
        lesions.append(f"{stem},HAM_{i // 2:07},histopathology")
    truth = tmp_path / "ISIC2018_Task3_Training_GroundTruth"
    truth.mkdir()
    (truth / f"{truth.name}.csv").write_text("\n".join(rows))

    def owners():
        data = build("isic", root=tmp_path, edition="2018-classes")
        names_once(data)
        return data.note, [{int(name[-7:]) // 2 for name in data.splits[p].names} for p in ("train", "val", "test")]

    note, parts = owners()
    assert "Lesions are not known" in note and sum(map(len, parts)) > 42
    (tmp_path / folder / "ISIC2018_Task3_Training_LesionGroupings.csv").write_text("\n".join(lesions))
    note, parts = owners()
    assert "groups kept whole" in note and "not known" not in note and sum(map(len, parts)) == 42
    (tmp_path / folder / "ISIC2018_Task3_Training_LesionGroupings.csv").write_text("\n".join(lesions[:-1]))
    fails("isic", "has no lesion for 1 image", root=tmp_path, edition="2018-classes")


def test_tn3k(tmp_path):
    for part, count in (("trainval", 10), ("test", 3)):
        for i in range(count):
            save(tmp_path / f"{part}-image" / f"{i:04}.jpg", colour(i))
            save(tmp_path / f"{part}-mask" / f"{i:04}.jpg", SPOT)
    data = build("tn3k", root=tmp_path)
    assert data.regions == ("nodule",) and len(names_once(data)) == 13 and len(data.splits["test"]) == 3
    assert data.splits["test"][0]["mask"].mean() == pytest.approx(SPOT.mean() / 255, abs=0.05)
    (tmp_path / "test-mask" / "0001.jpg").unlink()
    fails("tn3k", "has no mask for 1 image", root=tmp_path)


def test_medmnist(tmp_path):
    arrays = {}
    for part, count in (("train", 9), ("val", 3), ("test", 6)):
        arrays[f"{part}_images"] = np.random.default_rng(0).integers(0, 256, (count, 28, 28, 3), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(count, dtype=np.uint8)[:, None] % 3
    np.savez(tmp_path / "bloodmnist.npz", **arrays)
    data = build("medmnist", root=tmp_path, set="bloodmnist")
    assert (data.classes, [len(data.splits[part]) for part in ("train", "val", "test")]) == (("0", "1", "2"), [9, 3, 6])
    assert [int(one["label"]) for one in examples(data.splits["test"])] == [0, 1, 2, 0, 1, 2]
    fails("medmnist", "no file", root=tmp_path, set="../bloodmnist")
    np.savez(tmp_path / "organ.npz", **{**arrays, "val_images": np.zeros((3, 28, 28, 28), np.uint8)})
    fails("medmnist", "no volumes", root=tmp_path, set="organ")
    (tmp_path / "torn.npz").write_bytes((tmp_path / "organ.npz").read_bytes()[:500])
    fails("medmnist", "cannot be read", root=tmp_path, set="torn")


def test_real_medmnist(real_data):
    data = build("medmnist", root=real_data / "pneumoniamnist")
    assert data.classes == ("0", "1") and len(data.splits["train"]) > 1000
