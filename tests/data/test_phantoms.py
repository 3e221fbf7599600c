from __future__ import annotations

import json

import numpy as np
import pytest

from ophjax.data import drawing, fundus, phantoms
from ophjax.errors import InputError

SEED = 11
ALL = tuple(fundus.CAMERAS)


def source(**options):
    config = phantoms.Config(**{"size": 64, "seed": SEED, **options})
    return phantoms.Phantoms(config, 200_000, config.test)


def auc(score, label):
    """Mann-Whitney, for scores without ties."""
    rank = np.empty(len(score))
    rank[np.argsort(score)] = np.arange(1, len(score) + 1)
    positive = label.sum()
    return (rank[label == 1].sum() - positive * (positive + 1) / 2) / (positive * (len(label) - positive))


def height(mask):
    """Rows that a region touches."""
    return mask.any(1).sum()


@pytest.fixture(scope="module")
def scenes():
    """Scenes and findings without pictures: enough of them that a share is known to about 1.5 percent."""
    return [phantoms.draw_scene(SEED, i, ALL) for i in range(1200)]


@pytest.fixture(scope="module")
def column(scenes):
    return {name: np.array([getattr(f, name) for _, f in scenes], float) for name in phantoms.Findings._fields}


def find(scenes, wanted, count=12):
    found = [(i, scene) for i, (scene, findings) in enumerate(scenes) if wanted(findings)]
    assert len(found) >= count
    return found[:count]


def change(index, scene, **fields):
    """How much brighter the picture gets, in grey levels, if the scene is changed: float [size, size, 3]."""
    before, after = (phantoms.draw_image(s, SEED, index, 64).astype(float) for s in (scene, scene._replace(**fields)))
    return after - before


# The contract


def test_examples_keep_the_contract():
    example = source(raters=5)[3]
    assert {k: (v.dtype.name, v.shape) for k, v in example.items()} == {
        "image": ("uint8", (64, 64, 3)),
        "mask": ("uint8", (64, 64, 2)),
        "label": ("int32", ()),
        "raters": ("uint8", (5, 64, 64, 2)),
        "rater_weight": ("float32", (5,)),
    }
    assert set(np.unique(example["mask"])) == {0, 1}
    assert set(np.unique(example["raters"])) == {0, 1}
    assert "raters" not in source()[3]
    json.dumps(source().describe(3))


def test_an_example_depends_on_seed_and_index_alone():
    first, again = source(test=5), source(test=300, masks=7, val=1)
    for i in (4, 0, 2):
        again[i + 1]
        one, two = first[i], again[i]
        assert all(np.array_equal(one[k], two[k]) for k in one)
        assert first.describe(i) == again.describe(i)
        assert first.names[i] == again.names[i]
    assert not np.array_equal(first[0]["image"], first[1]["image"])
    assert not np.array_equal(first[0]["image"], source(seed=SEED + 1)[0]["image"])


def test_raters_do_not_depend_on_how_many_they_are():
    few, many = source(raters=2)[1], source(raters=6)[1]
    assert np.array_equal(few["raters"], many["raters"][:2])
    assert np.array_equal(few["image"], many["image"])
    # The truth stays the truth whoever draws.
    assert np.array_equal(few["mask"], source()[1]["mask"])


def test_raters_are_named_by_their_roles():
    data = phantoms.make(phantoms.Config(raters=5))
    assert data.raters == ("competent-1", "over-segmenting-1", "decoy-following-1", "noisy-1", "competent-2")
    two = phantoms.Config(raters=3, roles=("noisy", "competent"))
    assert phantoms.make(two).raters == ("noisy-1", "competent-1", "noisy-2")
    assert phantoms.make(phantoms.Config()).raters == ()


def test_missing_raters_are_empty_and_say_so():
    whole, part = source(raters=3), source(raters=3, missing=0.6)
    weights = np.stack([part[i]["rater_weight"] for i in range(60)])
    # 180 draws: a share of 0.4 within four standard errors, a little more since one always stays.
    assert 0.3 < weights.mean() < 0.65 and (weights.max(1) == 1).all()
    for i in range(3):
        there = part[i]["rater_weight"].astype(np.uint8)[:, None, None, None]
        assert np.array_equal(part[i]["raters"], whole[i]["raters"] * there)
    assert (whole[0]["rater_weight"] == 1).all()


