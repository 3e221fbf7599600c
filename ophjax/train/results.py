"""What a run leaves when training is over: scores of the test split, predictions.csv, samples.npz and, for a challenge,
the files of a submission."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ophjax.data.sources import Dataset, Subset
from ophjax.keys import at
from ophjax.metrics import ranking
from ophjax.train import mesh as meshes
from ophjax.train.evaluate import compile_forward, gather
from ophjax.train.logs import EventLog, say
from ophjax.train.loop import Config, Fitted, eval_split, require
from ophjax.train.runfolder import write_whole
from ophjax.train.seeds import member
from ophjax.types import Method

SAMPLED = ("image", "mask", "mask_weight", "label", "domain", "index", "probs")
"""What samples.npz takes over as it is."""
OF_RATERS = ("raters", "rater_weight", "rater_maps")
"""What it takes of the first few samples only: these hold one picture for each rater."""
FEW = 4
RESTORED = 6
"""Restored images, which may be large, and their truths that samples.npz keeps."""
RESTORATION = ("psnr", "ssim", "consistency")
"""Scores of restored images that predictions.csv lists."""


def conclude(
    method: Method, data: Dataset, config: Config, folder: Path, fitted: Fitted, alone: Method | None = None
) -> dict[str, float]:
    """Scores the test split and writes predictions.csv, samples.npz, the method's exports (maps/), the last events.

    Args:
      alone: the method of one seed, where ``method`` is that of several side by side; each is then scored too.
    """
    key = at(jax.random.key(config.seed), "test")
    batches = eval_split(data, "test", config, fitted.mesh)
    gathered = gather(fitted.forward, key, fitted.state, batches, fitted.mesh)
    scores = method.scores(gathered)
    members = score_members(alone, data, config, fitted) if alone is not None and config.seeds > 1 else {}
    samples = draw_samples(data, config, fitted, key) | export_maps(method, data, config, folder, fitted)
    if method.ordinal and "probs" in samples:
        samples["predicted"] = ranking.choose_classes(samples["probs"], ordinal=True)
    write_submission(method, folder, answers(data, config, fitted, key))
    if jax.process_index() == 0:
        table = predictions_table(gathered, require(data, "test").names, ordinal=method.ordinal)
        write_whole(folder / "predictions.csv", table.encode())
        stream = io.BytesIO()
        np.savez_compressed(stream, allow_pickle=False, **samples)
        write_whole(folder / "samples.npz", stream.getvalue())
        log = EventLog(folder / "metrics.jsonl")
        step = int(jax.device_get(fitted.state.step))
        log.write("test", split="test", step=step, scores=scores, **members)
        log.write("finish", step=step)
        log.close()
    return scores


def score_members(alone: Method, data: Dataset, config: Config, fitted: Fitted) -> dict[str, Any]:
    """Scores each of the seeds that were trained side by side on the test split, as a run of its own would be."""
    found = {}
    shardings = meshes.state_shardings(jax.eval_shape(lambda: member(fitted.state, 0)), fitted.mesh)
    forward = compile_forward(alone, fitted.mesh, shardings)
    for number, seed in enumerate(config.all_seeds):
        state = jax.device_put(member(fitted.state, number), shardings)
        key = at(jax.random.key(seed), "test")
        found[str(seed)] = alone.scores(gather(forward, key, state, eval_split(data, "test", config, fitted.mesh),
                                               fitted.mesh))  # fmt: skip
    return {"seeds": found}


def write_submission(method: Method, folder: Path, examples: Iterable[tuple[str, dict[str, Any]]]) -> None:
    """Writes the files of a challenge into ``submission/``, where the method has one and one process has all rows."""
    if method.submit is None:
        return
    if jax.process_count() > 1:
        say("No submission was written: only a run of one process writes one.")
        return
    method.submit(folder / "submission", examples)


def answers(data: Dataset, config: Config, fitted: Fitted, key: jax.Array) -> Iterator[tuple[str, dict[str, Any]]]:
    """Goes through the test split once more: each example's name, with its outputs, maps included, and its rows."""
    names = require(data, "test").names
    for number, batch in enumerate(eval_split(data, "test", config, fitted.mesh)):
        rows, maps = fitted.forward(at(key, number), fitted.state, meshes.place(batch, fitted.mesh))
        found = {name: np.asarray(value) for name, value in (dict(rows) | dict(maps)).items()}
        for i in np.flatnonzero(found["weight"] > 0):
            yield names[found["index"][i]], {name: value[i] for name, value in found.items()}


def predictions_table(gathered: Mapping[str, np.ndarray], names: list[str], *, ordinal: bool = False) -> str:
    """Makes the CSV of one row per test example: name, domain, label, patient (a number, where some are of one),
    probability, predicted class, overlaps, scores of restored images. ``ordinal``: see ``Method``."""
    columns: dict[str, Any] = {"name": [names[i] for i in gathered["index"]]}
    columns |= {name: gathered[name].tolist() for name in ("domain", "label") if name in gathered}
    if len(np.unique(gathered.get("patient", gathered["index"]))) < len(gathered["index"]):
        columns["patient"] = gathered["patient"].tolist()
    if "probs" in gathered:
        columns |= class_columns(gathered["probs"], ordinal=ordinal)
    for name in sorted(gathered):
        if name.startswith(("dice_", *RESTORATION)):  # an image without a mask has none
            columns[name] = ["" if np.isnan(v) else f"{v:.4f}" for v in gathered[name]]
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(columns)
    table.writerows(zip(*columns.values(), strict=True))
    return stream.getvalue()


