"""EfficientNet-B2 and its U-Net: published sizes, and one block against its definition. Never run at full size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ophjax import trees
from ophjax.nets.efficientnet import EfficientNet, EfficientUNet, InvertedBottleneck


def shapes(net, *size):
    image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    return jax.eval_shape(lambda x: net.init_with_output(jax.random.key(0), x, train=False), image)


def test_encoder_has_torchvisions_parameters():
    """Golden: torchvision's efficientnet_b2 has 9,109,994 with its head of 1000 classes on 1408 features."""
    maps, variables = shapes(EfficientNet(), 192, 192)
    assert trees.count(variables["params"]) + 1408 * 1000 + 1000 == 9_109_994
    assert [m.shape[1:] for m in maps] == [
        (96, 96, 16), (48, 48, 24), (24, 24, 48), (12, 12, 88), (12, 12, 120), (6, 6, 208), (6, 6, 352), (6, 6, 1408),
    ]  # fmt: skip


def test_unet_has_the_specs_widths():
    """Golden, by hand: what enters each double convolution is 512 + 88, 256 + 48, 128 + 24, 64 + 16, 32 + 3."""
    _, variables = shapes(EfficientUNet(5), 192, 192)

    def level(inputs, features, joined):
        up = 4 * inputs * features + features
        return up + 9 * joined * features + 9 * features**2 + 4 * features

    widths = (1408, 512, 256, 128, 64, 32)
    joined = (600, 304, 152, 80, 35)
    decoder = sum(level(a, b, c) for a, b, c in zip(widths, widths[1:], joined, strict=False)) + 32 * 5 + 5
    assert trees.count(variables["params"]) == 9_109_994 - 1_409_000 + decoder == 18_125_159


@pytest.mark.parametrize("size", [(192, 192), (100, 70)])
def test_logits_have_the_images_size(size):
    logits, _ = shapes(EfficientUNet(4), *size)
    assert logits.shape == (2, *size, 4) and logits.dtype == jnp.float32


@pytest.mark.parametrize(("stride", "features", "size"), [(2, 6, 5), (1, 4, 3)])
def test_a_block_by_its_definition(stride, features, size):
    """Against ``lax`` with PyTorch's padding: expand, depthwise with the stride, squeeze and excite, project, add."""
    block = InvertedBottleneck(3, size, stride, features, "batch", False, jnp.float32, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (2, 8, 6, 4))
    variables = jax.jit(block.init)(jax.random.key(1), x)
    p = variables["params"]

    def norm(y):  # stored statistics are those of N(0, 1), scale and shift 1 and 0
        return y / np.sqrt(1 + 1e-5)

    def point(y, name):
        bias = p[name].get("bias", jnp.zeros(p[name]["kernel"].shape[-1]))
        return jnp.einsum("bhwc,cd->bhwd", y, p[name]["kernel"][0, 0]) + bias[None, None, None]

    y = jax.nn.silu(norm(point(x, "expand")))
    pad = (size // 2, size // 2)
    y = jax.lax.conv_general_dilated(
        y, p["depthwise"], (stride, stride), (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=12,
    )  # fmt: skip
    y = jax.nn.silu(norm(y))
    assert p["squeeze"]["kernel"].shape == (1, 1, 12, 1), "a quarter of the block's input channels"
    y = y * jax.nn.sigmoid(point(jax.nn.silu(point(y.mean((1, 2), keepdims=True), "squeeze")), "excite"))
    y = norm(point(y, "project"))
    y = x + y if stride == 1 and features == 4 else y
    np.testing.assert_allclose(jax.jit(block.apply)(variables, x)[0], y, rtol=1e-4, atol=1e-5)
