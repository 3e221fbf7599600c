"""REFUGE with seven raters and RIGA in trees of our own making."""

import numpy as np
import pytest
from made import build, examples, fails, names_once, save

from ophjax.data.builders import riga


def disc(radius, x=24.0, y=24.0, side=48):
    line = np.arange(side) + 0.5
    return np.hypot(line[None, :] - x, line[:, None] - y) < radius


def photograph(value, side=48):
    return np.full((side, side, 3), value, np.uint8)


def areas(masks):
    """Share of the square that each rater's regions take."""
    return masks.astype(float).mean((1, 2))


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


def repeat_numbers(root):
    """The same numbers in both parts, with opposite labels; gives the rows of a table that names the parts."""
    make_refuge(root, raters=1)
    rows = []
    for part, first in (("Training-400", 0), ("Test-400", 1)):
        for case in sorted((root / part).iterdir()):
            for path in sorted(case.iterdir()):
                path.rename(path.with_name(path.name[2:]))
            case.rename(case.with_name(case.name[2:]))
            rows.append(f"{part}\\{case.name[2:]}\\{case.name[2:]}.png,{(int(case.name[2:]) + first) % 2}")
    return rows


def test_refuge7_numbers_repeat_across_parts(tmp_path):
    rows = repeat_numbers(tmp_path)
    (tmp_path / "labels.csv").write_text("\n".join(["imgName,label", *rows]))
    data = build("refuge7", root=tmp_path)
    for part, first in (("train", 0), ("val", 0), ("test", 1)):
        for name, example in zip(data.splits[part].names, examples(data.splits[part]), strict=True):
            assert example["label"] == (int(name[-4:]) + first) % 2
    (tmp_path / "labels.csv").write_text("\n".join(["imgName,label", *rows, f"{rows[0][:-1]}1"]))
    fails("refuge7", r"labels.csv has two rows for 'Training-400.*0000.png'", root=tmp_path)
    (tmp_path / "labels.csv").write_text("\n".join(["imgName,label", *(f"{i:04d}.jpg,{i % 2}" for i in range(8))]))
    fails("refuge7", "does not say which part it means by 0000, 0001, 0002 and 1 more", root=tmp_path)
    (tmp_path / "labels.csv").write_text("\n".join(["imgName,label", *rows[1:]]))
    fails("refuge7", r"no row for image .*Training-400/0000/0000.jpg", root=tmp_path)


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


def test_riga_in_lower_case_and_in_deeper_folders(tmp_path):
    make_riga(tmp_path)
    for path in sorted(tmp_path.rglob("*prime.tif")):
        path.rename(path.with_name(path.name.replace("image", "Image").replace(".tif", ".TIF")))
    for path in sorted(tmp_path.rglob("*-*.tif")):
        path.rename(path.with_name(path.name.replace("image", "IMAGE" if "-3" in path.name else "Image")))
    (tmp_path / "Magrabia").mkdir()
    (tmp_path / "MagrabiaMale").rename(tmp_path / "Magrabia" / "Male")
    data = build("riga", root=tmp_path, size=48)
    assert "0 of their 66 masks missing" in data.note
    assert data.splits["test"].names == [f"Male-{i}" for i in (1, 2, 3)]
    for path in (tmp_path / "MESSIDOR").glob("*2-*"):
        path.unlink()
    fails("riga", r"MESSIDOR/Image2prime.TIF has no rater's copy: none of image2-1 to image2-6", root=tmp_path)


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
    table = tmp_path / "Glaucoma_multirater_MESSIDOR.csv"
    rows = table.read_text(encoding="gbk")
    for wrong in ("../DiscRegion/MESSIDOR/0/Image/0.jpg", "DiscRegion\\..\\..\\0.jpg", ""):
        table.write_text(rows.replace("DiscRegion/MESSIDOR/0/Image/0.jpg,", f"{wrong},"), encoding="gbk")
        fails("riga", r"MESSIDOR.csv names the image '.*'\. Give paths of files under", root=tmp_path)
    table.write_text(rows.replace("DiscRegion/MESSIDOR/0/Final", "DiscRegion/../../Final"), encoding="gbk")
    fails("riga", r"names the image 'DiscRegion/\.\./\.\./Rater1/0.bmp'", root=tmp_path)
    table.write_text(rows.replace("/MESSIDOR/0/FinalLabel/0", "/MESSIDOR/0/FinalLabel/9"), encoding="gbk")
    fails("riga", r"0.jpg has no rater's mask, such as .*Rater1/9.bmp", root=tmp_path)
    table.write_text(rows, encoding="gbk")
    (tmp_path / "DiscRegion/Magrabia/0/Image/0.jpg").unlink()
    fails("riga", r"Magrabia.csv names the image 'DiscRegion/Magrabia/0/Image/0.jpg'", root=tmp_path)
    fails("riga", "neither imageNprime.tif", root=tmp_path / "DiscRegion" / "BinRushed" / "0" / "FinalLabel")
