from __future__ import annotations

import numpy as np
import pytest

from ophjax.data import angles

SEED = 111


@pytest.fixture(scope="module")
def scenes():
    return [angles.draw_scene(SEED, index) for index in range(1200)]


def auc(score, label):
    """Mann-Whitney, for scores without ties."""
    rank = np.empty(len(score))
    rank[np.argsort(score)] = np.arange(1, len(score) + 1)
    positive = label.sum()
    return (rank[label == 1].sum() - positive * (positive + 1) / 2) / (positive * (len(label) - positive))


def pictures(device, count=24, size=64):
    return np.stack([angles.draw(SEED, index, device, size)["image"][..., 0] for index in range(count)]) / 255


def test_label_rule():
    assert angles.CLASSES[1] == "closed"
    assert [angles.diagnose(angles.THRESHOLD + d, 0.0) for d in (-1, 1)] == [1, 0]
    # The same opening is wide enough before a flat iris and not before a bulging one.
    assert [angles.diagnose(angles.THRESHOLD, vault) for vault in (-0.5, 0.5)] == [0, 1]


def test_classes_take_turns(scenes):
    assert [scene.label for scene in scenes] == [0, 1] * 600
    splits = angles.make(angles.Config(size=32, train=8, val=4, test=6)).splits
    assert [int(example["label"]) for example in splits["train"]] == [0, 1] * 4
    assert np.mean([example["label"] for example in splits["test"]]) == 0.5


def test_opening_and_vault_decide_together(scenes):
    label = np.array([scene.label for scene in scenes])
    opening, vault = (np.array([getattr(scene, name) for scene in scenes]) for name in ("opening", "vault"))
    noise = 1e-6 * np.arange(len(label))  # openings of 0.5 degrees are tied
    # Meant: the vault moves the threshold, but by less than the margins, so that an opening alone orders nearly all
    # pairs rightly; the vault alone orders half of them.
    assert 0.99 < auc(noise - opening, label) < 1
    assert 0.45 < auc(vault, label) < 0.55  # three standard errors of 1200
    assert auc(angles.SLOPE * vault - opening, label) == 1
    away = np.abs(opening - angles.THRESHOLD - angles.SLOPE * vault)
    assert (away[opening > 0.5] >= 6).all()


def test_decoys_tell_nothing(scenes):
    label = np.array([scene.label for scene in scenes])
    hints = {
        "fold": [scene.fold[2] for scene in scenes],
        "crypt": [scene.crypt[2] for scene in scenes],
        "line": [scene.line[2] for scene in scenes],
        "tilt": [scene.tilt for scene in scenes],
        "place": [scene.recess[1] for scene in scenes],
        "rise": [scene.rise for scene in scenes],
        "cornea": [scene.cornea for scene in scenes],
        "iris": [scene.iris for scene in scenes],
        "cells": [len(scene.cells) for scene in scenes],
    }
    for name, hint in hints.items():
        # Correlations of 1200 independent pairs stay within 0.1 (three standard errors).
        assert abs(np.corrcoef(hint, label)[0, 1]) < 0.1, name


def test_surfaces_have_the_opening_and_the_depth_of_the_scene(scenes):
    flat = (0.5, 0.05, 0.0)
    for scene in scenes[:200]:
        bare = scene._replace(fold=flat, crypt=flat, line=flat)
        s = np.array([0.02, 0.6, 1.6])
        back, front = angles.surfaces(bare, s)
        gap = back - front
        # The gap of two surfaces with slopes a and a - g is g s; it bends by 2 percent before s = 0.02.
        np.testing.assert_allclose(gap[0], 0.02 * np.tan(np.radians(scene.opening)), rtol=0.03)
        # The far gap is the chamber's depth, whatever the opening: the near gap still grows by a little after 1.5.
        np.testing.assert_allclose(gap[2], 0.62 - 0.24 * scene.vault, atol=0.03)
        along = np.linspace(-0.5, 1.6, 50)
        for each in (scene, bare):
            back, front = angles.surfaces(each, along)
            assert (front <= back + each.line[2] + 1e-6).all()


def test_the_iris_moves_in_the_picture_where_the_numbers_say():
    """Opening changes the picture near the recess, vault far from it."""
    scene = angles.draw_scene(SEED, 3)._replace(tilt=0.0, recess=(-0.7, 0.3), pupil=1.8, opening=15.0, vault=0.0)

    def changed(**fields):
        before, after = (
            angles.draw_light(each, 64, np.random.default_rng(0)) for each in (scene, scene._replace(**fields))
        )
        return np.abs(after - before).mean(0)  # by column

    near, far = slice(14, 26), slice(48, 64)  # 0.1 to 0.5 and 1.2 to 1.7 from the recess
    opening, vault = changed(opening=30.0), changed(vault=0.8)
    assert opening[near].mean() > 2 * opening[far].mean()
    assert vault[far].mean() > 2 * vault[near].mean()


def test_devices_differ_as_described():
    shots = {device: pictures(device) for device in angles.DEVICES}
    contrast = {d: shot.mean(0).std() for d, shot in shots.items()}
    dark = {d: np.quantile(shot, 0.3) for d, shot in shots.items()}
    # b: lower resolution (0.03 of half a side, twice the source's), low contrast, haze.
    assert sharpness("device-b") < 0.6 * sharpness("device-a")
    assert contrast["device-b"] < 0.6 * contrast["device-a"]
    assert dark["device-b"] > dark["device-a"] + 0.1
    # c: dark, and its speckle is coarser than the source's.
    assert shots["device-c"].mean() < 0.75 * shots["device-a"].mean()
    grain = {d: np.mean([grain_of(d, i) for i in range(8)]) for d in angles.DEVICES}
    assert grain["device-c"] > 1.5 * grain["device-a"]
    # d: bright, with a reflex somewhere: one column brighter than its surroundings from top to bottom.
    assert shots["device-d"].mean() > 1.2 * shots["device-a"].mean()
    # Measured: 1.18, and 1.04 by noise alone.
    assert column_over_others("device-d") > 1.12
    assert column_over_others("device-a") < 1.1


def column_over_others(device):
    """Brightest column over the median one where the scene is even grey, mean of 8 pictures."""
    light = np.full((64, 64), 0.2, np.float32)
    shots = [angles.take(angles.DEVICES[device], light, *map(np.random.default_rng, (i, i))) for i in range(8)]
    columns = np.mean(shots, (1, 3))
    return np.mean(columns.max(1) / np.median(columns, 1))


def grain_of(device, index):
    """Standard deviation between two takes of one scene over its mean brightness."""
    light = angles.draw_light(angles.draw_scene(SEED, index), 64, np.random.default_rng(0))
    one, two = (
        angles.take(angles.DEVICES[device], light, np.random.default_rng(7), np.random.default_rng(take)) / 255.0
        for take in (1, 2)
    )
    return (one - two).std() / one.mean()


def sharpness(device):
    """Steepest rise from one row to the next across an edge of light, over the whole rise."""
    light = np.zeros((64, 64), np.float32)
    light[32:] = 0.8
    shots = [angles.take(angles.DEVICES[device], light, *map(np.random.default_rng, (i, i))) for i in range(8)]
    rows = np.mean(shots, (0, 2, 3))
    return np.diff(rows).max() / (rows[40:50].mean() - rows[14:24].mean())
