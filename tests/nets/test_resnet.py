from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ophjax import trees
from ophjax.errors import InputError
from ophjax.nets.resnet import ResNet

IMAGES = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)


# These tests are about values of small programs: compiling is nearly all they cost, so it is kept light.
LIGHT = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = partial(jax.jit, compiler_options=LIGHT)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def anyhow(net: ResNet, x: np.ndarray) -> dict:
    """Random variables of the right structure, without compiling the initialisation."""
    variables = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, train=False), x)
    return jax.tree.map(lambda leaf: 0.3 * np.abs(normal(0, *leaf.shape)), variables)


# torchvision's own counts at 1000 classes, as printed in its documentation of each model.
@pytest.mark.parametrize(("depth", "count"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160)])
def test_parameter_counts_are_those_of_torchvision(depth: int, count: int) -> None:
    net = ResNet(depth=depth)
    variables = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, train=False), IMAGES)
    assert trees.count(variables["params"]) == count


@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("depth", [10, 50])
def test_stages_have_the_stated_strides_and_channels(stem: str, depth: int) -> None:
    net = ResNet(depth=depth, width=8, stem_kind=stem)

    def maps(x: jax.Array) -> list[jax.Array]:
        def walk(net: ResNet, x: jax.Array) -> list[jax.Array]:
            found = [net.stem(x, train=False)]
            for level in (1, 2, 3, 4):
                found.append(net.stage(level, found[-1], train=False))
            return found

        return net.init_with_output(jax.random.key(0), x, method=walk)[0]

    sizes = [x.shape[1:] for x in jax.eval_shape(maps, IMAGES)]
    assert sizes == [(64 // s, 64 // s, c) for s, c in zip(net.strides, net.channels, strict=True)]


def test_odd_sizes_follow_pytorch() -> None:
    # 65 -> 33 (7x7/2, pad 3) -> 17 (pool 3/2, pad 1) -> 9 -> 5 -> 3, PyTorch's floor((n + 2p - k) / 2) + 1.
    net = ResNet(depth=10, width=4)
    x = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)

    def last(net: ResNet, x: jax.Array) -> jax.Array:
        x = net.stem(x, train=False)
        for level in (1, 2, 3, 4):
            x = net.stage(level, x, train=False)
        return x

    assert jax.eval_shape(lambda x: net.init_with_output(jax.random.key(0), x, method=last)[0], x).shape[1:3] == (3, 3)


def test_whole_equals_stage_by_stage_and_statistics_move_only_in_training() -> None:
    net = ResNet(classes=3, depth=10, width=4, stem_kind="small")
    x = normal(1, 2, 8, 8, 3)
    variables = anyhow(net, x)

    def parts(net: ResNet, x: jax.Array, *, train: bool) -> jax.Array:
        x = net.stem(x, train=train)
        for level in (1, 2, 3, 4):
            x = net.stage(level, x, train=train)
        return net.head(x)

    whole, by_parts = (
        jax.make_jaxpr(lambda v, x, f=f: net.apply(v, x, method=f))(variables, x)
        for f in (partial(ResNet.__call__, train=False), partial(parts, train=False))
    )
    assert str(whole) == str(by_parts)

    @jit
    def run(variables: dict, x: jax.Array) -> tuple[dict, dict]:
        return tuple(net.apply(variables, x, train=train, mutable=["batch_stats"])[1] for train in (True, False))

    moved, kept = run(variables, x)
    for a, b, c in zip(*map(jax.tree.leaves, ({"batch_stats": variables["batch_stats"]}, moved, kept)), strict=True):
        assert not np.array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_group_norm_treats_examples_alone() -> None:
    net = ResNet(classes=2, depth=10, width=4, stem_kind="small", norm="group")
    x = normal(1, 2, 8, 8, 3)
    variables = anyhow(net, x)
    assert set(variables) == {"params"}
    apply = jit(lambda x: net.apply(variables, x, train=True))
    # Same program up to the batch size, which may change the order of sums: rounding of logits of order 1.
    np.testing.assert_allclose(apply(x)[:1], apply(x[:1]), rtol=1e-4, atol=1e-5)


def test_bfloat16_keeps_parameters_and_logits_in_float32() -> None:
    net = ResNet(classes=2, depth=10, width=4, dtype=jnp.bfloat16)
    logits, variables = jax.eval_shape(lambda x: net.init_with_output(jax.random.key(0), x, train=False), IMAGES)
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, variables))} == {jnp.dtype(jnp.float32)}
    stem = jax.eval_shape(lambda v, x: net.apply(v, x, train=False, method="stem"), variables, IMAGES)
    assert stem.dtype == jnp.bfloat16


@pytest.mark.parametrize("wrong", [{"depth": 20}, {"stem_kind": "tiny"}, {"norm": "layer"}])
def test_a_wrong_choice_lists_the_right_ones(wrong: dict) -> None:
    with pytest.raises(InputError, match="Known"):
        jax.eval_shape(lambda x: ResNet(**wrong).init(jax.random.key(0), x, train=False), IMAGES)
