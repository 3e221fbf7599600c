"""Counting arithmetic: numbers worked out by hand."""

import jax
import jax.numpy as jnp
import pytest

from ophjax.train.flops import count_flops


def counted(function, *shapes, **options):
    return count_flops(jax.make_jaxpr(function)(*(jnp.zeros(shape) for shape in shapes)), **options)


def test_products_and_convolutions():
    assert counted(lambda a, b: a @ b, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    # Batched: 4 products of 3 x 5 by 5 x 7.
    assert counted(lambda a, b: jnp.einsum("nij,njk->nik", a, b), (4, 3, 5), (4, 5, 7)) == 4 * 2 * 3 * 5 * 7

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    # 1 x 4 x 4 x 6 outputs, each from 3 x 3 x 2 inputs.
    assert counted(convolve, (1, 8, 8, 2), (3, 3, 2, 6)) == 2 * (4 * 4 * 6) * (3 * 3 * 2)


def test_a_scan_counts_every_round():
    def four_times(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=4)[0]

    assert counted(four_times, (3, 3), (3, 3)) == 4 * 2 * 27
    assert counted(four_times, (3, 3), (3, 3), loops=False) == 2 * 27


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, jax.named_call])
def test_inside_of_other_transformations(wrap):
    assert counted(wrap(lambda a, b: a @ b), (3, 5), (5, 7)) == 210
    branches = jax.make_jaxpr(lambda p, a: jax.lax.cond(p, lambda a: a @ a, lambda a: a, a))(True, jnp.zeros((3, 3)))
    assert count_flops(branches) == 54
