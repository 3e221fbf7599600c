"""The dual-branch grader of GAMMA: exact count, additivity of the baseline, memory of its stem; the 3-D branch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ophjax import trees
from ophjax.nets import grader
from ophjax.nets.conv import conv2d
from ophjax.nets.grader import Grader, WideStem
from ophjax.nets.resnet3d import ResNet3D

IMAGE, VOLUME = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32), jax.ShapeDtypeStruct((1, 64, 64, 256), jnp.uint8)
SMALL = {"depth": 10, "width": 2}


def count(net, *inputs):
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(lambda key, *x: net.init(key, *x, train=False), key, *inputs)["params"]


def test_parameters_of_the_baseline():
    params = count(Grader(), IMAGE, VOLUME)
    assert trees.count(params) == 43_365_827
    parts = {name: trees.count(tree) for name, tree in params.items()}
    assert parts == {"fundus": 21_284_672, "oct": 22_078_080, "head": 3_075}


def test_parameters_of_the_volume_net():
    """By hand, depth 18 and width w: stem 343 w + 2 w; stages of basic blocks with 27 taps."""
    w = 8

    def stage(c_in, c):
        return 27 * c_in * c + 3 * 27 * c * c + 8 * c + (c_in * c + 2 * c if c_in != c else 0)

    by_hand = 345 * w + stage(w, w) + stage(w, 2 * w) + stage(2 * w, 4 * w) + stage(4 * w, 8 * w)
    volume = jax.ShapeDtypeStruct((1, 16, 32, 32, 1), jnp.float32)
    assert trees.count(count(ResNet3D(depth=18, width=w), volume)) == by_hand


@pytest.fixture(scope="module")
def inputs():
    images = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))
    volumes = jax.random.randint(jax.random.key(1), (2, 32, 32, 4), 0, 256).astype(jnp.uint8)
    return images, volumes


def combined(net, inputs):
    """Logits of every pair out of two pictures and two volumes, [picture, volume, k]."""
    images, volumes = inputs
    image, volume = jnp.repeat(images, 2, 0), jnp.tile(volumes, (2, 1, 1, 1))
    variables = jax.jit(lambda key: net.init(key, image, volume, train=False))(jax.random.key(2))
    return jax.jit(lambda: net.apply(variables, image, volume, train=False)["fused"])().reshape(2, 2, -1)


def test_the_baseline_is_additive_and_the_interaction_is_not(inputs):
    """z(f1, o1) + z(f2, o2) = z(f1, o2) + z(f2, o1)."""
    z = combined(Grader(**SMALL, stem_kind="small"), inputs)
    np.testing.assert_allclose(z[0, 0] + z[1, 1], z[0, 1] + z[1, 0], atol=1e-4)
    assert float(jnp.abs(z[0] - z[1]).max()) > 1e-3 and float(jnp.abs(z[:, 0] - z[:, 1]).max()) > 1e-3
    z = combined(Grader(**SMALL, stem_kind="small", fusion="interaction", hidden=16, auxiliary=True), inputs)
    assert float(jnp.abs(z[0, 0] + z[1, 1] - z[0, 1] - z[1, 0]).max()) > 1e-4


@pytest.mark.parametrize("modality", ["fundus", "oct"])
def test_one_modality_alone(inputs, modality):
    z = combined(Grader(**SMALL, stem_kind="small", modality=modality, auxiliary=True), inputs)
    same, other = (z[:, 0] - z[:, 1], z[0] - z[1]) if modality == "fundus" else (z[0] - z[1], z[:, 0] - z[:, 1])
    np.testing.assert_allclose(same, 0, atol=1e-6)
    assert float(jnp.abs(other).max()) > 1e-4


def test_stem_in_parts_equals_one_convolution(inputs, monkeypatch):
    """Forward and both gradients, with the slices in one part and in two."""
    volume = jnp.tile(inputs[1], (1, 1, 1, 2))
    stem = WideStem(3, "none", jnp.float32)
    params = stem.init(jax.random.key(0), volume, train=False)["params"]

    def ours(kernel):
        return jnp.square(stem.apply({"params": {"kernel": kernel}}, volume, train=False)).sum()

    def plain(kernel):
        return jnp.square(jax.nn.relu(conv2d(volume.astype(jnp.float32) / 255, kernel, stride=2))).sum()

    for slices in (32, 4):
        monkeypatch.setattr(grader, "SLICES", slices)
        found, expected = jax.value_and_grad(ours)(params["kernel"]), jax.value_and_grad(plain)(params["kernel"])
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-3)


def test_memory_of_the_stem_at_full_scale():
    """Four volumes of 512 x 512 x 256 stay bytes: forward and backward pass take less than they would as float32."""
    stem = WideStem(64, "none", jnp.float32)
    volume = jax.ShapeDtypeStruct((4, 512, 512, 256), jnp.uint8)
    kernel = jax.ShapeDtypeStruct((7, 7, 256, 64), jnp.float32)

    def loss(kernel, volume):
        return jnp.square(stem.apply({"params": {"kernel": kernel}}, volume, train=False)).sum()

    program = jax.jit(jax.grad(loss)).lower(kernel, volume).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4 * 4 * 512 * 512 * 256
