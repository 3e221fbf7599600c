"""Tables and figures of comparisons over seeds, and their place in a document: python experiments/tables.py README.md

A comparison of compare.py leaves METHOD-DATA-PRESET.json (with its --label METHOD-DATA-PRESET-LABEL.json). In the
document, what stands between the lines <!-- METHOD-DATA-PRESET --> and <!-- end --> is replaced by the table of that
file.
"""

import argparse
import fnmatch
import json
import re
import statistics
import sys
from pathlib import Path

import numpy as np

from ophjax import methods
from ophjax.errors import InputError, as_command
from ophjax.train.runfolder import write_whole

Scores = dict[str, list[dict[str, float | None]]]
"""Of each variant, the method itself first: the test scores, seed by seed; None was no number."""


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def interval(differences: list[float], samples: int = 10_000) -> tuple[float, float]:
    """The bootstrap interval (2.5 % to 97.5 %) of the mean of paired differences, drawn over seeds.

    With a handful of seeds it can be no wider than from the least to the greatest difference, and it holds the truth
    less often than 95 times in 100: of normal differences 75 times at three seeds, 85 at five, 91 at ten.
    """
    values = np.asarray(differences)
    rows = np.random.default_rng(0).integers(len(values), size=(samples, len(values)))
    low, high = np.quantile(values[rows].mean(1), [0.025, 0.975])
    return float(low), float(high)


def columns_of(scores: Scores, patterns: tuple[str, ...]) -> list[str]:
    """The scores that the patterns name, in their order.

    Raises:
      InputError: there is none.
    """
    names = dict.fromkeys(name for found in scores.values() for one in found for name in one)
    points = [name for name in names if not name.endswith(("_low", "_high"))]
    columns = list(dict.fromkeys(name for pattern in patterns for name in fnmatch.filter(points, pattern)))
    if not columns:
        raise InputError(
            f"No table: its columns are {', '.join(patterns)}, but the runs have {', '.join(points) or 'no scores'}. "
            "The .json of the comparison holds what there is."
        )
    return columns


def of_all(found: list[dict[str, float | None]], column: str) -> list[float] | None:
    """A variant's score seed by seed; None where a seed lacks it, since the others' mean is not comparable."""
    values = [one.get(column) for one in found]
    return None if None in values else values


def differences(scores: Scores, column: str) -> dict[str, list[float]]:
    """The method's score minus each other variant's, seed by seed; without those that lack it for a seed."""
    ours, *others = (of_all(found, column) for found in scores.values())
    return {
        name: [one - other for one, other in zip(ours, theirs, strict=True)]
        for name, theirs in zip(list(scores)[1:], others, strict=True)
        if ours and theirs
    }


def table(scores: Scores, patterns: tuple[str, ...]) -> str:
    """Makes the Markdown table: each variant's scores, and the first of them against the method's, seed by seed."""
    main, columns = next(iter(scores)), columns_of(scores, patterns)
    gains = differences(scores, columns[0])
    head = f"{columns[0]}: {main} minus this [bootstrap interval] | least, most | seeds"
    lines = [
        f"| variant | {' | '.join(columns)} | {head} |",
        f"|---|{'---|' * (len(columns) + 3)}",
    ]
    for variant, found in scores.items():
        cells = [spread(values) if (values := of_all(found, column)) else "" for column in columns]
        gain, ends = "", ""
        if mine := gains.get(variant):
            low, high = interval(mine)
            gain = spread(mine) + (f" [{low:+.3f}, {high:+.3f}]" if len(mine) > 1 else "")
            ends = f"{min(mine):+.3f}, {max(mine):+.3f}"
        lines.append(f"| {variant} | {' | '.join(cells)} | {gain} | {ends} | {len(found)} |")
    return "\n".join(lines)


def draw(scores: Scores, patterns: tuple[str, ...], path: Path) -> None:
    """Draws the first score of every variant, and the paired differences with their intervals; a tick is a seed."""
    from matplotlib.figure import Figure

    main, column, names = next(iter(scores)), columns_of(scores, patterns)[0], list(scores)
    gains = differences(scores, column)
    figure = Figure(figsize=(10, 0.36 * len(names) + 1.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    rows = np.arange(len(names))
    values = np.array([[one.get(column) for one in found] for found in scores.values()], float)  # NaN is not drawn
    left.plot(values, rows, "|", color="#5b636d", markersize=9)
    left.plot(values.mean(1), rows, "o", color="#2166ac", markersize=7)
    left.set_xlabel(f"{column}: mean, seeds")
    left.set_yticks(rows, names)
    left.set_ylim(len(names) - 0.5, -0.5)
    right.axvline(0, color="#5b636d", linewidth=1, linestyle=":")
    for name, mine in gains.items():
        row = names.index(name)
        right.plot(interval(mine), [row, row], color="#b2182b", linewidth=2)
        right.plot(mine, [row] * len(mine), "|", color="#5b636d", markersize=9)
        right.plot([statistics.mean(mine)], [row], "o", color="#b2182b", markersize=7)
    right.set_xlabel(f"{main} minus this: mean, bootstrap interval, seeds")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.25)
    figure.savefig(path, dpi=130)


def place(document: str, folder: Path) -> tuple[str, list[str]]:
    """Puts the tables of a folder of comparisons into a document; returns it with the names of those put in."""
    done: list[str] = []

    def fresh(found: re.Match[str]) -> str:
        name, path = found[1], folder / f"{found[1]}.json"
        if not path.exists():
            return found[0]
        try:
            text = table(json.loads(path.read_text(encoding="utf-8")), methods.load(name.split("-")[0]).SCORES)
        except (OSError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise InputError(f"{path} is no comparison ({error!r}). Run compare.py again, which writes it.") from error
        done.append(name)
        return f"<!-- {name} -->\n{text}\n<!-- end -->"

    return re.sub(r"<!-- (\w+-\w+-\w[\w-]*) -->\n.*?<!-- end -->", fresh, document, flags=re.DOTALL), done


def run(argv: list[str]) -> str:
    """Runs a command line and returns what it has to say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("document", type=Path, help="a Markdown file with such lines")
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"), help="folder of the comparisons")
    options = parser.parse_args(argv)
    try:
        text = options.document.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{options.document} cannot be read: {error}. Give a Markdown file.") from error
    changed, done = place(text, options.runs)
    write_whole(options.document, changed.encode())
    return f"{options.document}: {', '.join(done) or 'no table of ' + str(options.runs) + ' has a place there'}"


def main() -> int:
    """Runs the command; what the user can mend is one paragraph and exit code 2."""
    return as_command(run)


if __name__ == "__main__":
    sys.exit(main())
