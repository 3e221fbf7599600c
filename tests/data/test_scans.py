"""Slices on the device: normalisation, classes of pixels, and deformations of images together with their masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ophjax.data.scans import exclusive, warp, z_score


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def test_z_score_of_each_image():
    image = jnp.stack([3 + 2 * normal(0, 8, 8, 3), jnp.full((8, 8, 3), 0.5)])
    found = z_score(image)
    np.testing.assert_allclose([found[0].mean(), found[0].std()], [0, 1], atol=1e-5)
    np.testing.assert_array_equal(found[1], jnp.zeros((8, 8, 3)))


def test_classes_of_pixels():
    """Nothing, the first, the second, and both: the later region lies over the earlier."""
    mask = jnp.array([[0, 0], [1, 0], [0, 1], [1, 1]], jnp.uint8).reshape(1, 2, 2, 2)
    np.testing.assert_array_equal(exclusive(mask).argmax(-1).ravel(), [0, 1, 2, 2])
    np.testing.assert_array_equal(exclusive(mask).sum(-1), jnp.ones((1, 2, 2)))


def blobs(rows=4, size=32):
    """Discs off the middle, as images (smooth) and masks."""
    places = np.random.default_rng(1).uniform(10, 22, (rows, 2))
    y, x = np.mgrid[:size, :size]
    far = np.hypot(y - places[:, :1, None], x - places[:, 1:, None])
    image = jnp.asarray(1 / (1 + np.exp(far - 6)), jnp.float32)[..., None]
    return image, jnp.asarray(far < 6, jnp.uint8)[..., None]


STRONG = {"zoom": 0.3, "rotate": 0.5, "shear": 0.3, "elastic": 3.0}


def test_no_strength_is_no_change():
    image, mask = blobs()
    found = warp(jax.random.key(0), image, mask, jnp.arange(4))
    np.testing.assert_allclose(found[0], image, atol=1e-5)
    np.testing.assert_array_equal(found[1], mask)


def test_image_and_mask_move_together():
    """A disc's edge is where its image passes one half; the mask's pixels agree but for some at the edge (4 % of all:
    half a pixel along a contour of forty)."""
    image, mask = blobs()
    moved, region = jax.jit(lambda key: warp(key, image, mask, jnp.arange(4), **STRONG))(jax.random.key(1))
    assert region.dtype == mask.dtype and set(np.unique(region)) == {0, 1}
    assert ((moved > 0.5) != (region > 0)).mean() < 0.04
    assert float(jnp.abs(moved - image).max()) > 0.5


def test_what_is_drawn_belongs_to_the_example_not_to_its_row():
    image, mask = blobs()
    order = jnp.array([2, 0, 3, 1])
    apply = jax.jit(lambda image, mask, index: warp(jax.random.key(2), image, mask, index, **STRONG))
    there, here = apply(image, mask, jnp.arange(4)), apply(image[order], mask[order], order)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[order], b, atol=1e-5), there, here)


@pytest.mark.parametrize(("options", "low", "high"), [({"zoom": 0.3}, 0.7, 1.3), ({"rotate": 0.5}, 1.0, 1.0)])
def test_strengths(options, low, high):
    """A zoom by f scales the area by f^2; a rotation keeps it. Discs of 113 pixels: 5 % for the raster."""
    image, mask = blobs(rows=32)
    _, region = jax.jit(lambda key: warp(key, image, mask, jnp.arange(32), **options))(jax.random.key(3))
    ratio = np.sqrt(np.asarray(region.sum((1, 2, 3)) / mask.sum((1, 2, 3))))
    assert low - 0.05 < ratio.min() and ratio.max() < high + 0.05
    assert ratio.max() - ratio.min() > 0.6 * (high - low)
