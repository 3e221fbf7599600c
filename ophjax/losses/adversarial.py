"""Losses of adversarial domain synthesis: disagreement of two predictions, and what an image keeps of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from ophjax.errors import InputError

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Float


def symmetric_kl(
    logits: Float[Array, "b h w k"], others: Float[Array, "b h w k"], *, eps: float = 1e-6
) -> Float[Array, " b"]:
    """Computes (KL(p || q) + KL(q || p)) / 2 of each pixel, averaged over the image, in nats.

    p and q are the softmax over the last axis, smoothed: ``(p + eps) / (1 + k eps)``, so that the value stays finite
    where one of them is sure of what the other excludes (ADS spec, section (d)). PyTorch's ``KLDivLoss()`` divides by
    the number of classes too: its value times k is this one.

    Args:
      logits, others: before the softmax, of one shape; any float dtype, computed in float32.
      eps: added to each probability.

    Returns:
      float32 [b], at least 0, and 0 where the logits agree.

    Raises:
      InputError: the shapes differ or are not [b, h, w, k].

    >>> import jax.numpy as jnp
    >>> one, other = jnp.zeros((1, 1, 1, 2)), jnp.log(jnp.array([3.0, 1.0])).reshape(1, 1, 1, 2)
    >>> round(float(symmetric_kl(one, other)[0]), 4)  # (0.75 - 0.5) log(3) / 2 for each of the two classes: log(3) / 8
    0.1373
    """
    if logits.ndim != 4 or logits.shape != others.shape:
        raise InputError(
            f"symmetric_kl: the logits have the shapes {logits.shape} and {others.shape}; expected two equal shapes "
            "[b, h, w, k], the classes last. Give two predictions for the same images."
        )

    def smoothed(logits: Array) -> Array:
        return (jax.nn.softmax(logits.astype(jnp.float32)) + eps) / (1 + logits.shape[-1] * eps)

    p, q = smoothed(logits), smoothed(others)
    # KL(p || q) + KL(q || p) in one sum.
    return 0.5 * ((p - q) * (jnp.log(p) - jnp.log(q))).sum(-1).mean((1, 2))


def patch_nce(
    queries: Float[Array, "b n d"], keys: Float[Array, "b n d"], *, temperature: float = 0.07
) -> Float[Array, " b"]:
    """Computes the mean over locations s of -log softmax over locations t of (q_s . k_t / temperature), at t = s.

    Each location of one image must find its own among those of the other; only locations of the same image compete
    (PatchNCE: Park et al., 2020; ADS spec, section (d)). ``log(n)`` minus this value is a lower bound on the mutual
    information of the two images at a location, as far as the features tell it.

    Args:
      queries: unit vectors of the synthetic image at n locations.
      keys: unit vectors of the source image at the same locations; no gradient passes to them.
      temperature: above 0.

    Returns:
      float32 [b], at least 0; ``log(n)`` where all features are equal.

    Raises:
      InputError: the shapes differ or are not [b, n, d], or the temperature is not above 0.

    >>> import jax.numpy as jnp
    >>> same = jnp.ones((1, 8, 4)) / 2
    >>> round(float(patch_nce(same, same)[0]), 4)  # log(8)
    2.0794
    """
    if queries.ndim != 3 or queries.shape != keys.shape:
        raise InputError(
            f"patch_nce: queries have shape {queries.shape} and keys {keys.shape}; expected two equal shapes "
            "[b, n, d]. Give features of the same n locations of both images."
        )
    if not temperature > 0:
        raise InputError(f"patch_nce: the temperature is {temperature}; expected a number above 0, for example 0.07.")
    keys = jax.lax.stop_gradient(keys.astype(jnp.float32))
    # In full precision: divided by so small a temperature, bfloat16's rounding of a cosine would show.
    cosines = jnp.einsum("bnd,bmd->bnm", queries.astype(jnp.float32), keys, precision=jax.lax.Precision.HIGHEST)
    logits = cosines / temperature
    own = jnp.diagonal(logits, axis1=1, axis2=2)
    return (jax.nn.logsumexp(logits, axis=2) - own).mean(1)
