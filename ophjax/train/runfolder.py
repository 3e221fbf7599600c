"""The folder of a run: its config.json, whose it is, and whether it is finished."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np

from ophjax.errors import InputError, OtherRunError
from ophjax.train.logs import read_events

PACKAGES = ("ophjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that it is there whole or not at all.

    Raises:
      InputError: the disk is full or the folder cannot be written; the file as it was before stays.
    """
    scratch = path.with_name(path.name + ".part")
    try:
        scratch.write_bytes(content)
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise InputError(
            f"{path} could not be written: {error.strerror or error}. What was saved before is whole: make room or "
            "mend the folder's permissions, then give the same command again (to run.py with --resume)."
        ) from error


def plain_config(**configs: Any) -> dict[str, Any]:
    """Turns configurations into what JSON gives back: lists for tuples, strings for paths."""
    tree = {name: dataclasses.asdict(config) for name, config in configs.items()}
    return json.loads(json.dumps(tree, default=str))


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def has_begun(folder: Path) -> bool:
    """Whether a run has come to its first event. Before it shapes are checked and the start is compiled."""
    return any(read_events(folder / "metrics.jsonl"))


Claim = Literal["new", "resumed", "finished"]


def claim(folder: Path, about: dict[str, Any], *, resume: bool) -> Claim:
    """Takes a folder for a run: writes config.json into a new one, compares it in an old one.

    A run that ended before its first event, because batch and devices did not fit, say, leaves nothing to lose:
    its folder is as good as new. With several processes the first one decides for all.

    Raises:
      InputError: the folder holds another run, or an unfinished one that --resume was not given for.
    """
    if jax.process_count() == 1:
        return _claim(folder, about, resume=resume)
    from jax.experimental import multihost_utils

    claims = get_args(Claim)
    found, refusal = -1, InputError(f"{folder} was refused by process 0: see what it says.")
    if jax.process_index() == 0:
        try:
            found = claims.index(_claim(folder, about, resume=resume))
        except InputError as error:
            refusal = error
    found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
    if found < 0:
        raise refusal
    return claims[found]


def _claim(folder: Path, about: dict[str, Any], *, resume: bool) -> Claim:
    path = folder / "config.json"
    if not path.exists() and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"{folder} exists and holds something else than a run (it has no config.json). Give another --name."
        )
    if not path.exists() or not has_begun(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} cannot be made: {error}. Give a --runs folder that can be written.") from error
        write_whole(path, (json.dumps(about, indent=2) + "\n").encode())
        return "new"
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        differences = compare(before, about)
    except Exception as error:  # JSON of any other shape
        raise InputError(f"{path} cannot be read ({error!r}). Mend it, or give another --name.") from error
    if differences:
        raise OtherRunError(
            f"{folder} belongs to another run: {'; '.join(differences[:4])}{' ...' if len(differences) > 4 else ''}. "
            f"Give another --name, or the command of that run: {before.get('command')}"
        )
    if any(event.get("event") == "finish" for event in read_events(folder / "metrics.jsonl")):
        return "finished"
    if not resume:
        raise InputError(
            f"{folder} holds this very run, unfinished. Add --resume to go on from its newest checkpoint, or give "
            "another --name."
        )
    return "resumed"


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lists what differs between two runs in method, data and configuration."""
    old, new = (
        {"method": run["method"], "data": run["data"]}
        | {f"{part}.{name}": value for part, fields in run["config"].items() for name, value in fields.items()}
        for run in (before, now)
    )
    return [
        f"{name} was {old.get(name)!r}, now {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def summary(scores: Mapping[str, float]) -> str:
    """Says the scores of the test split in one line each, with their intervals."""
    lines = ["Test split:"]
    for name, value in scores.items():
        if name.endswith(("_low", "_high")) or not math.isfinite(value):
            continue
        low, high = scores.get(f"{name}_low"), scores.get(f"{name}_high")
        interval = "" if low is None or high is None else f"   95 % interval {low:.3f} to {high:.3f}"
        lines.append(f"  {name:20} {value:.3f}{interval}")
    return "\n".join(lines)
