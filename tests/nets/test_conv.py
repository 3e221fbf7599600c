from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ophjax.nets import conv

# Sums of at most 9 * 64 products of unit normals in another order: float32 rounding of values up to about 100.
ROUNDING = {"rtol": 1e-4, "atol": 1e-3}

# These tests are about values of small programs: compiling is nearly all they cost, so it is kept light.
LIGHT = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = partial(jax.jit, compiler_options=LIGHT)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def reference(x: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int = 1) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def value_and_gradients(function: Callable[..., jax.Array], *arguments: jax.Array) -> tuple[jax.Array, ...]:
    """The value, and the gradients for a fixed random cotangent."""
    y, back = jax.vjp(function, *arguments)
    return y, *back(jnp.asarray(normal(9, *y.shape)))


def assert_equal(
    function: Callable[..., jax.Array], expected: Callable[..., jax.Array], *arguments: np.ndarray
) -> None:
    @jit
    def both(*arguments: jax.Array) -> tuple[tuple[jax.Array, ...], ...]:
        return value_and_gradients(function, *arguments), value_and_gradients(expected, *arguments)

    for a, b in zip(*both(*arguments), strict=True):
        np.testing.assert_allclose(a, b, **ROUNDING)


# One case for each branch of conv2d: 1x1, few positions, output channels fewer and more than the input's, and stride 2,
# where the last rows may be met by no tap (11 x 10).
CASES = [
    ((2, 7, 6, 5), 1, 4, 1),
    ((2, 7, 6, 5), 1, 4, 2),
    ((2, 3, 4, 5), 3, 4, 1),
    ((2, 7, 8, 5), 3, 4, 2),
    ((2, 7, 6, 5), 3, 4, 1),
    ((2, 11, 10, 5), 3, 4, 2),
    ((2, 9, 11, 3), 7, 4, 2),
    ((2, 7, 6, 3), 3, 5, 1),
    ((2, 9, 6, 64), 3, 3, 1),
    ((2, 9, 6, 64), 5, 2, 1),
    ((2, 11, 9, 64), 4, 3, 2),
]


@pytest.mark.parametrize(("shape", "size", "features", "stride"), CASES)
def test_conv2d_equals_lax(shape: tuple[int, ...], size: int, features: int, stride: int) -> None:
    x, kernel = normal(0, *shape), normal(1, size, size, shape[3], features)
    assert_equal(
        lambda x, k: conv.conv2d(x, k, stride=stride),
        lambda x, k: reference(x, k, stride, (size - 1) // 2),
        x,
        kernel,
    )


@pytest.mark.parametrize(
    ("shape", "size", "features", "stride", "padding"),
    [
        ((2, 11, 6, 5), 3, 4, 1, 1),
        ((2, 11, 6, 5), 3, 7, 1, 1),
        ((2, 13, 9, 3), 5, 2, 1, 1),
        ((2, 17, 9, 3), 3, 4, 2, 1),
        ((2, 17, 9, 3), 3, 4, 2, 0),
    ],
)
def test_kernel_gradients_in_pieces(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], size: int, features: int, stride: int, padding: int
) -> None:
    """As large maps have them: rows that pieces do not divide, either side sliding, a stride."""
    x, kernel = normal(0, *shape), normal(1, size, size, shape[3], features)
    seen = []
    plain = lax.conv_general_dilated

    def counted(*args: Any, **options: Any) -> jax.Array:
        seen.append(args)
        return plain(*args, **options)

    def gradient(function: Callable[..., jax.Array]) -> jax.Array:
        y, back = jax.vjp(lambda k: function(x, k), kernel)
        return back(jnp.asarray(normal(9, *y.shape)))[0]

    expected = jit(lambda: gradient(lambda x, k: reference(x, k, stride, padding)))()
    monkeypatch.setattr(conv, "_PIECE", 128)
    monkeypatch.setattr(lax, "conv_general_dilated", counted)
    found = jit(lambda: gradient(lambda x, k: conv.conv2d(x, k, stride=stride, padding=padding)))()
    assert len(seen) > 3  # the convolution itself, the gradient of its input, and more than one piece
    np.testing.assert_allclose(found, expected, **ROUNDING)


@pytest.mark.parametrize("shape", [(2, 8, 12, 5), (2, 11, 9, 3)])
def test_windows_that_do_not_overlap_equal_lax(shape: tuple[int, ...]) -> None:
    """Patches; the second leaves rows and columns that fill no window."""
    x, kernel = normal(0, *shape), normal(1, 4, 4, shape[3], 6)
    assert_equal(lambda x, k: conv.conv2d(x, k, stride=4, padding=0), lambda x, k: reference(x, k, 4, 0), x, kernel)


