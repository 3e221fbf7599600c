"""Negative controls: nobody keeps his own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ophjax.transforms.controls import others


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("among", [[1, 1, 1, 1, 1], [0, 1, 0, 1, 1], [1, 0, 0, 0, 1], [0, 0, 1, 1, 0]])
def test_each_gets_anothers(among, seed):
    among = np.array(among, bool)
    order = np.asarray(jax.jit(others)(jax.random.key(seed), jnp.asarray(among)))
    np.testing.assert_array_equal(np.sort(order), np.arange(5))
    assert (order[among] != np.flatnonzero(among)).all() and among[order[among]].all()
    np.testing.assert_array_equal(order[~among], np.flatnonzero(~among))


@pytest.mark.parametrize("among", [[0, 0, 0], [0, 1, 0]])
def test_where_there_is_no_other_all_stay(among):
    order = others(jax.random.key(0), jnp.array(among, bool))
    np.testing.assert_array_equal(order, np.arange(3))


def test_every_other_row_is_met():
    found = {int(others(jax.random.key(seed), jnp.ones(4, bool))[0]) for seed in range(40)}
    assert found == {1, 2, 3}
