"""Pretrained weights give the features that an independent forward pass in PyTorch's layout gives, here in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_weights import Draw, draw_resnet

from ophjax.errors import InputError
from ophjax.nets.efficientnet import B2, HEAD, STEM, EfficientNet
from ophjax.nets.pretrained import adapt_input, find_backbones, load_backbone
from ophjax.nets.resnet import DEPTHS, ResNet
from ophjax.nets.superres_weights import write_weights


def convolve(x, weight, stride=1, padding=0, groups=1, bias=None):
    """torch.nn.functional.conv2d on [b, c, h, w], tap by tap."""
    size = weight.shape[2]
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    height, width = ((n - size) // stride + 1 for n in x.shape[2:])
    total = 0
    for i in range(size):
        for j in range(size):
            part = x[:, :, i : i + stride * height : stride, j : j + stride * width : stride]
            if groups == 1:
                total = total + np.einsum("bchw,oc->bohw", part, weight[:, :, i, j])
            else:
                total = total + part * weight[None, :, 0, i, j, None, None]
    return total if bias is None else total + bias[:, None, None]


def normed(x, tensors, name):
    scale, bias, mean, var = (
        tensors[f"{name}.{leaf}"][:, None, None] for leaf in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def relu(x):
    return np.maximum(x, 0)


def sigmoid(x):
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def silu(x):
    return x * sigmoid(x)


def run_resnet(tensors, x, depth):
    blocks, expansion = DEPTHS[depth]
    x = relu(normed(convolve(x, tensors["conv1.weight"], 2, 3), tensors, "bn1"))
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    height, width = ((n - 3) // 2 + 1 for n in x.shape[2:])
    x = np.max([x[:, :, i : i + 2 * height : 2, j : j + 2 * width : 2] for i in range(3) for j in range(3)], 0)
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            name, y = f"layer{stage}.{block}", x
            stride = 2 if stage > 1 and block == 0 else 1
            last = 2 if expansion == 1 else 3
            for k in range(1, last + 1):
                weight = tensors[f"{name}.conv{k}.weight"]
                own = stride if k == (1 if expansion == 1 else 2) else 1
                y = normed(convolve(y, weight, own, weight.shape[2] // 2), tensors, f"{name}.bn{k}")
                y = relu(y) if k < last else y
            if f"{name}.downsample.0.weight" in tensors:
                x = normed(convolve(x, tensors[f"{name}.downsample.0.weight"], stride), tensors, f"{name}.downsample.1")
            x = relu(x + y)
    return x


def features(net, variables, x):
    """The last stage's map of our ResNet as [b, c, h, w]."""

    def forward(net, x):
        x = net.stem(x, train=False)
        for level in (1, 2, 3, 4):
            x = net.stage(level, x, train=False)
        return x

    run = jax.jit(lambda variables, x: net.apply(variables, x, method=forward))
    return np.asarray(run(variables, x.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)


def shapes_of(net, channels=3, side=32):
    return jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, side, side, channels)), train=False))


def loaded(net, tensors, path, channels=3):
    """Variables of a net with a file's weights; the head, which is not taken, is zeros."""
    write_weights(path, {name: np.ascontiguousarray(value) for name, value in tensors.items()})
    shapes = shapes_of(net, channels)
    params, stats = load_backbone(path, shapes["params"], shapes["batch_stats"], "net")
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype) if hasattr(leaf, "sharding") else leaf,
                        {"params": params, "batch_stats": stats})  # fmt: skip


@pytest.mark.parametrize(("depth", "width"), [(18, 4), (50, 4)])
def test_resnets_equal_a_forward_pass_in_numpy(depth, width, tmp_path):
    tensors = draw_resnet(depth, width)
    x = np.random.default_rng(1).normal(0, 1, (2, 3, 40, 32)).astype(np.float32)
    net = ResNet(depth=depth, width=width)
    variables = loaded(net, tensors, tmp_path / "resnet.safetensors")
    expected = run_resnet(tensors, x, depth)
    assert expected.std() > 0.1
    np.testing.assert_allclose(features(net, variables, x), expected, rtol=1e-3, atol=1e-3 * expected.std())


def test_one_grey_channel_is_a_grey_picture(tmp_path):
    tensors = draw_resnet(18, 4)
    grey = np.random.default_rng(1).normal(0, 1, (1, 1, 32, 32)).astype(np.float32)
    net = ResNet(depth=18, width=4)
    variables = loaded(net, tensors, tmp_path / "resnet.safetensors", channels=1)
    expected = run_resnet(tensors, np.repeat(grey, 3, 1), 18)
    np.testing.assert_allclose(features(net, variables, grey), expected, rtol=1e-3, atol=1e-3 * expected.std())


def test_first_layers_are_adapted():
    kernel = np.random.default_rng(0).normal(size=(7, 7, 3, 2)).astype(np.float32)
    assert adapt_input(kernel, 3) is kernel
    with_mask = adapt_input(kernel, 4)
    np.testing.assert_array_equal(with_mask[:, :, :3], kernel)
    assert not with_mask[:, :, 3].any()
    slices = adapt_input(kernel, 256, slices=True)
    assert slices.shape == (7, 7, 256, 2)
    np.testing.assert_allclose(slices.sum(2), kernel.sum(2), rtol=1e-4, atol=1e-5)