@pytest.mark.parametrize("shape", [(2, 7, 6, 5), (1, 2, 1, 3)])
def test_doubled_images_are_convolved_without_being_doubled(shape: tuple[int, ...]) -> None:
    x, kernel = normal(0, *shape), normal(1, 3, 3, shape[3], 4)
    assert_equal(conv.conv_doubled, lambda x, k: reference(conv.double(x), k, 1, 1), x, kernel)


def test_only_a_3x3_of_stride_1_is_doubled() -> None:
    with pytest.raises(ValueError, match="3x3 kernel of stride 1"):
        conv.Conv(4, 5, doubled=True).init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))


@pytest.mark.parametrize("padding", [0, 2, 4])
def test_padding_is_explicit(padding: int) -> None:
    x, kernel = normal(0, 1, 8, 7, 20), normal(1, 3, 3, 20, 2)
    assert_equal(lambda x, k: conv.conv2d(x, k, padding=padding), lambda x, k: reference(x, k, 1, padding), x, kernel)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (5, 1), (3, 2), (5, 3)])
def test_depthwise_equals_lax(size: int, stride: int) -> None:
    x, kernel = normal(0, 2, 7, 6, 5), normal(1, size, size, 1, 5)

    def ours(x: jax.Array, k: jax.Array) -> jax.Array:
        return conv.depthwise2d(x, k, stride=stride)

    assert_equal(ours, lambda x, k: reference(x, k, stride, size // 2, groups=5), x, kernel)


@pytest.mark.parametrize("size", [1, 3])
def test_a_kernel_for_each_image_equals_lax(size: int) -> None:
    x, kernels = normal(0, 4, 6, 5, 3), normal(1, 4, size, size, 3, 2)

    def one_by_one(x: jax.Array, kernels: jax.Array) -> jax.Array:
        return jnp.concatenate([reference(x[i : i + 1], kernels[i], 1, size // 2) for i in range(4)])

    assert_equal(conv.conv_each, one_by_one, x, kernels)


def test_upsampling_equals_lax_transposed_convolution() -> None:
    x, kernel = normal(0, 2, 3, 5, 4), normal(1, 2, 2, 4, 3)

    def expected(x: jax.Array, kernel: jax.Array) -> jax.Array:
        turned = kernel[::-1, ::-1]
        return lax.conv_transpose(x, turned, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert_equal(conv.upsample2x2, expected, x, kernel)


@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 1, 1)])
def test_max_pool_equals_reduce_window(size: int, stride: int, padding: int) -> None:
    sides = ((padding, padding), (padding, padding))
    assert_equal(
        lambda x: conv.max_pool(x, size=size, stride=stride, padding=padding),
        lambda x: nn.max_pool(x, (size, size), strides=(stride, stride), padding=sides),
        normal(0, 2, 9, 6, 3),
    )


def test_other_backends_use_lax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x, kernel = normal(0, 1, 6, 6, 4), normal(1, 3, 3, 4, 2)
    assert_equal(conv.conv2d, lambda x, k: reference(x, k, 1, 1), x, kernel)
    assert "custom_vjp" not in str(jax.make_jaxpr(conv.conv2d)(x, kernel))
    assert "conv_general_dilated" in str(jax.make_jaxpr(conv.depthwise2d)(x, kernel[:, :, :1].repeat(2, -1)))
    assert "reduce_window" in str(jax.make_jaxpr(lambda x: conv.max_pool(x, size=2, stride=2))(x))


@pytest.mark.parametrize(("axes", "features"), [((0, 0), 3), ((0, None), 3), ((None, 0), 3), ((0, 0), 6)])
def test_vmap_equals_one_by_one(axes: tuple[int | None, int | None], features: int) -> None:
    x, kernel = normal(0, 2, 2, 6, 7, 4), normal(1, 2, 3, 3, 4, features)
    x, kernel = (a if axis == 0 else a[0] for a, axis in zip((x, kernel), axes, strict=True))

    def run(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, ...]:
        return value_and_gradients(conv.conv2d, x, kernel)

    together, one = jit(jax.vmap(run, axes))(x, kernel), jit(run)
    for i in range(2):
        alone = one(x[i] if axes[0] == 0 else x, kernel[i] if axes[1] == 0 else kernel)
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[i], b, **ROUNDING)
    # A batched kernel must not become a grouped convolution, which is tens of times slower on CPUs.
    program = str(jax.make_jaxpr(jax.vmap(run, axes))(x, kernel))
    assert "feature_group_count=2" not in program
    assert "batch_group_count=2" not in program


@pytest.mark.parametrize(("features", "stride"), [(4, 1), (4, 2), (1, 1)])
def test_gradients_are_in_the_form_that_is_fast_inside_loops(features: int, stride: int) -> None:
    function = partial(value_and_gradients, partial(conv.conv2d, stride=stride))
    program = str(jax.make_jaxpr(function)(normal(0, 2, 12, 12, 4), normal(1, 3, 3, 4, features)))
    # Batch, height, width, channels in and out, and the kernel as it is stored.
    plain = "ConvDimensionNumbers(lhs_spec=(0, 3, 1, 2), rhs_spec=(3, 2, 0, 1), out_spec=(0, 3, 1, 2))"
    assert program.count(plain) == program.count("ConvDimensionNumbers(") == 3


def test_sharded_batch_equals_one_device() -> None:
    count = min(8, jax.device_count())
    mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,))
    shards = NamedSharding(mesh, PartitionSpec("data"))
    x, kernel = normal(0, 8, 7, 6, 4), normal(1, 3, 3, 4, 8)
    run = jit(partial(value_and_gradients, conv.conv2d))
    for a, b in zip(run(jax.device_put(x, shards), kernel), run(x, kernel), strict=True):
        np.testing.assert_allclose(a, b, **ROUNDING)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_modules_keep_parameters_and_compute_in_their_types(dtype: jnp.dtype) -> None:
    x = normal(0, 1, 6, 6, 4)
    for module, shape in (
        (conv.Conv(3, stride=2, dtype=dtype), (1, 3, 3, 3)),
        (conv.DepthwiseConv(dtype=dtype), (1, 6, 6, 4)),
        (conv.ConvTranspose2x2(3, dtype=dtype), (1, 12, 12, 3)),
    ):
        variables = jax.eval_shape(module.init, jax.random.key(0), x)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
        y = jax.eval_shape(module.apply, variables, x)
        assert (y.shape, y.dtype) == (shape, dtype)