def test_splits_share_nothing_but_the_training_pool():
    data = phantoms.make(phantoms.Config(masks=30, labelled=20, val=10, test=40))
    names = {split: part.names for split, part in data.splits.items()}
    assert {split: len(n) for split, n in names.items()} == {"masks": 30, "train": 20, "val": 10, "test": 40}
    assert names["train"] == names["masks"][:20]
    # 80 distinct names: 30 of the pool, 10 and 40.
    assert len(set(names["masks"]) | set(names["val"]) | set(names["test"])) == 80
    assert (data.regions, data.classes) == (("disc", "cup"), ("healthy", "glaucoma"))
    with pytest.raises(IndexError):
        data.splits["val"][10]
    with pytest.raises(IndexError):
        data.splits["val"][-1]
    assert sum(1 for _ in data.splits["val"]) == 10


def test_size_changes_pixels_and_nothing_else():
    small, large = source(size=64), source(size=128)
    for i in range(12):
        one, two = small[i], large[i]
        assert small.describe(i) == large.describe(i)
        assert one["label"] == two["label"]
        for example in (one, two):
            disc, cup = height(example["mask"][..., 0]), height(example["mask"][..., 1])
            # Each height is right to about a pixel, so that their ratio is right to two pixels of the disc.
            assert abs(cup / disc - small.describe(i)["cdr"]) < 2 / disc
        shrunk = two["image"].reshape(64, 2, 64, 2, 3).mean((1, 3))
        # Noise (about 5 levels) and edges differ; another scene differs by 30 levels and more.
        assert np.abs(shrunk - one["image"]).mean() < 8


def test_another_camera_sees_the_same_scene():
    one, two = source(cameras=("clinic",)), source(cameras=("handheld",))
    for i in range(3):
        assert np.array_equal(one[i]["mask"], two[i]["mask"])
        assert one[i]["label"] == two[i]["label"]
        assert np.abs(one[i]["image"].astype(float) - two[i]["image"]).mean() > 8
    assert {two.describe(i)["camera"] for i in range(20)} == {"handheld"}
    assert {source().describe(i)["camera"] for i in range(60)} == set(ALL)


# Anatomy and label


def test_cup_lies_in_the_disc_and_the_disc_in_the_picture(scenes):
    for scene, _ in scenes:
        assert (scene.cup < scene.disc).all()
        assert (scene.cup > 0.05).all()
        assert np.abs(scene.centre).max() + scene.disc.max() < 1
    example = source(raters=8)[0]
    for mask in (example["mask"], *example["raters"]):
        assert (mask[..., 1] <= mask[..., 0]).all()
        assert mask[..., 1].any()


def test_label_rule():
    below, between, above = phantoms.LOW - 0.01, 0.5 * (phantoms.LOW + phantoms.HIGH), phantoms.HIGH + 0.01
    assert [phantoms.diagnose(below, d, p) for d in (False, True) for p in (False, True)] == [0, 0, 0, 0]
    assert [phantoms.diagnose(between, d, p) for d in (False, True) for p in (False, True)] == [0, 1, 1, 1]
    assert [phantoms.diagnose(above, d, p) for d in (False, True) for p in (False, True)] == [1, 1, 1, 1]


def test_the_label_may_hang_on_the_ratio_alone():
    """The picture, masks and raters stay; about half are positive."""
    signs, ratio = (phantoms.Phantoms(phantoms.Config(32, rule=rule, raters=2), 0, 400) for rule in ("signs", "ratio"))
    for name, value in signs[3].items():
        if name != "label":
            np.testing.assert_array_equal(ratio[3][name], value)
    told = [ratio.describe(i) for i in range(len(ratio))]
    assert [one["label"] for one in told] == [int(one["cdr"] > phantoms.MIDDLE) for one in told]
    assert ratio[3]["label"] == told[3]["label"]
    assert 0.4 < np.mean([one["label"] for one in told]) < 0.6
    assert any(one["label"] != signs.describe(i)["label"] for i, one in enumerate(told))


