from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ophjax import trees
from ophjax.nets.blocks import crop_to, pad_to_multiple
from ophjax.nets.unet import ResUNet, UNet

# These tests are about values of small programs: compiling is nearly all they cost, so it is kept light.
LIGHT = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = partial(jax.jit, compiler_options=LIGHT)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def shapes(net: ResUNet | UNet, size: tuple[int, int]) -> tuple:
    x = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    return jax.eval_shape(lambda x: net.init_with_output(jax.random.key(0), x, train=False), x)


def test_residual_unet_parameter_count() -> None:
    _, variables = shapes(ResUNet(2), (64, 64))
    encoder = 21_797_672 - (512 * 1000 + 1000)  # ResNet-34 without its head

    def block(inputs: int, skip: int) -> int:
        return (4 * inputs * 128 + 128) + (skip * 128 + 128) + 2 * 256

    decoder = block(512, 256) + block(256, 128) + block(256, 64) + block(256, 64) + (4 * 256 * 2 + 2)
    assert trees.count(variables["params"]) == encoder + decoder == 22_010_690


def test_plain_unet_parameter_count() -> None:
    _, variables = shapes(UNet(2), (64, 64))

    def double(inputs: int, features: int) -> int:
        return 9 * inputs * features + 9 * features * features + 4 * features

    widths = (64, 128, 256, 512, 1024)
    down = sum(double(a, b) for a, b in zip((3, *widths), widths, strict=False))
    up = sum(4 * 2 * w * w + w + double(2 * w, w) for w in widths[:-1])
    assert trees.count(variables["params"]) == down + up + 64 * 2 + 2


@pytest.mark.parametrize(("stem", "strides"), [("imagenet", (32, 16, 8, 4)), ("small", (8, 4, 2, 1))])
def test_taps_run_from_coarse_to_fine(stem: str, strides: tuple[int, ...]) -> None:
    (logits, taps), _ = shapes(ResUNet(2, depth=10, width=8, decoder=6, stem_kind=stem), (64, 96))
    assert (logits.shape, logits.dtype) == ((2, 64, 96, 2), jnp.float32)
    assert [tap.shape[1:] for tap in taps] == [
        (64 // s, 96 // s, c) for s, c in zip(strides, (64, 12, 12, 12), strict=True)
    ]


@pytest.mark.parametrize("size", [(33, 47), (64, 65), (1, 40)])
def test_odd_sizes_keep_their_size(size: tuple[int, int]) -> None:
    (logits, _), _ = shapes(ResUNet(2, depth=10, width=4, decoder=4), size)
    assert logits.shape == (2, *size, 2)
    logits, _ = shapes(UNet(2, width=4, depth=3), size)
    assert logits.shape == (2, *size, 2)


@pytest.mark.parametrize("size", [(5, 8), (7, 13), (8, 8)])
def test_padding_is_undone_by_cropping(size: tuple[int, int]) -> None:
    x = normal(0, 2, *size, 3)
    padded, cropped = jit(lambda x: (padded := pad_to_multiple(x, 8), crop_to(padded, *size)))(x)
    assert all(side % 8 == 0 and side - given < 8 for side, given in zip(padded.shape[1:3], size, strict=True))
    np.testing.assert_array_equal(cropped, x)
    # The frame repeats the edge: nothing is there that was not in the image.
    assert np.isin(padded, x).all()


def test_odd_sizes_are_padded_inside() -> None:
    net = UNet(1, width=4, depth=1, norm="group")
    x = normal(1, 1, 7, 5, 3)
    variables = jax.tree.map(lambda leaf: 0.3 * normal(0, *leaf.shape), shapes(net, (7, 5))[1])

    @jit
    def both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        padded = net.apply(variables, pad_to_multiple(x, 2), train=False)
        return net.apply(variables, x, train=False), crop_to(padded, 7, 5)

    np.testing.assert_array_equal(*both(x))
