"""Train one of the systems: python experiments/run.py --method seatrans

Everything has a default: without a data set the run draws its own pictures (phantoms).
"""

import argparse
import dataclasses
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import presets
from ophjax import data as datasets
from ophjax import methods
from ophjax.errors import STOPPED, DivergedError, InputError, ends_like_ctrl_c, parse_options
from ophjax.train import host, loop

EPILOG = """\
examples:
  python experiments/run.py --method seatrans                          phantoms, under three minutes on a laptop
  python experiments/run.py --method seatrans --method.baseline image-only --name plain
  python experiments/run.py --method seatrans --data folder --data.root MY_FOLDER
  python experiments/run.py --method seatrans --preset paper --dry-run  sizes, memory and FLOPs, no training
  python experiments/run.py --method seatrans --help                   every option of the method and the data set
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """How the run is kept and where it runs."""

    name: str = ""
    """Name of the run's folder; made of method, data, preset and seed where it is not given."""
    runs: Path = Path("runs")
    """Folder that holds the runs."""
    resume: bool = False
    """Go on from the newest checkpoint, as if the run had never stopped (bit for bit on CPUs; on GPUs too with
    XLA_FLAGS=--xla_gpu_deterministic_ops=true)."""
    start_from: tuple[str, ...] = ()
    """Networks taken from finished runs instead of random numbers: NETWORK=RUN_FOLDER, e.g. segmenter=runs/first. Or
    their backbones from a file of pretrained weights (ResNet, EfficientNet-B2, ViT; torchvision's or timm's names):
    NETWORK=FILE.safetensors, e.g. segmenter=resnet34.safetensors. With several seeds, each starts from it."""
    init: str = ""
    """hyper:RUN_FOLDER starts every network from the hypernetwork of a run of --method hyperinit; heads stay fresh."""
    beside: Path | None = None
    """Another run of the same method, finished or not, whose curves the report shows beside this one's."""
    dry_run: bool = False
    """Print mesh, parameters, memory and FLOPs of a step, and train nothing."""
    json: bool = False
    """With --dry-run: print one JSON object, on the last line."""
    distributed: bool = False
    """One of several processes: found from the cluster, or by the three options below."""
    coordinator: str | None = None
    """HOST:PORT of process 0."""
    processes: int | None = None
    """Number of processes."""
    process: int | None = None
    """Number of this process, from 0."""


def parse(argv: list[str]) -> tuple[argparse.Namespace, Any]:
    """Reads the command line: method, data set and preset first, since they say which options there are."""
    first = argparse.ArgumentParser(
        prog="run.py", allow_abbrev=False, add_help=False, epilog=EPILOG, formatter_class=argparse.RawTextHelpFormatter,
        description="Trains a published system of medical image analysis and leaves a report.",
    )  # fmt: skip
    first.add_argument("--method", metavar="NAME", help=f"the system: {', '.join(methods.METHODS)}")
    names = ", ".join(datasets.DATASETS)
    first.add_argument("--data", metavar="NAME", help=f"the data set: {names} (default: the method's phantoms)")
    first.add_argument("--preset", metavar="NAME", default="demo", help=f"the scale: {', '.join(presets.PRESETS)}")
    first.add_argument("--seeds", metavar="N", help="train so many seeds side by side in one program (--train.seeds)")
    chosen, rest = first.parse_known_args(argv)
    if chosen.method is None:
        if {"-h", "--help"} & set(rest):
            first.print_help()
            raise SystemExit(0)
        raise InputError(
            f"No --method was given. Choose one of {', '.join(methods.METHODS)}, for example: python "
            "experiments/run.py --method seatrans. With --help every option is explained."
        )
    rest += ["--train.seeds", chosen.seeds] if chosen.seeds else []
    chosen.data = chosen.data or methods.load(chosen.method).DATA
    method, data, train = presets.preset(chosen.preset, chosen.method, chosen.data)
    parts = {"method": method, "data": data, "train": train}
    fields = [(name, type(default), dataclasses.field(default=default)) for name, default in parts.items()]
    Everything = dataclasses.make_dataclass("Everything", fields, bases=(Options,), frozen=True, kw_only=True)
    head = (
        f"{chosen.method} on {chosen.data}, preset {chosen.preset} (--method, --data and --preset choose others; "
        "--seeds N is --train.seeds N)."
    )
    hint = "With --help every option is explained."
    options = parse_options(Everything, rest, prog="run.py", hint=hint, description=head)
    by_hand = (options.coordinator, options.processes, options.process)
    if any(value is not None for value in by_hand) and not options.distributed:
        raise InputError("--coordinator, --processes and --process were given without --distributed. Add it.")
    if options.json and not options.dry_run:
        raise InputError("--json was given without --dry-run, whose output it shapes. Add --dry-run, or leave it out.")
    loop.check(options.train)
    if options.init and options.train.seeds > 1:
        raise InputError(f"--seeds {options.train.seeds} with --init, whose hypernetwork starts one net: give 1.")
    if Path(options.name).name != options.name or options.name == "..":
        raise InputError(f"--name {options.name!r} is a path; give a plain name, and the folder around it by --runs.")
    return chosen, options


