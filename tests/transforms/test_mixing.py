"""Check 3 of the specification of ADS, section (k), and CutOut."""

import jax
import jax.numpy as jnp
import numpy as np

from ophjax.transforms.mixing import cut_out, energy, match_energy, mix, mix_randomly


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


IMAGE, OTHER = normal(0, 4, 6, 5, 3), 7 * normal(1, 4, 6, 5, 3) + 2


def test_a_mix_keeps_the_energy():
    mixed = mix(IMAGE, OTHER, jnp.array([0.1, 0.4, 0.9, 1.0]))
    np.testing.assert_allclose(energy(mixed), energy(IMAGE), rtol=1e-5)
    assert float(jnp.abs(mixed - IMAGE).max()) > 0.1


def test_a_share_of_nothing_is_the_image_itself():
    np.testing.assert_array_equal(mix(IMAGE, OTHER, jnp.zeros(4)), IMAGE)


def test_the_factor_passes_no_gradient():
    """What a larger output would gain is exactly what the factor would take back: with a gradient through it the
    derivative along the output itself were zero; without it is the share's part of the result."""

    def along(scale):
        return match_energy(scale * OTHER, IMAGE)

    _, slope = jax.jvp(along, (1.0,), (1.0,))
    np.testing.assert_allclose(slope, along(1.0), rtol=1e-5)


def test_a_constant_output_gives_no_nan():
    assert np.isfinite(match_energy(jnp.zeros_like(IMAGE), IMAGE)).all()
    assert np.isfinite(jax.grad(lambda x: match_energy(x, IMAGE).sum())(jnp.zeros_like(IMAGE))).all()


def test_shares_are_drawn_for_each_example():
    """(mixed - image) is along (other - image) up to the energy's factor: solve for the share, which must differ."""
    other = IMAGE.at[..., 0].add(5.0)
    mixed = mix_randomly(jax.random.key(0), IMAGE, other)
    # Channels 1 and 2 are the image's, so their factor is that of the energy.
    factor = (mixed / IMAGE)[..., 1:].mean((1, 2, 3))
    share = (mixed[..., 0] / factor[:, None, None] - IMAGE[..., 0]).mean((1, 2)) / 5
    assert ((share > 0) & (share < 1)).all() and float(share.std()) > 0.05
    again = mix_randomly(jax.random.key(0), IMAGE, other)
    np.testing.assert_array_equal(mixed, again)


def test_a_hole_is_a_square_of_the_asked_side():
    """In 40 x 60 pixels a side of 0.25 is 10 pixels: at most 100, and whole unless the border cuts it."""
    image = 1 + jnp.abs(normal(2, 64, 40, 60, 3))
    cut = cut_out(jax.random.key(1), image, side=0.25)
    gone = np.asarray((cut == 0).all(-1))
    np.testing.assert_array_equal(np.asarray(cut)[~gone], np.asarray(image)[~gone])
    sizes = gone.sum((1, 2))
    assert sizes.max() == 100 and (sizes > 0).all() and np.median(sizes) == 100
    rows, columns = gone.any(2).sum(1), gone.any(1).sum(1)
    np.testing.assert_array_equal(rows * columns, sizes)
    assert len(np.unique(gone.argmax(1).max(1))) > 10, "the middles differ"
