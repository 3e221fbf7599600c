"""Scores over several domains: one for each, their mean over the targets, and the worst target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np


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
      ``{score}``, the mean over the targets, and ``{score}_worst``, the least of them.
    """
    if len(domains) < 2:
        return scores(gathered)
    found: dict[str, dict[str, float]] = {}
    for number, name in enumerate(domains):
        rows = gathered["domain"] == number
        if rows.any():
            found[name] = scores({key: value[rows] for key, value in gathered.items()})
    targets = [found[name] for name in domains[1:] if name in found]
    plain = [name for name in (targets[0] if targets else {}) if not name.endswith(("_low", "_high"))]
    means = {name: float(np.mean([one[name] for one in targets])) for name in plain}
    worst = {f"{name}_worst": float(np.min([one[name] for one in targets])) for name in plain}
    return means | worst | {named(score, d): value for d, one in found.items() for score, value in one.items()}


def named(score: str, domain: str) -> str:
    """Puts the domain's name after the score's, before the mark of an interval's end.

    >>> named("auc_low", "mist")
    'auc_mist_low'
    """
    for end in ("_low", "_high"):
        if score.endswith(end):
            return f"{score.removesuffix(end)}_{domain}{end}"
    return f"{score}_{domain}"
