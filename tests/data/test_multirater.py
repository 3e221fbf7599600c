"""Data sets of several raters: what is read, what a missing rater is, and what is told of a wrong file."""

import numpy as np
import pytest
from made import build, examples, fails, names_once, save

from ophjax.data import load
from ophjax.data.builders import papila

SIDE = 48
LINE = np.arange(SIDE) + 0.5


def disc(radius, x=24.0, y=24.0, side=SIDE):
    line = np.arange(side) + 0.5
    return np.hypot(line[None, :] - x, line[:, None] - y) < radius


def photograph(value, side=SIDE):
    return np.full((side, side, 3), value, np.uint8)


def areas(masks):
    """Pixels of each rater's regions on 16 x 16, as a share of those of a disc of 24 pixels' radius on 48 x 48."""
    return masks.astype(float).mean((1, 2))


# BU-BIL ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bubil(tmp_path):
    """Two sets of twelve cells; the gold standard is a disc of 12 pixels, the third of three people draws 18."""
    for folder in ("BU-BIL_Dataset1", "BU-BIL_Dataset2/2A"):
        for i in range(12):
            save(tmp_path / folder / "RawImages" / f"{i}.png", photograph(i)[..., 0])
            save(tmp_path / folder / "GoldStandard" / f"seg_{i}.png", ~disc(12))
            for person, radius in (("Person1_Amira", 12), ("Person1_ImageJ", 12), ("Person2_Amira", 18)):
                save(tmp_path / folder / "ExpertsAnnotations" / person / f"seg_{i}.png", ~disc(radius))
    return tmp_path


def test_bubil(bubil):
    (bubil / "BU-BIL_Dataset1/ExpertsAnnotations/Person2_Amira/seg_3.png").unlink()
    data = build("bubil", root=bubil)
    assert data.raters == ("person1-amira", "person1-imagej", "person2-amira") and data.classes == ("rat", "rabbit")
    assert len(names_once(data)) == 24 and "1 of their 72 masks missing" in data.note
    seen = {name: e for split in ("train", "val", "test") for name, e in zip(
        data.splits[split].names, examples(data.splits[split]), strict=True
    )}  # fmt: skip
    one = seen["rat-3"]
    assert {k: (v.dtype.name, v.shape) for k, v in one.items()} == {
        "image": ("uint8", (16, 16, 3)),
        "mask": ("uint8", (16, 16, 1)),
        "mask_weight": ("float32", ()),
        "label": ("int32", ()),
        "patient": ("int32", ()),
        "raters": ("uint8", (3, 16, 16, 1)),
        "rater_weight": ("float32", (3,)),
    }
    assert one["rater_weight"].tolist() == [1, 1, 0] and not one["raters"][2].any()
    whole = seen["rabbit-3"]
    assert whole["rater_weight"].tolist() == [1, 1, 1] and whole["label"] == 1
    np.testing.assert_array_equal(whole["raters"][0], whole["mask"])  # the gold standard
    np.testing.assert_allclose(areas(whole["raters"])[:, 0], np.pi * np.array([12, 12, 18]) ** 2 / SIDE**2, atol=0.03)


def test_raters_of_another_size_are_told_with_file_and_rater(bubil):
    wrong = bubil / "BU-BIL_Dataset1/ExpertsAnnotations/Person1_ImageJ/seg_5.png"
    save(wrong, ~disc(12, side=40))
    fails("bubil", r"Person1_ImageJ/seg_5.png of rater 'person1-imagej' is 40 x 40 pixels, .* 48 x 48", root=bubil)


def test_bubil_mistakes(bubil, tmp_path):
    (bubil / "BU-BIL_Dataset1/GoldStandard/seg_2.png").unlink()
    fails("bubil", "RawImages/2.png has no mask .*seg_2. Add it", root=bubil)
    fails("bubil", "none of the folders BU-BIL_Dataset1", root=tmp_path / "BU-BIL_Dataset1")


# QUBIQ -------------------------------------------------------------------------------------------------------------