def class_columns(probs: np.ndarray, *, ordinal: bool = False) -> dict[str, list]:
    """Makes the columns of the probabilities [n, k] and of the class that they choose."""
    names = {1: "prob"} if probs.shape[1] == 2 else {k: f"prob_{k}" for k in range(probs.shape[1])}
    columns: dict[str, list] = {name: [f"{p:.6f}" for p in probs[:, k]] for k, name in names.items()}
    return columns | {"predicted": ranking.choose_classes(probs, ordinal=ordinal).tolist()}


def draw_samples(data: Dataset, config: Config, fitted: Fitted, key: jax.Array) -> dict[str, np.ndarray]:
    """Takes a batch from all over the test split with its maps (masks, attention), for the report's pictures."""
    source = require(data, "test")
    places = np.linspace(0, len(source) - 1, min(config.batch_size, len(source))).round().astype(np.int32)
    some = data._replace(splits={"test": Subset(source, places)})
    with closing(eval_split(some, "test", config, fitted.mesh)) as batches:
        batch = dict(next(batches))
    batch["index"] = np.where(batch["index"] < 0, -1, places[batch["index"]])
    placed = meshes.place(batch, fitted.mesh)
    rows, maps = fitted.forward(at(key, 0), fitted.state, placed)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        placed, maps = multihost_utils.process_allgather((placed, maps), tiled=True)
    found = {name: np.asarray(value) for name, value in (dict(placed) | dict(rows) | dict(maps)).items()}
    real = found["weight"] > 0
    samples = {name: found[name][real] for name in SAMPLED if name in found}
    samples |= {name: found[name][real][:FEW].astype(np.float16) for name in OF_RATERS if name in found}
    if "mask_probs" in found:
        samples["mask_probs"] = found["mask_probs"][real].astype(np.float16)
    profiles = {name.removeprefix("profile_"): v for name, v in found.items() if name.startswith("profile_")}
    if profiles:
        samples["profiles"] = np.stack(list(profiles.values()), 1)[real]
        samples["profile_names"] = np.array(json.dumps(list(profiles)))
    if "restored" in found:
        samples |= {name: found[name][real][:RESTORED] for name in ("restored", "target")}
    looked = {name.removeprefix("attention_"): v for name, v in found.items() if name.startswith("attention_")}
    if looked:
        samples["attention"] = np.stack(list(looked.values()), 1)[real].astype(np.float16)
        samples["attention_names"] = np.array(json.dumps(list(looked)))
    return samples


def export_maps(method: Method, data: Dataset, config: Config, folder: Path, fitted: Fitted) -> dict[str, np.ndarray]:
    """Writes what the method exports of the training images: ``maps/NAME/IMAGE.png``, 8 bit, 255 for 1.

    Maps [h, w, r] lie side by side, the first on the left.

    Returns:
      For the report, of the first batch: ``train_image``, ``train_label``, ``train_name`` and ``map_NAME``.
    """
    if method.export is None:
        return {}
    forward, key = jax.jit(method.export), at(jax.random.key(config.seed), "export")
    names, samples = require(data, "train").names, {}
    for number, batch in enumerate(eval_split(data, "train", config, fitted.mesh)):
        batch = meshes.place(batch, fitted.mesh)
        maps = forward(key, fitted.state, batch)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            batch, maps = multihost_utils.process_allgather((batch, maps), tiled=True)
        real = np.asarray(batch["weight"]) > 0
        chosen = [names[i] for i in np.asarray(batch["index"])[real]]
        found = {name: np.asarray(value)[real] for name, value in maps.items()}
        if number == 0:
            samples = {f"map_{name}": value.astype(np.float16) for name, value in found.items()}
            samples |= {f"train_{name}": np.asarray(batch[name])[real] for name in ("image", "label") if name in batch}
            samples["train_name"] = np.array(chosen)
        if jax.process_index() == 0:
            for name, value in found.items():
                write_pictures(folder / "maps" / name, chosen, value)
    return samples


def write_pictures(folder: Path, names: Sequence[str], maps: np.ndarray) -> None:
    """Writes maps [n, h, w] or [n, h, w, r] in [0, 1] as grey PNG files."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    if maps.ndim == 4:
        maps = np.moveaxis(maps, 3, 2).reshape(*maps.shape[:2], -1)
    for name, one in zip(names, np.round(255 * np.clip(maps, 0, 1)).astype(np.uint8), strict=True):
        stream = io.BytesIO()
        Image.fromarray(one).save(stream, format="PNG")
        write_whole(folder / f"{name.replace('/', '_')}.png", stream.getvalue())
