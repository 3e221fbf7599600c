"""The U-shape of GAMMA and GOALS and the baselines' heads: counts, shapes, what the decoder sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_run import drawn_like

from ophjax import trees
from ophjax.nets.conv import conv2d
from ophjax.nets.pooledresnet import PooledResNet, pooled
from ophjax.nets.resnet import ResNet
from ophjax.nets.ushape import UShape


def shapes(net, size, channels=3):
    image = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
    return jax.eval_shape(
        lambda key, x: net.init(key, x, train=False), jax.eval_shape(lambda: jax.random.key(0)), image
    )


@pytest.mark.parametrize(("classes", "count"), [(3, 2_055_203), (4, 2_055_492)])
def test_parameters_of_the_u_shape(classes, count):
    found = shapes(UShape(classes), (256, 256))
    assert trees.count(found["params"]) == count
    assert trees.count(found["batch_stats"]) == 3_776


@pytest.mark.parametrize(
    ("net", "count"),
    [
        (PooledResNet(2, (1024,)), 25_608_258),
        (PooledResNet(2, (512, 256), relu=True, dropout=0.2), 24_688_962),
    ],
    ids=["GOALS, glaucoma", "GAMMA, fovea"],
)
def test_parameters_of_the_baselines(net, count):
    assert trees.count(shapes(net, (64, 64))["params"]) == count


@pytest.fixture(scope="module")
def small():
    """A narrow net, an image, variables, and by one program: logits, bottleneck, what the decoder makes of that."""
    net = UShape(4, width=4)
    image = jax.random.uniform(jax.random.key(0), (2, 32, 48, 3))
    variables = drawn_like(shapes(net, (32, 48)))
    variables |= {"params": jax.tree.map(lambda leaf: 0.4 * leaf, variables["params"])}  # about as its own start

    @jax.jit
    def parts(x):
        bottleneck = net.apply(variables, x, train=False, method="encode")
        decoded = net.apply(variables, bottleneck, train=False, method="decode")
        return net.apply(variables, x, train=False), bottleneck, decoded

    return net, image, variables, parts(image)


def test_output_has_the_size_of_the_image(small):
    net, _, variables, (whole, _, _) = small
    assert whole.shape == (2, 32, 48, 4)
    # 50 x 35 is no multiple of 16.
    odd = jax.eval_shape(lambda x: net.apply(variables, x, train=False), jnp.zeros((1, 50, 35, 3)))
    assert odd.shape == (1, 50, 35, 4)


def test_the_decoder_sees_the_bottleneck_alone(small):
    _, _, _, (whole, bottleneck, decoded) = small
    assert bottleneck.shape == (2, 2, 3, 32)
    np.testing.assert_allclose(decoded, whole, rtol=1e-5, atol=1e-6)


def test_the_decoder_doubles_as_the_original_does(small):
    """Bottleneck to logits by plain operations: each block ends with the doubling, its 1x1 comes after the last one."""
    _, _, variables, (_, bottleneck, ours) = small
    params, stats = variables["params"], variables["batch_stats"]

    def plain(x, at):
        return conv2d(x, at["kernel"]) + at["bias"].reshape(1, 1, 1, -1)

    @jax.jit
    def original(x):
        for i in range(4):
            block, held = params[f"decoder_{i}"], stats[f"decoder_{i}"]
            y = x
            for j in ("1", "2"):
                y, norm, seen = plain(jax.nn.relu(y), block[f"conv{j}"]), block[f"norm{j}"], held[f"norm{j}"]
                scale, mean = norm["scale"] / jnp.sqrt(seen["var"] + 1e-5), seen["mean"].reshape(1, 1, 1, -1)
                y = (y - mean) * scale.reshape(1, 1, 1, -1) + norm["bias"].reshape(1, 1, 1, -1)
            x = (y + plain(x, block["shortcut"])).repeat(2, axis=1).repeat(2, axis=2)
        return plain(x, params["head"])

    np.testing.assert_allclose(ours, original(bottleneck), rtol=1e-4, atol=1e-5)


def test_padding_of_the_stem_lies_below_and_right(small):
    """As TensorFlow and Paddle pad "same" at stride 2: output (0, 0) sees rows and columns 0 to 2."""
    _, image, variables, _ = small
    kernel = variables["params"]["stem"]["kernel"]
    by_hand = jnp.einsum("hwc,hwcd->d", image[0, :3, :3], kernel)
    ours = conv2d(jnp.pad(image, ((0, 0), (0, 1), (0, 1), (0, 0))), kernel, stride=2, padding=0)
    np.testing.assert_allclose(ours[0, 0, 0], by_hand, rtol=1e-5)
    theirs = jax.lax.conv_general_dilated(image, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_no_activation_between_the_hidden_layers():
    """Two linear layers without a ReLU between them are one linear layer of the pooled features."""
    net = PooledResNet(2, (8,), depth=10, width=4, stem_kind="small", norm="none")
    image = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
    params = drawn_like(shapes(net, (8, 8)))["params"]
    merged = params["hidden1"]["kernel"] @ params["head"]["kernel"]
    trunk = ResNet(depth=10, width=4, stem_kind="small", norm="none")

    @jax.jit
    def both(x):
        features = trunk.apply({"params": params["trunk"]}, x, method=lambda net, x: pooled(net, x, train=False))
        return net.apply({"params": params}, x, train=False), features @ merged

    np.testing.assert_allclose(*both(image), rtol=1e-4, atol=1e-6)
