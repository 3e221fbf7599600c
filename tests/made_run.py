"""A run's folder without training: every method at the smoke preset with random weights in its one checkpoint."""

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import presets
from ophjax import data as datasets
from ophjax import methods, trees
from ophjax.data.sources import Dataset
from ophjax.train import restore, runfolder
from ophjax.train.checkpoint import Checkpoints
from ophjax.types import Method, TrainState


class Made(NamedTuple):
    folder: Path
    method: Method
    config: Any
    data: Dataset
    state: TrainState


def make_run(name: str, folder: Path, **changes: Any) -> Made:
    """Writes config.json as run.py does, and a checkpoint in the shapes that ``init`` gives."""
    config, data_config, train = presets.preset("smoke", name)
    source = methods.load(name).DATA
    data = datasets.load(source).make(data_config)
    config = methods.fit_to(config, data)
    config = type(config)(**{**vars(config), **changes})
    method = methods.load(name).make(config)
    about = {
        "command": "", "method": name, "data": source, "preset": "smoke",
        "config": runfolder.plain_config(method=config, data=data_config, train=train) | {"start": {"from": []}},
        "versions": runfolder.versions(), "note": data.note, "regions": list(data.regions),
        "classes": list(data.classes), "domains": list(data.domains), "raters": list(data.raters),
        "caution": "", "splits": {part: len(one) for part, one in data.splits.items()},
        "example": restore.describe_example(data),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(about))
    example = data.splits["val"][0]
    batch = {key: jax.ShapeDtypeStruct((1, *np.shape(value)), value.dtype) for key, value in example.items()}
    for key, kind in (("weight", np.float32), ("mask_weight", np.float32), ("index", np.int32)):
        batch.setdefault(key, jax.ShapeDtypeStruct((1,), kind))
    state = fill(jax.eval_shape(method.init, jax.random.key(0), batch))
    with closing(Checkpoints(folder / "checkpoints")) as saved:
        saved.save(1, state, {"stage": method.stages[-1].name}, watch=0.5)
        saved.wait()
    return Made(folder, method, config, data, jax.device_get(state))


def fill(shapes: TrainState) -> TrainState:
    """Random weights without compiling anything: small parameters, everything else positive (variances, masks)."""
    rng = np.random.default_rng(0)

    def draw(path: str, leaf: Any) -> np.ndarray:
        if not np.issubdtype(leaf.dtype, np.floating):
            return np.ones(leaf.shape, leaf.dtype) if path.startswith("extra") else np.zeros(leaf.shape, leaf.dtype)
        values = rng.normal(0, 0.1, leaf.shape) if path.startswith("params") else rng.uniform(0.5, 1.5, leaf.shape)
        return np.asarray(values, leaf.dtype)

    return jax.tree.map(jnp.asarray, trees.map_named(draw, shapes))


def write_inputs(made: Made, folder: Path, count: int = 2) -> list[dict[str, np.ndarray]]:
    """Writes the first validation images as PNG (or eyes in GAMMA's layout) and returns their examples."""
    examples = [made.data.splits["val"][i] for i in range(count)]
    for i, example in enumerate(examples):
        place = folder / f"case{i}.png"
        if "volume" in example:
            home = folder / "multi-modality_images" / f"{i + 1:04}"
            (home / home.name).mkdir(parents=True)
            # A JPEG would not be exact; the suffix does not tell the decoder what the file is.
            place = home / f"{home.name}.jpg"
            for k in range(example["volume"].shape[-1]):
                save(home / home.name / f"{k}_image.jpg", np.repeat(example["volume"][..., k, None], 3, -1))
        save(place, example["image"])
    return examples


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG")


def drawn(method: Method, batch: Mapping[str, Any], seed: int = 0) -> TrainState:
    """A fresh state without compiling ``method.init``, see ``drawn_like``."""
    return drawn_like(jax.eval_shape(method.init, jax.random.key(0), batch), seed)


def drawn_like(shapes: Any, seed: int = 0) -> Any:
    """Arrays of the shapes of an initialisation: kernels of He's spread, scales and variances 1, all else 0.

    For tests of steps; what a net's own start holds beyond that (a zero last layer, say) is not here.
    """
    rng = np.random.default_rng(seed)

    def draw(path: str, leaf: Any) -> np.ndarray:
        name = path.rsplit("/", 1)[-1]
        if path.startswith("params") and len(leaf.shape) > 1 and name not in ("scale", "bias"):
            return np.asarray(rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape), leaf.dtype)
        return np.full(leaf.shape, name in ("scale", "var"), leaf.dtype)

    return jax.tree.map(jnp.asarray, trees.map_named(draw, shapes))
