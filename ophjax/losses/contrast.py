"""Losses that order a feature space by class: instances against centroids, against each other, towards centres.

All take labels, of which -1 (not known) belongs to no class, and return one value for each example: 0 where the
loss is not defined (a class without a centroid, an example alone in its class). Reduce with ``weighted_mean``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from ophjax.errors import InputError

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Bool, Float, Int

# In place of minus infinity, whose differences are NaN.
_NEVER = -1e30


def contrast_centroids(
    features: Float[Array, "b d"],
    labels: Int[Array, " b"],
    centroids: Float[Array, "k d"],
    *,
    seen: Bool[Array, " k"],
    temperature: float = 0.1,
    instance_negatives: bool = False,
) -> Float[Array, " b"]:
    """Computes -log softmax over the seen classes c of (z . mu_c / temperature), at the example's own class.

    With ``instance_negatives`` the examples of other classes in the batch stand beside the centroids in the sum.
    It is the cross-entropy of a bias-free cosine classifier whose weights are the centroids (FCCL spec, section (d)).

    Args:
      features: z, unit vectors.
      labels: class of each example.
      centroids: mu, unit vectors.
      seen: which classes have a centroid; the others take no part.
      temperature: above 0.

    Returns:
      float32 [b], 0 for examples whose class has no centroid.

    >>> import jax.numpy as jnp
    >>> axes = jnp.eye(3)
    >>> loss = contrast_centroids(axes, jnp.arange(3), axes, seen=jnp.array([True, True, False]), temperature=1.0)
    >>> [round(float(x), 4) for x in loss]  # log(1 + 1/e): one other class is seen, at right angles
    [0.3133, 0.3133, 0.0]
    """
    _check("contrast_centroids", features, labels, temperature)
    if centroids.ndim != 2 or centroids.shape[1] != features.shape[1] or seen.shape != centroids.shape[:1]:
        raise InputError(
            f"contrast_centroids: features have shape {features.shape}, centroids {centroids.shape}, seen {seen.shape}"
            "; expected [b, d], [k, d] and [k]. Give the centroids of the same feature space."
        )
    logits = cosines(features, centroids) / temperature
    counted = has_centroid(labels, seen)
    own = jnp.take_along_axis(logits, jnp.where(counted, labels, 0)[:, None], 1)[:, 0]
    others = jnp.where(seen[None, :], logits, _NEVER)
    if instance_negatives:
        strangers = (labels[:, None] != labels[None, :]) & (labels >= 0)[None, :]
        others = jnp.concatenate([others, jnp.where(strangers, cosines(features, features) / temperature, _NEVER)], 1)
    return jnp.where(counted, jax.nn.logsumexp(others, axis=1) - own, 0.0)


def cosines(one: Float[Array, "b d"], other: Float[Array, "k d"]) -> Float[Array, "b k"]:
    """Computes z . w for all pairs of unit vectors, in float32."""
    # In full precision: at a temperature of 0.1, bfloat16's rounding of a cosine would show in the third digit.
    one, other = one.astype(jnp.float32), other.astype(jnp.float32)
    return jnp.einsum("bd,kd->bk", one, other, precision=jax.lax.Precision.HIGHEST)


def has_centroid(labels: Int[Array, " b"], seen: Bool[Array, " k"]) -> Bool[Array, " b"]:
    """Says which examples belong to a class that was seen."""
    return (labels >= 0) & seen[jnp.maximum(labels, 0)]


def supervised_contrast(
    features: Float[Array, "b d"], labels: Int[Array, " b"], *, temperature: float = 0.1
) -> Float[Array, " b"]:
    """Computes the supervised contrastive loss of Khosla et al. (2020), the sum outside the logarithm (L_out).

    For each example, the mean over the others p of its class of -log (exp(z . z_p / temperature) / sum over all
    others a of exp(z . z_a / temperature)); not multiplied by the temperature, as the authors' code does.

    Args:
      features: z, unit vectors; two views of an image are two rows.
      labels: class of each example; those not known count as others only.
      temperature: above 0.

    Returns:
      float32 [b], 0 for examples that are alone in their class.
    """
    _check("supervised_contrast", features, labels, temperature)
    logits = cosines(features, features) / temperature
    itself = jnp.eye(len(labels), dtype=bool)
    positive = (labels[:, None] == labels[None, :]) & (labels >= 0)[:, None] & ~itself
    log_probs = logits - jax.nn.logsumexp(jnp.where(itself, _NEVER, logits), axis=1, keepdims=True)
    return -jnp.where(positive, log_probs, 0.0).sum(1) / jnp.maximum(positive.sum(1), 1)


def center_loss(
    features: Float[Array, "b d"], labels: Int[Array, " b"], centers: Float[Array, "k d"], *, seen: Bool[Array, " k"]
) -> Float[Array, " b"]:
    """Computes the squared distance of each example to the centre of its class (Wen et al. 2016, without the half).

    Args:
      features: as they come from the network, not scaled to length 1.
      labels: class of each example.
      centers: mean feature of each class.
      seen: which classes have a centre.

    Returns:
      float32 [b], 0 for examples whose class has no centre.
    """
    _check("center_loss", features, labels)
    away = features.astype(jnp.float32) - centers[jnp.maximum(labels, 0)]
    return jnp.where(has_centroid(labels, seen), jnp.square(away).sum(1), 0.0)


def weighted_mean(values: Float[Array, " b"], weights: Float[Array, " b"]) -> Float[Array, ""]:
    """Averages with weights of at least 0; 0 where all of them are 0."""
    weights = weights.astype(jnp.float32)
    total = weights.sum()
    return (values * weights).sum() / jnp.where(total > 0, total, 1.0)


def class_shares(labels: Int[Array, " b"], classes: int) -> Float[Array, " b"]:
    """Weights by which every class in a batch counts the same: one over the number of examples of the own class."""
    member = jax.nn.one_hot(labels, classes, dtype=jnp.float32)
    return (member / jnp.maximum(member.sum(0), 1.0)[None, :]).sum(1)


def _check(name: str, features: Array, labels: Array, temperature: float = 1.0) -> None:
    integers = jnp.issubdtype(labels.dtype, jnp.integer)
    if features.ndim != 2 or labels.shape != features.shape[:1] or not integers:
        raise InputError(
            f"{name}: features have shape {features.shape} and labels {labels.dtype}{list(labels.shape)}; expected "
            "[b, d] and integer class indices [b]. Pool feature maps over their positions first."
        )
    if not temperature > 0:
        raise InputError(f"{name}: the temperature is {temperature}; expected a number above 0, for example 0.1.")
