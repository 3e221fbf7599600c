"""Edge distances on the device equal those on the host."""

import jax
import numpy as np

from ophjax.metrics import overlap
from ophjax.metrics.edges import edge, edge_distance


def test_equal_to_the_host():
    """Noise, layers, a full, an empty and a small region, each against each other."""
    rng = np.random.default_rng(0)
    regions = np.zeros((6, 20, 31), bool)
    regions[0] = rng.random((20, 31)) < 0.5
    regions[1, 5:9] = True
    regions[2, 7:15, 3:] = True
    regions[3] = True
    regions[5, 19, 30] = True
    pairs = [(a, b) for a in regions for b in regions]
    found, truth = (np.stack(side)[..., None] for side in zip(*pairs, strict=True))
    ours = jax.jit(edge_distance)(found, truth)[:, 0]
    np.testing.assert_allclose(ours, [overlap.edge_distance(a, b) for a, b in pairs], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(np.argwhere(jax.jit(edge)(found[:1])[0, ..., 0]), overlap.edge(regions[0]))
