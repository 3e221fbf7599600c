"""One label out of several raters' masks without any network: means, votes, a drawn rater, STAPLE, half-quadratic.

Each takes ``raters`` [b, r, h, w, c] of 0 and 1 and ``present`` [b, r], 0 for a rater who did not draw the image, and
gives float32 [b, h, w, c] in [0, 1]. An example without any rater gives zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from ophjax.errors import unknown
from ophjax.keys import at

LABELS = ("mean", "vote", "random", "staple", "half-quadratic")

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Num

    from ophjax.types import Key


def mean_of_raters(raters: Num[Array, "b r h w c"], present: Num[Array, "b r"]) -> Float[Array, "b h w c"]:
    """Gives the share of the raters who mark each pixel: the soft majority vote."""
    return _weigh(raters, present / jnp.maximum(present.sum(1, keepdims=True), 1))


def majority_vote(raters: Num[Array, "b r h w c"], present: Num[Array, "b r"]) -> Float[Array, "b h w c"]:
    """Marks what more than half of the raters mark; half of them is not enough."""
    votes = _weigh(raters, present)
    return (2 * votes > present.sum(1)[:, None, None, None]).astype(jnp.float32)


def random_rater(
    key: Key, raters: Num[Array, "b r h w c"], present: Num[Array, "b r"], index: Int[Array, " b"]
) -> Float[Array, "b h w c"]:
    """Takes one of the raters that are there; the draw depends on the key and ``index``, not on the row."""
    keys = jax.vmap(lambda i: at(key, "rater", i))(index)
    scores = jax.vmap(lambda one: jax.random.uniform(one, present.shape[1:]))(keys)
    chosen = jnp.where(present > 0, scores, -1.0).argmax(1)
    return _weigh(raters, jax.nn.one_hot(chosen, present.shape[1]) * present)


def staple(raters: Num[Array, "b r h w c"], present: Num[Array, "b r"], *, rounds: int = 20) -> Float[Array, "b h w c"]:
    """Gives the posterior of STAPLE (Warfield et al., 2004), for each image and region on its own.

    Expectation maximisation from sensitivity and specificity 0.99; the prior of a pixel is the mean share of marked
    pixels. Both rates stay within [0.001, 0.999], so that unanimous raters give their mask.
    """
    masks, there = raters.astype(jnp.float32), present.astype(jnp.float32)[:, :, None]
    prior = jnp.clip(_weigh(masks, present).mean((1, 2)) / jnp.maximum(present.sum(1)[:, None], 1), 1e-6, 1 - 1e-6)
    odds = (jnp.log(prior) - jnp.log1p(-prior))[:, None, None]

    def posterior(rates: tuple[Array, Array]) -> Array:
        sensitivity, specificity = (rate[:, :, None, None] for rate in rates)
        marked = jnp.log(sensitivity) - jnp.log1p(-specificity)
        left = jnp.log1p(-sensitivity) - jnp.log(specificity)
        votes = jnp.where(masks > 0, marked, left) * there[..., None, None]
        return jax.nn.sigmoid(odds + votes.sum(1))

    def estimate(rates: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        truth = posterior(rates)[:, None]
        found = ((masks * truth).sum((2, 3)), ((1 - masks) * (1 - truth)).sum((2, 3)))
        whole = (truth.sum((2, 3)), (1 - truth).sum((2, 3)))
        shares = (jnp.clip(a / jnp.maximum(n, 1e-6), 1e-3, 1 - 1e-3) for a, n in zip(found, whole, strict=True))
        return tuple(shares), None  # type: ignore[return-value]

    start = jnp.full((*present.shape, masks.shape[-1]), 0.99)
    rates, _ = jax.lax.scan(estimate, (start, start), None, length=rounds)
    return posterior(rates) * (present.sum(1) > 0)[:, None, None, None]


def half_quadratic(
    raters: Num[Array, "b r h w c"], present: Num[Array, "b r"], *, temperature: float = 0.005, rounds: int = 50
) -> Float[Array, "b h w c"]:
    """Alternates w_i = softmax(-d_i / temperature) and y = sum_i w_i y_i from equal weights, see the path below."""
    labels, _, _ = half_quadratic_path(raters, present, temperature=temperature, rounds=rounds)
    return labels


def half_quadratic_path(
    raters: Num[Array, "b r h w c"], present: Num[Array, "b r"], *, temperature: float, rounds: int
) -> tuple[Float[Array, "b h w c"], Float[Array, "b r"], Float[Array, "b t"]]:
    """Minimises J(w, y) = sum_i w_i d_i + temperature sum_i w_i log w_i, w on the simplex (selfcal spec, (k) 8).

    d_i is the squared distance of rater i's mask to y, as a share of the pixels. Each half-step lowers J. A large
    temperature gives the mean of the raters, a small one the rater closest to it. It follows the majority's cluster:
    agreement is not truth.

    Returns:
      The label, the weights, and J after each half-step: t = 2 rounds.
    """
    masks, pixels = raters.astype(jnp.float32), raters.shape[2] * raters.shape[3]

    def distances(label: Array) -> Array:
        return ((masks - label[:, None]) ** 2).sum((2, 3, 4)) / pixels

    def value(weights: Array, label: Array) -> Array:
        entropy = (weights * jnp.log(jnp.maximum(weights, 1e-30))).sum(1)
        return (weights * distances(label)).sum(1) + temperature * entropy

    def both(label: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        weights = softmax_present(-distances(label) / temperature, present)
        better = _weigh(masks, weights)
        return better, (weights, jnp.stack([value(weights, label), value(weights, better)], 1))

    label, (weights, path) = jax.lax.scan(both, mean_of_raters(raters, present), None, length=rounds)
    return label, weights[-1], jnp.moveaxis(path, 0, 1).reshape(len(masks), -1)


def label(
    key: Key,
    kind: str,
    raters: Num[Array, "b r h w c"],
    present: Num[Array, "b r"],
    index: Int[Array, " b"],
    *,
    temperature: float,
) -> Float[Array, "b h w c"]:
    """Fuses by one of ``LABELS``; the key is for random, the temperature for half-quadratic."""
    if kind not in LABELS:
        raise unknown("label fusion", kind, LABELS)
    if kind == "random":
        return random_rater(key, raters, present, index)
    if kind == "half-quadratic":
        return half_quadratic(raters, present, temperature=temperature)
    return {"mean": mean_of_raters, "vote": majority_vote, "staple": staple}[kind](raters, present)


def softmax_present(logits: Float[Array, "b r"], present: Num[Array, "b r"]) -> Float[Array, "b r"]:
    """Gives the softmax over the raters that are there, 0 for the others."""
    return jax.nn.softmax(jnp.where(present > 0, logits, jnp.finfo(jnp.float32).min), axis=1) * present


def _weigh(raters: Array, weights: Array) -> Array:
    raters, weights = raters.astype(jnp.float32), weights.astype(jnp.float32)
    return jnp.einsum("brhwc,br->bhwc", raters, weights, precision=jax.lax.Precision.HIGHEST)
