"""Losses of domain critics, one value for each example; domain 0 is the source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import optax

from ophjax.errors import unknown
from ophjax.losses.classification import softmax_cross_entropy

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Float, Int

CRITICS = ("multiclass", "pairwise", "merged")


def critic_outputs(critic: str, domains: int) -> int:
    """How many logits a critic of this kind has: n, n - 1 or 1 for n domains."""
    if critic not in CRITICS:
        raise unknown("domain critic", critic, CRITICS)
    return {"multiclass": domains, "pairwise": domains - 1, "merged": 1}[critic]


def domain_loss(
    logits: Float[Array, "b n"], domain: Int[Array, " b"], *, critic: str, squares: bool = False
) -> Float[Array, " b"]:
    """Computes what a critic pays for each example (M2DAN spec, section (d)); ``balanced_mean`` averages it.

    ``multiclass`` (n logits for n domains): the cross-entropy. ``pairwise`` (n - 1 logits, one for source against each
    target): a source row pays the mean over the critics, a target row what its own critic asks. ``merged`` (one logit):
    source against all targets.

    Args:
      logits: float32, positive for the source in the binary kinds.
      domain: 0 for the source, 1 and up for the targets.
      critic: one of ``CRITICS``.
      squares: binary kinds only; least squares against 1 (source) and 0 (target) instead of cross-entropy.

    Returns:
      float32 [b].

    Raises:
      InputError: unknown critic.
    """
    if critic not in CRITICS:
        raise unknown("domain critic", critic, CRITICS)
    if critic == "multiclass":
        return softmax_cross_entropy(logits, domain)
    source = (domain == 0).astype(jnp.float32)[:, None]
    each = (logits - source) ** 2 if squares else optax.sigmoid_binary_cross_entropy(logits, source)
    if critic == "merged":
        return each[:, 0]
    critics = logits.shape[1]
    own = (domain[:, None] == jnp.arange(1, critics + 1)[None]).astype(jnp.float32)
    return (each * jnp.where(source > 0, 1 / critics, own)).sum(1)


def balanced_mean(values: Float[Array, " b"], domain: Int[Array, " b"], *, critic: str) -> Float[Array, ""]:
    """Averages over a batch: all rows alike for ``multiclass``, else source and targets by half each."""
    if critic == "multiclass":
        return values.mean()
    source = (domain == 0).astype(jnp.float32)
    sides = [(values * side).sum() / jnp.maximum(side.sum(), 1.0) for side in (source, 1 - source)]
    return 0.5 * (sides[0] + sides[1])
