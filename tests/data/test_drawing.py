from __future__ import annotations

import numpy as np

from ophjax.data import drawing


def test_each_purpose_has_its_own_numbers():
    def first(*words):
        return drawing.stream(*words).random(3).tolist()

    assert first(1, 2, "scene") == first(1, 2, "scene")
    streams = [
        first(1, 2, "scene"),
        first(1, 2, "noise"),
        first(1, 3, "scene"),
        first(2, 2, "scene"),
        first(1, 2, "scene", 4),
    ]
    assert len({tuple(numbers) for numbers in streams}) == len(streams)


def test_grid_is_in_half_image_sides_about_the_centre():
    grid = drawing.lay_grid((0.5, -0.5), 4)
    assert grid.x[0].tolist() == [-0.75, -0.25, 0.25, 0.75] == grid.y[:, 0].tolist()
    # Pixel (row 1, column 3) is at x 0.75, y -0.25: a quarter to the right of the centre and a quarter below.
    np.testing.assert_allclose([grid.radius[1, 3], grid.theta[1, 3]], [np.hypot(0.25, 0.25), np.pi / 4], rtol=1e-6)


def test_tables_are_read_by_linear_interpolation_around_the_circle():
    grid = drawing.lay_grid((0.0, 0.0), 16)
    np.testing.assert_allclose(grid.read(np.cos(drawing.THETA)), np.cos(grid.theta), atol=1e-3)
    turned = grid.turn(3.0)
    assert np.abs(turned).max() <= np.pi + 1e-6
    np.testing.assert_allclose(np.cos(turned), np.cos(grid.theta - 3.0), atol=1e-5)


def test_step_is_soft_and_as_wide_as_told():
    values = drawing.step(np.array([-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3], np.float32), 0.2)
    np.testing.assert_allclose(values, [0, 0, 0.15625, 0.5, 0.84375, 1, 1], atol=1e-6)


def test_noise_has_one_pattern_at_any_size():
    coarse = {size: drawing.clouds(np.random.default_rng(0), size, 6) for size in (64, 192)}
    fine = {size: drawing.ripples(np.random.default_rng(0), drawing.lay_grid((0, 0), size), 12.0) for size in (64, 192)}
    for pattern in (coarse, fine):
        # Pixel i of 64 has its centre where pixel 3 i + 1 of 192 has.
        np.testing.assert_allclose(pattern[64], pattern[192][1::3, 1::3], atol=1e-4)


def test_ripples_have_one_scale_and_no_direction():
    grid = drawing.lay_grid((0, 0), 128)
    spectrum, variances = np.zeros((128, 128)), []
    for seed in range(20):
        pattern = drawing.ripples(np.random.default_rng(seed), grid, 40.0)
        assert abs(pattern.mean()) < 0.1  # nine waves over 13 periods
        variances.append(pattern.var())
        spectrum += np.abs(np.fft.fft2(pattern)) ** 2
    # Waves of nearly one direction add up or cancel, so that a single picture may be off by a third.
    assert abs(np.mean(variances) - 1) < 0.15
    waves = np.fft.fftfreq(128, 2 / 128) * 2 * np.pi  # radians per half image side
    pitch = np.hypot(*np.meshgrid(waves, waves))
    assert spectrum[np.abs(pitch - 40) < 8].sum() > 0.85 * spectrum.sum()
    along, across = (np.abs(wave) > 28.3 for wave in np.meshgrid(waves, waves))
    # 180 waves: each pair of quarters of the circle gets half of them, give or take a fifth of that.
    assert 0.6 < spectrum[along & ~across].sum() / spectrum[across & ~along].sum() < 1.7


def test_cover_and_bytes():
    picture = np.zeros((3, 2, 2), np.float32)
    drawing.lay(picture, (0.2, 0.4, 1.2), np.array([[0, 0.5], [1, 1]], np.float32))
    image = drawing.to_bytes(picture)
    assert image.dtype == np.uint8 and image.shape == (2, 2, 3) and image.flags.c_contiguous
    assert image[:, :, 0].tolist() == [[0, 26], [51, 51]] and image[1, 1].tolist() == [51, 102, 255]
