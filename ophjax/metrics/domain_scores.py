"""Scores over several domains: one for each, their mean over the targets, and the worst target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ophjax.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def by_domain(
    gathered: Mapping[str, np.ndarray],
    domains: Sequence[str],
    scores: Callable[[Mapping[str, np.ndarray]], dict[str, float]],
) -> dict[str, float]:
    """Scores each domain on its own.

    Where there are targets, the plain name of a score is its unweighted mean over them, so that a large target counts
    no more than a small one (M2DAN spec, section (h)).

    Args:
      gathered: rows of a whole split, with ``domain`` [n] where there are several.
      domains: names of the domains, the source first. With fewer than two, ``scores`` is returned as it is.
      scores: scores of some rows.

    Returns:
      ``{score}_{domain}`` for each domain that has rows, with its interval (``_low``, ``_high``) where there is one;
      ``{score}``, the mean over the targets that have it, and ``{score}_worst``, the least of them (of cosines, of
      which neither end is the worse, there is none).
    """
    if len(domains) < 2:
        return scores(gathered)
    found: dict[str, dict[str, float]] = {}
    for number, name in enumerate(domains):
        rows = gathered["domain"] == number
        if rows.any():
            found[name] = scores({key: value[rows] for key, value in gathered.items()})
    targets = [found[name] for name in domains[1:] if name in found]
    values: dict[str, list[float]] = {}
    for one in targets:
        for name, value in one.items():
            if not name.endswith(("_low", "_high")):
                values.setdefault(name, []).append(value)
    means = {name: float(np.mean(some)) for name, some in values.items()}
    worst = {f"{name}_worst": min(some) for name, some in values.items() if not name.endswith("_cosine")}
    return means | worst | {named(score, d): value for d, one in found.items() for score, value in one.items()}


def proxy_distance(features: Float[np.ndarray, "n f"], domain: Int[np.ndarray, " n"]) -> float:
    """Measures how well a fresh linear classifier tells source from target features: 2 (1 - 2 error), from 0 to 2.

    The classes count alike in the error, which is taken on examples left out of the fit (three parts in turn). 0 means
    that the features do not tell where an image comes from (proxy A-distance; M2DAN spec, section (h)).

    Args:
      features: one vector for each example.
      domain: 0 for the source.

    Returns:
      The distance, 0 where the error is above one half; NaN with fewer than three examples on a side.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    source = domain == 0
    if min(source.sum(), (~source).sum()) < 3:
        return float("nan")
    probe = LogisticRegression(max_iter=200, class_weight="balanced")
    scaled = (features - features.mean(0)) / (features.std(0) + 1e-6)
    parts = StratifiedKFold(3, shuffle=True, random_state=0)
    right = float(cross_val_score(probe, scaled, source, cv=parts, scoring="balanced_accuracy").mean())
    return max(0.0, 2 * (2 * right - 1))


def check_names(what: str, names: Iterable[str]) -> None:
    """Raises InputError for the name of a domain or region that behind a score's would read as a mark of its own.

    >>> check_names("domain", ["clinic", "lower"])
    """
    for name in names:
        if name in ("low", "high", "worst") or name.endswith(("_low", "_high")):
            raise InputError(
                f"A {what} cannot be called {name!r}: names stand behind a score's, where _low and _high are the ends "
                f"of its interval and _worst the worst target. Rename it, e.g. {name}_{what}."
            )


def named(score: str, domain: str) -> str:
    """Puts the domain's name after the score's, before the mark of an interval's end.

    >>> named("auc_low", "mist")
    'auc_mist_low'
    """
    for end in ("_low", "_high"):
        if score.endswith(end):
            return f"{score.removesuffix(end)}_{domain}{end}"
    return f"{score}_{domain}"
