"""A run folder with made-up contents, for the tests of the report."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from ophjax.metrics import ranking

STAGES = (("segmenter", 200), ("diagnosis", 300))


def make_run(folder: Path, *, classes: tuple[str, ...] = ("healthy", "glaucoma"), size: int = 96) -> Path:
    """Writes a finished run: two stages, a test split of 200 examples, 16 samples with 8 attention maps."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    write_config(folder, classes=list(classes))
    labels = rng.integers(len(classes), size=200)
    logits = rng.normal(size=(200, len(classes))) + 1.6 * (labels[:, None] == np.arange(len(classes)))
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    dice = {"dice_disc": rng.beta(40, 3, 200), "dice_cup": rng.beta(20, 4, 200)}
    dice |= {name.replace("dice", "soft_dice"): value for name, value in dice.items()}
    scores = ranking.classification_scores(probs, labels) | ranking.mean_scores(dice)
    write_events(folder, rng, scores)
    write_predictions(folder, probs, labels, dice)
    write_samples(folder, rng, probs[:16], labels[:16], size)
    return folder


def write_config(folder: Path, **changes: Any) -> None:
    config = {
        "command": "python experiments/run.py --method seatrans --name first --method.loss 'a<b'",
        "method": "seatrans",
        "data": "phantoms",
        "preset": "demo",
        "config": {"method": {"tokens": 256, "note": "<script>alert(1)</script>"}, "train": {"seed": 0}},
        "versions": {"ophjax": "0.1.0", "jax": "0.10.2", "python": "3.11.7"},
        "note": "Phantoms are drawn anew for each split; no split shares an example with another.",
        "regions": ["disc", "cup"],
        "classes": ["healthy", "glaucoma"],
    }
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")


def write_events(folder: Path, rng: np.random.Generator, scores: dict[str, float]) -> None:
    time, step = 1_700_000_000.0, 0
    counts = {"segmenter": 21_400_000, "diagnosis": 24_900_000}
    events: list[dict[str, Any]] = [{"event": "start", "devices": 1, "parameters": counts, "time": time}]
    for stage, steps in STAGES:
        events.append({"event": "stage", "stage": stage, "step": step, "steps": steps, "time": time})
        for done in range(2, steps + 1, 2):
            time += 0.3
            loss = 0.8 * np.exp(-done / 60) + 0.03
            line = {"event": "train", "stage": stage, "step": step + done, "time": time}
            line |= {"images_per_s": rng.normal(88, 4), "loss": loss * rng.lognormal(0, 0.25)}
            if stage == "segmenter":
                line["soft_dice_loss"] = loss * rng.lognormal(0, 0.2)
            events.append(line)
            if done % 50 == 0:
                part = done / steps
                values = {"dice_disc": 0.5 + 0.45 * part, "dice_cup": 0.3 + 0.5 * part, "auc": 0.5}
                if stage == "diagnosis":
                    values = {"dice_disc": 0.95, "dice_cup": 0.8, "auc": 0.6 + 0.3 * part, "accuracy": 0.7}
                overlaps = {name: value for name, value in values.items() if name.startswith("dice")}
                values |= {name.replace("dice", "iou"): value / (2 - value) for name, value in overlaps.items()}
                ends = (("low", -0.04), ("high", 0.03))
                spread = {f"{name}_{end}": v + shift for name, v in values.items() for end, shift in ends}
                line = {"event": "eval", "split": "val", "stage": stage, "step": step + done, "time": time}
                events.append(line | values | spread)
        step += steps
        events.append({"event": "save", "stage": stage, "step": step, "time": time})
    events.append({"event": "test", "split": "test", "step": step, "time": time + 5, "scores": scores})
    events.append({"event": "finish", "step": step, "time": time + 6})
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")


def write_predictions(folder: Path, probs: np.ndarray, labels: np.ndarray, dice: dict[str, np.ndarray]) -> None:
    classes = probs.shape[1]
    columns = {"prob": probs[:, 1]} if classes == 2 else {f"prob_{k}": probs[:, k] for k in range(classes)}
    predicted = probs.argmax(1)
    with (folder / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["name", "label", *columns, "predicted", *dice])
        for i in range(len(labels)):
            numbers = [f"{column[i]:.6f}" for column in columns.values()]
            overlaps = [f"{column[i]:.4f}" for column in dice.values()]
            table.writerow([f"eye & {i:04}", labels[i], *numbers, predicted[i], *overlaps])


def write_samples(
    folder: Path, rng: np.random.Generator, probs: np.ndarray, labels: np.ndarray, size: int, maps: int = 8
) -> None:
    count = len(labels)
    y, x = np.mgrid[:size, :size] / size - 0.5

    def disc(radius: np.ndarray, shift: float = 0.0) -> np.ndarray:
        return np.hypot(x - shift, y)[None] - radius[:, None, None]

    outer, inner = rng.uniform(0.22, 0.3, count), rng.uniform(0.08, 0.2, count)
    truth = np.stack([disc(outer), disc(inner)], -1)
    shaken = outer + rng.normal(0, 0.02, count), inner + rng.normal(0, 0.03, count)
    found = np.stack([disc(shaken[0], 0.01), disc(shaken[1])], -1)
    glow = 1 / (1 + np.exp(30 * truth))
    image = np.array([150, 70, 30]) * (1.1 - np.hypot(x, y))[None, ..., None]
    image = image + glow @ np.array([[70, 80, 60], [30, 60, 60]])
    image = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
    attention = np.stack([np.exp(-np.square(disc(inner + 0.02 * k)) / 0.01) for k in range(maps)], 1)
    step = size // 16
    np.savez_compressed(
        folder / "samples.npz",
        image=image,
        mask=(truth < 0).astype(np.uint8),
        mask_probs=(1 / (1 + np.exp(40 * found))).astype(np.float16),
        label=labels.astype(np.int32),
        probs=probs.astype(np.float32),
        index=np.arange(count, dtype=np.int32),
        attention=attention[:, :, ::step, ::step].astype(np.float16),
        attention_names=np.array(json.dumps([f"layer {1 + k // 4} <- 1/{32 >> (k % 4)}" for k in range(maps)])),
    )
