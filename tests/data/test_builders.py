import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ophjax.data import load
from ophjax.errors import InputError

PARTS = ("train", "val", "test")


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def picture(i):
    return np.full((20, 24), i, np.uint8)


def blob(value):
    mask = np.zeros((20, 24), np.uint8)
    mask[5:15, 6:18] = value
    return mask


def build(name, root, **options):
    module = load(name)
    return module.make(module.Config(root=str(root), size=16, **options))


def labels_by_name(data):
    return {
        name: int(source[i]["label"])
        for part, source in data.splits.items()
        if part != "masks"
        for i, name in enumerate(source.names)
    }


def make_drishti(root, folders=("Training", "Test")):
    rows = ["image,official_split,glaucoma"]
    for i in range(32):
        folder = "Training" if i < 20 else "Test"
        rows.append(f"drishtiGS_{i:03d}.png,{folder},{i % 2}")
        if folder in folders:
            save(root / folder / "Images" / f"drishtiGS_{i:03d}.png", np.stack([picture(i)] * 3, -1))
            mask = blob(1)
            mask[8:12, 9:15] = 2
            save(root / folder / "GT_roi" / f"drishtiGS_{i:03d}.png", mask)
    (root / "labels.csv").write_text("\n".join(rows))


def test_drishti_official_split(tmp_path):
    make_drishti(tmp_path)
    data = build("drishti", tmp_path)
    assert data.regions == ("disc", "cup") and data.classes == ("normal", "glaucoma")
    assert data.splits["test"].names == [f"drishtiGS_{i:03d}" for i in range(20, 32)]
    assert len(data.splits["val"]) + len(data.splits["train"]) == 20
    assert labels_by_name(data) == {f"drishtiGS_{i:03d}": i % 2 for i in range(32)}
    disc, cup = np.moveaxis(data.splits["train"][0]["mask"], -1, 0)
    assert (disc >= cup).all() and cup.any() and disc.sum() > cup.sum()
    assert "val drawn" in data.note


def test_drishti_crops_cropped_further(tmp_path):
    """By default they are taken whole; the disc of 12 x 10 pixels fills a square of its diameter."""
    make_drishti(tmp_path)
    for options, share in (({}, 120 / 480), ({"crop": 1.0}, 120 / 144)):
        data = build("drishti", tmp_path, **options)
        assert data.splits["test"][0]["mask"][..., 0].mean() == pytest.approx(share, abs=1 / 16)  # one row
        assert ("diameters" in data.note) == bool(options)


@pytest.mark.parametrize("folder", ["Training", "Test"])
def test_drishti_with_one_part(tmp_path, folder):
    make_drishti(tmp_path, (folder,))
    data = build("drishti", tmp_path)
    assert all(len(data.splits[part]) for part in PARTS)
    assert "val and test drawn" in data.note
    other = build("drishti", tmp_path, split_seed=1)
    assert data.splits["test"].names != other.splits["test"].names


def test_drishti_mistakes(tmp_path):
    with pytest.raises(InputError, match="neither Training/ nor Test/"):
        build("drishti", tmp_path)
    make_drishti(tmp_path)
    (tmp_path / "Test" / "GT_roi" / "drishtiGS_030.png").unlink()
    with pytest.raises(InputError, match=r"drishtiGS_030\.png has no mask"):
        build("drishti", tmp_path)
    make_drishti(tmp_path)
    lines = (tmp_path / "labels.csv").read_text().splitlines()
    (tmp_path / "labels.csv").write_text("\n".join(lines[:-1]))
    with pytest.raises(InputError, match=r"labels\.csv has no row for image .*drishtiGS_031"):
        build("drishti", tmp_path)
    (tmp_path / "labels.csv").write_text("\n".join([*lines[:-1], "drishtiGS_031.png,Test,2"]))
    with pytest.raises(InputError, match="glaucoma '2' in the row of 'drishtiGS_031'; it must be 0 or 1"):
        build("drishti", tmp_path)
    (tmp_path / "labels.csv").write_text("\n".join([*lines, lines[-1]]))
    with pytest.raises(InputError, match="two rows for 'drishtiGS_031'"):
        build("drishti", tmp_path)


DIAGNOSES = {f"IMD{i:03d}": i % 3 for i in range(30)}
PUBLISHED = """

||   Name   || Histological Diagnosis || Clinical Diagnosis ||   Asymmetry   |   Streaks   ||   Colors   ||
{rows}

Legends for the columns

Clinical Diagnosis:
0 - Common Nevus; 1 - Atypical Nevus; 2 - Melanoma.
"""


def make_ph2_tables(style):
    if style == "published":
        line = "|| {} ||           {} ||                  {} ||         1 |             T ||          3  4 ||"
        rows = [line.format(n, "Melanoma" if d == 2 else "        ", d) for n, d in DIAGNOSES.items()]
        return "PH2_dataset.txt", PUBLISHED.format(rows="\n".join(rows))
    if style == "shortened":
        rows = [f"{name}\t{diagnosis}\t0" for name, diagnosis in DIAGNOSES.items()]
        return "PH2_dataset.txt", "\n".join(["Name\tClinical Diagnosis\tAsymmetry", *rows, "\t\t", "2 - Me\t\t"])
    rows = [f"{name},{diagnosis},0,{int(diagnosis == 2)}" for name, diagnosis in DIAGNOSES.items()]
    return "labels.csv", "\n".join(["Name,Clinical Diagnosis,Asymmetry,melanoma", *rows])


