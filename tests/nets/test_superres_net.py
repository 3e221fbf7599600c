import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_run import drawn_like
from numpy.lib.stride_tricks import sliding_window_view

from ophjax import trees
from ophjax.errors import InputError
from ophjax.nets.superres import (
    DRN,
    MEAN,
    AttentionBlocks,
    Dual,
    PlainConv,
    count_madds,
    inner_of,
    pixel_shuffle,
    units,
)
from ophjax.nets.superres_weights import (
    dual_from_state_dict,
    dual_to_state_dict,
    from_state_dict,
    read_weights,
    to_state_dict,
    write_weights,
)
from ophjax.transforms.pruning import choices, layout, prune, uniform_counts
from ophjax.transforms.resizing import torch_matrix

# Blocks in each stage and base width of DRN-S and DRN-L.
SIZES = {("small", 4): (30, 16), ("large", 4): (40, 20), ("small", 8): (30, 8), ("large", 8): (36, 10)}
# dualsr spec, (c): parameters with the mean shifts, and multiply-adds in G at 96 x 96.
DENSE = {
    ("small", 4): (4_804_065, 109.92), ("large", 4): (9_825_893, 224.76),
    ("small", 8): (5_403_000, 197.94), ("large", 8): (10_004_018, 366.38),
}  # fmt: skip
# dualsr spec, (e.1): downs; for each stage how often each number occurs among its blocks; upsamplers; as above.
COMPACT = {
    (4, 0.3): ((12, 20), ({36: 8, 40: 12, 44: 10}, {36: 1, 40: 11, 44: 18}), (40, 44), 3_116_637, 72.20),
    (4, 0.5): ((4, 8), ({16: 1, 24: 5, 28: 11, 32: 13}, {28: 5, 32: 25}), (28, 32), 2_267_417, 53.02),
    (4, 0.7): ((4, 8), ({12: 1, 16: 13, 20: 16}, {16: 7, 20: 23}), (20, 20), 1_427_545, 32.75),
    (8, 0.3): (
        (4, 12, 20), ({32: 1, 36: 4, 40: 10, 44: 15}, {36: 4, 40: 10, 44: 16}, {16: 9, 20: 21}), (44, 44, 20),
        3_490_832, 123.83,
    ),
    (8, 0.5): (
        (4, 8, 16), ({24: 4, 28: 9, 32: 17}, {24: 2, 28: 11, 32: 17}, {12: 5, 16: 25}), (24, 32, 16),
        2_548_420, 94.24,
    ),
    (8, 0.7): (
        (4, 8, 16), ({12: 1, 16: 9, 20: 20}, {16: 11, 20: 19}, {4: 4, 8: 26}), (16, 20, 8), 1_572_288, 53.34,
    ),
}  # fmt: skip
UNIFORM = {0.3: (3_316_385, 75.69), 0.5: (2_423_777, 55.15), 0.7: (1_456_029, 32.88)}


def shapes(net):
    """The parameters' shapes; nothing is computed."""
    return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]


def published(size, scale, inner=None):
    return DRN(scale, *SIZES[size, scale], inner, learned_mean_shift=True)


def released(scale, ratio):
    downs, stages, ups, *_ = COMPACT[scale, ratio]
    inner = list(downs)
    for numbers, up in zip(stages, ups, strict=True):
        inner += [c for c, times in numbers.items() for _ in range(times)] + [up]
    return tuple(inner)


def small(scale=4, inner=None, **options):
    """A network and drawn parameters, about as large as its own start's."""
    net = DRN(scale, 2, 4, inner, **options)
    return net, jax.tree.map(lambda leaf: 0.4 * leaf, drawn_like({"params": shapes(net)}, seed=3)["params"])


