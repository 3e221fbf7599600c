"""Data sets of several raters: what is read, what a missing rater is, and what is told of a wrong file."""

import numpy as np
import pytest
from made import build, examples, fails, names_once, save

from ophjax.data import load
from ophjax.data.builders import papila, riga

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


# REFUGE with seven raters ------------------------------------------------------------------------------------------


def make_refuge(root, raters=7):
    rows = ["imgName,label"]
    for part, count in (("Training-400", 8), ("Test-400", 4)):
        for i in range(count):
            name = f"{part[:2].lower()}{i:04d}"
            home = root / part / name
            save(home / f"{name}.jpg", photograph(100 + i, 96))
            for k in range(1, raters + 1):
                save(home / f"{name}_seg_disc_{k}.png", disc(12, 60, 40, 96).astype(np.uint8) * 255)
                save(home / f"{name}_seg_cup_{k}.png", disc(4 + 0.5 * k, 60, 40, 96).astype(np.uint8) * 255)
            rows.append(f"REFUGE/{name}.jpg,{i % 2}")
    (root / "labels.csv").write_text("\n".join(rows))
    return root


def test_refuge7(tmp_path):
    make_refuge(tmp_path)
    data = build("refuge7", root=tmp_path)
    assert data.raters == tuple(f"rater-{k}" for k in range(1, 8)) and data.classes == ("normal", "glaucoma")
    assert len(data.splits["test"]) == 4 and len(names_once(data)) == 12
    example = data.splits["test"][1]
    assert example["label"] == 1 and (example["rater_weight"] == 1).all()
    # Cut to three disc diameters: the disc takes a ninth of the area of its bounding square's.
    assert abs(areas(example["raters"])[0, 0] - np.pi / 4 / 9) < 0.03
    assert (np.diff(areas(example["raters"])[:, 1]) >= 0).all()
    whole = build("refuge7", root=tmp_path, crop=0.0).splits["test"][1]
    assert abs(areas(whole["raters"])[0, 0] - np.pi * 12**2 / 96**2) < 0.02


def test_a_cup_outside_its_disc_is_told_with_file_and_rater(tmp_path):
    make_refuge(tmp_path)
    cup = tmp_path / "Training-400/tr0002/tr0002_seg_cup_4.png"
    save(cup, disc(6, 30, 40, 96).astype(np.uint8) * 255)
    words = r"tr0002_seg_cup_4.png of rater 'rater-4' has 100% of its cup outside the disc"
    fails("refuge7", words, root=tmp_path)
    # A slip of the hand is cut off.
    save(cup, (disc(11.5, 60.5, 40, 96)).astype(np.uint8) * 255)
    data = build("refuge7", root=tmp_path)
    for example in examples(data.splits["train"]):
        assert (example["raters"][..., 1] <= example["raters"][..., 0]).all()


def test_single_and_unanimous_raters(tmp_path):
    """One rater is a data set of one rater; raters who agree give their mask as the majority."""
    make_refuge(tmp_path, raters=1)
    data = build("refuge7", root=tmp_path)
    example = data.splits["train"][0]
    assert data.raters == ("rater-1",) and example["raters"].shape[0] == 1
    np.testing.assert_array_equal(example["mask"], example["raters"][0])
    for k in (2, 3):  # the same again
        for path in sorted(tmp_path.glob("*/*/*_1.png")):
            path.with_name(path.name.replace("_1.png", f"_{k}.png")).write_bytes(path.read_bytes())
    example = build("refuge7", root=tmp_path).splits["train"][0]
    np.testing.assert_array_equal(example["mask"], example["raters"][2])


def test_an_image_without_any_rater_is_not_trained_on(tmp_path):
    make_refuge(tmp_path, raters=2)
    for path in (tmp_path / "Training-400/tr0001").glob("*_seg_*"):
        path.unlink()
    (tmp_path / "Training-400/tr0002/tr0002_seg_disc_1.png").unlink()  # a cup alone is no mask
    fails("refuge7", "tr0001.jpg has no disc of any rater to crop by", root=tmp_path)
    data = build("refuge7", root=tmp_path, crop=0.0)
    by_name = {
        n: e for s in ("train", "val") for n, e in zip(data.splits[s].names, examples(data.splits[s]), strict=True)
    }
    assert by_name["train-tr0001"]["rater_weight"].tolist() == [0, 0]
    assert by_name["train-tr0001"]["mask_weight"] == 0
    assert by_name["train-tr0002"]["rater_weight"].tolist() == [0, 1]
    assert "train-tr0001" not in data.splits["masks"].names


def test_refuge7_mistakes(tmp_path):
    fails("refuge7", "no folders Training-400/ID/", root=tmp_path)
    make_refuge(tmp_path, raters=0)
    fails("refuge7", "No rater drew any of the 12 images", root=tmp_path)
    (tmp_path / "labels.csv").write_text("imgName,label\ntr0000.jpg,2\n")
    fails("refuge7", "the label '2' for 'tr0000.jpg'", root=tmp_path)


