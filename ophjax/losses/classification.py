"""Losses of classification, one value for each example."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import optax

from ophjax.errors import InputError

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Float, Int, Num


def sigmoid_cross_entropy(
    logits: Float[Array, " b"], labels: Num[Array, " b"], *, positive_weight: float = 1.0
) -> Float[Array, " b"]:
    """Computes -(w y log s(x) + (1 - y) log(1 - s(x))), s the sigmoid, in nats.

    This is ``BCEWithLogitsLoss(pos_weight=w, reduction="none")`` of PyTorch, for soft labels too.

    Args:
      logits: x, one for each example; any float dtype, computed in float32.
      labels: y, 0 or 1 of any dtype, or a probability of class 1.
      positive_weight: w, the weight of class 1; above 1 it raises the cost of missing class 1.

    Returns:
      float32 [b].

    Raises:
      InputError: the shapes differ or are not [b].
    """
    if logits.ndim != 1 or logits.shape != labels.shape:
        raise InputError(
            f"Logits have shape {logits.shape} and labels {labels.shape}; both must be [b]. For a network"
            " with one output unit give logits[:, 0]; for several classes use softmax_cross_entropy."
        )
    logits, labels = logits.astype(jnp.float32), labels.astype(jnp.float32)
    return -(positive_weight * labels * jax.nn.log_sigmoid(logits) + (1.0 - labels) * jax.nn.log_sigmoid(-logits))


def softmax_cross_entropy(logits: Float[Array, "b k"], labels: Int[Array, " b"]) -> Float[Array, " b"]:
    """Computes -log softmax(x)[y], in nats.

    Args:
      logits: x, one for each class; any float dtype, computed in float32.
      labels: y, class indices from 0 to k - 1.

    Returns:
      float32 [b].

    Raises:
      InputError: the shapes are not [b, k] and [b], or the labels are not integers.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise InputError(
            f"Logits have shape {logits.shape} and labels {labels.dtype}{list(labels.shape)}; expected [b, k]"
            " and integer class indices [b]. Turn one-hot labels into indices with labels.argmax(-1)."
        )
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def squashed_twice(logits: Float[Array, "b k"], labels: Int[Array, " b"]) -> Float[Array, " b"]:
    """Computes the loss of a published baseline: the sigmoid cross-entropy of the *softmax*, against one-hot labels.

    The softmax, already from 0 to 1, goes through a sigmoid again, so that with two classes the loss lies between
    0.5032 (right) and 1.0032 (wrong) and hardly trains. For comparison only (GOALS spec, section (d)).

    Args:
      logits: before the softmax.
      labels: class indices.

    Returns:
      float32 [b], the mean over the classes.
    """
    probs = jax.nn.softmax(logits.astype(jnp.float32))
    return optax.sigmoid_binary_cross_entropy(probs, jax.nn.one_hot(labels, logits.shape[-1])).mean(-1)
