"""The Take-and-Give network: sizes, memory, parameters, and what its parts do without each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_run import drawn_like

from ophjax import trees
from ophjax.losses.segmentation import binary_cross_entropy
from ophjax.nets.takegive import GIVE_HEADS, TAKE_HEADS, TakeAndGiveNet


def abstract(net, size, batch=4):
    """The shapes of logits, coarse map and variables, in one trace; and of the image."""
    image = jax.ShapeDtypeStruct((batch, *size, 3), jnp.float32)
    return *jax.eval_shape(functools.partial(net.init_with_output, train=False), jax.random.key(0), image), image


def stage_count(channels, context, heads, positions):
    """Parameters of an attention stage by hand: two streams (depthwise 3x3 with bias, linear without), their LayerNorm,
    a table of positions for each, attention (norms of query, key without bias, and value; three linears without bias,
    one with), feed-forward of ratio 3."""
    c = channels
    streams = 10 * c + c * c + 10 * context + context * c + 2 * c
    attention = (2 + 1 + 2) * c + 3 * c * c + c * c + c
    feed_forward = 2 * c + (3 * c * c + 3 * c) + (3 * c * c + c)
    return streams + 2 * positions * c // heads + attention + feed_forward


def test_paper_scale():
    """Check 9: output (B, 256, 256, 2), and the parameters of every Take and Give by closed form."""
    net = TakeAndGiveNet(2)
    (logits, coarse), variables, _ = abstract(net, (256, 256))
    assert logits.shape == (4, 256, 256, 2) and coarse.shape == (4, 256, 256, 1)
    params = variables["params"]
    for i, (heads, channels) in enumerate(zip(TAKE_HEADS, (64, 64, 128, 256), strict=True)):
        positions = min(256 // 2 ** (i + 1), 32) ** 2
        assert trees.count(params[f"take{i + 1}"]) == stage_count(channels, channels, heads, positions)
    for i, heads in enumerate(GIVE_HEADS):
        assert trees.count(params[f"give{i + 1}"]) == stage_count(256, 256, heads, min(16 * 2**i, 32) ** 2)
        assert trees.count(params[f"give{i + 1}_query"]) == ((256, 128, 64, 64)[i] + 1) * 256
    # ResNet-34 with its head's 512 x 1000 + 1000 left out, and the branch: a fourth input, no stage 4.
    assert trees.count(params["encoder"]) == 21_797_672 - 513_000
    stage4 = trees.count(params["encoder"]["stage4"])
    assert trees.count(params["branch"]) == trees.count(params["encoder"]) - stage4 + 7 * 7 * 64


def largest(jaxpr):
    """Bytes of the largest array that a program makes, sub-programs included."""
    most = 0
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            if hasattr(variable.aval, "dtype") and not jax.dtypes.issubdtype(variable.aval.dtype, jax.dtypes.extended):
                most = max(most, variable.aval.size * variable.aval.dtype.itemsize)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                most = max(most, largest(inner))
    return most


def test_no_array_of_a_gigabyte():
    """Pitfall 9: at batch 4 of 256 x 256 nothing in the pass, forward or backward, is near a gigabyte; all tokens of
    stride 2 would take four."""
    net = TakeAndGiveNet(2, depth=10)
    _, variables, image = abstract(net, (256, 256))

    def loss(params, stats, image):
        logits, coarse = net.apply({"params": params, "batch_stats": stats}, image, train=False)
        return jnp.square(logits).mean() + jnp.square(coarse).mean()

    program = jax.make_jaxpr(jax.grad(loss))(variables["params"], variables["batch_stats"], image)
    whole = jax.make_jaxpr(functools.partial(TakeAndGiveNet(2, tokens=128, depth=10).init, train=False))
    assert largest(program.jaxpr) < 2**29 and largest(whole(jax.random.key(0), image).jaxpr) >= 2**32


@pytest.fixture(scope="module")
def learner():
    """A small net with the gradient of its losses, compiled once: loss, gradients and logits of given parameters, on
    the host."""
    net = TakeAndGiveNet(2, depth=10, width=8, decoder=4, tokens=4, drop_path=0.0)
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.random((2, 32, 32, 3)), jnp.float32)
    mask = jnp.asarray(rng.integers(0, 2, (2, 32, 32, 2)), jnp.float32)
    variables = drawn_like(jax.eval_shape(functools.partial(net.init, train=False), jax.random.key(0), image))

    @jax.jit
    def run(params, image):
        def loss(params):
            (logits, coarse), _ = net.apply(
                {"params": params, "batch_stats": variables["batch_stats"]}, image, train=True, mutable=["batch_stats"]
            )
            both = binary_cross_entropy(logits, mask).mean() + binary_cross_entropy(coarse, mask[..., :1]).mean()
            return both, logits

        (value, logits), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return value, grads, logits

    return lambda params: jax.device_get(run(params, image)), jax.device_get(variables["params"])


def test_every_take_and_give_learns(learner):
    """Check 5: the gradient of the segmentation reaches every parameter of Take, Give and the diagnosis branch."""
    run, params = learner
    _, grads, _ = run(params)
    silent = [path for path, leaf in trees.named_leaves(grads).items() if not leaf.any()]
    assert not silent, silent


def test_with_nothing_to_give_the_decoder_works(learner):
    """Check 9: with g = 0 the decoder still reads its image through the attention to its own maps, and it learns."""
    run, params = learner
    empty = dict(params)
    for i in range(4):
        empty[f"give{i + 1}_query"] = jax.tree.map(np.zeros_like, params[f"give{i + 1}_query"])
    value, grads, logits = run(empty)
    assert np.isfinite(value) and np.abs(logits[0] - logits[1]).max() > 1e-4
    parts = ("encoder", "decoder", "head")
    moving = {path for path, leaf in trees.named_leaves(grads).items() if path.startswith(parts) and leaf.any()}
    assert {path for path in trees.named_leaves(params) if path.startswith(parts)} == moving
    # What is given stays nothing, and the step is so small that the loss falls by what the gradient says.
    stepped = empty | {
        name: jax.tree.map(lambda p, g: p - 1e-6 * g, empty[name], grads[name])
        for name in empty
        if name.startswith(parts)
    }
    slope = sum(float(np.square(leaf).sum()) for path, leaf in trees.named_leaves(grads).items() if path in moving)
    np.testing.assert_allclose(value - run(stepped)[0], 1e-6 * slope, rtol=0.2)


@pytest.fixture(scope="module")
def whole():
    """The variables of the net of which an ablation lacks something."""
    return abstract(TakeAndGiveNet(3, depth=10, width=8, decoder=4), (45, 51), batch=2)[1]


@pytest.mark.parametrize(
    ("changes", "gone"),
    [({"take": False}, ("take", "branch")), ({"give": False}, ("give",))],
)
def test_ablations(changes, gone, whole):
    """Without Take there is no diagnosis branch, without Give no attention in the decoder; odd sizes keep theirs."""
    net = TakeAndGiveNet(3, depth=10, width=8, decoder=4, **changes)
    (logits, coarse), variables, _ = abstract(net, (45, 51), batch=2)
    assert logits.shape == (2, 45, 51, 3) and coarse.shape == (2, 45, 51, 1)
    left = {name for name in whole["params"] if not name.startswith(gone)}
    assert set(variables["params"]) == left != set(whole["params"])
