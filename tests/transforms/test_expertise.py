"""Fusion of raters: the encoding, weights and their bounds, random combinations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ophjax.transforms import expertise
from ophjax.transforms.fusion import mean_of_raters


def masks_of(seed=0, raters=5, batch=3, size=6):
    """Random nested masks [b, r, h, w, 2]."""
    disc, cup = np.random.default_rng(seed).integers(0, 2, (2, batch, raters, size, size))
    return jnp.asarray(np.stack([disc, disc * cup], -1), jnp.float32)


def test_encoding():
    """Pitfall 8: one encoder; background 0, rim 0.5, cup 1, and clip(0.5 disc + cup, 0, 1) wherever the cup lies."""
    pairs = np.array(list(itertools.product((0, 1), (0, 1))), np.uint8)
    encoded = expertise.encode(jnp.asarray(pairs)[None])[0]
    np.testing.assert_array_equal(encoded, np.clip(0.5 * pairs[:, 0] + pairs[:, 1], 0, 1))
    np.testing.assert_array_equal(encoded, [0, 1, 0.5, 1])
    one = jnp.asarray([[[[0], [1]]]], jnp.uint8)
    np.testing.assert_array_equal(expertise.encode(one), one[..., 0])


def test_fused_regions_encode_like_fused_codes():
    """Section (d): disc and cup fused apart by the same weights give the fused code, which cannot be taken apart."""
    masks, weights = masks_of(), jax.nn.softmax(jax.random.normal(jax.random.key(0), (3, 6, 6, 5)))
    together = expertise.fuse(weights, expertise.encode(masks)[..., None])[..., 0]
    np.testing.assert_allclose(expertise.encode(expertise.fuse(weights, masks)), together, atol=1e-6)


@pytest.mark.parametrize("raters", [2, 3, 7])
def test_weights_add_up_and_stay_within_their_bounds(raters):
    """Check 4: sum 1, each within [1 / (1 + (n - 1) e), e / (e + n - 1)], which saturated sigmoids attain."""
    raw = 30 * jax.random.normal(jax.random.key(0), (50, 50, raters))
    weights = expertise.expertness(raw, jnp.ones(raters))
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    least, most = 1 / (1 + (raters - 1) * np.e), np.e / (np.e + raters - 1)
    assert weights.min() >= least - 1e-6 and weights.max() <= most + 1e-6
    one = jnp.full((1, 1, raters), -50.0).at[..., 0].set(50.0)
    np.testing.assert_allclose(expertise.expertness(one, jnp.ones(raters))[0, 0, 0], most, rtol=1e-6)
    np.testing.assert_allclose(expertise.expertness(-one, jnp.ones(raters))[0, 0, 0], least, rtol=1e-6)
    sharp = expertise.expertness(one, jnp.ones(raters), temperature=20.0)
    assert sharp[0, 0, 0] > 0.999


def test_a_missing_rater_has_no_weight():
    """As if there were one rater less."""
    raw, present = jax.random.normal(jax.random.key(0), (4, 4, 5)), jnp.array([1.0, 0, 1, 1, 1])
    weights = expertise.expertness(raw, present)
    assert (weights[..., 1] == 0).all()
    kept = jnp.array([0, 2, 3, 4])
    np.testing.assert_allclose(weights[..., kept], expertise.expertness(raw[..., kept], jnp.ones(4)), rtol=1e-6)


def test_fused_masks_lie_between_the_raters():
    """Check 4: within the pixelwise range; where all agree nothing changes."""
    masks = masks_of()
    weights = expertise.expertness(5 * jax.random.normal(jax.random.key(1), (3, 6, 6, 5)), jnp.ones((3, 5)))
    fused, low, high = expertise.fuse(weights, masks), masks.min(1), masks.max(1)
    assert (fused >= low - 1e-6).all() and (fused <= high + 1e-6).all()
    agreed = low == high
    np.testing.assert_allclose(fused[agreed], low[agreed], atol=1e-6)
    assert agreed.any() and not agreed.all()


def test_random_combinations():
    """Half of the images get equal shares, the others random ones; the row does not matter, absent raters are out."""
    masks, present = masks_of(batch=64), jnp.ones((64, 5)).at[:, 4].set(0)
    index = jnp.arange(64)
    mixed = expertise.mix_raters(jax.random.key(0), index, masks, present)
    order = jnp.asarray(np.random.default_rng(0).permutation(64))
    again = expertise.mix_raters(jax.random.key(0), index[order], masks[order], present[order])
    np.testing.assert_allclose(again, mixed[order], atol=1e-6)
    equal = jnp.abs(mixed - mean_of_raters(masks, present)).max((1, 2, 3)) < 1e-6
    assert 16 < equal.sum() < 48
    assert (mixed >= masks[:, :4].min(1) - 1e-6).all() and (mixed <= masks[:, :4].max(1) + 1e-6).all()


def test_an_image_that_nobody_drew():
    """It is told apart, and gives zeros in place of 0 / 0."""
    masks, present = masks_of(batch=8), jnp.ones((8, 5)).at[3].set(0)
    np.testing.assert_array_equal(expertise.drawn(present), [1, 1, 1, 0, 1, 1, 1, 1])
    mixed = expertise.mix_raters(jax.random.key(0), jnp.arange(8), masks, present)
    assert (mixed[3] == 0).all() and (mixed[0] > 0).any()
    assert (expertise.expertness(jnp.zeros((4, 4, 5)), present[3]) == 0).all()
    _, without = expertise.read_raters({"mask": masks[:, 0], "mask_weight": present[:, 0]})
    np.testing.assert_array_equal(without, present[:, :1])


def test_without_raters_the_mask_is_the_one():
    mask = masks_of(raters=1)[:, 0]
    masks, present = expertise.read_raters({"mask": mask})
    np.testing.assert_array_equal(masks[:, 0], mask)
    assert masks.shape == (3, 1, 6, 6, 2) and present.shape == (3, 1)
