"""Compare a method with its baselines and controls over seeds: python experiments/compare.py --method seatrans

Every variant sees the same images and, where it has one, the same segmenter for a seed; finished runs are kept, so
the command goes on where it was stopped. All other options are those of run.py.
"""

import argparse
import dataclasses
import json
import re
import sys
from pathlib import Path

import presets
import run
from ophjax import data as datasets
from ophjax import methods
from ophjax.data import DATASETS
from ophjax.errors import InputError, OtherRunError, as_command
from ophjax.train import host
from ophjax.train.logs import read_events
from ophjax.train.runfolder import write_whole
from tables import draw, table


def arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Reads the options of this command; the rest is for run.py."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--method", default="seatrans", help=f"one of {', '.join(methods.METHODS)}")
    parser.add_argument("--data", help=f"one of {', '.join(DATASETS)} (default: the method's phantoms)")
    parser.add_argument("--preset", default="demo", help=f"one of {', '.join(presets.PRESETS)}")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (of data or split, and of training)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="only these; the method itself always runs")
    parser.add_argument(
        "--together",
        action="store_true",
        help="train the seeds of a variant in one program; all then see the pictures or split of the first seed",
    )
    parser.add_argument(
        "--label", default="", help="in the names of runs and table: keeps apart what has other options"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"), help="folder of the runs and the table")
    return parser.parse_known_args(argv)


def stem(options: argparse.Namespace) -> str:
    """What the names of the runs begin with, and the table's name."""
    return "-".join(filter(None, (options.method, options.data, options.preset, options.label)))


def run_name(options: argparse.Namespace, variant: str, seed: int) -> str:
    """The name of a variant's run with this seed, or with all seeds from it on."""
    seeds = f"{seed}to{seed + options.seeds - 1}" if options.together else str(seed)
    return f"{stem(options)}-{variant}-{seeds}"


def data_seed(data: str, seed: int) -> list[str]:
    """The option that draws a data set, or its splits, by a seed; none where it is as it is."""
    fields = {field.name for field in dataclasses.fields(datasets.load(data).Config)}
    known = [option for option in ("seed", "split-seed") if option.replace("-", "_") in fields]
    return [f"--data.{known[0]}", str(seed)] if known else []


def command(options: argparse.Namespace, variant: str, seed: int, rest: list[str]) -> list[str]:
    """What run.py is given to train one variant with one seed, or with all together."""
    changes, taken = methods.load(options.method).VARIANTS.get(variant, ({}, ()))
    argv = [
        "--method", options.method, "--data", options.data, "--preset", options.preset, "--runs", str(options.runs),
        "--name", run_name(options, variant, seed), "--train.seed", str(seed), *data_seed(options.data, seed), *rest,
    ]  # fmt: skip
    argv += presets.flags("method", changes) + (["--seeds", str(options.seeds)] if options.together else [])
    if taken:
        whence = options.runs / run_name(options, options.method, seed)
        argv += ["--start-from", *(f"{network}={whence}" for network in taken)]
    return argv


def lacking(options: argparse.Namespace, variants: list[str], rest: list[str]) -> dict[str, str]:
    """Finds the variants with a stage that learns from a split which the data set, as it is asked for, has not."""
    asked = {variant: run.parse(command(options, variant, options.first_seed, rest))[1] for variant in variants}
    data, module = datasets.make(options.data, asked[options.method].data), methods.load(options.method)
    found = {}
    for variant, one in asked.items():
        needed = {stage.data for stage in module.make(methods.fit_to(one.method, data)).stages}
        if needed - set(data.splits):
            found[variant] = ", ".join(sorted(needed - set(data.splits)))
    return found


def one_run(options: argparse.Namespace, variant: str, seed: int, rest: list[str]) -> list[dict[str, float]]:
    """Trains one variant with one seed, or with all together, if that was not done before, and returns the test scores
    of each."""
    argv, folder = command(options, variant, seed, rest), options.runs / run_name(options, variant, seed)
    if (folder / "config.json").exists():
        argv.append("--resume")
    try:
        code = run.run(argv)
    except OtherRunError as error:
        raise InputError(f"{error} In a comparison, which names its runs itself, that is another --label.") from error
    if code:
        raise SystemExit(code)
    tested = next(e for e in read_events(folder / "metrics.jsonl") if e["event"] == "test")
    return list(tested["seeds"].values()) if options.together else [tested["scores"]]


def compare(argv: list[str]) -> str:
    """Runs the comparison; returns its table and where it lies."""
    options, rest = arguments(argv)
    options.data = options.data or methods.load(options.method).DATA
    chosen = (options.method, *methods.load(options.method).VARIANTS)
    wanted = [name for name in chosen if not options.variants or name in {options.method, *options.variants}]
    unknown = set(options.variants or []) - set(chosen)
    if unknown or options.seeds < 1 + options.together:
        raise InputError(
            f"--variants {sorted(unknown)} --seeds {options.seeds}: expected variants out of {', '.join(chosen)} "
            "and at least one seed, or two --together."
        )
    if not re.fullmatch(r"[\w-]*", options.label):
        raise InputError(f"--label {options.label!r}: expected letters, digits, - and _.")
    host.prepare_compiler()
    without = lacking(options, wanted, rest)
    told = "; ".join(f"{variant} ({splits})" for variant, splits in without.items())
    if without and (options.variants or options.method in without):
        raise InputError(
            f"Data set {options.data!r} lacks, as it is asked for, splits that variants learn from: {told}. Give it "
            "what it makes them of, or choose other --variants."
        )
    wanted = [variant for variant in wanted if variant not in without]
    scores: dict[str, list[dict[str, float]]] = {variant: [] for variant in wanted}
    # Seed by seed, so that a comparison that is stopped has whole ones, and drawn pictures serve all variants.
    seeds = range(options.first_seed, options.first_seed + (1 if options.together else options.seeds))
    for seed in seeds:
        for variant in wanted:
            scores[variant].extend(one_run(options, variant, seed, rest))
    columns = methods.load(options.method).SCORES
    place = options.runs / stem(options)
    write_whole(place.with_suffix(".json"), (json.dumps(scores, indent=1) + "\n").encode())
    folders = [options.runs / run_name(options, variant, seed) for variant in wanted for seed in seeds]
    text = table(scores, columns) + mixed_versions(folders)
    text += f"\n\nLeft out, for want of a split: {told}." if told else ""
    write_whole(place.with_suffix(".md"), (text + "\n").encode())
    draw(scores, columns, place.with_suffix(".png"))
    return f"{text}\nTable, scores and figure: {place}.md, .json, .png"


def mixed_versions(folders: list[Path]) -> str:
    """A line to stand under a table whose runs were made with several versions of a package; nothing where there is
    one."""
    found: dict[str, set[str]] = {}
    for folder in folders:
        for package, version in json.loads((folder / "config.json").read_text())["versions"].items():
            found.setdefault(package, set()).add(version)
    mixed = [f"{package} {', '.join(sorted(some))}" for package, some in found.items() if len(some) > 1]
    return f"\n\nMade with several versions: {'; '.join(mixed)}." if mixed else ""


def main() -> int:
    """Runs the command; what the user can mend is one paragraph and exit code 2."""
    return as_command(compare)


if __name__ == "__main__":
    sys.exit(main())
