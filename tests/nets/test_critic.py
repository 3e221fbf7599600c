"""The critic of ADS: its sizes, its taps, the places it compares (specification of ADS, sections (c.4) and (k), 4)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ophjax import trees
from ophjax.errors import InputError
from ophjax.losses.adversarial import patch_nce
from ophjax.nets.critic import PatchCritic, PatchEncoder, PatchProjector, blur_down

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SMALL = {"width": 4, "features": 16, "patches": 32}


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


IMAGE = normal(0, 2, 24, 20, 3)


def test_parameter_count_at_the_papers_scale():
    """Golden, by hand: 7x7 from 3 to 32 and residual 3x3 of 128 channels without bias, 3x3 to 64 and to 128 with;
    for each tap a linear layer from its channels to 256 and one from 256 to 256."""
    image = jax.ShapeDtypeStruct((2, 192, 192, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: PatchCritic().init(jax.random.key(0), x, jax.random.key(1)), image)["params"]
    encoder = 49 * 3 * 32 + (9 * 32 * 64 + 64) + (9 * 64 * 128 + 128) + 2 * 9 * 128 * 128
    heads = sum(c * 256 + 256 + 256 * 256 + 256 for c in (3, 32, 64, 128, 128))
    assert trees.count(shapes["encoder"]) == encoder
    assert trees.count(shapes) == encoder + heads == 813_088


def test_taps_lie_where_they_are_said_to():
    taps = ("pixels", "stem", "down1", "down2", "res1", "res5")
    net = PatchEncoder(taps, 4)
    maps = jax.eval_shape(lambda x: net.init_with_output(jax.random.key(0), x), IMAGE)[0]
    assert {tap: y.shape[1:] for tap, y in maps.items()} == {
        "pixels": (30, 26, 3), "stem": (24, 20, 4), "down1": (24, 20, 8), "down2": (12, 10, 16),
        "res1": (6, 5, 16), "res5": (6, 5, 16),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("taps", "parts"), [(("pixels",), 0), (("stem",), 1), (("pixels", "down1"), 2), (("res2",), 7)]
)
def test_nothing_is_built_behind_the_last_tap(taps, parts):
    """What no loss sees would never be trained."""
    shapes = jax.eval_shape(lambda x: PatchEncoder(taps, 4).init(jax.random.key(0), x), IMAGE)
    assert len(shapes.get("params", {})) == parts


def test_images_do_not_meet():
    """Each example is treated alone, so that negatives and norms are of one image."""
    critic = PatchCritic(("pixels", "stem", "down1", "res1"), 4, 16, patches=30)
    key = jax.random.key(2)
    params = jit(critic.init)(jax.random.key(1), IMAGE, key)
    apply = jit(critic.apply)
    both, alone = apply(params, IMAGE, key), apply(params, IMAGE[:1], key)
    for tap in both:
        np.testing.assert_allclose(both[tap][:1], alone[tap], rtol=1e-4, atol=1e-6)


def test_places_are_equal_for_equal_keys_and_never_repeat():
    """All 480 places of the stem are drawn: every feature of the whole map comes back, once."""
    critic = PatchCritic(("stem",), 4, 16, patches=24 * 20)
    params = jit(critic.init)(jax.random.key(1), IMAGE, jax.random.key(2))
    drawn = [jit(critic.apply)(params, IMAGE, jax.random.key(seed))["stem"] for seed in (3, 3, 4)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert float(jnp.abs(drawn[0] - drawn[2]).max()) > 0.1
    parts = params["params"]
    whole = PatchEncoder(("stem",), 4).apply({"params": parts["encoder"]}, IMAGE)["stem"].reshape(2, -1, 4)
    whole = PatchProjector(16).apply({"params": parts["projector"]}, {"stem": whole})["stem"]
    for row in range(2):
        at = np.asarray(drawn[0][row] @ whole[row].T).argmax(1)
        # A few places look alike to an untrained critic, to rounding.
        assert len(np.unique(at)) > 470


def test_an_image_is_nearer_to_itself_than_to_a_shuffled_one():
    """Check 4 with an untrained critic, at every tap: low for the image itself, high with its pixels moved about."""
    image = normal(3, 2, 32, 32, 3)
    order = np.random.default_rng(0).permutation(32 * 32)
    shuffled = image.reshape(2, -1, 3)[:, order].reshape(image.shape)
    critic, key = PatchCritic(**SMALL), jax.random.key(4)
    params = jit(critic.init)(jax.random.key(5), image, key)
    apply = jit(critic.apply)
    known, own, moved = apply(params, image, key), apply(params, image, key), apply(params, shuffled, key)
    for tap in known:
        same, other = patch_nce(own[tap], known[tap]).mean(), patch_nce(moved[tap], known[tap]).mean()
        assert 0 <= float(same) < float(other) - 0.5, tap


def test_blur_keeps_constants_and_halves_the_size():
    np.testing.assert_allclose(blur_down(jnp.full((1, 6, 5, 2), 3.0)), jnp.full((1, 3, 3, 2), 3.0))
    line = jnp.zeros((1, 8, 8, 1)).at[0, 4].set(1.0)
    np.testing.assert_allclose(blur_down(line)[0, :, 0, 0], [0, 0, 0.5, 0])


def test_more_patches_than_places():
    with pytest.raises(InputError, match="at most 30"):
        jax.eval_shape(lambda x: PatchCritic(patches=31, width=4).init(jax.random.key(0), x, jax.random.key(1)), IMAGE)


def test_unknown_tap():
    with pytest.raises(InputError, match="res1"):
        jax.eval_shape(lambda x: PatchEncoder(("res0",), 4).init(jax.random.key(0), x), IMAGE)
