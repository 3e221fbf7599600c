"""The multi-scale module: check 4 of M2DAN's spec, section (k), and its sizes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_run import drawn_like

from ophjax import trees
from ophjax.errors import InputError
from ophjax.nets.multiscale import Critics, MultiScale, MultiScaleNet


def test_reach_of_the_branches():
    """A branch sees one pixel over exactly its kernel's square (batch norm on stored statistics does not spread)."""
    base = jax.random.uniform(jax.random.key(1), (1, 15, 15, 2))
    for size in (3, 5, 7):
        module = MultiScale(kernels=(size,), width=16, features=4)
        variables = drawn_like(jax.eval_shape(partial(module.init, train=False), jax.random.key(size), [base]))
        branch = jax.jit(lambda x, at=(module, variables): at[0].apply(at[1], [x], train=False)[1][0])
        moved = branch(base.at[0, 7, 7, 0].add(0.5)) - branch(base)
        rows, columns = np.nonzero(np.abs(np.asarray(moved)).sum((0, 3)))
        reach = size // 2
        assert {rows.min(), columns.min()} == {7 - reach} and {rows.max(), columns.max()} == {7 + reach}


@pytest.mark.parametrize("fusion", ["concat", "sum", "attention"])
def test_every_branch_matters(fusion):
    """Without one branch the fused map is another."""
    module = MultiScale(kernels=(1, 3, 5), width=4, features=6, fusion=fusion, squeeze=True)
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    variables = drawn_like(jax.eval_shape(lambda key: module.init(key, [x] * 3, train=False), jax.random.key(1)))
    run = jax.jit(lambda variables: module.apply(variables, [x] * 3, train=False))
    whole, branches = run(variables)
    assert whole.shape == (2, 6, 6, 6) and [one.shape for one in branches] == [(2, 6, 6, 4)] * 3
    for number in (1, 2, 3):
        params = variables["params"] | {f"branch{number}": {"kernel": jnp.zeros_like(
            variables["params"][f"branch{number}"]["kernel"])}}  # fmt: skip
        without, _ = run(variables | {"params": params})
        assert float(jnp.abs(whole - without).max()) > 1e-4


def test_parameters_at_the_papers_scale():
    """Golden, by hand: 1x1 from 512 to 256 and k x k from 256 to 256 for k = 3, 5, 7, two norms each; 1x1 from 768 to
    256 and a norm. The trunk is torchvision's ResNet-18 without its head (11,689,512 - 513,000)."""
    image = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: MultiScaleNet().init(jax.random.key(0), x, train=False), image)
    branches = 3 * 512 * 256 + (9 + 25 + 49) * 256**2 + 3 * 2 * 2 * 256
    assert trees.count(shapes["params"]["scales"]) == branches + 768 * 256 + 2 * 256
    assert trees.count(shapes["params"]["trunk"]) == 11_176_512
    assert set(shapes["params"]) == {"trunk", "scales"}, "the LayerNorm has no parameters"


@pytest.mark.parametrize("options", [{}, {"pyramid": True}, {"levels": 2, "stem_kind": "small"}])
def test_shapes_and_norm(options):
    """Vectors have mean 0 and variance 1 over their length (within the norm's epsilon), whatever the settings."""
    net = MultiScaleNet(depth=10, width=4, kernels=(1, 3), branch_width=8, features=16, norm="group", **options)
    image = jax.random.uniform(jax.random.key(0), (2, 64, 64, 3))
    variables = drawn_like(jax.eval_shape(lambda key: net.init(key, image, train=False), jax.random.key(1)))
    features, branches = jax.jit(lambda v: net.apply(v, image, train=False))(variables)
    assert features.shape == (2, 16) and branches.shape == (2, 2, 8) and features.dtype == jnp.float32
    np.testing.assert_allclose(features.mean(-1), 0, atol=1e-5)
    assert (np.abs(np.asarray(features.var(-1)) - 1) < 0.05).all()
    raw = jax.jit(lambda v: net.clone(normalised=False).apply(v, image, train=False)[0])(variables)
    assert float(jnp.abs(raw - features).max()) > 1e-3


@pytest.mark.parametrize(("align", "heads"), [("fused", 1), ("branches", 3), ("both", 4)])
def test_critics(align, heads):
    """One for each vector, none the same as another."""
    critics = Critics(outputs=3, align=align, width=8)
    features, branches = jnp.ones((2, 6)), jnp.ones((3, 2, 4))
    logits = critics.apply(critics.init(jax.random.key(0), features, branches), features, branches)
    assert logits.shape == (heads, 2, 3)
    assert len({float(one) for one in logits[:, 0, 0]}) == heads


def test_unknown_fusion():
    with pytest.raises(InputError, match="concat, sum, attention"):
        MultiScale(fusion="product").init(jax.random.key(0), [jnp.ones((1, 4, 4, 2))] * 3, train=False)
