"""Label fusion without a network: by hand, in its limits, and on drawn discs (selfcal spec, section (k), check 8)."""

import jax
import numpy as np
import pytest

from ophjax.transforms import fusion

SIDE = 32
LINE = np.arange(SIDE) - SIDE / 2 + 0.5


def disc(radius, x=0.0, y=0.0):
    return (np.hypot(LINE[None, :] - x, LINE[:, None] - y) < radius).astype(np.uint8)


def panel(seed, competent, other, *, factor=1.3):
    """Discs of raters of small jitter, and of raters who draw too large by the same factor everywhere: truth, masks."""
    rng = np.random.default_rng(seed)
    radius, x, y = rng.uniform(7, 10), *rng.uniform(-2, 2, 2)
    sizes = [1.0] * competent + [factor] * other
    shifts = rng.normal(0, 0.3, (len(sizes), 2))
    masks = [
        disc(radius * s * np.exp(rng.normal(0, 0.03)), x + a, y + b) for s, (a, b) in zip(sizes, shifts, strict=True)
    ]
    return disc(radius, x, y), np.stack(masks)[:, :, :, None]


def many(count, competent, other):
    pairs = [panel(seed, competent, other) for seed in range(100, 100 + count)]
    return np.stack([t for t, _ in pairs])[..., None], np.stack([m for _, m in pairs])


def everyone(masks):
    return np.ones(masks.shape[:2], np.float32)


def dice(label, truth):
    cuts = [((label > cut) * 1.0, truth) for cut in (0.1, 0.3, 0.5, 0.7, 0.9)]
    return np.mean([2 * (a * b).sum((1, 2, 3)) / (a.sum((1, 2, 3)) + b.sum((1, 2, 3))) for a, b in cuts])


def test_means_and_votes_leave_missing_raters_out():
    masks = np.array([1, 0, 1, 1, 1], np.uint8).reshape(1, 5, 1, 1, 1)
    present = np.array([[1, 1, 1, 0, 0]], np.float32)
    np.testing.assert_allclose(fusion.mean_of_raters(masks, present).ravel(), 2 / 3, rtol=1e-6)
    assert fusion.majority_vote(masks, present).item() == 1
    assert fusion.majority_vote(masks, np.array([[1, 1, 0, 0, 0]])).item() == 0  # half is not enough
    assert fusion.mean_of_raters(masks, 0 * present).item() == 0


def test_a_random_rater_is_one_that_is_there():
    _, masks = many(6, 2, 2)
    present = np.tile(np.array([[1, 0, 1, 0]], np.float32), (6, 1))
    chosen = set()
    for seed in range(8):
        label = np.asarray(fusion.random_rater(jax.random.key(seed), masks, present, np.arange(6)))
        found = [[r for r in range(4) if np.array_equal(label[b], masks[b, r])] for b in range(6)]
        assert all(set(one) & {0, 2} for one in found)
        chosen |= {one[0] for one in found}
    assert chosen == {0, 2}
    one, turned = (
        fusion.random_rater(jax.random.key(0), masks[o], present, o) for o in (np.arange(6), np.arange(6)[::-1])
    )
    np.testing.assert_array_equal(one, turned[::-1])


@pytest.mark.parametrize("temperature", [1e-3, 5e-3, 0.05])
def test_half_quadratic_lowers_its_objective_at_every_half_step(temperature):
    _, masks = many(40, 3, 3)
    label, weights, path = fusion.half_quadratic_path(masks, everyone(masks), temperature=temperature, rounds=60)
    path = np.asarray(path)
    # J is of order 0.1; float32 sums of a thousand pixels are right to about 1e-6.
    assert (np.diff(path, axis=1) <= 2e-6).all() and (path[:, 0] - path[:, -1] > 0).all()
    np.testing.assert_allclose(np.asarray(weights).sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(label, (masks * np.asarray(weights)[:, :, None, None, None]).sum(1), atol=1e-5)


def test_half_quadratic_in_its_limits():
    """Large temperature: the mean. Small: the rater nearest to the mean, from which the iteration starts."""
    _, masks = many(20, 3, 3)
    mean = masks.mean(1)
    np.testing.assert_allclose(fusion.half_quadratic(masks, everyone(masks), temperature=1e5), mean, atol=1e-4)
    cold, weights, _ = fusion.half_quadratic_path(masks, everyone(masks), temperature=1e-6, rounds=1)
    distance = ((masks - mean[:, None]) ** 2).mean((2, 3, 4))
    chosen = (distance * np.asarray(weights)).sum(1)  # where two are equally near they share the weight
    np.testing.assert_allclose(chosen, distance.min(1), rtol=1e-3)
    assert (np.asarray(weights).max(1) > 0.99).mean() > 0.8 and cold.shape == mean.shape


def test_half_quadratic_follows_the_cluster_that_agrees_most():
    """Three competent raters of six are the tighter half and win, two of six are outvoted: agreement is not truth."""
    gains, shares = {}, {}
    for competent in (3, 2):
        truth, masks = many(60, competent, 6 - competent)
        label, weights, _ = fusion.half_quadratic_path(masks, everyone(masks), temperature=0.01, rounds=60)
        gains[competent] = dice(np.asarray(label), truth) - dice(masks.mean(1), truth)
        shares[competent] = float(np.asarray(weights)[:, :competent].sum(1).mean())
    assert gains[3] > 0.01 and shares[3] > 0.6
    assert gains[2] < 0.5 * gains[3]


def test_staple_by_hand():
    """One round of expectation maximisation on one image, computed with sums."""
    _, masks = many(1, 2, 1)
    flat = masks[0, :, :, :, 0].reshape(3, -1).astype(float)
    prior = flat.mean()

    def posterior(p, q):
        a = prior * np.prod(np.where(flat > 0, p[:, None], 1 - p[:, None]), 0)
        b = (1 - prior) * np.prod(np.where(flat > 0, 1 - q[:, None], q[:, None]), 0)
        return a / (a + b)

    truth = posterior(np.full(3, 0.99), np.full(3, 0.99))
    p = np.clip((flat * truth).sum(1) / truth.sum(), 1e-3, 1 - 1e-3)
    q = np.clip(((1 - flat) * (1 - truth)).sum(1) / (1 - truth).sum(), 1e-3, 1 - 1e-3)
    found = fusion.staple(masks, everyone(masks), rounds=1)
    np.testing.assert_allclose(np.asarray(found).ravel(), posterior(p, q), atol=1e-4)


@pytest.mark.parametrize("fuse", [fusion.mean_of_raters, fusion.majority_vote, fusion.staple, fusion.half_quadratic])
def test_unanimous_and_single_raters_give_their_mask(fuse):
    _, masks = many(3, 3, 3)
    same = np.repeat(masks[:, :1], 4, 1)
    for given in (same, same[:, :1]):
        # STAPLE's posterior keeps some doubt of a single rater.
        np.testing.assert_allclose(fuse(given, everyone(given)), masks[:, 0], atol=0.05)


@pytest.mark.parametrize("fuse", [fusion.mean_of_raters, fusion.majority_vote, fusion.staple, fusion.half_quadratic])
def test_order_and_missing_raters_do_not_matter(fuse):
    _, masks = many(3, 3, 3)
    present = np.tile(np.array([[1, 1, 0, 1, 1, 0]], np.float32), (3, 1))
    order = np.array([4, 2, 0, 5, 1, 3])
    expected = fuse(masks[:, present[0] > 0], np.ones((3, 4)))
    np.testing.assert_allclose(fuse(masks[:, order], present[:, order]), expected, atol=2e-4)
