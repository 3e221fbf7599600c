import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ophjax.data import files, load, look
from ophjax.data.multi import Config, make
from ophjax.data.pipeline import train_batches
from ophjax.errors import InputError

DOMAINS = ("clinic-a", "clinic-b", "clinic-c")
SIZES = {"clinic-a": (20, 24, 3), "clinic-b": (33, 18), "clinic-c": (40, 40, 3)}
STEMS = [f"eye{i:02d}" for i in range(20)]


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def table(root, domain, rows, header="image,label"):
    (root / domain / "labels.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def rows(label=lambda i: i % 2):
    return [f"{stem},{label(i)}" for i, stem in enumerate(STEMS)]


@pytest.fixture
def root(tmp_path):
    """Three domains of twenty images; image i of domain d is filled with 50 d + i. c has no labels and no masks."""
    for number, domain in enumerate(DOMAINS):
        for i, stem in enumerate(STEMS):
            save(tmp_path / domain / "images" / f"{stem}.png", np.full(SIZES[domain], 50 * number + i, np.uint8))
    for domain in DOMAINS[:2]:
        for stem in STEMS:
            half = np.zeros(SIZES[domain][:2], np.uint8)
            half[:, : half.shape[1] // 2] = 255
            save(tmp_path / domain / "masks" / f"{stem}_mask.png", half)
        table(tmp_path, domain, rows())
    return tmp_path


def open_domains(root, domains=DOMAINS, **options):
    return make(Config(root=str(root), domains=domains, size=16, **options))


def fails(root, match, **options):
    with pytest.raises(InputError, match=match) as caught:
        open_domains(root, **options)
    assert "\n" not in str(caught.value)  # one paragraph


def examples(source):
    return [source[i] for i in range(len(source))]


def test_splits(root):
    data = open_domains(root)
    assert (data.name, data.domains) == ("domains", DOMAINS)
    assert (data.regions, data.classes) == (("region",), ("0", "1"))
    assert load("domains").make is make
    train, val, test = (data.splits[part] for part in files.PARTS)
    # The source alone, with its labels.
    assert all(name.startswith("clinic-a-") for name in train.names)
    assert {int(example["label"]) for example in examples(train)} == {0, 1}
    assert data.splits["masks"] is train
    # clinic-c has no labels: it is trained on whole and scored nowhere, yet keeps its number.
    both = data.splits["domains"]
    sizes = [len(group) for group in both.groups]
    assert sizes == [len(train), len(train), 20]
    assert [len(group) for group in test.groups] == [sizes[0] and len(test) // 2, len(test) // 2, 0]
    seen = [set(source.names) for source in (both, val, test)]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 60
    for source in (both, val, test):
        for name, example in zip(source.names, examples(source), strict=True):
            domain, number = DOMAINS.index(name[:8]), STEMS.index(name[9:])
            assert example["domain"] == domain and example["domain"].dtype == np.int32
            assert example["image"].shape == (16, 16, 3) and (example["image"] == 50 * domain + number).all()
            hidden = source is both and domain > 0
            assert example["label"] == (-1 if hidden else number % 2)
            assert example["mask_weight"] == (domain < 2 and not hidden) == example["mask"].any()
            assert example["mask"].shape == (16, 16, 1)
    # Without clinic-c every target has labels, and an upper bound may learn from them.
    assert "labelled" not in data.splits
    bound = open_domains(root, DOMAINS[:2]).splits["labelled"]
    assert {int(e["label"]) for e in examples(bound)} == {0, 1} and bound.names[-1].startswith("clinic-b")


def test_the_note_says_what_is_not_used(root):
    note = open_domains(root).note
    assert "The training images of clinic-b carry labels, which are not used in training." in note
    assert "clinic-c cannot be scored" in note and "stretched to 16 x 16" in note and "drawn by seed 0" in note
    for part in ("source clinic-a 12 train", "target clinic-c 20 train"):
        assert part in note


def test_batches_mix_the_domains_and_hold_no_target_label(root):
    batches = train_batches(open_domains(root).splits["domains"], batch_size=6, seed=0, threads=1)
    for _ in range(8):  # more than an epoch of the smallest
        batch = next(batches)
        assert batch["domain"].tolist() == [0, 1, 2] * 2
        assert (batch["label"][batch["domain"] > 0] == -1).all() and (batch["label"][batch["domain"] == 0] >= 0).all()
        assert batch["image"].shape == (6, 16, 16, 3) and batch["mask"].shape == (6, 16, 16, 1)
    batches.close()


def test_target_labels_change_nothing_in_training(root):
    before = open_domains(root).splits["domains"]
    table(root, "clinic-b", rows(lambda i: (i + 1) % 2))
    after = open_domains(root).splits["domains"]
    assert [int(e["label"]) for e in examples(before)] == [int(e["label"]) for e in examples(after)]


@pytest.mark.parametrize("unknown", ["", "-1"])
def test_partly_labelled_target(root, unknown):
    """Patients of three images; the third is never labelled. It may not come into training from a test patient."""
    lines = [f"{stem},{i % 2 if i % 3 < 2 else unknown},p{i // 3}" for i, stem in enumerate(STEMS)]
    table(root, "clinic-b", lines, "image,label,patient")
    data = open_domains(root, DOMAINS[:2])
    owners = {}
    for part in ("domains", "val", "test"):
        for name in data.splits[part].names:
            if name.startswith("clinic-b"):
                owners.setdefault(STEMS.index(name[9:]) // 3, set()).add(part)
    assert all(len(parts) == 1 for parts in owners.values())
    assert set.union(*owners.values()) == {"domains", "val", "test"}
    assert all(e["label"] >= 0 for part in ("val", "test") for e in examples(data.splits[part]))


def test_given_splits_are_kept_domain_by_domain(root):
    parts = ["train"] * 12 + ["val"] * 4 + ["test"] * 4
    lines = [f"{s},{i % 2},{p}" for i, (s, p) in enumerate(zip(STEMS, parts, strict=True))]
    table(root, "clinic-a", lines, "image,label,split")
    data = open_domains(root, DOMAINS[:2])
    assert data.splits["train"].names == [f"clinic-a-{stem}" for stem in STEMS[:12]]
    assert data.splits["test"].names[:4] == [f"clinic-a-{stem}" for stem in STEMS[16:]]
    other = open_domains(root, DOMAINS[:2], split_seed=1)
    assert other.splits["train"].names == data.splits["train"].names
    assert other.splits["test"].names[4:] != data.splits["test"].names[4:]  # clinic-b's is drawn


def test_masks_without_labels(root):
    """Segmentation only: targets are not trained on, so all that validation leaves is for the test."""
    without_tables = open_domains(root, labels="")
    for domain in DOMAINS[:2]:
        (root / domain / "labels.csv").unlink()
    data = open_domains(root)
    assert {part: data.splits[part].names for part in data.splits} == {
        part: without_tables.splits[part].names for part in data.splits
    }
    assert data.classes == () and "domains" not in data.splits and data.splits["masks"] is data.splits["train"]
    assert [len(group) for group in data.splits["val"].groups] == [3, 3, 0]  # 0.15 of 20
    assert [len(group) for group in data.splits["test"].groups] == [5, 17, 0]  # 0.25 of 20, and the rest
    assert len(data.splits["train"]) == 12
    assert all(e["mask_weight"] == 1 and e["label"] == -1 for e in examples(data.splits["test"]))
    assert "carry labels" not in data.note and "target clinic-c nothing to score" in data.note


def test_labels_without_masks(root):
    for domain in DOMAINS[:2]:
        shutil.rmtree(root / domain / "masks")
    data = open_domains(root)
    assert data.regions == () and "masks" not in data.splits
    assert set(data.splits["test"][0]) == {"image", "label", "domain", "patient"}


def test_source_with_some_masks(root):
    for stem in STEMS[::2]:
        (root / "clinic-a" / "masks" / f"{stem}_mask.png").unlink()
    data = open_domains(root)
    odd = {f"clinic-a-{stem}" for stem in STEMS[1::2]}
    assert set(data.splits["masks"].names) == odd & set(data.splits["train"].names)


def test_classes_in_numerical_order_and_target_without_one(root):
    table(root, "clinic-a", [f"{stem},{(10, 2, 1)[i % 3]}" for i, stem in enumerate(STEMS)])
    table(root, "clinic-b", rows(lambda i: 1 + i % 2))
    data = open_domains(root)
    assert data.classes == ("1", "2", "10")
    assert {int(e["label"]) for e in examples(data.splits["test"]) if e["domain"] == 1} == {0, 1}


# Mistakes ---------------------------------------------------------------------


def test_too_few_and_unknown_domains(root):
    fails(root, r"names 0 domain\(s\).*has the folders clinic-a, clinic-b, clinic-c", domains=())
    fails(root, r"names 1 domain\(s\) \(clinic-a\)", domains=DOMAINS[:1])
    fails(root, "names clinic-a more than once", domains=("clinic-a", "clinic-a"))
    fails(
        root,
        "no folder .*clinic-z.images for the domain 'clinic-z'; .* has the folders",
        domains=(*DOMAINS, "clinic-z"),
    )
    for name in ("../clinic-a", "..", "", "a\\b"):
        fails(
            root, f"--data.domains names {re.escape(repr(name))}; a domain has a plain name", domains=("clinic-a", name)
        )
    fails("", "give its path with --data.root")
    fails(root / "nothing", "There is no folder")
    fails(root / "clinic-a", "has no folder with images/ in it")


def test_names_that_scores_cannot_carry(root):
    fails(root, "A domain cannot be called 'low': .* has the folders", domains=("clinic-a", "low", "high"))
    fails(root, "A region cannot be called 'cup_high'", mask_code="cup_high=1,255")
    fails(root, "A region cannot be called 'worst'", mask_code="worst=1,255")


def test_empty_domain(root):
    for path in (root / "clinic-b" / "images").iterdir():
        path.unlink()
    fails(root, "clinic-b.images has no image files")


def test_source_without_labels(root):
    fails(
        root,
        r"'clinic-b' has the label\(s\) 0, 1, which the source 'clinic-c' has not \(it has no",
        domains=DOMAINS[::-1],
    )
    shutil.copytree(root / "clinic-c", root / "clinic-d")
    fails(root, "The source 'clinic-c' has neither labels nor masks", domains=("clinic-c", "clinic-d"))


def test_source_with_a_missing_label(root):
    table(root, "clinic-a", [*rows()[1:], "eye00,"])
    fails(root, r"The source 'clinic-a' has 1 image\(s\) without a label: clinic-a-eye00")


def test_class_absent_from_the_source(root):
    table(root, "clinic-b", rows(lambda i: i % 3))
    fails(root, r"'clinic-b' has the label\(s\) 2, which the source 'clinic-a' has not \(0, 1\)")


@pytest.mark.parametrize("domain", DOMAINS[:2])
def test_one_class_only(root, domain):
    table(root, domain, rows(lambda i: 1))
    if domain == "clinic-a":
        table(root, "clinic-b", rows(lambda i: 1))
    fails(root, f"labelled images of domain '{domain}' are of class '1'")


def test_rare_class_of_a_target(root):
    table(root, "clinic-b", rows(lambda i: int(i < 2)))
    fails(root, "Domain 'clinic-b' cannot be divided. Class 1 occurs in only 2")


def test_given_split_with_one_class_or_nothing(root):
    lines = [f"{s},{i % 2},{'train' if i < 12 else ('val', 'test')[i % 2]}" for i, s in enumerate(STEMS)]
    table(root, "clinic-b", lines, "image,label,split")
    fails(root, r"val split of domain 'clinic-b' has 4 example\(s\), all of class '0'")
    table(root, "clinic-a", [f"{s},{i % 2},{('val', 'test')[i > 9]}" for i, s in enumerate(STEMS)], "image,label,split")
    fails(root, "train split of the source 'clinic-a' is empty", domains=("clinic-a", "clinic-c"))


def test_class_missing_in_the_sources_train_split(root):
    parts = ["train"] * 12 + ["val"] * 4 + ["test"] * 4
    labels = [i % 2 for i in range(12)] + [0, 1, 2, 0, 0, 1, 0, 1]
    lines = [f"{s},{x},{p}" for s, x, p in zip(STEMS, labels, parts, strict=True)]
    table(root, "clinic-a", lines, "image,label,split")
    fails(root, "train split of the source 'clinic-a' has no example of class '2'")


def test_patient_in_two_splits(root):
    lines = [f"{s},{i % 2},{('train', 'test')[i > 9]},p{i // 8}" for i, s in enumerate(STEMS)]
    table(root, "clinic-b", lines, "image,label,split,patient")
    fails(root, "Patient 'p1' of domain 'clinic-b' has images in the train and in the test split")


def test_one_patient_only(root):
    for domain in DOMAINS[:2]:
        (root / domain / "labels.csv").unlink()
    table(root, "clinic-a", [f"{stem},,p0" for stem in STEMS], "image,label,patient")
    fails(root, r"'clinic-a' has images with masks of only 1 patient\(s\), .* 3 parts \(train, val, test\)")
    # A target may: nothing is left for validation then.
    data = open_domains(root, ("clinic-b", "clinic-a"))
    assert [len(group) for group in data.splits["val"].groups] == [3, 0]
    assert [len(group) for group in data.splits["test"].groups] == [5, 20]


def test_masks_in_a_target_only(root):
    shutil.rmtree(root / "clinic-a" / "masks")
    fails(root, "The source 'clinic-a' has no masks, but clinic-b has")


def test_regions_that_differ_between_domains(root):
    for stem in STEMS:
        mask = np.zeros((20, 24), np.uint8)
        mask[:, :12], mask[:, :6] = 1, 2
        save(root / "clinic-a" / "masks" / f"{stem}_mask.png", mask)
        save(root / "clinic-b" / "masks" / f"{stem}_mask.png", np.ones((33, 18), np.uint8))
    code = "disc=1,2;cup=2"
    fails(root, "No mask of domain 'clinic-b' holds the region 'cup', which those of clinic-a hold", mask_code=code)
    fails(root, "No mask of domain 'clinic-b' holds the region 'cup'", mask_code=code, domains=("clinic-b", "clinic-a"))
    fails(root, "holds the pixel values .* but the mask code 'background=0;region=1,255'")
    save(root / "clinic-b" / "masks" / "eye03_mask.png", np.full((33, 18), 2, np.uint8))
    assert open_domains(root, mask_code=code).regions == ("disc", "cup")


def test_bad_files_show_at_once_in_a_small_set(root):
    path = root / "clinic-c" / "images" / "eye07.png"
    save(path, np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:2000])
    fails(root, r"clinic-c.images.eye07\.png cannot be decoded")
    save(path, np.zeros((40, 40, 3), np.uint8))
    save(root / "clinic-b" / "masks" / "eye05_mask.png", np.zeros((24, 20), np.uint8))
    fails(root, r"clinic-b.images.eye05\.png is 18 x 33 pixels, but its mask")


def test_bad_files_show_later_where_that_is_asked_for(root):
    path = root / "clinic-b" / "images" / "eye07.png"
    path.write_bytes(b"")
    with look.later():
        data = open_domains(root)
    source = next(source for source in data.splits.values() if "clinic-b-eye07" in source.names)
    with pytest.raises(InputError, match=r"eye07\.png cannot be decoded"):
        source[source.names.index("clinic-b-eye07")]
    # Regions are compared all the same.
    save(path, np.zeros((33, 18), np.uint8))
    for stem in STEMS:
        save(root / "clinic-a" / "masks" / f"{stem}_mask.png", np.full((20, 24), 2, np.uint8))
        save(root / "clinic-b" / "masks" / f"{stem}_mask.png", np.ones((33, 18), np.uint8))
    with look.later():
        fails(root, "No mask of domain 'clinic-b' holds the region 'cup'", mask_code="disc=1,2;cup=2")


@pytest.mark.parametrize(
    ("lines", "header", "match"),
    [
        (rows()[1:], "image,label", r"clinic-b.labels\.csv has no row for 1 image\(s\): eye00\.png"),
        ([*rows(), "eye99,1"], "image,label", r"clinic-b.labels\.csv names 1 image\(s\) that are not in"),
        ([f"{row},valid" for row in rows()], "image,label,split", "has the split 'valid'"),
        (rows(), "image,grade", "it must have image, label"),
    ],
)
def test_bad_tables(root, lines, header, match):
    table(root, "clinic-b", lines, header)
    fails(root, match)


@pytest.mark.parametrize("size", [0, 15, 5000])
def test_bad_size(root, size):
    with pytest.raises(InputError, match=f"The image size is {size}"):
        make(Config(root=str(root), domains=DOMAINS, size=size))


def test_paths_need_not_be_absolute(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    assert open_domains(Path(root.name)).domains == DOMAINS
