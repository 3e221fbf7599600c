"""Check a published data set, and write it as array_record files: python experiments/prepare.py NAME --source DIR

  python experiments/prepare.py list                           every data set: task, source, terms, expected layout
  python experiments/prepare.py ph2 --source DIR               read everything, report counts and problems
  python experiments/prepare.py ph2 --source DIR --out SHARDS --data.size 256    and write it; interrupted, it goes on
  python experiments/run.py --method seatrans --data ph2 --data.root SHARDS --data.size 256    train on it

  python experiments/prepare.py ph2 --source DIR --out FOLDER --format tfds      as a TFDS data set, FOLDER/ph2/1.0.0

Files are decoded, checked and stretched once. Examples that cannot be read are left out and listed (problems.csv beside
the files), and the exit code is then 3. A bad table or volume, or a header without which a set cannot be listed, is one
message and exit code 2. --format tfds is for programs that read TensorFlow Datasets; interrupted, it begins anew, and
an example of several splits is written for each of them.
"""

import argparse
import csv
import dataclasses
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ophjax import data as datasets
from ophjax.data import catalogue, look, shards, tfds
from ophjax.data.sources import Dataset, Example, Source, size_of
from ophjax.errors import InputError, as_command, parse_options

PROBLEMS = 3
"""Exit code where some examples could not be read; all others were."""
AHEAD, AHEAD_BYTES = 64, 1 << 29
"""Examples read at a time, by threads: so many, of large ones (volumes) as many as these bytes hold, but always one."""


