"""Enlarge images with a trained network: python experiments/predict.py RUN_FOLDER --images PICTURES --out FOLDER

Instead of a run's folder a file of weights can be given: safetensors with the names of DRN's released PyTorch program,
or that program's .pt where torch is installed. Large images are done tile by tile, so that memory does not grow with
them. With --truth the result is scored as benchmarks do (luma, border cut).
"""

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from ophjax import methods
from ophjax.data import files, images
from ophjax.errors import InputError
from ophjax.train import host


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

    if model.is_dir():
        return from_run(model)
    return superres_weights.from_state_dict(superres_weights.read_weights(model))


def from_run(folder: Path) -> tuple[Any, Any]:
    """Loads the network of a run."""
    from ophjax.types import TrainState

    config, state = read_run(folder)
    module = methods.load("dualsr")
    whole = TrainState(step=np.zeros((), np.int32), params=state["params"], opt={}, extra=state["extra"])
    if config.ratio:
        return module.compact(config, whole)
    return module.build(config), whole.params["primal"]


def read_run(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Reads a dualsr run's configuration and its newest state.

    Raises:
      InputError: the folder holds no such run, or no checkpoint.
    """
    from ophjax.train.checkpoint import Checkpoints

    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        given = about["config"]["method"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} is no run: its config.json cannot be read ({error!r}). Give a run's folder."
        ) from error
    if about.get("method") != "dualsr":
        raise InputError(f"{folder} is a run of {about.get('method')}; only those of dualsr enlarge images.")
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    with closing(Checkpoints(folder / "checkpoints", read_only=True)) as saved:
        steps = saved.steps()
        if not steps:
            raise InputError(f"{folder} has no checkpoint yet. Wait for its first, or give another run.")
        return methods.load("dualsr").Config(**plain), saved.read(steps[-1])


def places(size: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along an axis: all inside, each sharing at least ``overlap`` with the next."""
    if size <= tile:
        return [0]
    count = -(-(size - overlap) // (tile - overlap))
    return [round(i * (size - tile) / (count - 1)) for i in range(count)]


def upscale(
    enlarge: Callable[[np.ndarray], np.ndarray], image: np.ndarray, *, scale: int, tile: int, overlap: int
) -> np.ndarray:
    """Enlarges an image tile by tile; where tiles overlap, each gives its half.

    Args:
      enlarge: of float32 [h, w, 3] to [s h, s w, 3]; called with one shape only where the image is larger than a tile.
      image: uint8 [h, w, 3].
      scale: s.
      tile: side of the tiles; a shorter side of the image is taken whole.
      overlap: pixels that neighbours share, below the tile's side.

    Returns:
      uint8 [s h, s w, 3].
    """
    height, width, _ = image.shape
    found = np.empty((scale * height, scale * width, 3), np.uint8)
    rows, columns = places(height, tile, overlap), places(width, tile, overlap)
    for i, top in enumerate(rows):
        # The half of what is shared with the tile before and with the one behind.
        first = (rows[i - 1] + tile + top + 1) // 2 if i else 0
        last = (top + tile + rows[i + 1] + 1) // 2 if i + 1 < len(rows) else height
        for j, left in enumerate(columns):
            start = (columns[j - 1] + tile + left + 1) // 2 if j else 0
            stop = (left + tile + columns[j + 1] + 1) // 2 if j + 1 < len(columns) else width
            part = enlarge(image[top : top + tile, left : left + tile].astype(np.float32))
            part = np.clip(np.round(part), 0, 255).astype(np.uint8)
            y, x = scale * (first - top), scale * (start - left)
            found[scale * first : scale * last, scale * start : scale * stop] = part[
                y : y + scale * (last - first), x : x + scale * (stop - start)
            ]
    return found


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
    host.cache_programs()
    try:
        run(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
