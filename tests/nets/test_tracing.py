"""Single rules of the tracer, on modules made for them, and the networks of ophjax themselves."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ophjax.nets import (
    consensus,
    conv,
    critic,
    efficientnet,
    expertness,
    grader,
    multiscale,
    resnet,
    stage,
    superres,
    synthesizer,
    takegive,
    unet,
    ushape,
)
from ophjax.nets.graph import ModuleGraph, trace_graph
from ophjax.nets.networks import find_networks

X = jax.ShapeDtypeStruct((2, 8, 8, 6), jnp.float32)
zeros = nn.initializers.zeros


class Net(nn.Module):
    """A module whose call is given."""

    call: Callable[[nn.Module, jax.Array], Any]

    @nn.compact
    def __call__(self, x):
        return self.call(self, x)


def ops(call: Callable[[nn.Module, jax.Array], Any]) -> list[str]:
    return [node.op for node in trace_graph(Net(call), X).nodes]


class ByHand(nn.Module):
    """A LayerNorm written out, its scale and bias after the division."""

    @nn.compact
    def __call__(self, x):
        scale, bias = self.param("scale", nn.initializers.ones, (6,)), self.param("bias", zeros, (6,))
        x = x - x.mean(-1, keepdims=True)
        return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale[None, None, None] + bias[None, None, None]


def norm(**options: Any) -> nn.Module:
    return nn.BatchNorm(use_running_average=False, **options)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda m, x: nn.RMSNorm()(x), ["ln"]),
        (lambda m, x: nn.LayerNorm(use_bias=False)(x), ["ln"]),
        (lambda m, x: ByHand()(x), ["ln"]),
        (lambda m, x: nn.GroupNorm(num_groups=3)(x), ["gn"]),
        (lambda m, x: nn.GroupNorm(num_groups=1)(x), ["gn"]),
        (lambda m, x: nn.InstanceNorm()(x), ["inorm"]),
        (lambda m, x: norm(use_scale=False)(x), ["bn"]),
        (lambda m, x: norm()(x.mean((1, 2))), ["glob_avg", "bn"]),
        (lambda m, x: nn.LayerNorm()(x.mean((1, 2))), ["glob_avg", "ln"]),
        (lambda m, x: x + nn.LayerNorm()(x), ["ln", "sum"]),
        # A norm without parameters and a softmax leave no trace.
        (lambda m, x: nn.Dense(2)(nn.LayerNorm(use_bias=False, use_scale=False)(x)), ["dense", "bias"]),
        (lambda m, x: nn.softmax(nn.Dense(2)(x)), ["dense", "bias"]),
        (lambda m, x: nn.gelu(nn.Dense(2)(x)), ["dense", "bias"]),
        # A scale that meets nothing normalised is a factor.
        (lambda m, x: x * m.param("scale", zeros, (6,))[None, None, None], ["scale"]),
        # Pools: windows, everything, a maximum; means of windows by reshaping; windows of one position.
        (lambda m, x: nn.Dense(2)(nn.avg_pool(x, (2, 2), (2, 2))), ["avg_pool", "dense", "bias"]),
        (lambda m, x: nn.Dense(2)(x.max((1, 2))), ["max_pool", "dense", "bias"]),
        (lambda m, x: nn.Dense(2)(x.reshape(2, 4, 2, 4, 2, 6).mean((2, 4))), ["avg_pool", "dense", "bias"]),
        (lambda m, x: nn.Dense(2)(x.reshape(2, 8, 1, 8, 1, 6).mean((2, 4))), ["dense", "bias"]),
        # Positions: added, a part of a table, two tables, a table looked up.
        (lambda m, x: x + m.param("where", zeros, (1, 8, 8, 6)), ["embed"]),
        (lambda m, x: x + m.param("where", zeros, (1, 9, 9, 6))[:, :8, :8], ["embed"]),
        (lambda m, x: x + (m.param("y", zeros, (1, 8, 1, 6)) + m.param("x", zeros, (1, 1, 8, 6))), ["embed", "embed"]),
        (lambda m, x: x + m.param("table", zeros, (4, 6))[np.arange(8) % 4][None, :, None], ["embed"]),
        (lambda m, x: jax.lax.cond(True, jnp.sin, jnp.cos, nn.Dense(2)(x)), ["dense", "bias", "other"]),
        (lambda m, x: nn.Einsum((6, 3, 4), "bhwc,cnd->bhwnd", use_bias=False)(x), ["dense"]),
    ],
)  # fmt: skip
def test_a_rule(call, expected):
    assert ops(call) == ["input", *expected]


def only_leaf(call: Callable[[nn.Module, jax.Array], Any]) -> Any:
    ((_, leaf),) = trace_graph(Net(call), X).first_uses().values()
    return leaf


@pytest.mark.parametrize(
    ("call", "out", "fan", "space"),
    [
        # Transposed, reshaped, cast, standardised, reversed: the axes are followed.
        (lambda m, x: x @ m.param("w", zeros, (5, 6)).T, (0,), (1,), ()),
        (lambda m, x: x @ m.param("w", zeros, (2, 3, 5)).reshape(6, 5), (2,), (0, 1), ()),
        (lambda m, x: x @ jnp.moveaxis(m.param("w", zeros, (5, 1, 1, 6)), 0, -1)[0, 0], (0,), (3,), (1, 2)),
        (lambda m, x: x @ m.param("w", zeros, (6, 5), jnp.bfloat16).astype(jnp.float32), (1,), (0,), ()),
        (lambda m, x: x @ (lambda w: (w - w.mean(0, keepdims=True)) / 2)(m.param("w", zeros, (6, 5))), (1,), (0,), ()),
        (lambda m, x: x @ m.param("w", zeros, (6, 5))[::-1], (1,), (0,), ()),
        (lambda m, x: nn.ConvTranspose(5, (4, 4), 2, transpose_kernel=True, use_bias=False)(x), (2,), (3,), (0, 1)),
        (lambda m, x: nn.Conv(5, (3,), use_bias=False)(x.reshape(2, 64, 6)), (2,), (1,), (0,)),
        (lambda m, x: jnp.einsum("bhwc,gcd->bhwgd", x, m.param("w", zeros, (3, 6, 5))), (0, 2), (1,), ()),
    ],
)  # fmt: skip
def test_the_axes_of_a_kernel_are_followed(call, out, fan, space):
    leaf = only_leaf(call)
    assert (set(leaf.out), set(leaf.fan), set(leaf.space)) == (set(out), set(fan), set(space))


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda m, x: x @ m.param("w", zeros, (6, 8))[:, :4], "part of one"),
        (lambda m, x: x @ (m.param("w", zeros, (6, 4)) @ jnp.ones((4, 3))), "part of one"),
        (lambda m, x: x + jnp.ones((1, 1, 1, 6)) @ m.param("w", zeros, (6, 6)), "mixed"),
        (lambda m, x: jnp.where(x > 0, x, m.param("mask", zeros, (1, 1, 1, 6))), "lax.select_n"),
        (lambda m, x: (x, m.param("free", zeros, (3,))), "output that does not depend"),
        (lambda m, x: (x, nn.Dense(2)(x))[0], "reaches no output"),
        (lambda m, x: x * m.param("w", zeros, (2, 3)).sum(), "mixed"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_listed(call, word):
    graph = trace_graph(Net(call), X)
    assert not graph.first_uses()
    assert graph.fallback and all(word in reason for _, reason in graph.fallback)


def test_an_own_convolution_is_read_as_lax_has_it():
    """The formulations for CPUs (matrix products, shifted slices) give the graph of Flax's layers."""

    def ours(m, x):
        x = conv.max_pool(nn.relu(conv.Conv(4, 7, 2, name="a")(x)), size=3, stride=2, padding=1)
        x = conv.DepthwiseConv(name="b")(conv.Conv(4, 1, name="c")(x))
        return conv.ConvTranspose2x2(3, name="d")(x)

    def flax(m, x):
        x = nn.max_pool(nn.relu(nn.Conv(4, (7, 7), 2, 3, name="a")(x)), (3, 3), (2, 2), ((1, 1), (1, 1)))
        x = nn.Conv(4, (3, 3), feature_group_count=4, name="b")(nn.Conv(4, (1, 1), name="c")(x))
        return nn.ConvTranspose(3, (2, 2), (2, 2), name="d")(x)

    assert trace_graph(Net(ours), X) == trace_graph(Net(flax), X)
    assert not conv.as_lax.value