def make_qubiq(root, cases=8, raters=3, part="brain-growth", folder="", tasks=1):
    nibabel = pytest.importorskip("nibabel")
    for i in range(1, cases + 1):
        home = root / part / folder / f"case{i:02d}"
        home.mkdir(parents=True)
        grey = np.zeros((SIDE, SIDE, 1), np.uint8)
        grey[:, :24] = 200
        nibabel.save(nibabel.Nifti1Image(grey, np.eye(4)), home / "image.nii.gz")
        for task in range(1, tasks + 1):
            for k in range(1, raters + 1):
                mask = disc(10 + k)[..., None].astype(np.uint8)
                nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), home / f"task{task:02d}_seg{k:02d}.nii.gz")
    return root


def test_qubiq(tmp_path):
    make_qubiq(tmp_path)
    (tmp_path / "brain-growth/case04/task01_seg02.nii.gz").unlink()
    data = build("qubiq", root=tmp_path)
    assert data.raters == ("rater-1", "rater-2", "rater-3") and data.regions == ("myelin",) and data.classes == ()
    assert len(names_once(data)) == 8
    both = [e for split in ("train", "val", "test") for e in examples(data.splits[split])]
    missing = [e for e in both if e["rater_weight"].min() == 0]
    assert len(missing) == 1 and missing[0]["rater_weight"].tolist() == [1, 0, 1]
    for example in both:
        assert example["image"][:8].min() > 200 and example["image"][9:].max() < 10  # rows are the second axis
        # The majority of three radii is the middle one; of two raters both must agree.
        middle = 12 if example["rater_weight"].min() else 11
        assert abs(example["mask"].mean() - np.pi * middle**2 / SIDE**2) < 0.03


def test_qubiq_keeps_given_splits_and_joins_tasks(tmp_path):
    make_qubiq(tmp_path, part="prostate", folder="Training", tasks=2)
    make_qubiq(tmp_path, cases=3, part="prostate", folder="Validation", tasks=2)
    data = build("qubiq", root=tmp_path, part="prostate")
    assert data.splits["train"][0]["raters"].shape == (3, 16, 16, 2)
    # Cases of different folders may have one number, but are different patients there.
    assert {name.split("-")[0] for name in data.splits["val"].names} == {"val"}


def test_qubiq_mistakes(tmp_path):
    fails("qubiq", "no folders caseNN/", root=tmp_path)
    make_qubiq(tmp_path)
    nibabel = pytest.importorskip("nibabel")
    path = tmp_path / "brain-growth/case02/task01_seg03.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((40, 40, 1), np.uint8), np.eye(4)), path)
    fails("qubiq", r"case02/task01_seg03.nii.gz of rater 'rater-3' is 40 x 40", root=tmp_path)
    nibabel.save(nibabel.Nifti1Image(np.full((SIDE, SIDE), 3, np.uint8), np.eye(4)), path)
    fails("qubiq", "task01_seg03.nii.gz holds the values 3; expected 0 and 1", root=tmp_path)
    path.write_bytes(b"nothing")
    fails("qubiq", "task01_seg03.nii.gz cannot be read as NIfTI", root=tmp_path)


# PAPILA ------------------------------------------------------------------------------------------------------------


def contour(path, radius, x=60.0, y=50.0):
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    points = np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"   {a:.7e}   {b:.7e}\n" for a, b in points))


@pytest.fixture
def papila_tree(tmp_path):
    rows = {"od": ["ID,Age,Diagnosis"], "os": ["ID,Age,Diagnosis"]}
    for patient in range(1, 13):
        for eye in ("OD", "OS"):
            stem = f"RET{patient:03d}{eye}"
            save(tmp_path / "FundusImages" / f"{stem}.jpg", np.full((100, 120, 3), 90, np.uint8))
            for k in (1, 2):
                home = tmp_path / "ExpertsSegmentations/Contours"
                contour(home / f"{stem}_disc_exp{k}.txt", 20)
                contour(home / f"{stem}_cup_exp{k}.txt", 8 + 2 * k)
            rows[eye.lower()].append(f"#{patient:03d},60,{patient % 3}")
    for eye, lines in rows.items():
        path = tmp_path / "ClinicalData" / f"patient_data_{eye}.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines))
    return tmp_path