def test_conv_is_flax_conv() -> None:
    x = normal(0, 1, 9, 8, 4)
    flax_conv = nn.Conv(3, (3, 3), strides=2, padding=1)
    variables = {"params": {"kernel": normal(1, 3, 3, 4, 3), "bias": normal(2, 3)}}
    got, want = jit(lambda v, x: (conv.Conv(3, stride=2).apply(v, x), flax_conv.apply(v, x)))(variables, x)
    np.testing.assert_allclose(got, want, **ROUNDING)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: conv.conv2d(x, normal(1, 3, 3, 4, 6), stride=2),
        lambda x: conv.conv2d(x, normal(1, 1, 1, 4, 6)),
        lambda x: conv.depthwise2d(x, normal(1, 3, 3, 1, 4)),
        lambda x: conv.conv_each(x, normal(1, 2, 3, 3, 4, 6)),
        lambda x: conv.upsample2x2(x, normal(1, 2, 2, 4, 6)),
        lambda x: conv.max_pool(x, size=3, stride=2, padding=1),
    ],
)
def test_everything_is_lax_where_asked_for_and_gives_the_same(function):
    x, jitted = normal(0, 2, 8, 8, 4), jax.jit(function)
    expected = jitted(x)
    with conv.as_lax(True):
        jaxpr = jax.make_jaxpr(jitted)(x)  # traced anew, although it is in jit's cache
        found = jitted(x)
    assert any(name in str(jaxpr) for name in ("conv_general_dilated", "reduce_window_max"))
    np.testing.assert_allclose(found, expected, **ROUNDING)
    assert not conv.as_lax.value


def test_one_program_for_all_platforms_chooses_where_it_runs() -> None:
    """Lowered for CPU and GPU at once, a program holds lax's own convolution beside the CPU's formulation, and the
    CPU computes the same as ever."""
    x, kernel = normal(0, 2, 6, 6, 4), normal(1, 1, 1, 4, 3)

    def function(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return conv.max_pool(conv.conv2d(x, kernel), size=2, stride=2)

    plain = jax.jit(function)
    with conv.for_all_platforms(True):
        exported = jax.export.export(jax.jit(lambda x, k: function(x, k)), platforms=("cpu", "cuda"))(x, kernel)
    assert (
        "stablehlo.convolution" in exported.mlir_module()
        and "stablehlo.convolution" not in plain.lower(x, kernel).as_text()
    )
    np.testing.assert_array_equal(exported.call(x, kernel), plain(x, kernel))
