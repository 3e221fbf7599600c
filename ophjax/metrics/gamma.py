"""Official scores of the GAMMA challenge: grading, fovea, disc and cup (GAMMA spec, section (h)). NumPy only.

Wu et al., "GAMMA challenge", Medical Image Analysis 90:102938, 2023. The paper's tables could not be read: the weights
of ``Weights`` are recalled and partly confirmed by public programs, and the component scores are always given too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from ophjax.errors import InputError, unknown
from ophjax.metrics import overlap, ranking
from ophjax.metrics.greys import GAMMA

if TYPE_CHECKING:
    from jaxtyping import Float, Int

GRADES = ("non", "early", "mid_advanced")
"""The grades in order, by the names of the official columns."""

RIM, CUP = GAMMA.classes.index("rim"), GAMMA.classes.index("cup")


@dataclass(frozen=True)
class Weights:
    """How components make scores, as recalled; each task's best score is 10, and so is the total's."""

    kappa: float = 10.0
    """Score of grading for each unit of kappa."""
    offset: float = 0.1
    """Added to a mean error before its reciprocal is taken."""
    cup: float = 0.25
    """Weight of 10 Dice of the cup."""
    disc: float = 0.35
    """Weight of 10 Dice of the disc."""
    ratio: float = 0.40
    """Weight of 1 / (mean error of the vertical cup-to-disc ratio + offset)."""
    tasks: tuple[float, float, float] = (0.4, 0.3, 0.3)
    """Weights of grading, fovea and segmentation in the total."""


RECALLED = Weights()


class DiscCup(NamedTuple):
    """How one predicted mask compares with the true one."""

    cup: float
    """Dice of the cup."""
    disc: float
    """Dice of the disc."""
    ratio: float
    """Absolute error of the vertical cup-to-disc ratio."""


def kappa(
    predicted: Int[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    *,
    classes: int = len(GRADES),
    weights: Literal["quadratic", "linear", "none"] = "quadratic",
) -> float:
    """Computes Cohen's kappa (see ``ranking.kappa``) with w the squared or plain distance of the grades, or 0 and 1.

    Where chance agreement is perfect (one and the same class everywhere) it is 1.

    Raises:
      InputError: no examples, lengths that differ, classes that do not exist, or unknown weights.
    """
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    if predicted.shape != labels.shape or labels.ndim != 1 or not len(labels):
        raise InputError(f"There are {predicted.shape} predictions and {labels.shape} labels; give one for each, at "
                         "least one in all.")  # fmt: skip
    both = np.concatenate([predicted, labels])
    if both.min() < 0 or both.max() >= classes:
        raise InputError(
            f"A grade lies outside 0 to {classes - 1}: {both.min()} to {both.max()} were given. Correct it."
        )
    apart = np.abs(np.subtract.outer(np.arange(classes), np.arange(classes)))
    costs = {"quadratic": apart**2, "linear": apart, "none": (apart > 0).astype(int)}
    if weights not in costs:
        raise unknown("weights of kappa", weights, tuple(costs))
    found = float(ranking.kappa(ranking.confusion(predicted, labels, classes)[None], costs[weights])[0])
    return 1.0 if np.isnan(found) else found


def fovea_distances(
    found: Float[np.ndarray, "n 2"], truth: Float[np.ndarray, "n 2"], sizes: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, " n"]:
    """Computes sqrt((dx / W)^2 + (dy / H)^2) of each image; an invisible fovea is (0, 0) and treated as any point.

    Args:
      found: predicted x and y in pixels of the original image.
      truth: true x and y.
      sizes: width and height of each image.

    Raises:
      InputError: shapes that differ, coordinates that are no numbers, sizes that are not positive.
    """
    found, truth, sizes = (np.asarray(array, np.float64) for array in (found, truth, sizes))
    good = found.shape == truth.shape == sizes.shape and found.ndim == 2 and found.shape[1:] == (2,) and len(found)
    if not good or not np.isfinite([found, truth, sizes]).all() or (sizes <= 0).any():
        raise InputError(
            f"Foveas need finite (x, y), predicted {found.shape} and true {truth.shape}, and positive (width, height) "
            f"{sizes.shape} for each of at least one image. Check the table for empty or wrong cells."
        )
    return np.sqrt(np.square((found - truth) / sizes).sum(1))


def cup_to_disc(classes: Int[np.ndarray, "h w"]) -> float:
    """Computes the vertical cup-to-disc ratio of a mask of classes; 0 where there is no cup or no disc."""
    disc = overlap.height(classes > 0)
    return overlap.height(classes == CUP) / disc if disc else 0.0


def compare_masks(
    found: Int[np.ndarray, "h w"], truth: Int[np.ndarray, "h w"], *, disc: Literal["union", "rim"] = "union"
) -> DiscCup:
    """Compares a predicted mask of classes (0 background, 1 rim, 2 cup) with the true one.

    Args:
      found: predicted classes.
      truth: true classes.
      disc: what the disc's Dice is taken of: rim and cup together, or the rim alone.

    Raises:
      InputError: the sizes differ, or the true mask has no disc.
    """
    overlap.same_size(found, truth)
    if not (truth > 0).any():
        raise InputError(
            "The true mask has no disc at all, so that nothing can be compared with it. Correct the truth."
        )
    first, second = ((mask > 0 if disc == "union" else mask == RIM) for mask in (found, truth))
    cup = overlap.dice(found == CUP, truth == CUP)
    return DiscCup(cup, overlap.dice(first, second), abs(cup_to_disc(found) - cup_to_disc(truth)))


def grading_score(kappa: float, weights: Weights = RECALLED) -> float:
    """Score 1: 10 kappa."""
    return weights.kappa * kappa


def fovea_score(distance: float, weights: Weights = RECALLED) -> float:
    """Score 2: 1 / (AED + 0.1), AED the mean of ``fovea_distances``."""
    return 1.0 / (distance + weights.offset)


def segmentation_score(cup: float, disc: float, ratio: float, weights: Weights = RECALLED) -> float:
    """Score 3 from the mean Dice of cup and disc and the mean error of the ratio, in that order."""
    return 10 * (weights.cup * cup + weights.disc * disc) + weights.ratio / (ratio + weights.offset)


def total_score(grading: float, fovea: float, segmentation: float, weights: Weights = RECALLED) -> float:
    """The total of the three scores."""
    return float(np.dot(weights.tasks, (grading, fovea, segmentation)))


def specialist_override(
    advanced: Float[np.ndarray, "n 3"],
    normal: Float[np.ndarray, "n 3"],
    early: Float[np.ndarray, "n 3"],
    *,
    sure_advanced: float = 0.6,
    sure_early: float = 0.9,
) -> Int[np.ndarray, " n"]:
    """Joins three models of which each is trusted with one grade (GAMMA spec, section (f)).

    All begin as early (1); later rules overrule earlier ones. Where ``advanced`` gives grade 2 at least
    ``sure_advanced`` it is 2; where ``normal`` finds 0 most probable it is 0; where ``early`` gives grade 1 at least
    ``sure_early`` it is 1 again.

    Args:
      advanced, normal, early: probabilities of the grades by each model.
      sure_advanced, sure_early: the two thresholds.
    """
    grades = np.ones(len(advanced), int)
    grades[advanced[:, 2] >= sure_advanced] = 2
    grades[normal.argmax(1) == 0] = 0
    grades[early[:, 1] >= sure_early] = 1
    return grades
