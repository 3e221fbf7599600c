"""Random crops scaled back to full size."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ophjax.data import crop

resized_crop = partial(jax.jit, static_argnames=("least", "aspect"))(crop.resized_crop)


def ramps(count=16, height=12, width=20):
    """Images whose two channels are the row and the column of the pixel's centre, from 0 to 1."""
    rows, columns = (jnp.arange(height) + 0.5) / height, (jnp.arange(width) + 0.5) / width
    grid = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), -1)
    return jnp.broadcast_to(grid[None], (count, *grid.shape))


def test_it_cuts_rectangles_of_the_stated_area_and_shape():
    """The slope of a ramp after the crop is the share of the side that was kept."""
    images = ramps(64)
    found = np.asarray(resized_crop(jax.random.key(0), images, jnp.arange(64), least=0.5, aspect=1.5))
    assert found.shape == images.shape
    height, width = images.shape[1:3]
    # Slopes inside, since at a cut on the image's own edge there is nothing beyond to interpolate with.
    tall = (found[:, 8, 10, 0] - found[:, 3, 10, 0]) * height / 5
    wide = (found[:, 6, 15, 1] - found[:, 6, 4, 1]) * width / 11
    share, ratio = tall * wide, wide / tall
    # Sides of at most 1 may cut a long rectangle further: never below 0.5 / 1.5.
    assert share.min() > 0.5 / 1.5 - 1e-3 and share.max() <= 1 + 1e-3 and np.ptp(share) > 0.2
    assert ratio.min() > 1 / 1.5 - 1e-3 and ratio.max() < 1.5 + 1e-3 and np.ptp(ratio) > 0.2
    # What is seen lies inside the image.
    assert found.min() >= 0 and found.max() <= 1 + 1e-6


def test_nothing_is_cut_at_a_share_of_one():
    images = ramps(3)
    found = resized_crop(jax.random.key(0), images, jnp.arange(3), least=1.0, aspect=1.0)
    np.testing.assert_allclose(found, images, atol=1e-6)


def test_the_draw_belongs_to_the_example_not_to_the_row():
    images, index = ramps(4), jnp.array([7, 3, 9, 1])
    straight = resized_crop(jax.random.key(1), images, index)
    turned = resized_crop(jax.random.key(1), images[::-1], index[::-1])
    np.testing.assert_allclose(straight, turned[::-1], atol=1e-6)
    assert np.abs(np.asarray(straight[0] - straight[1])).max() > 1e-3