def run(argv: list[str]) -> int:
    """Runs a command line and returns the exit code."""
    chosen, options = parse(argv)
    host.prepare_compiler()
    import jax

    from ophjax.train import checkpoint, hyper, mesh, restore, results, runfolder
    from ophjax.train.logs import say
    from ophjax.train.report import page
    from ophjax.train.seeds import side_by_side

    if options.distributed:
        mesh.start_processes(options.coordinator, options.processes, options.process)
    host.keep_memory()
    data = datasets.make(chosen.data, options.data)
    method_config = methods.fit_to(options.method, data)
    alone = methods.load(chosen.method).make(method_config)
    method = side_by_side(alone, options.train.all_seeds)
    if options.dry_run:
        from ophjax.train import estimate

        plan = estimate.estimate(method, data, options.train)
        plan = {"method": chosen.method, "data": chosen.data, "preset": chosen.preset} | plan
        print(json.dumps(plan) if options.json else estimate.describe(plan))
        return 0

    folder = options.runs / (
        options.name or f"{chosen.method}-{chosen.data}-{chosen.preset}-{seed_words(options.train)}"
    )
    about = {
        "command": shlex.join(["python", "experiments/run.py", *argv]),
        "method": chosen.method,
        "data": chosen.data,
        "preset": chosen.preset,
        "config": runfolder.plain_config(method=method_config, data=options.data, train=options.train)
        | {"start": {"from": list(options.start_from)} | ({"init": options.init} if options.init else {})},
        "versions": runfolder.versions(),
        "note": data.note,
        "regions": list(data.regions),
        "classes": list(data.classes),
        "domains": list(data.domains),
        "raters": list(data.raters),
        "caution": getattr(methods.load(chosen.method), "CAUTION", ""),
        "beside": str(options.beside.resolve()) if options.beside else "",
        "splits": {name: len(source) for name, source in data.splits.items()},
        # What prediction and export need to know of the data set, which need not be there then.
        "example": restore.describe_example(data),
    }
    if options.start_from and not runfolder.has_begun(folder):  # a new run: refused before it has a folder
        abstract = loop.abstract_state(method, data, options.train)
        checkpoint.check_networks(abstract, options.start_from, seeds=options.train.seeds)
    if options.init and not runfolder.has_begun(folder):
        hyper.parse_source(options.init)
    if options.beside and not (options.beside / "config.json").exists():
        raise InputError(
            f"--beside {options.beside} is no run folder: it has no config.json. Give one, or leave it out."
        )
    if runfolder.claim(folder, about, resume=options.resume) == "finished":
        if jax.process_index() == 0 and not page.is_fresh(folder):
            page.write_report(folder)  # the run was killed after its last event and before its page was drawn
        say(f"{folder} is finished: see {folder / 'report.html'}. Nothing to do; give another --name for another run.")
        return 0
    say(data.note)
    say(f"Training {chosen.method} on {chosen.data}: {folder} ({jax.device_count()} x {jax.devices()[0].platform})")
    try:
        fitted = loop.fit(
            method,
            data,
            options.train,
            folder,
            about={name: about[name] for name in ("method", "data", "config", "versions")},
            resume=options.resume,
            redraw=lambda: page.write_report(folder),
            start_from=options.start_from,
            start=(lambda key, batch: hyper.starter(options.init, method, key, batch)) if options.init else None,
        )
    except DivergedError:
        if jax.process_index() == 0:
            page.write_report(folder)  # the curves show where it went wrong
        raise
    if fitted.stopped:
        what = "Stopped and saved" if int(fitted.state.step) else "Stopped before the first step: nothing to save"
        say(f"{what}. Go on with: {about['command']}{'' if options.resume else ' --resume'}")
        return STOPPED
    scores = results.conclude(method, data, options.train, folder, fitted, alone)
    if jax.process_index() == 0:
        path = page.write_report(folder)
        say(runfolder.summary(scores))
        say(f"Report: {path}")
    return 0


def seed_words(train: Any) -> str:
    """The part of a run's name that tells its seeds."""
    seeds = train.all_seeds
    return f"seed{seeds[0]}" if len(seeds) == 1 else f"seeds{seeds[0]}to{seeds[-1]}"


def main() -> int:
    """Runs the command line; what the user can mend is one paragraph and exit code 2."""
    # Where the loop does not watch for it (while data are drawn, at the last scores) SIGTERM ends like Ctrl-C.
    ends_like_ctrl_c()
    try:
        return run(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        if "jax" in sys.modules:
            from ophjax.train import mesh

            mesh.wait_no_longer(2)
        return 2
    except KeyboardInterrupt:
        print("Interrupted. What was saved is whole: the same command with --resume goes on from it.", file=sys.stderr)
        return STOPPED
    except RuntimeError as error:
        from ophjax.train import checkpoint, mesh

        if not mesh.is_lost(error):
            raise
        print(f"error: {mesh.LOST} ({checkpoint.first_line(error)})", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(2)  # an ordinary exit would wait for the lost process for minutes, and then be aborted


if __name__ == "__main__":
    sys.exit(main())