IMAGE = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
MAP = jax.ShapeDtypeStruct((2, 64, 64, 4), jnp.float32)
SMALL = dict(depth=18, width=4)
VOLUME = jax.ShapeDtypeStruct((2, 64, 64, 32), jnp.uint8)
KEY = jax.eval_shape(lambda: jax.random.key(0))

# A network, what it is called with, some of its nodes, and how many tensors are not predicted by a word of the reason.
OWN = {
    "resnet18": (resnet.ResNet(2, depth=18), (IMAGE,), dict(conv=20, bn=20, sum=8, max_pool=1, glob_avg=1), {}),
    "resnet50": (resnet.ResNet(2, depth=50), (IMAGE,), dict(conv=53, bn=53, sum=16, dense=1), {}),
    "unet": (unet.UNet(2), (IMAGE,), dict(conv=19, conv_t=4, bn=18, concat=4, max_pool=4), {}),
    "resunet": (unet.ResUNet(2, **SMALL), (IMAGE,), dict(conv_t=5, concat=4), {}),
    "ushape": (ushape.UShape(3), (IMAGE,), dict(dw_conv=6, max_pool=3, sum=7, conv=23), {}),
    "efficient": (efficientnet.EfficientUNet(2), (IMAGE,), dict(gate=7, other=7, concat=5), {"lax.scan": 88}),
    "multiscale": (multiscale.MultiScaleNet(**SMALL, squeeze=True), (IMAGE,), dict(gate=3), {}),
    "takegive": (takegive.TakeAndGiveNet(2, **SMALL, decoder=4), (IMAGE,), dict(msa=8, embed=16), {}),
    "conm": (
        consensus.ConM(2, **SMALL, decoder=8), (IMAGE, MAP), dict(msa=4), {"kernel is computed": 12},
    ),
    "drn": (superres.DRN(4, 2, 4), (IMAGE,), dict(other=2), {"lax.scan": 16}),
    "critic": (critic.PatchCritic(patches=16, width=4), (IMAGE, KEY), dict(dense=10, sum=1), {}),
    "synthesizer": (synthesizer.DomainSynthesizer(), (IMAGE, KEY), dict(conv=4, dense=3, gate=3), {}),
    "grader": (grader.Grader(**SMALL), (IMAGE, VOLUME), dict(concat=1, dense=1), {"lax.scan": 1}),
    "stage": (stage.AttentionStage(2), (MAP,), dict(msa=1, dw_conv=1, embed=2), {}),
    "expg": (expertness.ExpG(3), (8, 8), dict(input=1), {"does not depend": 16}),
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_the_networks_of_ophjax(name):
    module, inputs, some, left = OWN[name]
    graph: ModuleGraph = trace_graph(module, *inputs)
    assert {op: graph.counts().get(op) for op in some} == some
    for word, count in left.items():
        assert sum(word in reason for _, reason in graph.fallback) == count
    assert len(graph.fallback) == sum(left.values())
    assert len(graph.first_uses()) + len(graph.fallback) == len(graph.shapes)


def test_the_networks_behind_an_init_are_found():
    class State:
        def __init__(self, params):
            self.params = params

    def init(key, batch):
        first = nn.Dense(3).init(key, batch["x"])["params"]
        pair = {name: nn.Conv(2, (3, 3)).init(key, batch["x"])["params"] for name in ("a", "b")}
        many = jax.vmap(lambda one: nn.Dense(2).init(one, batch["x"])["params"])(jax.random.split(key, 2))
        return State({"first": first, "pair": pair, "many": many, "number": jnp.zeros(3)})

    found = find_networks(init, jax.random.key(0), {"x": X})
    assert list(found) == ["first", "pair/a", "pair/b"]
    alone = find_networks(
        lambda key, batch: State({"only": init(key, batch).params["first"]}), jax.random.key(0), {"x": X}
    )
    assert list(alone) == ["only"]
    assert found["first"].module == nn.Dense(3) and found["first"].args == (X,) and found["first"].kwargs == {}
    assert trace_graph(found["pair/a"].module, *found["pair/a"].args).counts() == dict(input=1, conv=1, bias=1)
