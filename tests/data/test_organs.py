from __future__ import annotations

import numpy as np
import pytest

from ophjax.data import organs

SEED = 111
SIZE = 64


@pytest.fixture(scope="module")
def slices():
    return {domain: [organs.draw(SEED, i, domain, SIZE) for i in range(24)] for domain in organs.SCANNERS}


def inner(mask):
    """What lies two pixels and more inside a region."""
    for axis in (0, 1):
        for shift in (-2, -1, 1, 2):
            mask = mask & np.roll(mask, shift, axis)
    return mask


def test_regions_exclude_one_another_and_are_all_there(slices):
    for example in slices["ct"]:
        mask = example["mask"]
        assert mask.sum(-1).max() == 1
        liver, kidney, spleen = mask.reshape(-1, 3).sum(0)
        # A kidney is 9 to 14 pixels high, the smallest spleen 6 wide; the liver is the largest organ of all.
        assert liver > 1.5 * max(kidney, spleen) and min(kidney, spleen) > 40
        assert "label" not in example


def test_organs_lie_where_they_belong(slices):
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for example in slices["ct"]:
        liver, kidney, spleen = (example["mask"][..., region] == 1 for region in range(3))
        # The patient's right is the picture's left.
        assert columns[liver].mean() < 0.45 * SIZE and columns[spleen].mean() > 0.6 * SIZE
        assert rows[kidney].mean() > max(rows[liver].mean(), rows[spleen].mean())
        left, right = kidney & (columns < SIZE // 2), kidney & (columns >= SIZE // 2)
        assert min(left.sum(), right.sum()) > 0.3 * kidney.sum()


def test_what_is_outside_is_dark(slices):
    for domain, examples in slices.items():
        for example in examples:
            assert example["image"][:3].mean() < 25, domain
            assert (example["image"][..., 0] == example["image"][..., 2]).all()


def test_scanners_order_the_tissues_differently():
    names = list(organs.SCANNERS["ct"].tissues)
    rank = {}
    for domain, scanner in organs.SCANNERS.items():
        assert list(scanner.tissues) == names
        rank[domain] = np.argsort(np.argsort([scanner.tissues[name] for name in names]))
    assert (rank["inverted"] == len(names) - 1 - rank["ct"]).all()
    # Neither the source's order nor its reverse: no monotone change of greys undoes it.
    assert abs(np.corrcoef(rank["permuted"], rank["ct"])[0, 1]) < 0.5


def test_pictures_show_the_scanners_values(slices):
    for domain, examples in slices.items():
        # Liver and spleen are of one tissue each, but for veins.
        for region in (0, 2):
            values = [e["image"][..., 0][inner(e["mask"][..., region] == 1)] for e in examples]
            expected = 0.03 + 0.94 * organs.SCANNERS[domain].tissues[organs.REGIONS[region]]
            # Bias field, texture and contrast agent move the median over all slices by a twentieth at most.
            assert abs(np.median(np.concatenate(values)) / 255 - expected) < 0.05, (domain, region)


def test_the_texture_belongs_to_the_scene(slices):
    """Within the liver two scanners show one pattern, inverted where the values are."""

    def pattern(example, where):
        picture = example["image"][..., 0].astype(float)
        # Means of 3 x 3 pixels: noise is a third, the texture stays.
        smooth = sum(np.roll(picture, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
        return smooth[where]

    agreement = {"inverted": [], "permuted": []}
    strangers, contrast = [], []
    for i, source in enumerate(slices["ct"]):
        where = inner(source["mask"][..., 0] == 1)
        own = pattern(source, where)
        contrast.append(own.std())
        for domain, values in agreement.items():
            values.append(np.corrcoef(own, pattern(slices[domain][i], where))[0, 1])
        strangers.append(np.corrcoef(own, pattern(slices["ct"][i - 1], where))[0, 1])
    # Texture and veins make 8 levels, smoothed noise makes 2.
    assert np.mean(contrast) > 6
    assert np.mean(agreement["inverted"]) < -0.85
    assert np.mean(agreement["permuted"]) < 0.7  # a bias field and veins of another order lie over it
    # Another scene's texture agrees by chance only.
    assert abs(np.mean(strangers)) < 0.3


def test_only_one_scanner_has_a_bias_field(slices):
    def slope(domain):
        """Ratio of the fat's brightness in the two halves of a slice, larger over smaller."""
        ratios = []
        for index in range(12):
            picture = organs.draw(SEED, index, domain, SIZE)["image"][..., 0].astype(float)
            plain = organs.draw(SEED, index, "ct", SIZE)["image"][..., 0].astype(float) / 255
            fat = np.abs(plain - (0.03 + 0.94 * organs.SCANNERS["ct"].tissues["fat"])) < 0.06
            halves = picture[:, : SIZE // 2][fat[:, : SIZE // 2]], picture[:, SIZE // 2 :][fat[:, SIZE // 2 :]]
            ratios.append(np.exp(abs(np.log(np.median(halves[0]) / np.median(halves[1])))))
        return np.mean(ratios)

    assert slope("permuted") > slope("inverted") + 0.03
