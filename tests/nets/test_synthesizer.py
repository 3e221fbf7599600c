"""Checks 1 and 2 of the specification of ADS, section (k), and the random networks of GIN and RandConv."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_run import drawn_like

from ophjax import trees
from ophjax.nets.synthesizer import DomainSynthesizer, random_convolution, random_network, standardise

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


IMAGE = normal(0, 4, 12, 10, 3)


def make(seed=0, **options):
    """A synthesizer as a function of parameters and key, and drawn parameters."""
    net = DomainSynthesizer(**options)
    params = drawn_like(jax.eval_shape(net.init, jax.random.key(0), IMAGE, jax.random.key(1)), seed)["params"]
    return jit(lambda params, key, x=IMAGE: net.apply({"params": params}, x, key)), params


@pytest.mark.parametrize("seed", range(3))
def test_standardised_weights(seed):
    """Mean 0 and deviation 1 (n - 1), whatever the weights' own; a shift and a factor change nothing."""
    raw = 0.3 * normal(seed, 3, 3, 2, 2) + 0.7
    used = standardise(raw)
    assert abs(float(used.mean())) < 1e-5 and abs(float(used.std(ddof=1)) - 1) < 1e-5
    np.testing.assert_allclose(standardise(10 * raw - 3), used, rtol=1e-3, atol=1e-5)


def test_gradient_of_standardised_weights_takes_mean_and_deviation_as_constants():
    raw, g = normal(0, 3, 3, 2, 2), normal(1, 3, 3, 2, 2)
    found = jax.grad(lambda w: (g * standardise(w)).sum())(raw)
    np.testing.assert_allclose(found, g / raw.std(ddof=1), rtol=1e-5)


def test_parameter_count():
    """Golden, by hand: 3x3 from 3 to 2, twice from 2 to 2, from 2 to 3, biases; three linear maps from 2 to 4."""
    convolutions = (9 * 3 * 2 + 2) + 2 * (9 * 2 * 2 + 2) + (9 * 2 * 3 + 3)
    assert trees.count(make()[1]) == convolutions + 3 * (2 * 4 + 4) == 225


@pytest.mark.parametrize("sizes", [(3, 3, 3, 3), (1, 3, 1, 1), (1, 1)])
def test_shape_and_keys(sizes):
    """The image's shape; one key, one picture; another key, or another copy, another picture."""
    apply, params = make(kernel_sizes=sizes)
    first = apply(params, jax.random.key(2))
    assert first.shape == IMAGE.shape and np.isfinite(first).all()
    np.testing.assert_array_equal(first, apply(params, jax.random.key(2)))
    for other in (apply(params, jax.random.key(3)), apply(make(seed=1, kernel_sizes=sizes)[1], jax.random.key(2))):
        assert float(jnp.abs(first - other).mean()) > 0.1 * float(jnp.abs(first).mean())


def test_noise_is_drawn_for_each_example():
    """Equal images get different looks, and their spread over the noise is nowhere zero (check 10, untrained)."""
    apply, params = make()
    found = apply(params, jax.random.key(4), jnp.broadcast_to(IMAGE[:1], (16, *IMAGE.shape[1:])))
    assert float(found.std(0).min()) > 1e-3


def test_without_noise_the_key_does_not_matter():
    apply, params = make(noise=0)
    assert set(params) == {"conv1", "conv2", "conv3", "conv4"}
    np.testing.assert_array_equal(apply(params, jax.random.key(2)), apply(params, jax.random.key(3)))


def test_larger_raw_weights_change_the_picture_only_where_they_are_free():
    for standardised in (True, False):
        apply, params = make(standardised=standardised)
        larger = trees.map_named(lambda name, leaf: 10 * leaf if name.endswith("kernel") else leaf, params)
        one, other = apply(params, jax.random.key(2)), apply(larger, jax.random.key(2))
        off = float(jnp.abs(one - other).max() / jnp.abs(one).max())
        assert off < 1e-4 if standardised else off > 1


def test_reach_is_nine_pixels():
    """Four 3x3 convolutions; instance norms see everything, so without them (noise 0)."""
    net = DomainSynthesizer(noise=0)
    image = normal(5, 1, 15, 15, 1)
    params = drawn_like(jax.eval_shape(net.init, jax.random.key(0), image, jax.random.key(1)))
    slopes = jit(jax.grad(lambda x: net.apply(params, x, jax.random.key(1))[0, 7, 7, 0]))(image)
    rows, columns = np.nonzero(np.asarray(slopes)[0, ..., 0])
    assert rows.min() >= 3 and rows.max() <= 11 and columns.min() >= 3 and columns.max() <= 11
    assert rows.max() - rows.min() > 4


def test_random_networks_differ_between_examples_and_draws():
    images = jnp.broadcast_to(IMAGE[:1], IMAGE.shape)
    draw = jit(random_network)
    one, other = draw(jax.random.key(0), images), draw(jax.random.key(1), images)
    assert one.shape == images.shape and np.isfinite(one).all()
    assert float(jnp.abs(one[0] - one[1]).mean()) > 0.1 and float(jnp.abs(one - other).mean()) > 0.1


def test_random_convolution_is_one_kernel_of_a_drawn_size():
    """The answer to a single bright pixel is the kernel, alike for all images; over 40 draws all sizes occur, and the
    output of noise of deviation 1 has deviation about 1 whatever the size (its variance: mean over 9 weights)."""
    point = jnp.zeros((2, 15, 15, 3)).at[:, 7, 7].set(1.0)
    noise = normal(6, 2, 64, 64, 3)
    draw = jit(lambda key: (random_convolution(key, point), random_convolution(key, noise)))
    sides, spread = [], []
    for seed in range(40):
        seen, noisy = draw(jax.random.key(seed))
        np.testing.assert_array_equal(seen[0], seen[1])
        rows = np.nonzero(np.abs(np.asarray(seen[0])).sum((1, 2)))[0]
        sides.append(int(rows.max() - rows.min() + 1))
        spread.append(float(noisy.std()))
    assert set(sides) == {1, 3, 5, 7}
    assert 0.8 < np.mean(spread) < 1.2
