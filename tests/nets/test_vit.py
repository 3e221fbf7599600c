"""ViT-S/16: parameter counts, weights in timm's names, and equality with forward passes in NumPy, PyTorch and timm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_weights import draw_vit
from scipy.special import erf

from ophjax import trees
from ophjax.errors import InputError
from ophjax.nets.pretrained import adapt_positions, find_backbones, load_backbone
from ophjax.nets.superres_weights import write_weights
from ophjax.nets.vit import VisionTransformer

SIZES = dict(patch=4, width=24, depth=3, heads=3)


def shapes_of(net, shape):
    return jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, *shape))))["params"]


def loaded(tensors, path, shape, **changes):
    write_weights(path, {name: np.ascontiguousarray(value) for name, value in tensors.items()})
    params, stats = load_backbone(path, shapes_of(VisionTransformer(**(SIZES | changes)), shape), {}, "net")
    assert stats == {}
    return params


def run(params, x):
    """Our feature of images [b, c, h, w]."""
    net = VisionTransformer(**SIZES)
    return np.asarray(jax.jit(lambda params, x: net.apply({"params": params}, x))(params, x.transpose(0, 2, 3, 1)))


def run_in_numpy(tensors, x, *, depth, heads, patch):
    """The feature of images [b, c, h, w] of the file's own size."""

    def linear(x, name):
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def normed(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // patch, patch, width // patch, patch).transpose(0, 2, 4, 1, 3, 5)
    kernel = tensors["patch_embed.proj.weight"]
    x = x.reshape(batch, -1, kernel[0].size) @ kernel.reshape(len(kernel), -1).T + tensors["patch_embed.proj.bias"]
    token = np.repeat(tensors["cls_token"], batch, 0)
    x = np.concatenate([token, x], 1) + tensors["pos_embed"]
    for i in range(depth):
        name = f"blocks.{i}"
        qkv = linear(normed(x, f"{name}.norm1"), f"{name}.attn.qkv")
        q, k, v = qkv.reshape(*x.shape[:2], 3, heads, -1).transpose(2, 0, 3, 1, 4)
        weights = np.exp(q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1]))
        mixed = weights / weights.sum(-1, keepdims=True) @ v
        x = x + linear(mixed.transpose(0, 2, 1, 3).reshape(x.shape), f"{name}.attn.proj")
        inner = linear(normed(x, f"{name}.norm2"), f"{name}.mlp.fc1")
        x = x + linear(inner * (1 + erf(inner / np.sqrt(2))) / 2, f"{name}.mlp.fc2")
    return normed(x, "norm")[:, 0]


def test_it_has_the_parameters_of_vit_s16():
    for classes, expected in ((1000, 22_050_664), (None, 21_665_664)):
        params = shapes_of(VisionTransformer(classes), (224, 224, 3))
        assert trees.count(params) == expected
        assert find_backbones({"net": params}) == {"net": "vit"}


def test_it_equals_a_forward_pass_in_numpy(tmp_path):
    tensors = draw_vit(**SIZES, side=4)
    x = np.random.default_rng(1).normal(0, 1, (2, 3, 16, 16)).astype(np.float32)
    expected = run_in_numpy(tensors, x, depth=3, heads=3, patch=4)
    found = run(loaded(tensors, tmp_path / "net.safetensors", (16, 16, 3)), x)
    assert (expected.std(0) > 0.05).any(), "what the token says depends on the image"
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_every_tensor_gets_its_place(tmp_path):
    """Stacked blocks, another grid of patches, a mask beside the picture; the head stays as it is."""
    tensors = draw_vit(**SIZES, side=4)
    params = loaded(tensors, tmp_path / "net.safetensors", (24, 12, 4), classes=5)
    assert isinstance(params["head"]["kernel"], jax.ShapeDtypeStruct)
    blocks = params["blocks"]
    for ours, theirs in (
        (blocks["qkv"]["kernel"], "attn.qkv.weight"), (blocks["qkv"]["bias"], "attn.qkv.bias"),
        (blocks["out"]["kernel"], "attn.proj.weight"), (blocks["norm"]["scale"], "norm1.weight"),
        (blocks["feed_forward"]["norm"]["bias"], "norm2.bias"),
        (blocks["feed_forward"]["expand"]["kernel"], "mlp.fc1.weight"),
        (blocks["feed_forward"]["contract"]["kernel"], "mlp.fc2.weight"),
    ):  # fmt: skip
        np.testing.assert_array_equal(ours, np.stack([tensors[f"blocks.{i}.{theirs}"].T for i in range(3)]))
    np.testing.assert_array_equal(params["norm"]["scale"], tensors["norm.weight"])
    np.testing.assert_array_equal(params["token"], tensors["cls_token"][0, 0])
    np.testing.assert_array_equal(params["token_position"], tensors["pos_embed"][0, 0])
    assert params["position"].shape == (6, 3, 24)
    np.testing.assert_array_equal(params["position"], adapt_positions(tensors["pos_embed"], 6, 3))
    kernel, theirs = params["patches"]["kernel"], tensors["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel[:, :, :3], theirs)
    assert not kernel[:, :, 3].any()
    grey = loaded(tensors, tmp_path / "net.safetensors", (16, 16, 1))["patches"]["kernel"]
    np.testing.assert_allclose(grey, theirs.sum(2, keepdims=True), rtol=1e-5, atol=1e-6)


def test_positions_on_another_grid():
    """The same grid is taken as it is; a plane stays a plane (away from the border), finer and coarser."""
    rows, columns = np.mgrid[:12, :12].astype(np.float32) + 0.5
    plane = np.stack([rows, columns], -1)
    table = np.concatenate([np.full((1, 1, 2), 9, np.float32), plane.reshape(1, 144, 2)], 1)
    np.testing.assert_array_equal(adapt_positions(table, 12, 12), plane)
    finer = adapt_positions(table, 24, 12)
    np.testing.assert_allclose(finer[4:20, :, 0], np.repeat(np.arange(4.5, 20.5)[:, None] / 2, 12, 1), rtol=1e-5)
    np.testing.assert_allclose(finer[..., 1], plane[:1, :, 1].repeat(24, 0), rtol=1e-5)
    coarser = adapt_positions(table, 12, 6)
    np.testing.assert_allclose(coarser[:, 2:4, 1], np.repeat([[5.0, 7.0]], 12, 0), rtol=1e-5)
    stripes = np.where(np.arange(145) % 2, 1, -1).astype(np.float32)[None, :, None]
    assert np.abs(adapt_positions(stripes, 12, 4)[:, 1:3]).max() < 0.2, "finer than the grid: averaged away"


def test_what_does_not_fit_is_listed(tmp_path):
    path, tensors = tmp_path / "net.safetensors", draw_vit(**SIZES, side=4)
    with pytest.raises(InputError, match=r"lacks 12 tensors \(blocks\.3\..* vit-depth"):
        loaded(tensors, path, (16, 16, 3), depth=4)
    with pytest.raises(InputError, match=r"file has 12 tensors without a place here \(blocks\.2\."):
        loaded(tensors, path, (16, 16, 3), depth=2)
    uneven = tensors | {"blocks.1.attn.proj.bias": np.zeros(9), "cls_token": np.zeros((1, 0, 24))}
    with pytest.raises(InputError, match=r"differ: .*blocks\.1\.attn\.proj\.bias \[9\].*cls_token \[1, 0, 24\]"):
        loaded(uneven, path, (16, 16, 3))
    distilled = tensors | {"pos_embed": np.zeros((1, 18, 24), np.float32), "dist_token": tensors["cls_token"]}
    with pytest.raises(InputError, match=r"pos_embed \[1, 18, 24\] for position \[4, 4, 24\].*\(dist_token\)"):
        loaded(distilled, path, (16, 16, 3))


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match=r"20 x 16 pixels and patches of 8.*--method\.vit-patch"):
        shapes_of(VisionTransformer(patch=8), (20, 16, 3))
    with pytest.raises(InputError, match="width 20 and 6 heads"):
        shapes_of(VisionTransformer(patch=8, width=20), (16, 16, 3))