def test_papila(papila_tree):
    (papila_tree / "ExpertsSegmentations/Contours/RET004OS_cup_exp2.txt").unlink()
    data = build("papila", root=papila_tree, size=60)
    assert data.raters == ("expert-1", "expert-2") and data.classes == ("healthy", "glaucoma")
    assert len(names_once(data)) == 24
    patients = {split: {name[3:6] for name in data.splits[split].names} for split in ("train", "val", "test")}
    assert not patients["train"] & patients["test"] and not patients["val"] & patients["test"]
    by_name = {n: data.splits[s][i] for s in patients for i, n in enumerate(data.splits[s].names)}
    assert [int(by_name[f"RET{p:03d}OD"]["label"]) for p in (3, 1, 2)] == [0, 1, -1]  # suspects are unlabelled
    assert by_name["RET004OS"]["rater_weight"].tolist() == [1, 0]
    whole = by_name["RET004OD"]["raters"]
    scale = (60 / 100) ** 2  # the square of three diameters is as large as the picture is high
    expected = [[np.pi * 20**2, np.pi * (8 + 2 * k) ** 2] for k in (1, 2)]
    # Filled with the pixels that the line itself crosses: half a pixel of a radius of ten.
    np.testing.assert_allclose(whole.sum((1, 2)), scale * np.array(expected), rtol=0.16)
    # Both experts must agree on what is scored against.
    np.testing.assert_array_equal(by_name["RET004OD"]["mask"], whole.min(0))


def test_papila_mistakes(papila_tree):
    home = papila_tree / "ExpertsSegmentations/Contours"
    contour(home / "RET003OD_cup_exp2.txt", 10, x=20)
    fails("papila", r"RET003OD_cup_exp2.txt of rater 'expert-2' has .* of its cup outside the disc", root=papila_tree)
    contour(home / "RET003OD_cup_exp2.txt", 10, x=300)
    fails("papila", r"RET003OD_cup_exp2.txt leaves its image of 120 x 100", root=papila_tree)
    (home / "RET003OD_cup_exp2.txt").write_text("1.0 2.0\nx y\n")
    fails("papila", r"RET003OD_cup_exp2.txt is no list of points", root=papila_tree)
    table = papila_tree / "ClinicalData" / "patient_data_od.csv"
    table.write_text("ID,Diagnosis\n#001,7\n")
    fails("papila", "patient '#001', eye 'OD' and diagnosis '7'", root=papila_tree)
    table.write_text("ID,Diagnosis\n#001,1\n")
    fails("papila", "no row for image .*RET002OD.jpg", root=papila_tree)


# Real files --------------------------------------------------------------------------------------------------------


def test_real_bubil(real_data):
    module = load("bubil")
    data = module.make(module.Config(root=str(real_data / "bubil_multirater"), size=64))
    assert len(data.raters) == 10 and len(names_once(data)) == 82
    masks = np.stack([e["raters"] for e in examples(data.splits["train"])]).astype(float)
    gold = np.stack([e["mask"] for e in examples(data.splits["train"])])[:, None]
    dice = 2 * (masks * gold).sum((2, 3, 4)) / (masks + gold).sum((2, 3, 4))
    assert 0.85 < dice.mean() < 0.95  # the source says 0.90 to 0.91 to the majority


def test_real_qubiq(real_data):
    module = load("qubiq")
    data = module.make(module.Config(root=str(real_data / "qubiq_brain_growth"), size=128))
    assert len(data.raters) == 7 and len(names_once(data)) == 27
    masks = np.stack([e["raters"] for e in examples(data.splits["train"])]).astype(float)
    vote = np.stack([e["mask"] for e in examples(data.splits["train"])])[:, None]
    dice = 2 * (masks * vote).sum((2, 3, 4)) / (masks + vote).sum((2, 3, 4))
    assert (dice.mean(0) > 0.85).all() and (dice.mean(0) < 0.96).all()  # the source says 0.88 to 0.93


def test_real_contours_of_papila(real_data):
    """The release's own contour files of one eye: Dice of the two experts 0.887 (cup) and 0.976 (disc)."""
    home = real_data / "papila_text_only" / "PapilaDB" / "ExpertsSegmentations" / "Contours"
    for region, expected in (("cup", 0.887), ("disc", 0.976)):
        one, two = (papila.fill(home / f"RET002OD_{region}_exp{k}.txt", (2576, 1934)) > 0 for k in (1, 2))
        assert 2 * (one & two).sum() / (one.sum() + two.sum()) == pytest.approx(expected, abs=0.002)
