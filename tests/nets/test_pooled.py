"""A classifier that gives out the feature its head reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ophjax import trees
from ophjax.errors import InputError
from ophjax.nets.pooled import PooledClassifier
from ophjax.nets.resnet import ResNet
from ophjax.nets.vit import VisionTransformer

IMAGES = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)


def run(net):
    variables = jax.jit(lambda x: net.init(jax.random.key(0), x, train=False))(IMAGES)
    found = jax.jit(lambda v, x: net.apply(v, x, train=False))(variables, IMAGES)
    return jax.device_get((variables["params"], *found))


@pytest.mark.parametrize(("trunk", "width"), [("plain", 16), ("resnet", 32), ("vit", 8)])
def test_the_head_reads_the_feature(trunk, width):
    """Logits are a linear function of what is given out, in float32 beside a bfloat16 trunk too."""
    net = PooledClassifier(3, trunk, depth=10, width=4, stem_kind="small", vit=(16, 8, 1), dtype=jnp.bfloat16)
    params, logits, feature = run(net)
    assert feature.shape == (2, width) and feature.dtype == logits.dtype == jnp.float32
    linear = params["backbone"]["linear"] if trunk == "resnet" else params["linear"]
    np.testing.assert_allclose(logits, feature @ linear["kernel"] + linear["bias"], rtol=1e-5, atol=1e-6)


def test_a_projection_changes_what_is_given_out_and_not_the_logits():
    plain, projected = (PooledClassifier(3, "plain", width=4, projection=p) for p in (None, 5))
    _, logits, feature = run(plain)
    params, same, short = run(projected)
    np.testing.assert_array_equal(logits, same)
    projection = params["projection"]
    np.testing.assert_allclose(short, feature @ projection["kernel"] + projection["bias"], rtol=1e-5, atol=1e-6)


def test_a_vision_transformer_sees_centred_images_between_minus_one_and_one():
    """Heads of 64 numbers, of which no parameter tells."""
    net = PooledClassifier(3, "vit", vit=(16, 128, 1))
    centred = (IMAGES - 0.5) / 0.25
    variables = jax.jit(lambda x: net.init(jax.random.key(0), x, train=False))(centred)
    backbone = {"params": variables["params"]["backbone"]}
    _, feature = jax.jit(lambda v, x: net.apply(v, x, train=False))(variables, centred)
    alone = VisionTransformer(patch=16, width=128, depth=1, heads=2)
    np.testing.assert_allclose(feature, jax.jit(alone.apply)(backbone, 2 * IMAGES - 1), rtol=1e-4, atol=1e-5)


def test_it_has_the_parameters_of_the_resnet():
    def count(net):
        return trees.count(jax.eval_shape(lambda x: net.init(jax.random.key(0), x, train=False), IMAGES)["params"])

    assert count(PooledClassifier(5, "resnet", depth=50)) == count(ResNet(5, depth=50))


def test_unknown_trunk():
    with pytest.raises(InputError, match="Known: resnet, plain, vit"):
        run(PooledClassifier(3, "vgg"))
