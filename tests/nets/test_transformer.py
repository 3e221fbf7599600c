from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ophjax import trees
from ophjax.errors import InputError
from ophjax.nets.transformer import (
    CrossAttention,
    DropPath,
    SeABlock,
    SeAFusion,
    TokenEmbed,
    TokenExchange,
    Tokens,
    pool_to,
    token_grid,
)

# Values of order 1 through a few matrix products in float32, in another order.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


# These tests are about values of small programs: compiling is nearly all they cost, so it is kept light.
LIGHT = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = partial(jax.jit, compiler_options=LIGHT)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def anyhow(module: nn.Module, *inputs: Any) -> dict:
    """Random parameters, none at its special initial value (zero, one), without compiling the initialisation."""
    shapes = jax.eval_shape(lambda *inputs: module.init(jax.random.key(0), *inputs, train=False), *inputs)
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.5 * random.standard_normal(leaf.shape, np.float32), shapes)


def tokens(seed: int, *shape: int, heads: int) -> Tokens:
    """Random tokens [b, n, width] with random positions, none of them padding."""
    position = normal(seed + 100, 1, shape[1], 1, shape[2] // heads)
    return Tokens(normal(seed, *shape), position, np.ones(shape[1], bool))


def layer_norm(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)


def test_cross_attention_by_hand() -> None:
    query, context = tokens(0, 1, 2, 4, heads=2), tokens(1, 1, 3, 4, heads=2)
    module = CrossAttention(heads=2)
    (got, got_attention), variables = jit(lambda: module.init_with_output(jax.random.key(4), query, context))()

    p = jax.tree.map(np.asarray, variables["params"])
    tables = [np.tile(one.position[0, :, 0], (1, 2)) for one in (query, context)]
    q = layer_norm(query.values[0] + tables[0]) @ p["query"]["kernel"]
    k = layer_norm(context.values[0] + tables[1]) @ p["key"]["kernel"]
    v = layer_norm(context.values[0]) @ p["value"]["kernel"]
    mixed = []
    for head in (slice(0, 2), slice(2, 4)):
        weights = np.exp(q[:, head] @ k[:, head].T / np.sqrt(2))
        weights /= weights.sum(-1, keepdims=True)
        np.testing.assert_allclose(got_attention[0, head.start // 2], weights, **ROUNDING)
        mixed.append(weights @ v[:, head])
    want = np.concatenate(mixed, -1) @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(got[0], want, **ROUNDING)


# Spec (k) 1: the projection that writes back begins at zero.
@pytest.mark.parametrize(("block", "fusion"), [("sea", "sequential"), ("sea", "concat"), ("single", "sequential")])
def test_identity_at_initialisation(block: str, fusion: str) -> None:
    diag, segs = normal(0, 2, 6, 6, 4), (normal(1, 2, 2, 2, 3), normal(2, 2, 4, 4, 3))
    module = SeAFusion(heads=2, tokens=3, block=block, scale_fusion=fusion)
    variables = anyhow(module, diag, segs)
    blocks = variables["params"]["blocks"]
    # Only what writes back is initialised as it is: the rest of the initialisation need not be compiled.
    fresh = jit(lambda key: module.init(key, diag, segs, train=False)["params"]["blocks"]["write"])(jax.random.key(0))
    initial = {"params": variables["params"] | {"blocks": blocks | {"write": fresh}}}
    rngs = {"drop_path": jax.random.key(5)}
    apply = jit(lambda v: module.apply(v, diag, segs, train=True, rngs=rngs)[0])
    np.testing.assert_array_equal(apply(initial), diag)
    assert np.abs(apply(variables) - diag).max() > 0.01


# Spec (k) 3: at first only the zero projection learns; once it has moved, everything does.
@pytest.mark.parametrize("query", ["seg", "diag"])
def test_every_parameter_learns(query: str) -> None:
    diag, segs = normal(0, 2, 4, 4, 4), (normal(1, 2, 2, 2, 3), normal(2, 2, 3, 3, 3))
    module = SeAFusion(heads=2, encoder_query=query)
    variables = anyhow(module, diag, segs)
    blocks = variables["params"]["blocks"]
    written = {"kernel": np.zeros_like(blocks["write"]["kernel"])}
    fresh = {"params": variables["params"] | {"blocks": blocks | {"write": written}}}
    gradient = jit(jax.grad(lambda v: (module.apply(v, diag, segs, train=False)[0] ** 2).sum()))
    first = {name for name, g in trees.named_leaves(gradient(fresh)).items() if np.abs(g).max() > 0}
    # Both scales' projections learn: the second block's input is the first one's output, which is unchanged.
    assert first == {"params/blocks/write/kernel"}
    assert np.abs(gradient(fresh)["params"]["blocks"]["write"]["kernel"]).max((1, 2)).min() > 0
    # Far above rounding of values of order 1 (about 1e-6): a gradient that is zero by algebra would fall below.
    later = {n: float(np.abs(g).max()) for n, g in trees.named_leaves(gradient(variables)).items()}
    assert min(later.values()) > 1e-4, min(later, key=later.__getitem__)


# Spec (k) 4: attention is an operation on sets.
@pytest.mark.parametrize("query", ["seg", "diag"])
def test_tokens_may_be_permuted_with_their_positions(query: str) -> None:
    diag, seg = tokens(0, 2, 5, 4, heads=2), tokens(1, 2, 6, 4, heads=2)
    module = TokenExchange(heads=2, encoder_query=query)
    variables = anyhow(module, diag, [seg])
    apply = jit(lambda d, s: module.apply(variables, d, [s], train=False)[0])
    expected = apply(diag, seg)

    def permuted(one: Tokens, order: np.ndarray) -> Tokens:
        return Tokens(one.values[:, order], one.position[:, order], one.real)

    order = np.array([3, 0, 5, 1, 4, 2])
    np.testing.assert_allclose(apply(diag, permuted(seg, order)), expected, **ROUNDING)
    # Without its table the permutation is seen: positions matter.
    assert np.abs(apply(diag, seg._replace(values=seg.values[:, order])) - expected).max() > 0.01
    order = np.array([3, 0, 1, 4, 2])
    np.testing.assert_allclose(apply(permuted(diag, order), seg), expected[:, order], **ROUNDING)


@pytest.mark.parametrize("query", ["seg", "diag"])
def test_padding_is_never_attended_to(query: str) -> None:
    diag, seg = tokens(0, 2, 5, 4, heads=2), tokens(1, 2, 3, 4, heads=2)
    module = TokenExchange(heads=2, encoder_query=query)
    variables = anyhow(module, diag, [seg])
    apply = jit(lambda s: module.apply(variables, diag, [s], train=False)[0])
    longer = jax.tree.map(jnp.asarray, seg).padded(6)
    loud = longer._replace(values=jnp.where(longer.real[None, :, None], longer.values, 100.0))
    np.testing.assert_allclose(apply(loud), apply(seg), **ROUNDING)


# Spec (k) 5, with N = 9 diagnosis tokens (of 6 x 6 positions) and M = 4 segmentation tokens.
@pytest.mark.parametrize(
    ("block", "query", "encoder", "decoder"),
    [("sea", "seg", (4, 9), (9, 4)), ("sea", "diag", (9, 4), (9, 9)), ("single", "seg", None, (9, 4))],
)
def test_attention_shapes_and_rows(
    block: str, query: str, encoder: tuple[int, int] | None, decoder: tuple[int, int]
) -> None:
    # The second scale has fewer tokens (1) and is padded inside: its attention comes back without the padding.
    diag, segs = normal(0, 2, 6, 6, 4), [normal(1, 2, 2, 2, 3), normal(2, 2, 1, 1, 3)]
    module = SeAFusion(heads=2, tokens=3, block=block, encoder_query=query, dtype=jnp.bfloat16)
    variables = anyhow(module, diag, segs)
    _, (attention, short) = jit(lambda v: module.apply(v, diag, segs, train=False))(variables)
    assert [a.shape[2:] for a in attention.encoder] == ([] if encoder is None else [encoder])
    assert attention.decoder.shape == (2, 2, *decoder)
    swapped = {4: 1, 9: 9}
    assert short.decoder.shape[2:] == tuple(swapped[n] for n in decoder)
    for weights in (*attention.encoder, attention.decoder, *short.encoder, short.decoder):
        assert weights.dtype == jnp.float32
        # A float32 sum of at most 9 numbers below 1.
        np.testing.assert_allclose(np.asarray(weights).sum(-1), 1, rtol=1e-6)


# Spec (k) 6: unlike in a convolution, every diagnosis token sees every place of the segmentation map.
@pytest.mark.parametrize("block", ["sea", "single"])
def test_far_corners_influence_each_other(block: str) -> None:
    diag, seg = normal(0, 1, 8, 8, 4), normal(1, 1, 8, 8, 3)
    module = SeAFusion(heads=2, tokens=8, block=block)
    variables = anyhow(module, diag, [seg])
    jacobian = jit(jax.jacrev(lambda seg: module.apply(variables, diag, [seg], train=False)[0][0, 7, 7, 0]))(seg)
    # 64 tokens share the attention, so each has about 1/64 of an influence of order 1.
    assert np.abs(jacobian[0, 0, 0]).max() > 1e-4


# Spec (k) 7.
def test_concatenated_scales_have_no_order() -> None:
    diag, segs = normal(0, 1, 4, 4, 4), (normal(1, 1, 2, 2, 3), normal(2, 1, 3, 4, 3), normal(3, 1, 4, 4, 3))
    module = SeAFusion(heads=2, scale_fusion="concat")
    variables = anyhow(module, diag, segs)
    order = (2, 0, 1)
    moved = {str(old + 1): str(new + 1) for new, old in enumerate(order)}

    def rename(tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        return {
            name[:-1] + moved[name[-1]] if name[-1].isdigit() else name: rename(branch) for name, branch in tree.items()
        }

    apply = jit(lambda v, segs: module.apply(v, diag, segs, train=False))
    expected, attention = apply(variables, segs)
    got, _ = apply(rename(variables), tuple(segs[i] for i in order))
    np.testing.assert_allclose(got, expected, **ROUNDING)
    assert [a.shape[-2:] for a in attention[0].encoder] == [(4, 16), (12, 16), (16, 16)]
    assert attention[0].decoder.shape[-2:] == (16, 4 + 12 + 16)


def test_sequential_scales_feed_the_updated_map() -> None:
    diag, segs = normal(0, 1, 4, 4, 4), (normal(1, 1, 2, 2, 3), normal(2, 1, 3, 3, 3))
    module = SeAFusion(heads=2)
    variables = anyhow(module, diag, segs)

    @jit
    def one_by_one(variables: dict) -> tuple[jax.Array, tuple]:
        x, seen = diag, []
        for i, seg in enumerate(segs):
            params = variables["params"]
            stream = TokenEmbed(4, 2).apply({"params": params[f"embed{i + 1}"]}, seg)
            block = {"params": jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])}
            x, attention = SeABlock(heads=2).apply(block, x, [stream], train=False)
            seen.append(attention)
        return x, tuple(seen)

    got = jit(lambda v: module.apply(v, diag, segs, train=False))(variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **ROUNDING), got, one_by_one(variables))


# Spec (k) 8.
@pytest.mark.parametrize("size", [(5, 7), (9, 4), (1, 3)])
def test_maps_of_any_size(size: tuple[int, int]) -> None:
    diag, segs = jax.ShapeDtypeStruct((1, *size, 4), jnp.float32), [normal(1, 1, 3, 5, 2)]
    module = SeAFusion(heads=1, tokens=4)
    (new, attention), variables = jax.eval_shape(
        lambda x: module.init_with_output(jax.random.key(0), x, segs, train=False), diag
    )
    count = min(size[0], 4) * min(size[1], 4)
    assert new.shape == diag.shape
    assert attention[0].decoder.shape == (1, 1, count, 3 * 4)
    assert variables["params"]["blocks"]["embed"]["position"].shape == (1, 1, count, 1, 4)


def test_pooling_tiles_the_map() -> None:
    def pooled(size: int) -> jax.Array:
        return pool_to(jnp.asarray(np.arange(size, dtype=np.float32).reshape(1, size, 1, 1)), 3, 1)[0, :, 0, 0]

    # PyTorch's windows of 5 positions in 3 parts: 0-1, 1-3, 3-4.
    np.testing.assert_allclose(pooled(5), [0.5, 2, 3.5], rtol=1e-6)
    np.testing.assert_allclose(pooled(6), [0.5, 2.5, 4.5], rtol=1e-6)
    assert token_grid(63, 8, tokens=16) == (16, 8)


def test_drop_path_keeps_or_drops_whole_examples() -> None:
    x = np.ones((1000, 2, 3), np.float32)
    rngs = {"drop_path": jax.random.key(0)}
    y = np.asarray(jit(lambda x: DropPath(0.25).apply({}, x, train=True, rngs=rngs))(x))
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1, :1], y.shape))
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.75], rtol=1e-6)
    # 1000 draws of 0 or 4/3 with mean 1: standard error 0.018; five of them.
    assert abs(y.mean() - 1) < 0.09
    np.testing.assert_array_equal(DropPath(0.25).apply({}, x, train=False), x)
    np.testing.assert_array_equal(DropPath(0.0).apply({}, x, train=True), x)