@pytest.mark.parametrize(("size", "scale"), DENSE)
def test_published_sizes(size, scale):
    net = published(size, scale)
    parameters, madds = DENSE[size, scale]
    assert trees.count(shapes(net)) == parameters
    assert round(count_madds(net) / 1e9, 2) == madds
    constant = DRN(scale, *SIZES[size, scale])
    assert trees.count(shapes(constant)) == parameters - 24
    _, width = SIZES[size, scale]
    dual = jax.eval_shape(Dual(width).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    assert trees.count(dual) == 54 * width


@pytest.mark.parametrize(("scale", "ratio"), COMPACT)
def test_published_compact_sizes(scale, ratio):
    net = published("small", scale, released(scale, ratio))
    assert trees.count(shapes(net)) == COMPACT[scale, ratio][3]
    assert round(count_madds(net) / 1e9, 2) == COMPACT[scale, ratio][4]


@pytest.mark.parametrize("ratio", UNIFORM)
def test_uniform_compact_sizes(ratio):
    dense = DRN(4, *SIZES["small", 4])
    net = published("small", 4, tuple(map(int, uniform_counts(layout(units(dense)), ratio))))
    assert (trees.count(shapes(net)), round(count_madds(net) / 1e9, 2)) == UNIFORM[ratio]


@pytest.mark.parametrize(("scale", "ratio"), COMPACT)
def test_released_numbers_are_candidates(scale, ratio):
    """All but the two widest downs of x8 at 0.7, which were not made by that rule (spec, (e.1))."""
    dense = DRN(scale, *SIZES["small", scale])
    table = choices(layout(units(dense)), ratio, repeats=True)
    wrong = [i for i, c in enumerate(released(scale, ratio)) if c not in table.counts[i]]
    assert wrong == ([1, 2] if (scale, ratio) == (8, 0.7) else [])


def test_units_are_in_the_order_of_a_configuration_file():
    net = DRN(8, 2, 2)
    assert [unit.name for unit in units(net)] == [
        "down0", "down1", "down2", "stage0/0", "stage0/1", "up0", "stage1/0", "stage1/1", "up1",
        "stage2/0", "stage2/1", "up2",
    ]  # fmt: skip
    assert inner_of(net) == (2, 4, 8, 16, 16, 16, 16, 16, 16, 8, 8, 8)
    assert len(units(DRN(4, *SIZES["small", 4]))) == 64
    assert len(units(DRN(8, *SIZES["small", 8]))) == 96


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_outputs_at_odd_sizes(scale):
    net = DRN(scale, 1, 2)
    out = jax.eval_shape(lambda: net.init_with_output(jax.random.key(0), jnp.zeros((2, 5, 7, 3)))[0])
    steps = [2**i for i in range(int(np.log2(scale)) + 1)]
    assert [image.shape for image in out.images] == [(2, 5 * k, 7 * k, 3) for k in steps]
    assert all(image.dtype == jnp.float32 for image in out.images)


def test_pixel_shuffle_order():
    x = jnp.arange(2 * 3 * 8).reshape(1, 2, 3, 8)
    y = pixel_shuffle(x)
    assert y.shape == (1, 4, 6, 2)
    for h, w, c, i, j in ((0, 0, 0, 0, 0), (1, 2, 1, 0, 1), (0, 1, 1, 1, 0), (1, 0, 0, 1, 1)):
        assert y[0, 2 * h + i, 2 * w + j, c] == x[0, h, w, 4 * c + 2 * i + j]


def test_stride_2_pads_one_on_both_sides():
    """The top left corner by hand: SAME padding would read one pixel further."""
    x = jnp.arange(1.0, 17).reshape(1, 4, 4, 1)
    kernel = jnp.arange(1.0, 10).reshape(3, 3, 1, 1)
    y = PlainConv(1, stride=2, use_bias=False).apply({"params": {"kernel": kernel}}, x)
    assert y.shape == (1, 2, 2, 1) and y[0, 0, 0, 0] == 5 * 1 + 6 * 2 + 8 * 5 + 9 * 6


def test_initialisation_is_pytorchs():
    net = DRN(2, 3, 16, (16, 8, 32, 16, 32))
    params = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))["params"]
    assert 0.95 / np.sqrt(27) < np.abs(params["head"]["kernel"]).max() <= 1 / np.sqrt(27)
    second = params["stage0"]["conv2_kernel"]
    for start, c in ((0, 8), (8, 32), (40, 16)):
        assert 0.95 / np.sqrt(9 * c) < np.abs(second[:, :, start : start + c]).max() <= 1 / np.sqrt(9 * c)
    assert np.abs(params["stage0"]["conv1_bias"]).max() <= 1 / np.sqrt(9 * 32)


