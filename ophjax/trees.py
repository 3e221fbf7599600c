"""Path tools for parameter trees."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def path_name(path: tuple[Any, ...]) -> str:
    """Joins a key path as given by JAX into ``"params/segmenter/stem/kernel"``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def map_named(function: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Maps ``function(name, leaf, *other_leaves)`` over a tree, the name being the leaf's path."""
    return jax.tree_util.tree_map_with_path(lambda p, *leaves: function(path_name(p), *leaves), tree, *rest)


def named_leaves(tree: Tree) -> dict[str, Any]:
    """Lists a tree as ``{path: leaf}`` in tree order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def take_fitting(tree: Tree, other: Tree) -> Tree:
    """Replaces the leaves of nested dictionaries by those of another at the same path, where it has one of the same
    shape. What is taken is copied: a step that gives its state's memory away may hold both."""
    if isinstance(tree, Mapping):
        return {name: take_fitting(leaf, other[name]) if name in other else leaf for name, leaf in tree.items()}
    return jnp.copy(other) if tree.shape == other.shape else tree


def count(tree: Tree) -> int:
    """Counts the numbers in a tree (arrays or ``ShapeDtypeStruct``)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def nbytes(tree: Tree) -> int:
    """Counts the bytes of a tree (arrays or ``ShapeDtypeStruct``; keys count as their data)."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