def test_cup_to_disc_ratio_helps_and_does_not_suffice(column):
    label = column["label"].astype(int)
    # Meant: 45 to 50 percent positive; 1200 scenes are right to 3 percent (two standard errors).
    assert 0.42 <= label.mean() <= 0.53
    # Meant: 0.80 to 0.88, so that masks alone leave room for signs that they don't show.
    assert 0.80 <= auc(column["cdr"], label) <= 0.88
    undecided = (column["cdr"] > phantoms.LOW) & (column["cdr"] <= phantoms.HIGH)
    signs = np.maximum(column["defect"], column["rim_pallor"])
    assert (label[undecided] == signs[undecided]).all()
    assert 0.45 < undecided.mean() < 0.65


def test_decoys_tell_nothing(column):
    label = column["label"].astype(int)
    for decoy in ("lone_wedge", "floating_wedge", "shadow", "cup_pallor", "atrophy", "patch"):
        # Drawn apart from the label: correlations of 1200 pairs stay within 0.1 (three standard errors).
        assert abs(np.corrcoef(column[decoy], label)[0, 1]) < 0.1, decoy
        assert 0.1 < column[decoy].mean() < 0.4, decoy
    assert abs(np.corrcoef(column["pale_ratio"], column["cdr"])[0, 1]) < 0.1
    # A notch without its wedge is about as frequent as one with it.
    assert 0.6 < column["lone_notch"].sum() / column["defect"].sum() < 1.2


# Signs in the picture


def test_wedges_start_where_they_should(scenes):
    rooted = find(scenes, lambda f: f.defect and not (f.lone_wedge or f.floating_wedge))
    floating = find(scenes, lambda f: f.floating_wedge and not f.defect)
    near, far = {}, {}
    for kind, chosen in (("rooted", rooted), ("floating", floating)):
        for index, scene in chosen:
            (wedge,) = scene.wedges
            green = change(index, scene, wedges=())[..., 1]
            grid = drawing.lay_grid(scene.centre, 64)
            beyond = grid.radius - grid.read(scene.disc)
            fan = np.abs(grid.turn(wedge.angle + wedge.curl * beyond)) < 0.5 * wedge.half_width
            near.setdefault(kind, []).append(green[fan & (beyond > 0.06) & (beyond < 0.14)].mean())
            far.setdefault(kind, []).append(green[fan & (beyond > 0.4) & (beyond < 0.5)].mean())
    # The picture is about 70 levels green there, its noise 5: a wedge must stand out at 64 pixels.
    assert min(np.mean(near["rooted"]), np.mean(far["rooted"]), np.mean(far["floating"])) > 12
    assert np.mean(np.abs(near["floating"])) < 3


def test_a_defect_is_a_notch_and_a_wedge_at_one_clock_position(scenes):
    for _, scene in find(scenes, lambda f: f.defect and not (f.lone_wedge or f.floating_wedge)):
        rim = 1 - scene.cup / scene.disc
        (wedge,) = scene.wedges
        at = round(wedge.angle * drawing.ANGLES / drawing.TURN) % drawing.ANGLES
        # The notch takes more than half of the rim's breadth.
        assert rim[at] < 0.6 * np.median(rim)


def test_a_lone_wedge_meets_no_notch(scenes):
    for scene, findings in scenes:
        if findings.lone_wedge and (findings.defect or findings.lone_notch):
            rim = (1 - scene.cup / scene.disc) / np.median(1 - scene.cup / scene.disc)
            wedge, notch = scene.wedges[-1].angle, np.argmin(rim) * drawing.TURN / drawing.ANGLES
            # They lie in different arcs: one above, one below the horizontal.
            assert np.sin(wedge) * np.sin(notch) < 0


@pytest.mark.parametrize(("sign", "inside_cup"), [("rim_pallor", False), ("cup_pallor", True)])
def test_pale_sectors_keep_to_their_side_of_the_cup_edge(scenes, sign, inside_cup):
    shares = []
    other = "cup_pallor" if sign == "rim_pallor" else "rim_pallor"
    for index, scene in find(scenes, lambda f: getattr(f, sign) and not getattr(f, other)):
        gone = np.maximum(-change(index, scene, sectors=())[..., 2], 0)
        disc, cup = np.moveaxis(fundus.draw_mask(drawing.lay_grid(scene.centre, 64), scene.disc, scene.cup), -1, 0)
        region = cup if inside_cup else disc - cup
        shares.append(gone[region > 0].sum() / gone.sum())
        # Five times the noise.
        assert gone.max() > 25
    # Blurred edges spill over by a pixel or two of a breadth of ten.
    assert np.mean(shares) > 0.8