def test_blocks_of_different_widths_are_one_scan():
    """A stage with ragged widths gives what its blocks give one by one, and holds no padding."""
    net, x = AttentionBlocks((3, 5, 2)), jax.random.normal(jax.random.key(1), (2, 6, 5, 4))
    params = jax.jit(net.init)(jax.random.key(0), x, None)["params"]
    y, feature = jax.jit(net.apply)({"params": params}, x, jnp.array([0.0, 1, 0]))
    start, alone = 0, x
    for r, c in enumerate((3, 5, 2)):
        own = {name: leaf[r : r + 1] for name, leaf in params.items() if leaf.shape[0] == 3}
        own |= {
            "conv1_kernel": params["conv1_kernel"][..., start : start + c],
            "conv1_bias": params["conv1_bias"][start : start + c],
            "conv2_kernel": params["conv2_kernel"][:, :, start : start + c],
        }
        alone, seen = jax.jit(AttentionBlocks((c,)).apply)({"params": own}, alone, jnp.ones(1))
        if r == 1:
            np.testing.assert_allclose(feature, seen, atol=1e-5)
        start += c
    np.testing.assert_allclose(y, alone, atol=1e-5)
    assert trees.count(params) == 10 * (2 * 9 * 4 + 1) + 3 * (4 + 4 + 1 + 4 + 4)


def reference(tensors, image, scale):
    """DRN from the released program's names, in NumPy (OIHW kernels, float64), written for this test alone."""

    def conv(x, name, stride=1):
        weight = tensors[f"{name}.weight"].astype(np.float64)
        pad = weight.shape[2] // 2
        x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
        windows = sliding_window_view(x, weight.shape[2:], (0, 1))[::stride, ::stride]
        return np.einsum("hwcij,ocij->hwo", windows, weight) + tensors.get(f"{name}.bias", 0)

    def attention_block(x, name):
        y = conv(np.maximum(conv(x, f"{name}.0"), 0), f"{name}.2")
        z = np.maximum(conv(y.mean((0, 1), keepdims=True), f"{name}.3.conv_du.0"), 0)
        return x + y / (1 + np.exp(-conv(z, f"{name}.3.conv_du.2")))

    n = int(np.log2(scale))
    rows, columns = (torch_matrix(side, scale).astype(np.float64) for side in image.shape[:2])
    x = conv(conv(np.einsum("ih,jw,hwc->ijc", rows, columns, image), "sub_mean"), "head")
    copies = []
    for p in range(n):
        copies.append(x)
        y = conv(x, f"down.{p}.dual_module.0.0", stride=2)
        x = conv(np.where(y > 0, y, 0.2 * y), f"down.{p}.dual_module.1")
    images = [conv(conv(x, "tail.0"), "add_mean")]
    for i in range(n):
        blocks = len({name for name in tensors if name.startswith(f"up_blocks.{i}.") and name.endswith("body.0.bias")})
        for r in range(blocks):
            x = attention_block(x, f"up_blocks.{i}.{r}.body")
        y = conv(x, f"up_blocks.{i}.{blocks}.0")
        h, w, c = y.shape
        y = y.reshape(h, w, c // 4, 2, 2).transpose(0, 3, 1, 4, 2).reshape(2 * h, 2 * w, c // 4)
        x = np.concatenate([conv(y, f"up_blocks.{i}.{blocks + 1}"), copies[n - 1 - i]], -1)
        images.append(conv(conv(x, f"tail.{i + 1}"), "add_mean"))
    return images


@pytest.mark.parametrize(("scale", "inner"), [(4, None), (4, (3, 5, 9, 16, 7, 4, 13, 11)), (8, None)])
def test_released_weights_give_the_released_output(scale, inner):
    """Random weights under PyTorch's names: our network, built from the names alone, against the formula."""
    net, params = small(scale, inner, learned_mean_shift=True)
    # Mean shifts that were trained, as the released ones were.
    params = trees.map_named(
        lambda name, leaf: leaf + 0.01 * jax.random.normal(jax.random.key(7), leaf.shape) if "mean" in name else leaf,
        params,
    )
    tensors = to_state_dict(net, params)
    again, taken = from_state_dict(tensors)
    assert again == net.clone(inner=inner_of(net), parent=None)
    image = np.random.default_rng(0).uniform(0, 255, (5, 6, 3))
    ours = jax.jit(again.apply)({"params": taken}, jnp.asarray(image[None], jnp.float32)).images
    for found, wanted in zip(ours, reference(tensors, image, scale), strict=True):
        np.testing.assert_allclose(found[0], wanted, atol=1e-3)


def test_weights_files(tmp_path):
    net, params = small(2)
    tensors = to_state_dict(net, params)
    assert tensors["sub_mean.bias"] == pytest.approx([-m for m in MEAN])
    path = tmp_path / "drn.safetensors"
    write_weights(path, tensors)
    read = read_weights(path)
    assert read.keys() == tensors.keys() and all((read[name] == tensors[name]).all() for name in read)
    dual = jax.eval_shape(Dual(4).init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    duals = {f"to{k}": drawn_like(dual, seed=k)["params"] for k in (1, 2)}
    back = dual_from_state_dict(dual_to_state_dict(duals))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), back, duals))


