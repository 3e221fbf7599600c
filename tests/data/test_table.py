import re

import numpy as np
import pytest
from made import build, examples, fails, names_once, save

# AS-OCT -------------------------------------------------------------------------


@pytest.fixture
def devices(tmp_path):
    """Scans whose left half is dark and right half bright with a dark rim; device b has no labels, c no val.csv."""
    for device in "abc":
        scan = np.zeros((20, 40), np.uint8)
        scan[:, 20:] = 200
        scan[:, 35:] = 100
        for i in range(24):
            save(tmp_path / device / "images" / f"{i:02d}.png", scan)
        for part, indices in {"train": range(12), "val": range(12, 18), "test": range(18, 24)}.items():
            label = "-1" if device == "b" else "{}"
            rows = [f"{i:02d}.png,{label.format(i % 2)},p{i},OD,{side}" for i in indices for side in ("left", "right")]
            if device == "a" or part == "train" or (device == "c" and part == "test"):
                (tmp_path / device / f"{part}.csv").write_text("\n".join(["path,label,patient,eye,side", *rows]))
    return tmp_path


def test_asoct(devices):
    data = build("asoct", root=devices, domains=("a", "b", "c"))
    assert (data.domains, data.classes, data.regions) == (("a", "b", "c"), ("open", "closed"), ())
    # Two angles a scan. a: as given. b: 12 scans, never scored. c: 12 scans of which two are drawn for validation.
    assert [len(group) for group in data.splits["domains"].groups] == [24, 24, 20]
    assert [len(group) for group in data.splits["val"].groups] == [12, 0, 4]
    assert [len(group) for group in data.splits["test"].groups] == [12, 0, 12]
    names_once(data)
    for name, example in zip(data.splits["test"].names, examples(data.splits["test"]), strict=True):
        assert example["image"].shape == (16, 16, 3) and example["label"] == int(name[2:4]) % 2
        if name.endswith("left"):
            # The resize blurs the middle by part of a pixel.
            assert example["image"][:, :-1].max() == 0 and example["image"].max() < 50
        else:
            # Mirrored: the outer quarter of the right half is now on the left.
            assert (example["image"][:, :3] == 100).all() and (example["image"][:, 5:15] == 200).all()


def test_asoct_whole_scans(devices):
    for table in devices.glob("*/*.csv"):
        table.write_text(
            "\n".join(dict.fromkeys(",".join(row.split(",")[:2]) for row in table.read_text().split("\n")))
        )
    data = build("asoct", root=devices, domains=("a", "c"))
    image = data.splits["train"][0]["image"]
    assert image[:, :7].max() == 0 and image[:, 9:13].min() == 200 and len(data.splits["train"]) == 12


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (["99.png,0,p,OD,left"], "names the image '99.png', which is neither in"),
        (["00.png,2,p,OD,left"], "has the label '2' and the side 'left'"),
        (["00.png,1,p,OD,top"], "has the label '1' and the side 'top'"),
        (["../x.png,1,p,OD,left"], "names the image '../x.png'"),
        (["00.png,1,p,OD,left"] * 2, r"device 'b' have 1 row\(s\) twice"),
        ([], "device 'b' have no rows"),
    ],
)
def test_asoct_mistakes(devices, rows, match):
    (devices / "b" / "train.csv").write_text("\n".join(["path,label,patient,eye,side", *rows]))
    fails("asoct", match, root=devices, domains=("a", "b"))


def test_asoct_devices_that_are_not_there(devices):
    fails("asoct", r"names 0 domain\(s\).*has the folders a, b, c", root=devices)
    fails("asoct", r"no table .*d.train\.csv for the device 'd'", root=devices, domains=("a", "d"))
    fails("asoct", "has no folder with train.csv", root=devices / "a")
    (devices / "b" / "images" / "03.png").write_bytes(b"no image")
    fails("asoct", r"03\.png cannot be decoded", root=devices, domains=("a", "b"))


# Tables -------------------------------------------------------------------------

PATTERN = "patches/patient_{patient}_node_{node}/patch_patient_{patient}_node_{node}_x_{x_coord}_y_{y_coord}.png"


