"""Scores of a whole split on the host, with bootstrap intervals. NumPy only.

Every score can be computed for many resamples at once: a resample is a row of ``weights`` that says how
often each example was drawn. Sorting is then done once instead of once for each resample, and a thousand
resamples cost little more than one. Without ``weights`` each example counts once and the result is a float.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ophjax.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Num

    Array = np.ndarray

# Numbers of the largest block of resamples that is held at once (16 MB as float64).
BLOCK = 2_000_000


def _rows(weights: Array | None, count: int) -> Array:
    return np.ones((1, count)) if weights is None else np.asarray(weights, np.float64)


def _unwrap(values: Array, weights: Array | None) -> Any:
    return float(values[0]) if weights is None else values


def _ratio(above: Array, below: Array) -> Array:
    """Divides, with NaN where there is nothing to divide by."""
    above, below = np.broadcast_arrays(np.asarray(above, np.float64), np.asarray(below, np.float64))
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def _mean_defined(values: Array) -> Array:
    """Averages over the last axis, leaving NaN out."""
    return _ratio(np.nansum(values, -1), np.isfinite(values).sum(-1))


def _operating_points(probs: Array, labels: Array, weights: Array) -> tuple[Array, Array]:
    """Counts false and true positives [s, cuts + 1] as the cut falls past all probabilities."""
    order = np.argsort(-probs, kind="stable")
    ranked, positive, drawn = probs[order], labels[order] == 1, weights[:, order]
    # Equal probabilities are passed by one and the same cut.
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    counts = (np.cumsum(drawn * kind, axis=1)[:, last] for kind in (~positive, positive))
    false, true = (np.pad(count, ((0, 0), (1, 0))) for count in counts)
    return false, true


def auc(probs: Float[Array, " n"], labels: Int[Array, " n"], *, weights: Float[Array, "s n"] | None = None) -> Any:
    """Computes P(p+ > p-) + P(p+ = p-) / 2, the area under the ROC curve (Mann-Whitney, with ties).

    Over the whole split at once, on probabilities and not on decisions.

    Returns:
      A float; with weights [s], NaN for each resample that has one class only.

    Raises:
      InputError: without weights, the labels have one class only, for which the area is not defined.
    """
    probs, labels = np.asarray(probs), np.asarray(labels)
    false, true = _operating_points(probs, labels, _rows(weights, len(labels)))
    area = (np.diff(false) * (true[:, 1:] + true[:, :-1])).sum(1) / 2
    area = _ratio(area, false[:, -1] * true[:, -1])
    if weights is None and np.isnan(area[0]):
        raise InputError(
            f"The AUC needs examples of both classes; all {len(labels)} labels are the same. Use a split"
            " that holds both classes, or scores that are defined for one (accuracy)."
        )
    return _unwrap(area, weights)


def roc(probs: Float[Array, " n"], labels: Int[Array, " n"]) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """Computes the ROC curve: false and true positive rates from (0, 0) to (1, 1), one point for each cut.

    Straight lines between the points enclose the area of ``auc``. Labels of one class give NaN rates.
    """
    probs, labels = np.asarray(probs), np.asarray(labels)
    false, true = _operating_points(probs, labels, np.ones((1, len(labels))))
    return _ratio(false, false[:, -1:])[0], _ratio(true, true[:, -1:])[0]


def roc_band(
    probs: Float[Array, " n"],
    labels: Int[Array, " n"],
    grid: Float[Array, " g"],
    *,
    clusters: Int[Array, " n"] | None = None,
    seed: int = 0,
    samples: int = 1000,
) -> tuple[Float[Array, " g"], Float[Array, " g"]]:
    """Computes pointwise 95 % bootstrap intervals of the true positive rate at given false positive rates."""

    def rates(probs: Array, labels: Array, *, weights: Array) -> Array:
        false, true = _operating_points(probs, labels, weights)
        false, true = _ratio(false, false[:, -1:]), _ratio(true, true[:, -1:])
        return np.stack([np.interp(grid, x, y) for x, y in zip(false, true, strict=True)])

    labels = np.asarray(labels)
    return bootstrap(rates, np.asarray(probs), labels, strata=labels, clusters=clusters, seed=seed, samples=samples)


def confusion(
    predicted: Int[Array, " n"],
    labels: Int[Array, " n"],
    classes: int,
    *,
    weights: Float[Array, "s n"] | None = None,
) -> Float[Array, "... k k"]:
    """Counts examples by true class (row) and predicted class (column)."""
    labels, predicted = (np.asarray(one).astype(np.int64) for one in (labels, predicted))
    inside = (np.minimum(labels, predicted) >= 0) & (np.maximum(labels, predicted) < classes)
    cells = classes * classes
    # What is of no class goes into a cell behind the last. A table [n, k^2] for a product with the weights would be
    # 3.2 GB for 200 classes and 10,000 examples.
    cell = np.where(inside, labels * classes + predicted, cells)
    counts = np.stack([np.bincount(cell, row, cells + 1)[:cells] for row in _rows(weights, len(cell))])
    counts = counts.reshape(-1, classes, classes)
    return counts[0] if weights is None else counts


def kappa(counts: Float[Array, "s k k"], cost: Num[Array, "k k"]) -> Float[Array, " s"]:
    """Computes Cohen's kappa, 1 - sum(w O) / sum(w E), of tables of counts; NaN where chance agreement is perfect.

    Args:
      counts: O, see ``confusion``.
      cost: w, 0 on the diagonal.
    """
    chance = counts.sum(2)[:, :, None] * counts.sum(1)[:, None, :]
    return 1.0 - _ratio((counts * cost).sum((1, 2)) * counts.sum((1, 2)), (chance * cost).sum((1, 2)))


def quadratic_kappa(
    predicted: Int[Array, " n"],
    labels: Int[Array, " n"],
    classes: int,
    *,
    weights: Float[Array, "s n"] | None = None,
) -> Any:
    """Computes Cohen's kappa with quadratic weights, for ordered classes: 1 is agreement, 0 chance.

    NaN where labels and predictions are all of one and the same class.
    """
    counts = confusion(predicted, labels, classes, weights=_rows(weights, len(labels)))
    return _unwrap(kappa(counts, np.square(np.subtract.outer(np.arange(classes), np.arange(classes)))), weights)


def binary_scores(
    probs: Float[Array, " n"], labels: Int[Array, " n"], *, weights: Float[Array, "s n"] | None = None
) -> dict[str, Array]:
    """Computes the scores of a two-class problem, [s] each; p >= 0.5 decides for class 1.

    auc (see ``auc``), accuracy (TP + TN) / N, sensitivity TP / (TP + FN), specificity TN / (TN + FP) and
    f1 2 TP / (2 TP + FP + FN). A score without any example to count is NaN.
    """
    weights = _rows(weights, len(labels))
    counts = confusion(np.asarray(probs) >= 0.5, labels, 2, weights=weights)
    tn, fp, fn, tp = counts.reshape(-1, 4).T
    return {
        "auc": auc(probs, labels, weights=weights),
        "accuracy": _ratio(tp + tn, tp + tn + fp + fn),
        "sensitivity": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        # Without class 1 in the truth F1 would be 0 or undefined by the false alarms alone: it says nothing.
        "f1": np.where(tp + fn > 0, _ratio(2 * tp, 2 * tp + fp + fn), np.nan),
    }


def choose_classes(probs: Float[Array, "n k"], *, ordinal: bool = False) -> Int[Array, " n"]:
    """Decides on the most probable class, or with ``ordinal`` on the number of k with P(class >= k) above one half.

    The latter is the number of positive logits of an ordinal head (GAMMA spec, section (d) D2), where they fall with k.
    Of two classes it is the second from one half on (as in ``binary_scores``).
    """
    if probs.shape[1] == 2:
        return (probs[:, 1] >= 0.5).astype(int)
    if not ordinal:
        return probs.argmax(1)
    return (np.cumsum(probs[:, :0:-1].astype(np.float64), 1) > 0.5).sum(1)


def multiclass_scores(
    probs: Float[Array, "n k"], labels: Int[Array, " n"], *, weights: Float[Array, "s n"] | None = None
) -> dict[str, Array]:
    """Computes the scores of a problem with k > 2 classes, [s] each; the largest probability decides.

    auc is the mean over classes of one class against the rest, f1 the mean over classes of each class's F1
    (both 'macro', over the classes for which they are defined), accuracy the part decided rightly.
    """
    probs, labels = np.asarray(probs), np.asarray(labels)
    weights = _rows(weights, len(labels))
    classes = probs.shape[1]
    counts = confusion(probs.argmax(1), labels, classes, weights=weights)
    hits, rows, columns = np.diagonal(counts, axis1=1, axis2=2), counts.sum(2), counts.sum(1)
    areas = [auc(probs[:, k], labels == k, weights=weights) for k in range(classes)]
    return {
        "auc": _mean_defined(np.stack(areas, -1)),
        "accuracy": _ratio(hits.sum(1), rows.sum(1)),
        "f1": _mean_defined(_ratio(2 * hits, rows + columns)),
    }


def _draws(rng: np.random.Generator, strata: Array, samples: int) -> Float[Array, "s n"]:
    """How often each is drawn, each stratum on its own."""
    weights = np.zeros((samples, len(strata)))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        size = len(members)
        drawn = rng.integers(size, size=(samples, size)) + size * np.arange(samples)[:, None]
        weights[:, members] = np.bincount(drawn.ravel(), minlength=samples * size).reshape(samples, size)
    return weights


def bootstrap(
    statistic: Callable[..., Any],
    *arrays: Num[Array, "n ..."],
    strata: Int[Array, " n"] | None = None,
    clusters: Int[Array, " n"] | None = None,
    seed: int = 0,
    samples: int = 1000,
    level: float = 0.95,
) -> Any:
    """Computes percentile bootstrap intervals, of independent examples or of clusters of them.

    Args:
      statistic: ``statistic(*arrays, weights=[s, n]) -> [s, ...]``, or a dict of such arrays; row i of the
        weights says how often each example occurs in resample i.
      *arrays: what the statistic is computed from, one entry for each example.
      strata: class of each example. If given, each class is resampled on its own, so that every resample
        has the class counts of the split (as is usual for ROC curves, where else a rare class could vanish).
      clusters: examples of one number are drawn together, as they are not independent (a patient's images); of a
        cluster with several strata the largest counts.
      seed: of the draws; equal seeds give equal intervals.
      samples: number of resamples.
      level: coverage.

    Returns:
      ``(low, high)``, or a dict of such pairs; resamples in which the statistic is NaN are left out, and
      where it is NaN in all of them both ends are NaN.
    """
    count = len(arrays[0])
    rng = np.random.default_rng(seed)
    strata = np.zeros(count, np.int64) if strata is None else np.asarray(strata)
    of = np.arange(count) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    if of.max(initial=-1) + 1 == count:  # each example is one of its own: drawn in their order
        of = np.arange(count)
    each = np.full(of.max(initial=-1) + 1, np.iinfo(np.int64).min)
    np.maximum.at(each, of, strata)
    block = max(1, min(samples, BLOCK // max(1, count)))
    blocks = [
        statistic(*arrays, weights=_draws(rng, each, min(block, samples - start))[:, of])
        for start in range(0, samples, block)
    ]
    ends = [(1 - level) / 2, (1 + level) / 2]

    def interval(values: Array) -> tuple[Any, Any]:
        if np.isnan(values).any():
            if values.ndim > 1 or np.isnan(values).all():
                return np.full(values.shape[1:], np.nan)[()], np.full(values.shape[1:], np.nan)[()]
            values = values[~np.isnan(values)]
        low, high = np.quantile(values, ends, axis=0)
        return low, high

    if isinstance(blocks[0], Mapping):
        return {name: interval(np.concatenate([part[name] for part in blocks])) for name in blocks[0]}
    return interval(np.concatenate(blocks))


def patients(gathered: Mapping[str, Array], chosen: Array | slice = slice(None)) -> Int[Array, " n"] | None:
    """The clusters of the chosen examples: the data set's ``patient``; None where it has none."""
    return gathered["patient"][chosen] if "patient" in gathered else None


def _with_intervals(points: Mapping[str, Array], intervals: Mapping[str, tuple[Any, Any]]) -> dict[str, float]:
    scores: dict[str, float] = {}
    for name, value in points.items():
        low, high = intervals[name]
        if np.isfinite([value[0], low, high]).all():
            scores |= {name: float(value[0]), f"{name}_low": float(low), f"{name}_high": float(high)}
    return scores


def classification_scores(
    probs: Float[Array, " n *k"],
    labels: Int[Array, " n"],
    *,
    clusters: Int[Array, " n"] | None = None,
    seed: int = 0,
    samples: int = 1000,
    level: float = 0.95,
) -> dict[str, float]:
    """Computes the scores of a classifier over a split, each with its bootstrap interval.

    Args:
      probs: [n] or [n, 2], probability of class 1 (last column), or [n, k] for k > 2 classes.
      labels: class indices.
      clusters: see ``bootstrap`` and ``patients``.
      seed: of the bootstrap, which resamples each class on its own.
      samples: number of resamples.
      level: coverage of the intervals.

    Returns:
      ``{"auc": .., "auc_low": .., "auc_high": .., "accuracy": .., ...}``: the scores of ``binary_scores`` or
      ``multiclass_scores``. A score that the split does not define is left out, never NaN: with one class
      only there is no auc, and without class 1 no sensitivity and no f1 either.

    Raises:
      InputError: no examples; shapes that do not fit; labels outside the classes; probabilities that are
        not numbers in [0, 1].
    """
    probs, labels = np.asarray(probs, np.float64), np.asarray(labels)
    if labels.ndim != 1 or not len(labels) or probs.ndim not in (1, 2) or len(probs) != len(labels):
        raise InputError(
            f"Probabilities have shape {probs.shape} and labels {labels.shape}; expected [n] or [n, k] and"
            " [n] with at least one example. Check that the split is not empty."
        )
    classes = 2 if probs.ndim == 1 else probs.shape[1]
    strange = np.setdiff1d(labels, np.arange(classes))
    if len(strange) or classes < 2:
        raise InputError(
            f"Labels hold {strange.tolist()[:5]}, but the probabilities are of {classes} classes; expected"
            f" indices from 0 to {classes - 1}. Check the number of classes that the method was built with."
        )
    bad = ~((probs >= 0) & (probs <= 1)).reshape(len(labels), -1).all(1)
    if bad.any():
        raise InputError(
            f"Example {int(bad.argmax())} has the probability {probs[bad][0].tolist()} ({int(bad.sum())} of"
            f" {len(labels)} are of this kind); expected numbers from 0 to 1. Logits must pass through a"
            " sigmoid or softmax first; NaN means that training diverged."
        )
    if classes == 2 and probs.ndim == 2:
        probs = probs[:, 1]
    statistic = binary_scores if classes == 2 else multiclass_scores
    options: dict[str, Any] = dict(clusters=clusters, seed=seed, samples=samples, level=level)
    intervals = bootstrap(statistic, probs, labels, strata=labels, **options)
    return _with_intervals(statistic(probs, labels), intervals)


def mean_scores(
    values: Mapping[str, Float[Array, " n"]],
    *,
    clusters: Int[Array, " n"] | None = None,
    seed: int = 0,
    samples: int = 1000,
    level: float = 0.95,
) -> dict[str, float]:
    """Averages per-example metrics over a split, each with its bootstrap interval.

    Args:
      values: ``{"dice_disc": [n], ...}``; NaN marks an example for which the metric was not counted.
      clusters: see ``bootstrap`` and ``patients``.
      seed: of the bootstrap.
      samples: number of resamples.
      level: coverage of the intervals.

    Returns:
      ``{"dice_disc": .., "dice_disc_low": .., "dice_disc_high": .., ...}``; a metric that was counted for no
      example is left out.
    """
    if not values:
        return {}
    table = np.stack([np.asarray(value, np.float64) for value in values.values()], -1)
    if not len(table):
        return {}

    def means(table: Array, *, weights: Array) -> dict[str, Array]:
        counted = np.isfinite(table)
        mean = _ratio(weights @ np.where(counted, table, 0.0), weights @ counted.astype(np.float64))
        return dict(zip(values, mean.T, strict=True))

    intervals = bootstrap(means, table, clusters=clusters, seed=seed, samples=samples, level=level)
    return _with_intervals(means(table, weights=np.ones((1, len(table)))), intervals)