def test_pickles_are_read_as_tensors_only(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: it alone reads .pt files")
    net, params = small(2)
    tensors = to_state_dict(net, params)
    torch.save({name: torch.tensor(value) for name, value in tensors.items()}, tmp_path / "drn.pt")
    assert read_weights(tmp_path / "drn.pt").keys() == tensors.keys()
    torch.save({"a": slice}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="cannot be read as weights"):
        read_weights(tmp_path / "other.pt")


def test_weights_that_do_not_fit(tmp_path):
    net, params = small(2)
    tensors = to_state_dict(net, params)
    with pytest.raises(InputError, match=r"lack 'head.weight'"):
        from_state_dict({name: value for name, value in tensors.items() if name != "head.weight"})
    with pytest.raises(InputError, match="does not have: more"):
        from_state_dict(tensors | {"more": np.zeros(3)})
    with pytest.raises(InputError, match="do not fit together"):
        from_state_dict(tensors | {"tail.1.bias": np.zeros(4, np.float32)})
    with pytest.raises(InputError, match="not those of DRN's dual models"):
        dual_from_state_dict(tensors)
    for name, match in (("no.safetensors", "There is no weights file"), ("drn.bin", "neither")):
        (tmp_path / "drn.bin").write_bytes(b"x")
        with pytest.raises(InputError, match=match):
            read_weights(tmp_path / name)
    (tmp_path / "bad.safetensors").write_bytes(b"xx")
    with pytest.raises(InputError, match="cannot be read as weights"):
        read_weights(tmp_path / "bad.safetensors")


def test_wrong_sizes():
    with pytest.raises(InputError, match="2, 4 or 8"):
        shapes(DRN(3, 1, 2))
    with pytest.raises(InputError, match="one number for each unit"):
        shapes(DRN(2, 1, 2, (2, 2)))
    with pytest.raises(InputError, match="one number for each unit"):
        shapes(DRN(2, 1, 2, (2, 5, 2)))


def test_compact_module_has_the_pruned_shapes():
    net, params = small()
    inner = (3, 5, 9, 16, 7, 4, 13, 11)
    kept = {unit.name: np.arange(c) for unit, c in zip(units(net), inner, strict=True)}
    pruned = jax.eval_shape(lambda params: prune(params, units(net), kept), params)
    wanted = shapes(net.clone(inner=inner))
    assert jax.tree.map(jnp.shape, pruned) == jax.tree.map(jnp.shape, wanted)
