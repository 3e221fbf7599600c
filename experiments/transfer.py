"""Try a trained hypernetwork on networks it never saw: python experiments/transfer.py --runs RUN --data.task target

Fine-tunes each network on a few images of each class, from four starts: He's initialiser, the hypernetwork, one that
was never trained, and the trained one reading a shuffled graph. Every start runs at each learning rate; its best one is
chosen on the validation split, and the table reports the test split. Finished trials are kept in trials.jsonl, so that
the command goes on where it was stopped.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import presets
from ophjax import data as datasets
from ophjax.errors import InputError, as_command, unknown
from ophjax.train import host


def arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Reads the options of this command; the rest configures the data set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--runs", nargs="+", type=Path, required=True, help="runs of --method hyperinit, by turns of seeds"
    )
    parser.add_argument("--data", default="shapes", help="the data set of the new task (default: shapes)")
    parser.add_argument(
        "--nets", nargs="+", default=["resnet", "densenet", "mobile"], help="out of resnet, densenet, mobile, unet"
    )
    parser.add_argument("--shots", nargs="+", type=int, default=[5, 20], help="training images of each class")
    parser.add_argument("--rates", nargs="+", type=float, default=[0.03, 0.1, 0.3], help="learning rates of SGD")
    parser.add_argument("--starts", nargs="+", default=None, help="starts (default: all four)")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the images and of the fresh head")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them; tune on 100 and above")
    parser.add_argument("--steps", type=int, default=100, help="steps of fine-tuning")
    parser.add_argument("--batch-size", type=int, default=32, help="images of a step")
    parser.add_argument("--noise", type=float, default=0.1, help="noise on predicted kernels")
    parser.add_argument("--spread", default="he", help="of predicted kernels: predicted, or he (rescaled to it)")
    parser.add_argument(
        "--untuned", action="store_true", help="only score what is predicted, heads included, on the runs' own classes"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"), help="folder of the table and the figure")
    return parser.parse_known_args(argv)


def data_of(name: str, rest: list[str]) -> Any:
    """The data set, configured by the remaining options (--data.task target)."""
    import tyro

    module = datasets.load(name)
    _, config, _ = presets.preset("demo", "hyperinit", name)
    words = [word.replace("--data.", "--", 1) for word in rest]
    strange = [word for word in rest if word.startswith("--") and not word.startswith("--data.")]
    if strange:
        raise InputError(f"Unknown option {strange[0]}. Options of the data set begin with --data. ; see --help.")
    try:
        return module.make(tyro.cli(type(config), default=config, args=words, prog="transfer.py --data."))
    except SystemExit as leaving:
        if not leaving.code:
            raise
        raise InputError(f"The options {' '.join(rest)} do not fit the data set {name}; see above.") from None


def transfer(argv: list[str]) -> int:
    """Runs the trials that are not there yet, then writes table and figure."""
    options, rest = arguments(argv)
    host.prepare_compiler()
    import jax
    import numpy as np
    from tqdm import tqdm

    from ophjax.keys import at
    from ophjax.train import hyper
    from ophjax.train import transfer as few

    starts = options.starts or list(few.STARTS)
    for kind, given, known in (("network", options.nets, tuple(few.UNSEEN)), ("start", starts, few.STARTS)):
        for name in given:
            if name not in known:
                raise unknown(kind, name, known)
    if (
        min(options.shots, default=0) < 1
        or min(options.rates, default=0) <= 0
        or options.seeds < 1
        or options.steps < 1
        or options.batch_size < 1
    ):
        raise InputError("--shots, --seeds, --steps and --batch-size are at least 1, and --rates are above 0.")
    data = data_of(options.data, rest)
    loaded = [hyper.load_hyper(folder) for folder in options.runs]
    if options.untuned:
        return untuned(options, data, loaded)
    options.out.mkdir(parents=True, exist_ok=True)
    about = {
        name: str(value)
        for name, value in vars(options).items()
        if name in ("runs", "data", "first_seed", "steps", "batch_size", "noise", "spread")
    }
    about |= {"rest": " ".join(rest)}
    path = options.out / "trials.jsonl"
    done = {trial[:5]: trial for trial in kept_trials(path, about)}
    train, val, test = (data.splits[split] for split in ("train", "val", "test"))
    labels = (
        np.array([int(train[i]["label"]) for i in range(len(train))]) if data.classes else np.zeros(len(train), int)
    )
    val, test = few.read(val), few.read(test)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    everything = list(itertools.product(options.nets, options.shots, seeds, starts, options.rates))
    with path.open("a") as kept, tqdm(total=len(everything), unit="trial", disable=not sys.stderr.isatty()) as bar:
        for net in options.nets:
            bench = few.Bench(net, data, steps=options.steps, batch_size=options.batch_size)
            for shots, seed, start in itertools.product(options.shots, seeds, starts):
                missing = [rate for rate in options.rates if (net, shots, seed, start, rate) not in done]
                bar.update(len(options.rates) - len(missing))
                if not missing:
                    continue
                chosen = few.read(train, few.draw_shots(train, labels, shots, seed))
                ghn, params = loaded[(seed - options.first_seed) % len(loaded)]
                key = at(jax.random.key(seed), "start")
                variables = bench.start(start, key, ghn, params, seed=seed, noise=options.noise, spread=options.spread)
                for rate in missing:
                    trial = bench.trial(start, shots, seed, rate, variables, chosen, val, test)
                    done[trial[:5]] = trial
                    kept.write(json.dumps(trial._asdict()) + "\n")
                    kept.flush()
                    bar.update()
    trials = [done[key] for key in everything]
    text = few.table(trials)
    (options.out / "table.md").write_text(text + "\n")
    few.draw(trials, options.out / "curves.png")
    print(text)
    print(f"Figure: {options.out / 'curves.png'}")
    return 0


def kept_trials(path: Path, about: dict[str, str]) -> list[Any]:
    """Reads the trials that are there, or begins the file. Lines cut off by a kill are skipped.

    Raises:
      InputError: they were made with other options.
    """
    from ophjax.train.logs import read_events
    from ophjax.train.transfer import Trial

    lines = list(read_events(path))
    if not lines:
        path.write_text(json.dumps(about) + "\n")
        return []
    if {"first_seed": "0"} | lines[0] != about:  # older files do not say it
        raise InputError(f"{path} holds trials of other options ({lines[0]}). Give another --out.")
    if not path.read_bytes().endswith(b"\n"):
        with path.open("a") as kept:
            kept.write("\n")
    return [Trial(**line) for line in lines[1:] if line.keys() == set(Trial._fields)]


def untuned(options: argparse.Namespace, data: Any, loaded: list[Any]) -> int:
    """Scores predicted networks as they are: no training at all."""
    from ophjax.train import transfer as few

    few_images = few.read(data.splits["train"], range(min(256, len(data.splits["train"]))))
    test = few.read(data.splits["test"])
    for net in options.nets:
        bench = few.Bench(net, data, steps=1, batch_size=1)
        for (ghn, params), folder in zip(loaded, options.runs, strict=True):
            if not bench.dense and ghn.config.classes != len(data.classes):
                raise InputError(
                    f"{folder} predicts heads of {ghn.config.classes} classes and {data.name} has {len(data.classes)}. "
                    "Give --untuned the data of the runs' own task."
                )
            print(f"{net:10} {folder.name:20} {bench.untuned(ghn, params, few_images, test):.3f}")
    return 0


def main() -> int:
    """Runs the command; what the user can mend is one paragraph and exit code 2."""
    return as_command(transfer)


if __name__ == "__main__":
    sys.exit(main())
