"""ConM's and DivM's own parts: the embedding of the map, shapes at any size, and what each condition reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ophjax.errors import InputError
from ophjax.nets.consensus import ConM, DivM, ExpertiseEmbed

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("stride", [2, 8])
def test_the_embedding_is_a_1x1_and_a_grouped_3x3(stride):
    """As the released code has it: zeros are put around what the first convolution gives, its bias included."""
    x = RNG.standard_normal((2, 16, 16, 5)).astype(np.float32)
    module = ExpertiseEmbed(8, stride)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    weights = jax.tree.map(lambda leaf: RNG.standard_normal(leaf.shape).astype(np.float32), shapes)
    own = weights["params"]
    first = np.einsum("bhwe,ef->bhwf", x, own["embed"]) + own["shift"].reshape(1, 1, 1, -1)
    grouped = lax.conv_general_dilated(
        first, own["place"], (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=4,
    )  # fmt: skip
    expected = np.asarray(grouped) + own["bias"].reshape(1, 1, 1, -1)
    np.testing.assert_allclose(module.apply(weights, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("condition", ["attention", "concat", "vector"])
def test_conm_gives_logits_at_any_size(condition, stem):
    conm = ConM(2, 10, 4, 4, stem, "group", (1, 1, 1, 1), condition, tokens=8)
    image, told = jax.ShapeDtypeStruct((1, 40, 56, 3), jnp.float32), jax.ShapeDtypeStruct((1, 40, 56, 6), jnp.float32)
    logits, middle = jax.eval_shape(
        lambda x, e: conm.init_with_output(jax.random.key(0), x, e, train=False)[0], image, told
    )
    assert logits.shape == (1, 40, 56, 2) and logits.dtype == jnp.float32
    assert middle.shape[-1] == 8


def test_conm_refuses_an_unknown_condition():
    with pytest.raises(InputError, match=r"Unknown condition 'atention'.*Did you mean 'attention'"):
        ConM(1, condition="atention").init(
            jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 32, 32, 2)), train=False
        )


@pytest.mark.parametrize("separate", [True, False])
def test_divm_gives_a_map_of_each_rater_and_region(separate):
    divm = DivM(3, 2, width=4, heads=2, depth=2, separate=separate)
    image, logits = jax.ShapeDtypeStruct((2, 24, 32, 3), jnp.float32), jax.ShapeDtypeStruct((2, 24, 32, 2), jnp.float32)
    masks, trust = jax.eval_shape(
        lambda x, z: divm.init_with_output(jax.random.key(0), x, z, train=False)[0], image, logits
    )
    assert masks.shape == trust.shape == (2, 3, 24, 32, 2)
    with pytest.raises(InputError, match="smaller than DivM's stride of 4"):
        divm.init(jax.random.key(0), jnp.zeros((1, 2, 8, 3)), jnp.zeros((1, 2, 8, 2)), train=False)