@pytest.fixture
def camelyon(tmp_path):
    """Three hospitals of eight patients, four patches each, in the layout of WILDS."""
    rows = [",patient,node,x_coord,y_coord,tumor,slide,center,split"]
    for patient in range(24):
        for x in range(4):
            row = {"patient": f"{patient:03d}", "node": patient % 5, "x_coord": x, "y_coord": 7}
            rows.append(f"{len(rows) - 1},{','.join(map(str, row.values()))},{x % 2},{patient},{patient // 8},{x % 2}")
            save(tmp_path / PATTERN.format(**row), np.full((96, 96, 3), 10 * patient + x, np.uint8))
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    return dict(root=tmp_path, image=PATTERN, label="tumor", domain="center", split="", domains=("1", "0", "2"))


def test_camelyon(camelyon):
    data = build("table", **camelyon)
    assert (data.domains, data.classes) == (("1", "0", "2"), ("0", "1"))
    assert len(names_once(data)) == 96
    for part in ("val", "test"):
        for name, example in zip(data.splits[part].names, examples(data.splits[part]), strict=True):
            patient, x = int(name.split("patient_")[1][:3]), int(name.split("_x_")[1][0])
            assert (example["image"] == 10 * patient + x).all() and example["label"] == x % 2
            assert data.domains[example["domain"]] == str(patient // 8)
    owners = [
        {name.split("patient_")[1][:3] for name in data.splits[part].names} for part in ("domains", "val", "test")
    ]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 24
    fails("table", "has the split '0' in the row", **camelyon | {"split": "split"})


def test_ham_and_chosen_classes(tmp_path):
    rows = ["lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"]
    for i in range(60):
        rows.append(
            f"L{i // 2},I{i:02d},{('nv', 'mel', 'bkl')[i % 3]},histo,50,male,back,{('vidir', 'rosendahl')[i > 29]}"
        )
        save(tmp_path / "images" / f"I{i:02d}.jpg", np.full((20, 20, 3), i, np.uint8))
    (tmp_path / "HAM.csv").write_text("\n".join(rows))
    options = dict(
        root=tmp_path, table="HAM.csv", image="images/{image_id}.jpg", label="dx", domain="dataset",
        patient="lesion_id", domains=("vidir", "rosendahl"),
    )  # fmt: skip
    assert build("table", **options).classes == ("bkl", "mel", "nv")
    data = build("table", classes=("nv", "mel"), **options)
    assert data.classes == ("nv", "mel") and len(names_once(data)) == 40
    for name, example in zip(data.splits["test"].names, examples(data.splits["test"]), strict=True):
        assert int(name.split("/I")[1][:2]) % 3 == example["label"]
    fails("table", "--data.classes names 'mel' alone", classes=("mel",), **options)
    fails("table", "are of class 'nv'|no example of class 'melanoma'", classes=("nv", "melanoma"), **options)


def write_table(root, rows, header="image,label,domain,patient,split"):
    (root / "metadata.csv").write_text("\n".join([header, *rows]))


def seen(data):
    """The splits in which each patient of ``shared_rows`` has images."""
    owners = {}
    for part in ("domains", "val", "test"):
        for name in data.splits[part].names:
            owners.setdefault(name.split("/")[1].split("_")[0], set()).add(part)
    return owners


def shared_rows(root, label=lambda i, domain: str(i // 2 % 2), part=lambda i, domain: ""):
    """Forty patients in domain a, of whom thirty are in b as well, with ten others."""
    rows = []
    for domain, first in (("a", 0), ("b", 10)):
        for i in range(first, first + 40):
            path = f"{domain}/p{i}_0.png"
            save(root / path, np.full((20, 20, 3), i, np.uint8))
            rows.append(f"{path},{label(i, domain)},{domain},p{i},{part(i, domain)}")
    return rows


@pytest.mark.parametrize("domains", [("a", "b"), ("b", "a")])
def test_patients_of_two_domains_stay_in_one_split(tmp_path, domains):
    write_table(tmp_path, shared_rows(tmp_path))
    data = build("table", root=tmp_path, domains=domains)
    owners = seen(data)
    assert len(owners) == 50 and all(len(parts) == 1 for parts in owners.values())
    assert "patients kept whole over all domains" in data.note
    for part, share in (("val", 6), ("test", 10)):
        assert all(abs(len(group) - share) <= 2 for group in data.splits[part].groups)


def test_an_unlabelled_target_has_no_training_image_of_a_test_patient(tmp_path):
    write_table(tmp_path, shared_rows(tmp_path, label=lambda i, domain: str(i // 2 % 2) if domain == "a" else ""))
    owners = seen(build("table", root=tmp_path, domains=("a", "b")))
    assert all(len(parts) == 1 for parts in owners.values())


def test_a_split_given_in_one_domain_holds_in_the_others(tmp_path):
    def given(i, domain):
        return ("train", "train", "train", "train", "val", "val", "test", "test")[i % 8] if domain == "b" else ""

    write_table(tmp_path, shared_rows(tmp_path, lambda i, domain: str(i % 2), given))
    owners = seen(build("table", root=tmp_path, domains=("a", "b")))
    assert all(len(parts) == 1 for parts in owners.values())
    for i in range(10, 50):
        assert owners[f"p{i}"] == {given(i, "b").replace("train", "domains")}
    # Where the test alone is given, validation is drawn from those given for training.
    rows = shared_rows(
        tmp_path, lambda i, domain: str(i % 2), lambda i, _: ("train", "train", "train", "test")[i // 2 % 4]
    )
    write_table(tmp_path, rows)
    data = build("table", root=tmp_path, domains=("a", "b"))
    assert all(len(parts) == 1 for parts in seen(data).values())
    assert all(abs(len(group) - 6) <= 2 for group in data.splits["val"].groups)
    write_table(tmp_path, shared_rows(tmp_path, part=lambda i, domain: {"a": "train", "b": "test"}[domain]))
    fails("table", "Patient 'p10' of domains 'a' and 'b' has images in the train and in the test split",
          root=tmp_path, domains=("a", "b"))  # fmt: skip


def test_plain_table_with_unlabelled_target(tmp_path):
    parts = ["train"] * 8 + ["val"] * 4 + ["test"] * 4
    for i in range(16):
        for domain in "ab":
            save(tmp_path / domain / f"{i}.png", np.full((20, 20, 3), i, np.uint8))
    rows = [f"a/{i}.png,{i % 2},a,,{part}" for i, part in enumerate(parts)] + [f"b/{i}.png,,b,," for i in range(16)]
    write_table(tmp_path, rows)
    options = dict(root=tmp_path, domains=("a", "b"))
    data = build("table", **options)
    assert data.splits["test"].names == [f"a-a/{i}.png" for i in (12, 13, 14, 15)]
    assert [len(group) for group in data.splits["domains"].groups] == [8, 16] and "b cannot be scored" in data.note
    fails(
        "table",
        r"names 1 domain\(s\) \(a\).*Column 'domain' of .* has a \(16 rows\), b \(16 rows\)",
        **options | {"domains": ("a",)},
    )
    fails("table", "cannot be called 'a_low': .*Column 'domain' of", **options | {"domains": ("a", "a_low")})
    fails("table", "no row of domain 'c'; column 'domain' has a", **options | {"domains": ("a", "c")})
    fails("table", "must have image, grade, domain", **options, label="grade")
    fails("table", r"There is no table .*other\.csv", **options, table="other.csv")
    write_table(tmp_path, [*rows, "b/0.png,1,b,,"])
    fails("table", r"two rows of one domain for the image\(s\) b/0\.png", **options)
    write_table(tmp_path, [*rows, "a/99.png,1,b,,"])
    fails("table", r"names 1 image\(s\) that are not there: a/99\.png", **options)
    for path in ("../a/0.png", "a\\..\\..\\0.png", "/a/0.png", ""):
        write_table(tmp_path, [*rows, f"{path},1,b,,"])
        fails("table", f"names the image {re.escape(repr(path))}. Give paths of files under", **options)
