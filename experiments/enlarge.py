"""Enlarge images with a trained network: python experiments/enlarge.py MODEL --images PICTURES --out FOLDER

MODEL is a run's folder or a file of weights: safetensors with the names of DRN's released PyTorch program, or that
program's .pt where torch is installed. Large images are done tile by tile, so that memory does not grow with
them. With --truth the result is scored as benchmarks do (luma, border cut).
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ophjax import methods
from ophjax.data import files, images
from ophjax.errors import InputError, as_command
from ophjax.train import host
from ophjax.train.restore import Restored, read_single, restore
from ophjax.train.tiles import upscale


def arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", type=Path, help="folder of a dualsr run, or a .safetensors or .pt file")
    parser.add_argument("--images", type=Path, required=True, help="an image, or a folder of them")
    parser.add_argument("--out", type=Path, required=True, help="folder for the enlarged images (PNG)")
    parser.add_argument("--tile", type=int, default=192, help="side of the tiles in input pixels (default 192)")
    parser.add_argument("--overlap", type=int, default=16, help="input pixels that tiles share (default 16)")
    parser.add_argument("--truth", type=Path, help="folder of the images in high resolution, to score the result")
    return parser.parse_args(argv)


def load(model: Path) -> tuple[Any, Any]:
    """Loads a network and its parameters from a run's folder (compact where the run compressed) or a file of weights.

    Raises:
      InputError: neither of them is there, or it does not fit.
    """
    from ophjax.nets import superres_weights

    if not model.is_dir():
        return superres_weights.from_state_dict(superres_weights.read_weights(model))
    run = read_run(model)
    module = methods.load("dualsr")
    if run.config.ratio:
        return module.compact(run.config, run.state)
    return module.build(run.config), run.state.params["primal"]


def read_run(folder: Path) -> Restored:
    """Restores a dualsr run.

    Raises:
      InputError: the folder holds no such run, or no checkpoint.
    """
    method = read_single(folder)["method"]
    if method != "dualsr":
        raise InputError(f"{folder} is a run of {method}; only those of dualsr enlarge images.")
    return restore(folder)


def run(argv: list[str]) -> dict[str, tuple[float, float]]:
    """Enlarges all images; returns PSNR and SSIM of each where there is a truth."""
    options = arguments(argv)
    if not 0 <= options.overlap < options.tile:
        raise InputError(
            f"--tile {options.tile} --overlap {options.overlap}: the overlap is at least 0 and below the tile's side."
        )
    import jax
    from PIL import Image

    from ophjax.metrics.restoration import luma_scores

    net, params = load(options.model)
    forward = jax.jit(lambda params, image: net.apply({"params": params}, image[None]).images[-1][0])
    pictures = files.list_images(options.images) if options.images.is_dir() else {options.images.stem: options.images}
    truths = files.list_images(options.truth) if options.truth else {}
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{options.out} cannot be made: {error}. Give an --out folder that can be written.") from error
    scores: dict[str, tuple[float, float]] = {}
    for name, path in pictures.items():
        found = upscale(
            lambda tile: np.asarray(forward(params, tile)), images.read_whole(path), scale=net.scale,
            tile=options.tile, overlap=options.overlap,
        )  # fmt: skip
        target = options.out / f"{name}.png"
        Image.fromarray(found).save(target)
        truth = truths.get(name, truths.get(name.removesuffix(f"x{net.scale}")))
        said = f"{target}  {found.shape[1]} x {found.shape[0]}"
        if truth is not None:
            known = images.read_whole(truth).astype(np.float64)
            if known.shape[0] < found.shape[0] or known.shape[1] < found.shape[1]:
                raise InputError(
                    f"The truth {truth} is smaller than the enlarged image {target}. Give the right folder."
                )
            psnr, ssim = luma_scores(found.astype(np.float64), known, net.scale)
            scores[name] = (float(psnr), float(ssim))
            said += f"  PSNR {psnr:.4f}  SSIM {ssim:.4f}"
        print(said)
    if options.truth and not scores:
        raise InputError(f"{options.truth} has no image of the same name as one of {options.images}. Rename them.")
    if scores:
        psnr, ssim = np.mean(list(scores.values()), 0)
        print(f"mean of {len(scores)}: PSNR {psnr:.4f}  SSIM {ssim:.4f}")
    return scores


def main() -> int:
    """Runs the command; what the user can mend is one paragraph and exit code 2."""
    host.prepare_compiler()
    return as_command(run)


if __name__ == "__main__":
    sys.exit(main())