@pytest.mark.parametrize(
    ("fusion", "level", "count"),
    [("sequential", 1, 524_288), ("sequential", 2, 1_697_280), ("concat", 1, 347_648), ("concat", 2, 1_073_664)],
)
def test_parameter_count_at_the_paper_scale(fusion: str, level: int, count: int) -> None:
    c, heads, size = {1: (64, 2, 64), 2: (128, 4, 32)}[level]
    diag = jax.ShapeDtypeStruct((1, size, size, c), jnp.float32)
    taps = [(8, 512), (16, 256), (32, 256), (64, 256)]
    segs = [jax.ShapeDtypeStruct((1, s, s, d), jnp.float32) for s, d in taps]
    module = SeAFusion(heads, scale_fusion=fusion)
    variables = jax.eval_shape(lambda d, s: module.init(jax.random.key(0), d, s, train=False), diag, segs)

    def embed(channels: int) -> int:
        return 10 * channels + channels * c + 2 * c  # depthwise with bias, linear, norm

    attention = (2 + 1 + 2) * c + 3 * c * c + (c * c + c)  # norms (no bias on keys), projections, output
    layer = attention + 2 * c + (3 * c * c + 3 * c) + (3 * c * c + c)
    decoding = embed(c) + 256 * c // heads + layer + c * c  # diagnosis tokens and positions, decoder, write
    reading = sum(embed(d) + min(s, 16) ** 2 * c // heads + layer for s, d in taps)
    expected = reading + decoding * (4 if fusion == "sequential" else 1)
    assert trees.count(variables["params"]) == expected == count


@pytest.mark.parametrize("wrong", [{"block": "see"}, {"encoder_query": "both"}, {"scale_fusion": "sum"}])
def test_a_wrong_choice_lists_the_right_ones(wrong: dict) -> None:
    with pytest.raises(InputError, match="Known"):
        anyhow(SeAFusion(heads=1, **wrong), normal(0, 1, 2, 2, 2), [normal(0, 1, 2, 2, 2)])


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(InputError, match="divisible"):
        anyhow(SeAFusion(heads=3), normal(0, 1, 2, 2, 4), [normal(0, 1, 2, 2, 2)])
