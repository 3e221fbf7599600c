"""Predict new images with a trained network: python experiments/predict.py --run RUN --input FOLDER

Works for every method, without the data set that the run was trained on: sizes, classes and regions come from the run's
folder. The input is an image, a DICOM or NIfTI file, or a folder of them with all that lies below (GAMMA's grading: a
folder with pairs in the official layout). Images are read as in training.

Written below --out: predictions.csv; masks/ (the data set's pixel values, the image's own size); overlays/; maps/;
arrays/ (probabilities as npz); pictures/ (enlarged images of dualsr); predict.json, which says what the numbers mean.
Files that cannot be read are left out and listed in skipped.csv, and the exit code is then 3.
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ophjax import data as datasets
from ophjax.data import images, incoming
from ophjax.errors import InputError, as_command
from ophjax.train import host

SKIPPED = 3
"""Exit code where some files could not be read; all others were predicted."""


def arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--input", type=Path, required=True, help="a file, or a folder")
    parser.add_argument("--out", type=Path, help="folder for the results (default: RUN/predicted/INPUT)")
    parser.add_argument(
        "--checkpoint", choices=("newest", "best"), default="newest", help="which one (default: newest)"
    )
    parser.add_argument("--batch-size", type=int, default=0, help="images at once (default: what fits into memory)")
    parser.add_argument("--no-overlays", action="store_true", help="write no overlays")
    parser.add_argument("--no-arrays", action="store_true", help="write no arrays")
    parser.add_argument("--tile", type=int, default=192, help="dualsr: side of the tiles in input pixels (default 192)")
    parser.add_argument("--overlap", type=int, default=16, help="dualsr: input pixels that tiles share (default 16)")
    return parser.parse_args(argv)


def run(argv: list[str]) -> int:
    """Runs a command line and returns the exit code."""
    options = arguments(argv)
    if options.batch_size < 0:
        raise InputError(f"--batch-size is {options.batch_size}; give at least 1, or leave it out.")
    if not 0 <= options.overlap < options.tile:
        raise InputError(
            f"--tile {options.tile} --overlap {options.overlap}: the overlap is at least 0 and below the tile's side."
        )
    from tqdm import tqdm

    from ophjax.train import predict, restore, writing
    from ophjax.train.runfolder import versions, write_whole

    found = restore.restore(options.run, which=options.checkpoint)
    host.keep_memory()
    out = options.out or options.run / "predicted" / (options.input.resolve().stem or "input")
    module = datasets.load(found.about["data"])
    levels = incoming.grey_levels(module, found.data_config, found.regions)
    inputs = incoming.readers(module, found.data_config, options.input, needed=predict.entries_read(found), outside=out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made: {error}. Give an --out folder that can be written.") from error
    writer = writing.Writer(
        out, classes=found.classes, regions=found.regions, levels=levels, exclusive=found.method.exclusive,
        ordinal=found.method.ordinal, overlays=not options.no_overlays, arrays=not options.no_arrays,
    )  # fmt: skip
    skipped: list[predict.Skipped] = []
    with tqdm(total=len(inputs), unit="file", disable=not sys.stderr.isatty()) as bar:
        results: Iterator[Any]
        if "target" in found.example:
            results = enlarged(found, inputs, options, bar.update)
        else:
            known = not any(incoming.is_volume(file) for file, _ in inputs.values())  # else each may be many images
            predictor = predict.Predictor(found, batch_size=options.batch_size, images=len(inputs) if known else 0)
            results = predict.predict_cases(predictor, predict.read_cases(inputs), done=bar.update)
        for one in results:
            if isinstance(one, predict.Skipped):
                skipped.append(one)
            else:
                writer.write(*one)
    table = writer.finish()
    about = {
        "run": str(options.run), "input": str(options.input), "method": found.about["method"],
        "data": found.about["data"], "note": found.about.get("note", ""), "checkpoint": found.step,
        "classes": found.classes, "mask_values": dict(incoming.describe_levels(levels, found.regions)),
        "ordinal": found.method.ordinal, "predicted": len(writer.rows), "skipped": len(skipped),
        "trained_with": found.about.get("versions", {}),
        "versions": versions(),
    }  # fmt: skip
    write_whole(out / "predict.json", (json.dumps(about, indent=2) + "\n").encode())
    if "square of" in about["note"]:  # no disc is known of a new image, so that none can be cut out around it
        print("note: in training each image was a square around a given region; give such crops.", file=sys.stderr)
    print(f"{table}: {len(writer.rows)} predicted by {found.about['method']} (checkpoint {found.step}).")
    if not skipped:
        (out / "skipped.csv").unlink(missing_ok=True)
        return 0
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([("file", "reason"), *skipped])
    write_whole(out / "skipped.csv", stream.getvalue().encode())
    print(f"{len(skipped)} file(s) were skipped, see {out / 'skipped.csv'}:", file=sys.stderr)
    for one in skipped[:5]:
        print(f"  {one.reason}", file=sys.stderr)
    return SKIPPED


def enlarged(found: Any, inputs: dict[str, Any], options: argparse.Namespace, done: Any) -> Iterator[Any]:
    """Enlarges images of any size tile by tile."""
    import jax
    import numpy as np

    from ophjax.train import predict
    from ophjax.train.tiles import upscale

    program = jax.jit(lambda state, image: found.method.predict(jax.random.key(0), state, {"image": image})["restored"])
    state, scale = jax.device_put(found.state), found.config.scale

    def enlarge(tile: np.ndarray) -> np.ndarray:
        return np.asarray(program(state, tile[None].astype(np.uint8))[0]).astype(np.float32)

    for name, (file, _) in inputs.items():
        try:
            image = images.read_whole(file)
            picture = upscale(enlarge, image, scale=scale, tile=options.tile, overlap=options.overlap)
        except InputError as error:
            yield predict.Skipped(file, str(error))
        else:
            size = (image.shape[1], image.shape[0])
            yield file, incoming.Case(name, {}, image, size, (0, 0, *size)), {"restored": picture}
        done()


def main() -> int:
    """Runs the command; what the user can mend is one paragraph and exit code 2."""
    host.prepare_compiler()
    return as_command(run)


if __name__ == "__main__":
    sys.exit(main())