def torch_vit(torch, *, patch, width, depth, heads, side):
    """A vision transformer in PyTorch's own layers under timm's names."""
    nn = torch.nn

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

        def forward(self, x):
            q, k, v = self.qkv(x).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.proj(mixed.transpose(1, 2).flatten(2))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.attn = nn.LayerNorm(width, eps=1e-6), Attention()
            self.norm2, self.mlp = nn.LayerNorm(width, eps=1e-6), nn.Sequential()
            for name, layer in (("fc1", nn.Linear(width, 4 * width)), ("act", nn.GELU()),
                                ("fc2", nn.Linear(4 * width, width))):  # fmt: skip
                self.mlp.add_module(name, layer)

        def forward(self, x):
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    class ViT(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch_embed = nn.Sequential()
            self.patch_embed.add_module("proj", nn.Conv2d(3, width, patch, patch))
            self.cls_token = nn.Parameter(torch.randn(1, 1, width))
            self.pos_embed = nn.Parameter(torch.randn(1, 1 + side * side, width))
            self.blocks = nn.Sequential(*(Block() for _ in range(depth)))
            self.norm = nn.LayerNorm(width, eps=1e-6)
            self.head = nn.Linear(width, 10)

        def forward(self, x, grid):
            position = self.pos_embed[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
            position = nn.functional.interpolate(position, grid, mode="bicubic", antialias=True)
            x = (self.patch_embed(x) + position).flatten(2).transpose(1, 2)
            token = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
            return self.norm(self.blocks(torch.cat([token, x], 1)))[:, 0]

    torch.manual_seed(0)
    return ViT().eval()


@pytest.mark.parametrize("grid", [(4, 4), (6, 5), (2, 3)])
def test_it_equals_pytorch(grid, tmp_path):
    """A pickled state dict, read as tensors only; positions of another image size are interpolated alike."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    theirs = torch_vit(torch, **SIZES, side=4)
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    shape = (4 * grid[0], 4 * grid[1])
    x = np.random.default_rng(1).normal(0, 1, (2, 3, *shape)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(x), grid).numpy()
    params, _ = load_backbone(tmp_path / "net.pth", shapes_of(VisionTransformer(**SIZES), (*shape, 3)), None, "net")
    np.testing.assert_allclose(run(params, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(224, 224), (160, 256)])
def test_it_equals_timms(shape, tmp_path):
    """timm's own net, which interpolates its positions to the image's size by itself."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    theirs = timm.create_model("vit_small_patch16_224", depth=2, dynamic_img_size=True).eval()
    with torch.no_grad():
        theirs.pos_embed.normal_()
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    net = VisionTransformer(depth=2)
    x = np.random.default_rng(1).normal(0, 1, (1, 3, *shape)).astype(np.float32)
    with torch.no_grad():
        expected = theirs.forward_features(torch.tensor(x))[:, 0].numpy()
    params, _ = load_backbone(tmp_path / "net.pth", shapes_of(net, (*shape, 3)), None, "net")
    found = jax.jit(lambda params, x: net.apply({"params": params}, x))(params, x.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
