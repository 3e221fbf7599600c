"""Expertness maps: ExpG against its published form, its ablations, and how rough each is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ophjax import trees
from ophjax.errors import InputError
from ophjax.metrics.spectrum import high_frequency_share
from ophjax.nets.expertness import ExpG, arctan, make_maps
from ophjax.transforms.expertise import expertness


def test_arc_tangent():
    """To float32, in value and slope, where it bends and far out."""
    x = np.concatenate([np.linspace(-5, 5, 4001), [-1e6, -40.0, 40.0, 1e6]]).astype(np.float32)
    np.testing.assert_allclose(arctan(jnp.asarray(x)), np.arctan(x.astype(np.float64)), atol=2e-7)
    slope = jax.vmap(jax.grad(arctan))(jnp.asarray(x))
    np.testing.assert_allclose(slope, 1 / (1 + x.astype(np.float64) ** 2), rtol=1e-6)


@pytest.mark.parametrize("raters", [1, 3, 7])
def test_parameters_and_start(raters):
    """Closed form: 2 to 24, six times 48 to 24, 48 to n, with biases; at the start all raters are equal (check 1)."""
    module = ExpG(raters)
    params = module.init(jax.random.key(0), 8, 12)["params"]
    assert trees.count(params) == (2 * 24 + 24) + 6 * (48 * 24 + 24) + (48 * raters + raters)
    raw = module.apply({"params": params}, 8, 12)
    assert raw.shape == (8, 12, raters)
    np.testing.assert_allclose(expertness(raw, jnp.ones(raters)), 1 / raters, rtol=1e-6)


def test_it_is_the_published_function():
    """By hand in NumPy: coordinates u, v in [-sqrt 3, sqrt 3], a(h) = [atan(h) / 0.67, atan(h)^2 / 0.6]."""
    module = ExpG(2, hidden=5, layers=3)
    params = module.init(jax.random.key(0), 4, 6)["params"]
    params["layer3"]["kernel"] = jax.random.normal(jax.random.key(1), (10, 2))
    v, u = np.meshgrid(np.linspace(-(3**0.5), 3**0.5, 4), np.linspace(-(3**0.5), 3**0.5, 6), indexing="ij")
    h = np.stack([u, v], -1)
    for name in ("layer1", "layer2"):
        h = np.arctan(h @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"]))
        h = np.concatenate([h / 0.67, h**2 / 0.6], -1)
    wanted = h @ np.asarray(params["layer3"]["kernel"])
    np.testing.assert_allclose(module.apply({"params": params}, 4, 6), wanted, rtol=1e-5, atol=1e-6)
    wide = ExpG(2).init(jax.random.key(0), 2, 2)["params"]["layer4"]["kernel"]
    np.testing.assert_allclose(wide.std(), 48**-0.5, rtol=0.1)


def test_blocks_change_nothing():
    """Maps and gradients of 63 pixels in blocks of 10, the last one not full, against all of them at once."""
    whole, blocks = ExpG(3, hidden=4, layers=3), ExpG(3, hidden=4, layers=3, block=10)
    params = whole.init(jax.random.key(0), 9, 7)["params"]
    params["layer3"]["kernel"] = jax.random.normal(jax.random.key(1), (8, 3))
    weight = jax.random.normal(jax.random.key(2), (9, 7, 3))
    params = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), params)  # of two images, as a search has them

    def objective(module, own):
        maps = jax.vmap(lambda one: module.apply({"params": one}, 9, 7))(own)
        return jnp.einsum("bhwr,hwr->", maps, weight), maps

    both = [
        jax.jit(jax.value_and_grad(lambda own, m=module: objective(m, own), has_aux=True))(params)
        for module in (whole, blocks)
    ]
    ((_, maps), slopes), ((_, found), others) = both
    np.testing.assert_allclose(found, maps, rtol=1e-5, atol=1e-6)
    for a, b in zip(jax.tree.leaves(slopes), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_ablations_begin_near_equality():
    for kind, shape in (("pixel", (9, 7, 3)), ("fourier", (2, 9, 4, 3))):
        module = make_maps(kind, 3, hidden=24)
        params = module.init(jax.random.key(0), 9, 7)["params"]
        assert [leaf.shape for leaf in jax.tree.leaves(params)] == [shape]
        raw = module.apply({"params": params}, 9, 7)
        assert raw.shape == (9, 7, 3) and 0 < jnp.abs(raw).max() < 0.2
    with pytest.raises(InputError, match="expg, pixel, fourier"):
        make_maps("wavelet", 3, hidden=24)


def test_roughness_of_known_maps():
    """A wave of 1/4 cycle per pixel is all above 0.15, one of 1/16 all below, their sum half and half; flat is 0."""
    x = np.arange(32)
    fast, slow = (np.broadcast_to(np.cos(2 * np.pi * x / period), (32, 32)) for period in (4, 16))
    maps = jnp.asarray(np.stack([fast, slow, fast + slow, np.full((32, 32), 3.0)]), jnp.float32)[..., None]
    np.testing.assert_allclose(high_frequency_share(maps), [1, 0, 0.5, 0], atol=1e-5)