def parse(argv: list[str]) -> tuple[argparse.Namespace, Any]:
    """Reads the command line: the data set first, since it says which options there are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False,
        epilog="--data.OPTION: those of the data set, as for run.py --data NAME --help.",
    )  # fmt: skip
    parser.add_argument("name", help="list, or a name out of that list")
    parser.add_argument("--source", type=Path, help="folder of the data set in its official layout")
    parser.add_argument("--out", type=Path, help="folder for the array_record files (default: only check)")
    parser.add_argument("--format", choices=("npz", "tfds"), default="npz", help="of the records (default npz, ours)")
    parser.add_argument("--shard-mb", type=int, default=256, help="size of a file in MB (default 256)")
    options, rest = parser.parse_known_args(argv)
    if options.name == "list":
        return options, None
    entry = catalogue.find(options.name)
    if options.shard_mb < 1:
        raise InputError(f"--shard-mb is {options.shard_mb}; give at least 1.")
    if options.source is not None and not options.source.is_dir():
        raise InputError(f"There is no folder {options.source}. Give the data set's folder: --source.")
    config = catalogue.with_source(entry, datasets.load(entry.loader).Config(), str(options.source or ""))
    Everything = dataclasses.make_dataclass("Everything", [("data", type(config), dataclasses.field(default=config))])
    hint = f"python experiments/run.py --method seatrans --data {entry.loader} --help explains the options."
    return options, parse_options(Everything, rest, prog="prepare.py", hint=hint).data


def read(split: str, source: Source, first: int, problems: list[tuple[str, str, str]]) -> Iterator[tuple[int, Example]]:
    """Reads a split from a position on, in order, with a progress bar; what cannot be read is noted."""
    from tqdm import tqdm

    def attempt(position: int) -> Example | InputError:
        try:
            return source[position]
        except InputError as error:
            return error

    ahead = max(1, min(AHEAD, AHEAD_BYTES // max(size_of(source), 1)))
    bar = tqdm(total=len(source), initial=first, desc=split, unit="example", disable=not sys.stderr.isatty())
    with ThreadPoolExecutor() as pool, bar:
        for start in range(first, len(source), ahead):
            positions = range(start, min(start + ahead, len(source)))
            for position, found in zip(positions, pool.map(attempt, positions), strict=True):
                bar.update()
                if isinstance(found, InputError):
                    problems.append((split, source.names[position], str(found)))
                else:
                    yield position, found


def report(data: Dataset, problems: list[tuple[str, str, str]]) -> str:
    """Reads everything and counts it: examples, classes, masks, domains, raters, images that two splits share."""
    lines = [f"{data.name}: {data.note}"]
    seen: dict[str, set[str]] = defaultdict(set)
    for split, source in data.splits.items():
        count, masked, labels, domains = 0, 0, Counter[str](), Counter[str]()
        for _, example in read(split, source, 0, problems):
            count += 1
            masked += int(example.get("mask_weight", np.ones(())) > 0 and "mask" in example)
            label = int(example.get("label", -1))
            labels[data.classes[label] if 0 <= label < len(data.classes) else "unknown"] += 1
            if "domain" in example:
                domains[data.domains[int(example["domain"])]] += 1
            seen[shards.digest({"image": example["image"]})].add(split)
        shown = [f"{count} examples"]
        shown += [f"{masked} with mask"] if data.regions else []
        shown += [", ".join(f"{n} {name}" for name, n in labels.items())] if data.classes else []
        shown += [", ".join(f"{n} {name}" for name, n in domains.items())] if domains else []
        lines.append(f"  {split:10} {'; '.join(shown)}")
    training = set(data.splits) - {"val", "test"}
    for part in ("val", "test"):
        shared = sum(part in splits and bool(splits & training) for splits in seen.values())
        if shared:
            lines.append(f"  {shared} image(s) of {part} are in a training split too, pixel for pixel.")
    return "\n".join(lines)


def run(argv: list[str]) -> int:
    """Runs a command line and returns the exit code."""
    options, config = parse(argv)
    if options.name == "list":
        print(catalogue.describe())
        return 0
    name = catalogue.find(options.name).loader
    with look.later():
        data, problems = datasets.load(name).make(config), []
    if options.out is not None:
        home, reader = options.out, shards.read
        if options.format == "tfds":
            entry = catalogue.find(options.name)
            terms = f"{entry.title} ({entry.source}): {entry.terms}."
            home, problems = written_as_tfds(data, config, options.out, options.shard_mb << 20, terms)
            reader = tfds.read
        else:
            problems = written(data, config, options.out, options.shard_mb << 20)
        print(report(reader(home, name, config), []))
        size = sum(path.stat().st_size for path in home.glob("*.array_record*"))
        print(f"{home}: {size / 2**20:.1f} MiB.")
    else:
        print(report(data, problems))
    if not problems:
        print("No problems.")
        return 0
    # One example may be in several splits.
    told = list(dict.fromkeys(reason for _, _, reason in problems))
    print(f"{len(told)} problem(s); these examples are left out:", file=sys.stderr)
    for reason in told[:10]:
        print(f"  {reason}", file=sys.stderr)
    return PROBLEMS


def written(data: Dataset, config: Any, folder: Path, shard_bytes: int) -> list[tuple[str, str, str]]:
    """Writes the files; returns the problems, those met before an interruption included (problems.csv)."""
    path = folder / "problems.csv"

    def examples(split: str, source: Source, first: int) -> Iterator[tuple[int, Example]]:
        fresh: list[tuple[str, str, str]] = []
        for pair in read(split, source, first, fresh):
            note(fresh)
            yield pair
        note(fresh)

    def note(fresh: list[tuple[str, str, str]]) -> None:
        if fresh:
            with path.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(fresh)
            fresh.clear()

    shards.prepare(data, config, folder, shard_bytes=shard_bytes, examples=examples)
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [(row[0], row[1], row[2]) for row in csv.reader(file)]


def written_as_tfds(
    data: Dataset, config: Any, folder: Path, shard_bytes: int, terms: str
) -> tuple[Path, list[tuple[str, str, str]]]:
    """Writes the files as TFDS does; returns the version's folder and the problems (problems.csv in it)."""
    problems: list[tuple[str, str, str]] = []

    def examples(split: str, source: Source, first: int) -> Iterator[tuple[int, Example]]:
        return read(split, source, first, problems)

    home = tfds.write(data, config, folder, terms=terms, shard_bytes=shard_bytes, examples=examples)
    if problems:
        with (home / "problems.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(problems)
    return home, problems


def main() -> int:
    """Runs the command; what the user can mend is one paragraph and exit code 2."""
    try:
        return as_command(run)
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from the last finished file (TFDS: anew).", file=sys.stderr)
        return 75


if __name__ == "__main__":
    sys.exit(main())