def test_the_cup_is_faint_and_blue_and_the_pale_disc_outshines_it(scenes):
    cup_steps, pale_steps = [], []
    for index, scene in find(scenes, lambda f: not f.cup_pallor, 30):
        straight = scene._replace(bend=0.0)
        grid = drawing.lay_grid(scene.centre, 64)
        ring = np.abs(grid.radius - 0.75 * grid.read(scene.cup)) < 0.08
        cup_steps.append(np.median(-change(index, straight, cup=0.2 * scene.cup)[ring], 0))
        pale = np.hypot(grid.x - scene.pallor.x, grid.y - scene.pallor.y) < 0.7 * scene.pallor.radius
        gone = change(index, straight, pallor=scene.pallor._replace(strength=0.0))
        pale_steps.append(np.median(-gone[pale], 0))
    red, green, blue = np.mean(cup_steps, 0)
    # Noise is about 5 levels: blue tells the cup from the rim, red and green hardly.
    assert 15 < blue < 45
    assert blue > 2 * max(green, red)
    # Green is most of what the eye calls bright.
    assert np.mean(pale_steps, 0)[1] > 3 * green


# Raters


def test_raters_play_their_roles():
    data = source(raters=5, roles=phantoms.ROLES, size=96)
    ratio, dice, follow = [], [], []
    for i in range(40):
        example = data[i]
        scene, _ = phantoms.draw_scene(SEED, data.first + i, ALL)
        grid = drawing.lay_grid(scene.centre, 96)
        pale = np.hypot(grid.x - scene.pallor.x, grid.y - scene.pallor.y) < scene.pallor.radius
        cups, truth = example["raters"][..., 1].astype(bool), example["mask"][..., 1].astype(bool)
        ratio.append(cups.sum((1, 2)) / truth.sum())
        dice.append([2 * (c & truth).sum() / (c.sum() + truth.sum()) for c in cups])
        follow.append([2 * (c & pale).sum() / (c.sum() + pale.sum()) for c in cups])
    assert phantoms.ROLES == ("competent", "over-segmenting", "decoy-following", "noisy", "generous")
    competent, over, decoy, noisy, generous = range(5)
    ratio, dice, follow = np.array(ratio), np.mean(dice, 0), np.mean(follow, 0)
    # Area goes with the square of the factor: 1.3 gives 1.69, less where the disc edge stops a large cup.
    assert abs(ratio[:, competent].mean() - 1) < 0.04
    assert 1.35 < ratio[:, over].mean() < 1.75
    assert ratio[:, over].std() < 0.6 * ratio[:, noisy].std()
    # Generous ones are always too wide, by an amount that differs from picture to picture.
    assert ratio[:, generous].min() > 1 and ratio[:, generous].mean() > ratio[:, over].mean()
    assert ratio[:, generous].std() > 2 * ratio[:, over].std()
    # The decoy's edge is followed to a tremor; its overlap with the cup is left to chance.
    assert follow[decoy] > 0.93
    assert follow[[competent, over, noisy]].max() < 0.85
    assert dice[competent] > 0.94
    assert dice[competent] > dice[noisy] + 0.05


# Bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 31}, "31 .* at least 32 pixels"),
        ({"masks": 0}, "0 phantoms .* --data.masks"),
        ({"labelled": -1}, "-1 phantoms .* --data.labelled"),
        ({"val": 0}, "--data.val"),
        ({"test": 100_001}, "100001 phantoms .* --data.test"),
        ({"seed": -1}, "seed is -1"),
        ({"raters": -2}, "raters -2"),
        ({"roles": ()}, "roles .* --data.roles"),
        ({"roles": ("competent", "nosy")}, "Unknown role of a rater 'nosy'.*Did you mean 'noisy'"),
        ({"missing": 1.0}, "1.0 of their masks"),
        ({"cameras": ()}, "No camera"),
        ({"cameras": ("clinic", "wram")}, "Unknown camera 'wram'.*Did you mean 'warm'"),
    ],
)
def test_config_mistakes_are_told(options, words):
    with pytest.raises(InputError, match=words):
        phantoms.make(phantoms.Config(**options))