# RIGA --------------------------------------------------------------------------------------------------------------


def outlined(picture, *circles):
    """A copy of a picture with circles drawn in, a pixel or two broad."""
    drawn = picture.copy()
    line = np.arange(len(picture)) + 0.5
    for radius, x, y in circles:
        drawn[np.abs(np.hypot(line[None, :] - x, line[:, None] - y) - radius) < 0.9] = (20, 120, 20)
    return drawn


def make_riga(root, lossy=False):
    end, options = ("jpg", {"quality": 95, "subsampling": 0}) if lossy else ("tif", {})
    for folder, count in (("BinRushed1", 4), ("MESSIDOR", 4), ("MagrabiaMale", 3)):
        for i in range(1, count + 1):
            clean = photograph(150, 160)
            clean[:10] = 0  # outside the field of view
            save(root / folder / f"image{i}prime.{end}", clean, **options)
            for k in range(1, 7):
                copy = outlined(clean, (40, 80, 80), (15 + k, 82, 80))
                save(root / folder / f"image{i}-{k}.{end}", copy, **options)
    return root


@pytest.mark.parametrize("lossy", [False, True])
def test_riga_as_released(tmp_path, lossy):
    make_riga(tmp_path, lossy)
    end = "jpg" if lossy else "tif"
    (tmp_path / f"BinRushed1/image2-5.{end}").unlink()
    data = build("riga", root=tmp_path, size=160)
    assert len(data.raters) == 6 and {name.split("-")[0] for name in data.splits["test"].names} == {"MagrabiaMale"}
    example = data.splits["test"][0]
    expected = [[np.pi * 40.9**2, np.pi * (15.9 + k) ** 2] for k in range(1, 7)]
    # Filled to the outer edge of lines two pixels broad.
    np.testing.assert_allclose(example["raters"].sum((1, 2)), expected, rtol=0.08)
    missing = {e["rater_weight"].min() for s in ("train", "val") for e in examples(data.splits[s])}
    assert missing == {0, 1}


def test_riga_outlines_that_cannot_be_told(tmp_path):
    make_riga(tmp_path)
    copy = tmp_path / "MESSIDOR" / "image3-2.tif"
    save(copy, photograph(150, 160))  # nothing was drawn
    fails("riga", r"outlines of disc and cup can be told between .*image3prime.tif and .*image3-2.tif", root=tmp_path)
    save(copy, photograph(150, 120))
    fails("riga", r"of rater 'rater-2' is 120 x 120 pixels, .* 160 x 160", root=tmp_path)
    assert riga.find_outlines(np.zeros((30, 30), bool)) is None


def make_prepared(root):
    for site, count in (("BinRushed", 4), ("MESSIDOR", 4), ("Magrabia", 3)):
        rows = ["imgName,maskName,other,rater"]
        for i in range(count):
            home = f"DiscRegion/{site}/{i}"
            save(root / home / "Image" / f"{i}.jpg", photograph(120))
            for folder, k in (("FinalLabel", 3), *((f"Rater{k}", k) for k in range(1, 7))):
                mask = np.where(disc(6 + k), 255, np.where(disc(20), 128, 0)).astype(np.uint8)
                save(root / home / folder / f"{i}.bmp", mask)
            for rater in (0, 1):
                rows.append(f"{home}/Image/{i}.jpg,{home}/FinalLabel/{i}.bmp,x,{rater}")
        (root / f"Glaucoma_multirater_{site}.csv").write_text("\n".join(rows), encoding="gbk")
    return root


def test_riga_as_prepared(tmp_path):
    make_prepared(tmp_path)
    (tmp_path / "DiscRegion/Magrabia/1/Rater4/1.bmp").unlink()
    data = build("riga", root=tmp_path, size=48)
    assert len(names_once(data)) == 11 and len(data.splits["test"]) == 3
    first, second = data.splits["test"][0], data.splits["test"][1]
    sizes = [[disc(20).sum(), disc(6 + k).sum()] for k in range(1, 7)]  # disc: all but 0, cup: 255
    np.testing.assert_array_equal(first["raters"].sum((1, 2)), sizes)
    assert second["rater_weight"].tolist() == [1, 1, 1, 0, 1, 1]
    (tmp_path / "DiscRegion/Magrabia/0/Image/0.jpg").unlink()
    fails("riga", r"Magrabia.csv names the image 'DiscRegion/Magrabia/0/Image/0.jpg'", root=tmp_path)
    fails("riga", "neither imageNprime.tif", root=tmp_path / "DiscRegion" / "BinRushed" / "0" / "FinalLabel")


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
