"""Class centroids of a feature space as running state: unit vectors, sums by class, moving averages.

The state is an ordinary pytree to be carried along with the parameters and kept from the optimiser. An update is
split in two, so that statistics of a divided batch are those of the whole: ``class_sums`` adds up the features of each
class, ``update`` divides. Under ``jit`` over sharded arrays nothing else is needed; inside ``shard_map`` put
``jax.lax.psum`` between the two, and for gradient accumulation add up the sums of the micro-batches. (A mean over
devices of the devices' class means is another number wherever the classes are spread unevenly.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.struct
import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Bool, Float, Int

# Squared norms up to this count as zero.
_TINY = 1e-12


class Centroids(flax.struct.PyTreeNode):
    """Moving averages of the features of each class.

    Attributes:
      mean: float32 [k, d], zero where the class was never seen. Of unit vectors it is no longer than 1, and the
        shorter, the more the class is spread.
      count: int32 [k], updates in which the class was present.
    """

    mean: Float[Array, "k d"]
    count: Int[Array, " k"]

    @property
    def seen(self) -> Bool[Array, " k"]:
        """Which classes have a centroid."""
        return self.count > 0


class ClassSums(flax.struct.PyTreeNode):
    """What a batch says about its classes; the sums of two batches added are those of both together.

    Attributes:
      total: float32 [k, d], sum of the features of each class.
      number: float32 [k], examples of each class.
    """

    total: Float[Array, "k d"]
    number: Float[Array, " k"]

    @property
    def mean(self) -> Float[Array, "k d"]:
        """The mean of each class, zero where it has no example."""
        return self.total / jnp.maximum(self.number, 1.0)[:, None]


def normalise(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """Scales vectors to length 1, in float32; a vector of length below 1e-6 becomes zero, and so does its gradient.

    Dividing by ``max(norm, tiny)`` gives NaN as the gradient at zero, and a small number added under the root a
    huge one (FCCL spec, section (c)).

    >>> import jax, jax.numpy as jnp
    >>> [round(float(x), 6) for x in normalise(jnp.array([3.0, 4.0]))]
    [0.6, 0.8]
    >>> jax.grad(lambda x: normalise(x).sum())(jnp.zeros(2)).tolist()
    [0.0, 0.0]
    """
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(-1, keepdims=True)
    real = square > _TINY
    return jnp.where(real, x * jax.lax.rsqrt(jnp.where(real, square, 1.0)), 0.0)


def no_centroids(classes: int, width: int) -> Centroids:
    """Makes the state before the first example: ``classes`` centroids of ``width`` numbers, none seen."""
    return Centroids(mean=jnp.zeros((classes, width), jnp.float32), count=jnp.zeros((classes,), jnp.int32))


def class_sums(features: Float[Array, "b d"], labels: Int[Array, " b"], classes: int) -> ClassSums:
    """Adds up the features of each class, in float32.

    A label outside 0 to ``classes - 1`` (-1: not known) belongs to no class.
    """
    member = jax.nn.one_hot(labels, classes, dtype=jnp.float32)
    # In full precision: accelerators would round the factors of the product.
    total = jnp.einsum("bk,bd->kd", member, features.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    return ClassSums(total, member.sum(0))


def update(centroids: Centroids, sums: ClassSums, *, momentum: float) -> Centroids:
    """Moves each centroid towards the mean of its class, without a gradient (FCCL spec, section (d)).

    ``m <- momentum * m + (1 - momentum) * mean`` for the classes that are present; the first mean of a class is
    taken as it is; the centroid of an absent class stays bit for bit. After the means b_0, ..., b_T it is thus
    ``momentum^T b_0 + (1 - momentum) * sum_t momentum^(T - t) b_t``.

    >>> import jax.numpy as jnp
    >>> state = no_centroids(classes=3, width=2)
    >>> for features in (jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[0.0, 1.0], [0.0, 1.0]])):
    ...     state = update(state, class_sums(normalise(features), jnp.array([0, 0]), 3), momentum=0.9)
    >>> [round(float(x), 6) for x in state.mean[0]], state.count.tolist()
    ([0.45, 0.55], [2, 0, 0])
    """
    present = sums.number > 0
    keep = jnp.where(centroids.seen, momentum, 0.0)[:, None]
    moved = keep * centroids.mean + (1.0 - keep) * sums.mean
    mean = jnp.where(present[:, None], moved, centroids.mean)
    return Centroids(mean=jax.lax.stop_gradient(mean), count=centroids.count + present.astype(jnp.int32))


def directions(centroids: Centroids) -> Float[Array, "k d"]:
    """Reads the centroids as unit vectors without a gradient, zero where the class was never seen.

    The state itself is not scaled to length 1, so that it remains an exact moving average.
    """
    return normalise(jax.lax.stop_gradient(centroids.mean))
