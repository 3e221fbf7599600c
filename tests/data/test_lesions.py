from __future__ import annotations

import numpy as np
import pytest

from ophjax.data import lesions
from ophjax.data.drawing import lay_grid

SEED = 111


@pytest.fixture(scope="module")
def scenes():
    return [lesions.draw_scene(SEED, index) for index in range(1200)]


def views(domain, count=40):
    """Mean colours of lesion and skin, 0 to 255: float [count, 3] each."""
    inside, outside = [], []
    for index in range(count):
        example = lesions.draw(SEED, index, domain, 48)
        mask = example["mask"][..., 0] == 1
        inside.append(example["image"][mask].mean(0))
        outside.append(example["image"][~mask].mean(0))
    return np.array(inside), np.array(outside)


def test_classes_take_turns():
    source = lesions.make(lesions.Config(size=32, train=20, val=8, test=4)).splits
    for split in ("train", "val", "test"):
        labels = [int(example["label"]) for example in source[split]]
        assert np.bincount(labels, minlength=4).tolist() == [len(labels) // 4] * 4


def test_the_class_is_the_number_of_lobes(scenes):
    for scene in scenes:
        # The contour's Fourier series: order 0 is the mean radius.
        order = np.abs(np.fft.rfft(scene.outline)) / len(scene.outline)
        share = 2 * order / order[0]
        lobes = lesions.LOBES[scene.label]
        if lobes:
            # Drawn with 0.32; the ripple, 3 percent rms in four orders, adds or takes at most 0.1.
            assert np.argmax(share[1:]) + 1 == lobes and 0.2 < share[lobes] < 0.45
        else:
            assert share[1:].max() < 0.15


def test_lesions_lie_in_the_picture(scenes):
    cut = [np.abs(scene.centre).max() + scene.outline.max() > 1.05 for scene in scenes]
    # A lobe may touch the edge of the picture, rarely.
    assert np.mean(cut) < 0.02
    for scene in scenes[:20]:
        share = lesions.draw_mask(lay_grid(scene.centre, 48), scene).mean()
        assert 0.1 < share < 0.45


def test_nothing_but_the_border_tells_about_the_class(scenes):
    label = np.array([scene.label for scene in scenes])
    hints = {
        "tint": [scene.tint.mean() for scene in scenes],
        "hairs": [len(scene.hairs) for scene in scenes],
        "dots": [len(scene.dots) for scene in scenes],
        "veil": [scene.veil[2] for scene in scenes],
        "place": [scene.centre[0] for scene in scenes],
        "radius": [scene.outline.mean() for scene in scenes],
    }
    for name, hint in hints.items():
        # Correlations of 1200 independent pairs stay within 0.1 (three standard errors).
        assert abs(np.corrcoef(hint, label)[0, 1]) < 0.1, name


def test_the_mask_is_the_dark_region_in_every_clinic():
    for domain in lesions.LOOKS:
        inside, outside = views(domain)
        # Faded contrast leaves 40 levels of the source's 65, noise is averaged away.
        assert (outside.mean(1) - inside.mean(1)).min() > 20, domain


def test_each_clinic_looks_as_its_name_says():
    colours = {domain: np.stack(views(domain)) for domain in lesions.LOOKS}
    skin = {domain: values[1].mean(0) for domain, values in colours.items()}
    contrast = {domain: (values[1] - values[0]).mean() for domain, values in colours.items()}
    # Blue gains and red loses about a fifth each.
    assert skin["cast"][2] / skin["cast"][0] > 1.3 * skin["clinic"][2] / skin["clinic"][0]
    assert 0.55 < contrast["faded"] / contrast["clinic"] < 0.75
    assert skin["dark"].mean() < skin["clinic"].mean() - 10
    flat = {domain: np.stack([noise_of(domain, index) for index in range(8)]).mean() for domain in lesions.LOOKS}
    assert flat["faded"] > 1.6 * flat["clinic"]


def noise_of(domain, index):
    """Standard deviation between two takes of one scene, in levels."""
    scene = lesions.draw_scene(SEED, index)
    light = lesions.draw_light(lay_grid(scene.centre, 48), scene, np.random.default_rng(0))
    one, two = (lesions.take(lesions.LOOKS[domain], light, np.random.default_rng(take)) for take in (1, 2))
    return (one.astype(float) - two).std() / np.sqrt(2)
