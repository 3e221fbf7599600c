import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.signal import convolve2d

from ophjax.errors import InputError
from ophjax.metrics.ranking import mean_scores
from ophjax.metrics.restoration import luma, luma_scores, psnr, quantise, shave, ssim
from ophjax.transforms.resizing import resize_bytes

# Mean PSNR and SSIM of bicubic resizing down and up again on Set5 (dualsr spec, (h)).
SET5 = {2: (33.6734, 0.9303), 4: (28.4290, 0.8111), 8: (24.3972, 0.6581)}
SET5_TIMES_4 = {"baby": 31.7842, "bird": 30.1815, "butterfly": 22.0996, "head": 31.6133, "woman": 26.4665}


@pytest.mark.parametrize("factor", SET5)
def test_bicubic_on_set5(real_data, factor):
    """MATLAB's resizing and the scores, together: the golden table of the spec, to its last printed digit."""
    scores = {}
    for path in sorted((real_data / "sr" / "Set5").glob("*.png")):
        image = np.asarray(Image.open(path).convert("RGB"))
        height, width = (n - n % factor for n in image.shape[:2])
        image = image[:height, :width]
        again = resize_bytes(resize_bytes(image, factor), factor, up=True)
        scores[path.stem] = luma_scores(again.astype(np.float64), image.astype(np.float64), factor)
    assert np.mean(list(scores.values()), 0) == pytest.approx(SET5[factor], abs=1e-4)
    if factor == 4:
        assert {name: found[0] for name, found in scores.items()} == pytest.approx(SET5_TIMES_4, abs=1e-4)


def test_luma_of_known_colours():
    assert luma(np.array([[255.0, 255, 255], [0, 0, 0], [255, 0, 0]])) == pytest.approx([235, 16, 81.481], abs=1e-9)


def test_psnr_by_hand():
    one = np.zeros((2, 4, 4))
    other = np.stack([np.full((4, 4), 255.0), np.full((4, 4), 1.0)])
    assert psnr(one, other) == pytest.approx([0, 20 * np.log10(255)])
    assert (psnr(one, one) == 100).all() and (psnr(jnp.asarray(one), jnp.asarray(one)) == 100).all()
    assert psnr(one, one + 1e-6).max() == 100 > psnr(one, one + 0.01).max() > 80


def test_a_perfect_image_counts():
    """The mean over a split holds it; what is not finite would be left out."""
    one = np.zeros((2, 4, 4))
    other = np.stack([one[0], np.full((4, 4), 1.0)])
    assert mean_scores({"psnr": psnr(one, other)})["psnr"] == pytest.approx((100 + 20 * np.log10(255)) / 2)


def test_ssim_against_a_direct_convolution():
    rng = np.random.default_rng(0)
    a = rng.uniform(16, 235, (40, 30))
    b = np.clip(a + rng.normal(0, 20, a.shape), 16, 235)
    line = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    window = np.outer(line, line) / line.sum() ** 2

    def mean(x):
        return convolve2d(x, window, mode="valid")

    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = 6.5025, 58.5225
    wanted = ((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean()
    assert ssim(a, b) == pytest.approx(wanted, abs=1e-10)
    assert ssim(a, a) == pytest.approx(1)
    assert float(ssim(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))) == pytest.approx(wanted, abs=1e-5)


def test_scores_round_crop_and_shave():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 256, (26, 27, 3)).astype(np.float64)
    found = truth[:24, :24] + rng.uniform(-0.49, 0.49, (24, 24, 3))
    found[:4] = 0  # within the border: does not count
    assert luma_scores(found, truth, 4)[0] == 100
    assert luma_scores(found, truth, 3)[0] < 50
    assert quantise(np.array([-3.0, 0.5, 1.5, 260])).tolist() == [0, 0, 2, 255]
    assert shave(np.zeros((2, 9, 8)), 2).shape == (2, 5, 4)


def test_device_and_host_agree():
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 256, (3, 32, 32, 3)).astype(np.float64)
    found = truth + rng.normal(0, 3, truth.shape)
    host = luma_scores(found, truth, 2)
    device = luma_scores(jnp.asarray(found, jnp.float32), jnp.asarray(truth, jnp.float32), 2)
    for ours, theirs in zip(device, host, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_too_small_for_the_window():
    with pytest.raises(InputError, match="at least 11 x 11"):
        ssim(np.zeros((10, 20)), np.zeros((10, 20)))
