"""Take the channels that a dualsr run has pruned out of its network: python experiments/compact.py RUN_FOLDER

Writes into RUN_FOLDER/compact: primal.safetensors and dual.safetensors (names of DRN's released PyTorch program),
widths.txt (one channel number a line, in that program's order), and checkpoints/, from which run.py goes on training
the smaller network as it prints. A .pt file of the released program given instead of a run is converted to safetensors.
"""

import argparse
import shlex
import shutil
import sys
from contextlib import closing
from pathlib import Path

import enlarge
import presets
from ophjax import methods
from ophjax.errors import InputError, as_command
from ophjax.train import host
from ophjax.train.restore import Restored


def arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", type=Path, help="folder of a dualsr run with --method.ratio, or a .pt file to convert")
    parser.add_argument("--out", type=Path, help="folder, or for a .pt file the file, to write")
    return parser.parse_args(argv)


def compact(folder: Path, out: Path) -> str:
    """Writes the smaller network of a run and says what it is and how to go on with it."""
    import jax
    import jax.numpy as jnp

    from ophjax import trees
    from ophjax.nets import superres, superres_weights
    from ophjax.train.checkpoint import Checkpoints

    if (out / "config.json").exists():
        raise InputError(f"{out} is the folder of a run, whose checkpoints would be lost. Give another --out.")
    run = enlarge.read_run(folder)
    config, state = run.config, run.state
    net, params = methods.load("dualsr").compact(config, state)
    dense = methods.load("dualsr").build(config)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if (out / "checkpoints").exists():  # of an earlier call
            shutil.rmtree(out / "checkpoints")
        (out / "widths.txt").write_text("".join(f"{count}\n" for count in superres.inner_of(net)))
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error}. Give an --out folder that can be.") from error
    superres_weights.write_weights(out / "primal.safetensors", superres_weights.to_state_dict(net, params))
    networks = {"primal": params}
    if "dual" in state.params:
        networks["dual"] = state.params["dual"]
        superres_weights.write_weights(
            out / "dual.safetensors", superres_weights.dual_to_state_dict(state.params["dual"])
        )
    with closing(Checkpoints(out / "checkpoints")) as saved:
        saved.save(0, state.replace(params=jax.tree.map(jnp.asarray, networks), extra={}), {"compacted": str(folder)})
        saved.wait()
    sizes = [(trees.count(tree), superres.count_madds(one) / 1e9)
             for one, tree in ((dense, state.params["primal"]), (net, params))]  # fmt: skip
    (before, dense_madds), (after, madds) = sizes
    return (
        f"{out}: {before:,} parameters became {after:,}; {dense_madds:.2f} G multiply-adds at 96 x 96 became "
        f"{madds:.2f}.\nTrain it on: {go_on(run, superres.inner_of(net), [f'{name}={out}' for name in networks])}"
    )


def go_on(run: Restored, inner: tuple[int, ...], taken: list[str]) -> str:
    """The command that trains the smaller network on, as the run's own tuning did: its preset, data and options."""
    from ophjax.train.runfolder import plain_config

    about = run.about
    preset, given = about.get("preset", "demo"), about["config"]
    method, data, train = presets.preset(preset, "dualsr", about["data"])
    usual = plain_config(method=method, data=data, train=train)
    wanted = given["method"] | {
        "inner": list(inner), "narrow": 0.0, "ratio": 0.0, "dual_steps": 0, "lr": run.config.tune_lr,
        "steps": run.config.tune_steps or run.config.steps or method.steps, "scale": method.scale,
    }  # fmt: skip
    words = ["python", "experiments/run.py", "--method", "dualsr", "--preset", preset, "--data", about["data"]]
    words += ["--runs", str(run.folder.parent), "--name", f"{run.folder.name}-compact"]
    for part, values in (("method", wanted), ("data", given.get("data")), ("train", given.get("train"))):
        always = ("inner", "ratio", "dual_steps", "lr") if part == "method" else ()
        changed = {name: value for name, value in (values or {}).items() if value != usual[part].get(name)}
        words += presets.flags(part, {name: wanted[name] for name in always} | changed)
    return shlex.join([*words, "--start-from", *taken])


def convert(source: Path, target: Path) -> str:
    """Converts a .pt file to safetensors."""
    from ophjax.nets import superres_weights

    tensors = superres_weights.read_weights(source)
    superres_weights.write_weights(target, tensors)
    return f"{target}: {len(tensors)} tensors"


def run(argv: list[str]) -> str:
    """Runs a command line and returns what it has to say."""
    options = arguments(argv)
    if options.model.suffix in (".pt", ".pth"):
        return convert(options.model, options.out or options.model.with_suffix(".safetensors"))
    return compact(options.model, options.out or options.model / "compact")


def main() -> int:
    """Runs the command; what the user can mend is one paragraph and exit code 2."""
    host.prepare_compiler()
    return as_command(run)


if __name__ == "__main__":
    sys.exit(main())
