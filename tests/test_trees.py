import jax
import jax.numpy as jnp
import numpy as np

from ophjax import trees
from ophjax.types import TrainState

TREE = {"net": {"kernel": np.zeros((3, 4), np.float32), "layers": [np.zeros(5, np.int8), np.zeros((), np.float16)]}}


def test_paths():
    assert list(trees.named_leaves(TREE)) == ["net/kernel", "net/layers/0", "net/layers/1"]
    state = TrainState(step=jnp.zeros((), jnp.int32), params=TREE, opt={}, extra={})
    assert list(trees.named_leaves(state)) == ["step", *(f"params/{name}" for name in trees.named_leaves(TREE))]
    assert trees.named_leaves({}) == {}


def test_map_named():
    found = trees.map_named(lambda name, leaf, other: (name, leaf.shape == other.shape), TREE, TREE)
    assert found["net"]["layers"] == [("net/layers/0", True), ("net/layers/1", True)]
    assert jax.tree.structure(trees.map_named(lambda name, leaf: leaf, TREE)) == jax.tree.structure(TREE)


def test_counts():
    """12 + 5 + 1 numbers; 12 of four bytes, 5 of one, 1 of two. Shapes count as arrays do."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), TREE)
    for tree in (TREE, shapes):
        assert (trees.count(tree), trees.nbytes(tree)) == (18, 55)
    assert (trees.count({}), trees.nbytes({})) == (0, 0)
    key = jax.eval_shape(lambda: jax.random.key(0))
    assert trees.nbytes({"key": key}) == 8, "two words of 32 bits"