def draw_efficientnet():
    """Tensors under torchvision's names, and the same under timm's."""
    draw, timm = Draw(), {}

    def conv(name, other, *sizes, bias=False):
        draw.conv(name, *sizes, bias=bias)
        timm.update({f"{other}.{leaf}": f"{name}.{leaf}" for leaf in (("weight", "bias") if bias else ("weight",))})

    def norm(name, other, channels):
        draw.norm(name, channels)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            timm[f"{other}.{leaf}"] = f"{name}.{leaf}"

    conv("features.0.0", "conv_stem", STEM, 3, 3)
    norm("features.0.1", "bn1", STEM)
    channels = STEM
    for n, stage in enumerate(B2, 1):
        for j in range(stage.blocks):
            ours, theirs, k = f"features.{n}.{j}.block", f"blocks.{n - 1}.{j}", 0
            inner = channels * stage.expand
            if stage.expand > 1:
                conv(f"{ours}.0.0", f"{theirs}.conv_pw", inner, channels, 1)
                norm(f"{ours}.0.1", f"{theirs}.bn1", inner)
                k = 1
            conv(f"{ours}.{k}.0", f"{theirs}.conv_dw", inner, 1, stage.size)
            norm(f"{ours}.{k}.1", f"{theirs}.bn{k + 1}", inner)
            squeezed = max(channels // 4, 1)
            conv(f"{ours}.{k + 1}.fc1", f"{theirs}.se.conv_reduce", squeezed, inner, 1, bias=True)
            conv(f"{ours}.{k + 1}.fc2", f"{theirs}.se.conv_expand", inner, squeezed, 1, bias=True)
            conv(f"{ours}.{k + 2}.0", f"{theirs}.{'conv_pwl' if k else 'conv_pw'}", stage.features, inner, 1)
            norm(f"{ours}.{k + 2}.1", f"{theirs}.bn{k + 2}", stage.features)
            channels = stage.features
    conv("features.8.0", "conv_head", HEAD, channels, 1)
    norm("features.8.1", "bn2", HEAD)
    return draw.tensors, {name: draw.tensors[other] for name, other in timm.items()}


def run_efficientnet(tensors, x):
    def layer(x, name, stride=1, groups=1):
        weight = tensors[f"{name}.0.weight"]
        return normed(convolve(x, weight, stride, weight.shape[2] // 2, groups), tensors, f"{name}.1")

    x = silu(layer(x, "features.0", 2))
    for n, stage in enumerate(B2, 1):
        for j in range(stage.blocks):
            name, y, k = f"features.{n}.{j}.block", x, int(stage.expand > 1)
            if k:
                y = silu(layer(y, f"{name}.0"))
            y = silu(layer(y, f"{name}.{k}", stage.stride if j == 0 else 1, groups=y.shape[1]))
            gate = y.mean((2, 3), keepdims=True)
            for one, act in (("fc1", silu), ("fc2", sigmoid)):
                place = f"{name}.{k + 1}.{one}"
                gate = act(convolve(gate, tensors[f"{place}.weight"], bias=tensors[f"{place}.bias"]))
            y = layer(y * gate, f"{name}.{k + 2}")
            x = x + y if x.shape == y.shape else y
    return silu(layer(x, "features.8"))


@pytest.mark.parametrize("names", ["torchvision", "timm"])
def test_efficientnet_equals_a_forward_pass_in_numpy(names, tmp_path):
    tensors, renamed = draw_efficientnet()
    x = np.random.default_rng(1).normal(0, 1, (1, 3, 64, 64)).astype(np.float32)
    net = EfficientNet()
    given = renamed if names == "timm" else tensors
    variables = loaded(net, given, tmp_path / "b2.safetensors")
    run = jax.jit(lambda variables, x: net.apply(variables, x, train=False)[-1])
    found = np.asarray(run(variables, x.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)
    expected = run_efficientnet(tensors, x)
    assert expected.std() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3 * expected.std())


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_resnets_equal_torchvisions(depth, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    models = pytest.importorskip("torchvision", reason="torchvision is not installed").models
    theirs = getattr(models, f"resnet{depth}")(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    net = ResNet(depth=depth)
    shapes = shapes_of(net)
    params, stats = load_backbone(tmp_path / "net.pth", shapes["params"], shapes["batch_stats"], "net")
    params["linear"] = {"kernel": np.zeros((net.channels[-1], 1000)), "bias": np.zeros(1000)}
    x = np.random.default_rng(1).normal(0, 1, (1, 3, 64, 64)).astype(np.float32)
    with torch.no_grad():
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(torch.tensor(x)))))
        expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(y)))).numpy()
    found = features(net, {"params": params, "batch_stats": stats}, x)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * expected.std())


def test_what_does_not_fit_is_listed(tmp_path):
    tensors = draw_resnet(18, 4)
    path = tmp_path / "net.safetensors"
    write_weights(path, {name: value for name, value in tensors.items() if "layer4.1" not in name})
    shapes = shapes_of(ResNet(depth=18, width=4))
    with pytest.raises(InputError, match=r"lacks 10 tensors \(layer4\.1\.conv1\.weight"):
        load_backbone(path, shapes["params"], shapes["batch_stats"], "net")
    write_weights(path, tensors)
    small = shapes_of(ResNet(depth=18, width=4, stem_kind="small"))
    with pytest.raises(InputError, match=r"conv1\.weight \[4, 3, 7, 7\] for first/conv/kernel \[3, 3, 3, 4\]"):
        load_backbone(path, small["params"], small["batch_stats"], "net")
    group = shapes_of(ResNet(depth=18, width=4, norm="group"))
    with pytest.raises(InputError, match="has no batch norm"):
        load_backbone(path, group["params"], None, "net")
    two = {"encoder": shapes["params"], "branch": shapes["params"]}
    with pytest.raises(InputError, match="are net/encoder, net/branch"):
        load_backbone(path, two, {}, "net")
    with pytest.raises(InputError, match="into are none"):
        load_backbone(path, {"dense": {"kernel": np.zeros(3)}}, {}, "net")
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read as weights"):
        load_backbone(path, shapes["params"], shapes["batch_stats"], "net")
    assert find_backbones(two) == {"encoder": "resnet", "branch": "resnet"}