@pytest.mark.parametrize("style", ["published", "shortened", "csv"])
@pytest.mark.parametrize("inside", [True, False])
def test_ph2_published_layout(tmp_path, style, inside):
    base = tmp_path / "PH2Dataset"
    for i, name in enumerate(DIAGNOSES):
        folder = base / "PH2 Dataset images" / name
        save(folder / f"{name}_Dermoscopic_Image" / f"{name}.bmp", np.stack([picture(i)] * 3, -1))
        save(folder / f"{name}_lesion" / f"{name}_lesion.bmp", blob(1) > 0)
    file, text = make_ph2_tables(style)
    (base / file if style != "csv" or inside else tmp_path / file).write_text(text, encoding="latin-1")
    data = build("ph2", base if inside else tmp_path)
    assert data.classes == ("nevus", "melanoma") and data.regions == ("lesion",)
    assert labels_by_name(data) == {name: int(d == 2) for name, d in DIAGNOSES.items()}
    assert data.splits["train"][0]["mask"].any()


def test_ph2_flat_layout(tmp_path):
    for i, name in enumerate(DIAGNOSES):
        save(tmp_path / "images" / f"{name}.jpg", np.stack([picture(i)] * 3, -1))
        save(tmp_path / "masks" / f"{name}_lesion.png", blob(1) > 0)
    file, text = make_ph2_tables("csv")
    (tmp_path / file).write_text(text)
    data = build("ph2", tmp_path)
    assert labels_by_name(data) == {name: int(d == 2) for name, d in DIAGNOSES.items()}
    (tmp_path / file).unlink()
    with pytest.raises(InputError, match="There is no table"):
        build("ph2", tmp_path)


def test_ph2_without_either_layout(tmp_path):
    with pytest.raises(InputError, match="neither images/ nor PH2Dataset"):
        build("ph2", tmp_path)


def test_shenzhen(tmp_path):
    for i in range(24):
        save(tmp_path / "CXR_png" / f"CHNCXR_{i:04d}_{i % 2}.png", picture(i))
        if i:
            save(tmp_path / "mask" / f"CHNCXR_{i:04d}_{i % 2}_mask.png", blob(255))
    data = build("shenzhen", tmp_path)
    assert data.regions == ("lung",) and data.classes == ("normal", "tuberculosis")
    assert labels_by_name(data) == {f"CHNCXR_{i:04d}_{i % 2}": i % 2 for i in range(24)}
    example = data.splits["train"][0]
    assert example["image"].shape == (16, 16, 3) and (example["image"] == example["image"][0, 0, 0]).all()
    assert sum(len(data.splits[part]) for part in PARTS) == 24  # one image without mask included
    save(tmp_path / "CXR_png" / "MCUCXR_0001_0.png", picture(0)[:, :10])
    with pytest.raises(InputError, match=r"MCUCXR_0001_0\.png is not called CHNCXR"):
        build("shenzhen", tmp_path)


def test_ddti(tmp_path):
    rows = []
    for case in range(20):
        for nodule in (1, 2):
            name = f"{case}_1({nodule})"
            save(tmp_path / "cropped" / f"{name}.png", picture(case))
            save(tmp_path / "mask" / f"{name}.gif", blob(255))
            rows.append(f"{name},{'4a' if case % 2 else '2'},{case % 2}")
    (tmp_path / "diagnosis.csv").write_text("\n".join(rows))
    data = build("ddti", tmp_path)
    assert data.regions == ("nodule",) and data.classes == ("benign", "suspicious")
    owners = [{name.split("_")[0] for name in data.splits[part].names} for part in PARTS]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 20
    assert all(label == int(name.split("_")[0]) % 2 for name, label in labels_by_name(data).items())
    assert data.splits["train"][0]["mask"].mean() == pytest.approx(0.25, abs=0.05)  # 10 x 12 of 20 x 24


# The real sets ------------------------------------------------------------------

DATA = os.environ.get("OPHJAX_DATA", "")
REAL = {
    "drishti": ("drishti_gs1", 50, 32, (0.3, 0.15)),
    "ph2": ("ph2", 140, 28, (0.3,)),
    "shenzhen": ("shenzhen_cxr", 395, 200, (0.25,)),
    "ddti": ("ddti_cropped", 232, 186, (0.35,)),
}


@pytest.mark.skipif(not DATA, reason="OPHJAX_DATA names no folder with the real data sets")
@pytest.mark.parametrize("name", REAL)
def test_real_sets(name):
    folder, images, positive, areas = REAL[name]
    root = Path(DATA) / folder
    if not root.is_dir():
        pytest.skip(f"OPHJAX_DATA has no folder {folder}")
    module = load(name)
    start = time.perf_counter()
    data = module.make(module.Config(root=str(root), size=64))
    # All files are decoded meanwhile: 1 to 2 s on two busy cores. Ten times that is a broken cache.
    assert time.perf_counter() - start < 15
    # Counts as in the published tables, for the part of each set that is handed round for training.
    labels = list(labels_by_name(data).values())
    assert (len(labels), sum(labels)) == (images, positive)
    shares = [np.mean([labels_by_name(data)[n] for n in data.splits[part].names]) for part in PARTS]
    # Stratified: the rarer class differs by less than two images in any part, of 8 (Drishti val) or more.
    assert max(shares) - min(shares) < 2 / 8
    masks = np.stack([data.splits["masks"][i]["mask"].mean((0, 1)) for i in range(len(data.splits["masks"]))])
    # Areas were seen to be 0.30/0.16, 0.28, 0.22 and 0.45; a wrong code would give 0, 1 or the complement.
    np.testing.assert_allclose(masks.mean(0), areas, atol=0.12)
