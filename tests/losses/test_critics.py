"""Losses of domain critics by hand: M2DAN's spec, sections (d) and (k) 5."""

import jax.numpy as jnp
import numpy as np
import pytest

from ophjax.errors import InputError
from ophjax.losses.critics import CRITICS, balanced_mean, critic_outputs, domain_loss

DOMAIN = jnp.array([0, 1, 2, 0, 1, 2])


def mean(logits, critic, domain=DOMAIN, **options):
    return float(balanced_mean(domain_loss(logits, domain, critic=critic, **options), domain, critic=critic))


@pytest.mark.parametrize(("critic", "outputs", "chance"), [("multiclass", 3, 3), ("pairwise", 2, 2), ("merged", 1, 2)])
def test_a_critic_that_cannot_tell(critic, outputs, chance):
    """Uniform guesses cost log(K + 1), or log 2 for the binary critics, exactly."""
    assert critic_outputs(critic, 3) == outputs
    assert mean(jnp.zeros((6, outputs)), critic) == pytest.approx(np.log(chance), rel=1e-6)


def test_pairwise_by_hand():
    """A source row pays the mean of both critics, a target row its own critic only; halves for source and targets."""
    # Probability 3/4 for "source" in the first critic, 1/2 in the second.
    logits = jnp.broadcast_to(jnp.array([np.log(3.0), 0.0], jnp.float32), (6, 2))
    each = domain_loss(logits, DOMAIN, critic="pairwise")
    source, first, second = 0.5 * (np.log(4 / 3) + np.log(2)), np.log(4), np.log(2)
    np.testing.assert_allclose(each, [source, first, second] * 2, rtol=1e-6)
    assert mean(logits, "pairwise") == pytest.approx(0.5 * source + 0.25 * (first + second), rel=1e-6)


def test_merged_weighs_the_sides_alike():
    """One source row and five target rows: half of the loss is the source's."""
    domain = jnp.array([0, 1, 2, 1, 2, 1])
    logits = jnp.full((6, 1), np.log(3.0), jnp.float32)
    assert mean(logits, "merged", domain) == pytest.approx(0.5 * (np.log(4 / 3) + np.log(4)), rel=1e-6)
    squares = mean(jnp.full((6, 1), 0.25), "merged", domain, squares=True)
    assert squares == pytest.approx(0.5 * (0.75**2 + 0.25**2), rel=1e-6)


@pytest.mark.parametrize("critic", CRITICS)
def test_names_and_order_do_not_matter(critic):
    """Swapping two targets together with the critic's outputs, or rows with their domains, leaves the loss."""
    rng = np.random.default_rng(0)
    outputs = critic_outputs(critic, 3)
    logits = jnp.asarray(rng.normal(size=(6, outputs)), jnp.float32)
    swapped = {"multiclass": [0, 2, 1], "pairwise": [1, 0], "merged": [0]}[critic]
    renamed = jnp.array([0, 2, 1])[DOMAIN]
    assert mean(logits[:, jnp.array(swapped)], critic, renamed) == pytest.approx(mean(logits, critic), abs=1e-6)
    order = jnp.array(rng.permutation(6))
    assert mean(logits[order], critic, DOMAIN[order]) == pytest.approx(mean(logits, critic), abs=1e-6)


def test_a_batch_without_targets_is_finite():
    assert mean(jnp.zeros((2, 1)), "merged", jnp.zeros(2, jnp.int32)) == pytest.approx(0.5 * np.log(2), rel=1e-6)


def test_unknown_critic():
    for call in (
        lambda: critic_outputs("wasserstein", 3),
        lambda: domain_loss(jnp.zeros((2, 1)), jnp.zeros(2, int), critic="x"),
    ):
        with pytest.raises(InputError, match="multiclass, pairwise, merged"):
            call()
