"""Export a trained network: python experiments/export.py --run RUN --out FOLDER

FOLDER gets program.jaxexport (any number of images, CPU, CUDA and TPU), weights.safetensors, and the model card as
README.md and model.json. Reloading needs jax and safetensors alone; README.md shows how.
"""

import argparse
import sys
from pathlib import Path

from ophjax.errors import as_command
from ophjax.train import host


def arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--out", type=Path, required=True, help="folder for the artefact")
    parser.add_argument("--checkpoint", choices=("newest", "best"), default="newest", help="which (default: newest)")
    parser.add_argument("--licence", default="", help="licence of the weights, for the card")
    return parser.parse_args(argv)


def run(argv: list[str]) -> str:
    """Runs a command line and returns what it has to say."""
    options = arguments(argv)
    from ophjax.train import export, restore

    found = restore.restore(options.run, which=options.checkpoint)
    about = export.export_run(found, options.out, licence=options.licence)
    size = sum((options.out / name).stat().st_size for name in (export.PROGRAM, export.WEIGHTS))
    return (
        f"{options.out}: {about['method']}, {about['parameters']:,} numbers, {size / 2**20:.1f} MiB, for "
        f"{', '.join(about['platforms'])}. {options.out / export.CARD} says how to load it."
    )


def main() -> int:
    """Runs the command; what the user can mend is one paragraph and exit code 2."""
    host.prepare_compiler()
    return as_command(run)


if __name__ == "__main__":
    sys.exit(main())
