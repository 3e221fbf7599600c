"""Scores of the GOALS challenge: Dice and edge distance of three layers, AUC of glaucoma (GOALS spec, section (h)).

Fang et al., "Dataset and Evaluation Algorithm Design for GOALS Challenge", OMIA 2022. How the platform joined Dice,
distance and AUC is not known: there is no official total here, only ``composite`` with the user's own weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ophjax.errors import InputError
from ophjax.metrics import overlap, ranking
from ophjax.metrics.greys import GOALS

if TYPE_CHECKING:
    from jaxtyping import Float, Int

LAYERS = GOALS.classes[1:]
"""The layers, from the vitreous down: classes 1, 2, 3 of a mask."""

LAYER_WEIGHTS = (0.4, 0.3, 0.3)
"""Weights of the layers, as quoted from the challenge's page by third parties."""


class Layer(NamedTuple):
    """How one predicted layer of one image compares with the true one."""

    dice: float
    distance: float
    """Mean distance of the predicted edge to the true one, in pixels."""
    missed: float
    """The same the other way round: it also sees what was left out."""


def compare_layers(found: Int[np.ndarray, "h w"], truth: Int[np.ndarray, "h w"]) -> tuple[Layer, ...]:
    """Compares the three layers of a mask of classes (0 other, 1 RNFL, 2 GCIPL, 3 choroid).

    Raises:
      InputError: the sizes differ.
    """
    overlap.same_size(found, truth)
    layers = []
    for number in range(1, len(LAYERS) + 1):
        a, b = found == number, truth == number
        layers.append(Layer(overlap.dice(a, b), overlap.edge_distance(a, b), overlap.edge_distance(b, a)))
    return tuple(layers)


def segmentation_scores(images: Sequence[tuple[Layer, ...]]) -> dict[str, float]:
    """Averages over images: for each layer ``dice_``, ``med_`` and ``med_both_`` (both directions), and the weighted
    means ``dice`` and ``med`` over the layers.

    Raises:
      InputError: no images.
    """
    if not images:
        raise InputError("There are no masks to score. Give at least one.")
    table = np.array(images, np.float64).mean(0)  # [layers, 3]
    scores = {"dice": float(np.dot(LAYER_WEIGHTS, table[:, 0])), "med": float(np.dot(LAYER_WEIGHTS, table[:, 1]))}
    for name, (dice, distance, missed) in zip(LAYERS, table.tolist(), strict=True):
        scores |= {f"dice_{name}": dice, f"med_{name}": distance, f"med_both_{name}": (distance + missed) / 2}
    return scores


def classification_auc(probs: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> float:
    """Computes the AUC of the glaucoma probabilities; ties count one half.

    Raises:
      InputError: probabilities that are no numbers from 0 to 1, labels of one class only.
    """
    probs = np.asarray(probs, np.float64)
    if not ((probs >= 0) & (probs <= 1)).all():
        raise InputError("A glaucoma probability is not a number from 0 to 1. Correct it; logits need a sigmoid first.")
    return ranking.auc(probs, labels)


def composite(
    scores: Mapping[str, float],
    weights: Mapping[str, float],
    *,
    closeness: Callable[[float], float] = lambda distance: 1 / (1 + distance),
) -> float:
    """Joins scores by weights of your own. **Not official**: the platform's formula is not known.

    Args:
      scores: as ``segmentation_scores`` gives them, and ``auc``.
      weights: for the names that count; a ``med`` is turned by ``closeness`` first, so that more is better.
      closeness: of a distance in pixels.
    """
    return sum(
        weight * (closeness(scores[name]) if name.startswith("med") else scores[name])
        for name, weight in weights.items()
    )
