"""Losses of ordered grades, of heads that should agree, and of coordinates; one value for each example."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import optax

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


def ordinal_loss(logits: Float[Array, "b j"], labels: Int[Array, " b"]) -> Float[Array, " b"]:
    """Averages the cross-entropies of the questions "at least k?", k = 1 to j (GAMMA spec, section (d) D2)."""
    steps = jnp.arange(1, logits.shape[1] + 1)
    reached = (labels[:, None] >= steps[None]).astype(jnp.float32)
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), reached).mean(-1)


def ordinal_probs(logits: Float[Array, "b j"]) -> Float[Array, "b j+1"]:
    """Turns answers of ``ordinal_loss`` into probabilities: their differences, none below 0, scaled to sum to 1."""
    q = jax.nn.sigmoid(logits.astype(jnp.float32))
    ones = jnp.ones_like(q[:, :1])
    probs = jnp.maximum(jnp.concatenate([ones, q], 1) - jnp.concatenate([q, 0 * ones], 1), 0)
    return probs / probs.sum(1, keepdims=True)


def ordinal_grade(logits: Float[Array, "b j"]) -> Int[Array, " b"]:
    """Counts the questions answered with yes."""
    return (logits > 0).sum(-1)


def disagreement(
    logits: Float[Array, "b k"], other: Float[Array, "b k"], *, temperature: float = 1.0
) -> Float[Array, " b"]:
    """Computes KL(p || q) in nats, p and q the softmax of both logits over the temperature."""
    p, q = (jax.nn.log_softmax(x.astype(jnp.float32) / temperature) for x in (logits, other))
    return (jnp.exp(p) * (p - q)).sum(-1)


def point_loss(
    found: Float[Array, "b 2"], truth: Float[Array, "b 2"], *, share: float = 0.5, legacy: bool = False
) -> Float[Array, " b"]:
    """Computes share * mean((dx^2, dy^2)) + (1 - share) * sqrt(dx^2 + dy^2 + tiny).

    GAMMA spec, section (d): in the published baseline the distance was taken outside of the gradient, which ``legacy``
    reproduces; the value is the same.
    """
    squares = jnp.square(found - truth)
    distance = jnp.sqrt(squares.sum(-1) + 1e-12)
    return share * squares.mean(-1) + (1 - share) * (jax.lax.stop_gradient(distance) if legacy else distance)


def size_prior(logits: Float[Array, "b h w k"], truth: Float[Array, "b h w k"]) -> Float[Array, " b"]:
    """Computes the mean over classes of how far the share of the image that a class takes is off.

    Shares are means of softmax(10 logits), which is next to a decision (GAMMA spec, section (d) D4).
    """
    found = jax.nn.softmax(10 * logits.astype(jnp.float32)).mean((1, 2))
    return jnp.abs(found - truth.mean((1, 2))).mean(-1)


def sharpened_mean(probs: Float[Array, "v b k"], *, power: float = 0.5) -> Float[Array, "b k"]:
    """Averages the powers of the probabilities of several views or models, scaled to sum to 1.

    With a power of one half a view that is sure counts less than in a plain mean (GAMMA spec, section (f)).
    """
    mean = (probs**power).mean(0)
    return mean / mean.sum(-1, keepdims=True)
