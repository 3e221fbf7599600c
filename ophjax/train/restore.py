"""A run brought back from its folder alone: method, configuration, state. No data set is needed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ophjax import data as datasets
from ophjax import methods, trees
from ophjax.data.pairs import name_of, steps
from ophjax.data.sources import Dataset
from ophjax.errors import InputError
from ophjax.train.checkpoint import Checkpoints
from ophjax.train.seeds import side_by_side
from ophjax.types import Method, TrainState

Spec = dict[str, jax.ShapeDtypeStruct]
"""Shapes and types of a batch, or with ``rows=None`` of one example."""


class Restored(NamedTuple):
    """A run out of its folder.

    Attributes:
      folder: of the run.
      about: its config.json.
      config: of the method, names of regions and classes included.
      data_config: of the data set.
      method: made of ``config``; where several seeds were trained side by side, their ensemble.
      state: of the checkpoint that was chosen, without the optimisers' part.
      step: of that checkpoint.
      example: shapes and types of one example's entries.
    """

    folder: Path
    about: dict[str, Any]
    config: Any
    data_config: Any
    method: Method
    state: TrainState
    step: int
    example: Spec

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(getattr(self.config, "classes", ()))

    @property
    def regions(self) -> tuple[str, ...]:
        """Names of the regions."""
        return tuple(getattr(self.config, "regions", ()))


def restore(folder: Path, *, which: Literal["newest", "best"] = "newest") -> Restored:
    """Brings a run back.

    Args:
      folder: of the run.
      which: newest: the state that the run ended with, whose scores its report tells, or ended with so far. best: that
        of the best validation score.

    Raises:
      InputError: the folder holds no run, no checkpoint yet, none with a score (best), or one that this version cannot
        read.
    """
    about = read_about(folder)
    try:
        module, source = methods.load(about["method"]), datasets.load(about["data"])
    except InputError as error:
        raise InputError(f"{folder} is damaged or of another version. Its config.json: {error}") from error
    parts = about["config"]
    config = fill(module.Config, parts.get("method"), folder)
    data_config = fill(source.Config, parts.get("data"), folder)
    try:
        seeds = range((parts.get("train") or {}).get("seeds", 1))
        method, example = side_by_side(module.make(config), seeds), example_of(about, data_config)
    except Exception as error:  # numbers that cannot be, lists of other things than the options' own, shapes
        raise InputError(
            f"{folder} is damaged: its config.json cannot be used ({type(error).__name__}: {error}). Mend the file, or "
            "give another run."
        ) from error
    with closing(Checkpoints(folder / "checkpoints", read_only=True)) as saved:
        known = saved.steps()
        if not known:
            raise InputError(f"{folder} has no checkpoint yet. Wait for its first, or give another run.")
        step = known[-1] if which == "newest" else saved.best()
        if step is None:
            raise InputError(
                f"No checkpoint of {folder} has a validation score yet (they are of the last stage). Use --checkpoint "
                "newest."
            )
        found = saved.read(step)
    batch = {name: jax.ShapeDtypeStruct((1, *spec.shape), spec.dtype) for name, spec in example.items()}
    try:
        like = jax.eval_shape(method.init, jax.eval_shape(lambda: jax.random.key(0)), batch)
    except KeyError as error:
        raise InputError(
            f"{folder} does not say which shape {error} had in training: it was written by an older version. Train it "
            "again, or restore it with the version in its config.json."
        ) from error
    trees_of = {name: into(getattr(like, name), found[name], folder / "checkpoints" / str(step), name)
                for name in ("params", "extra")}  # fmt: skip
    state = TrainState(step=jnp.asarray(found["step"], jnp.int32), opt={}, **trees_of)
    return Restored(folder, about, config, data_config, method, state, step, example)


def read_about(folder: Path) -> dict[str, Any]:
    """Reads a run's config.json.

    Raises:
      InputError: it is not there, or is none.
    """
    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(about["config"]["method"], dict):
            raise ValueError("its entry config.method is no object")
        return {**about, "method": str(about["method"]), "data": str(about.get("data", ""))}
    except Exception as error:  # JSON of any other shape
        raise InputError(
            f"{folder} is no run: its config.json cannot be read ({error!r}). Give a run's folder."
        ) from error


def read_single(folder: Path) -> dict[str, Any]:
    """Reads a run's config.json where one net is wanted.

    Raises:
      InputError: see ``read_about``, or the run trained several seeds side by side.
    """
    about = read_about(folder)
    seeds = (about["config"].get("train") or {}).get("seeds", 1)
    if seeds > 1:
        raise InputError(f"{folder} trained {seeds} seeds side by side; one net is needed. Give a run of one seed.")
    return about


def fill(kind: Any, given: Mapping[str, Any] | None, folder: Path) -> Any:
    """Makes a configuration of what config.json says; options that came later have their defaults.

    Raises:
      InputError: an option is not known any more, or is of another kind.
    """
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise InputError(f"{folder} is no run: its config.json has {given!r} for the options. Give a run's folder.")
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    gone = sorted(given.keys() - defaults)
    wrong = [name for name in given if name not in gone and not _like(given[name], defaults[name])]
    if wrong:
        raise InputError(
            f"{folder} is damaged: its config.json has {str(given[wrong[0]])[:99]!r} for the option {wrong[0]}, whose "
            f"default is {defaults[wrong[0]]!r}. Mend the file, or restore the run with the version in it."
        )
    if gone:
        raise InputError(
            f"{folder} was written by another version: {kind.__module__} has no option {', '.join(gone)} any more. "
            "Restore the run with the version in its config.json."
        )

    def plain(value: Any) -> Any:
        return tuple(plain(entry) for entry in value) if isinstance(value, list) else value

    return kind(**{name: plain(value) for name, value in given.items()})


def _like(value: Any, default: Any) -> bool:
    """Whether a value out of JSON may stand where the default does; None is the default of optional numbers."""
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if value is None or default is None:
        return default is None and isinstance(value, int | float | None)
    kinds: Any = {int: int, float: (int, float), str: str, tuple: list}[type(default)]
    return isinstance(value, kinds)


def describe_example(data: Dataset) -> dict[str, Any]:
    """Describes an example of a data set as ``{name: [shape, type]}`` for config.json; empty where there is none."""
    part = next((source for name in ("val", "train") if (source := data.splits.get(name))), None)
    return {} if part is None else {name: [list(v.shape), str(v.dtype)] for name, v in part[0].items()}


def example_of(about: Mapping[str, Any], data_config: Any) -> Spec:
    """Shapes of an example as config.json has them, or for runs of older versions as the data set's options tell."""

    def spec(shape: Any, kind: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(tuple(shape), np.dtype(kind))

    if about.get("example"):
        found = {name: spec(*value) for name, value in about["example"].items()}
    else:
        size = data_config.size
        frame = (size, getattr(data_config, "width", 0) or size)
        found = {"image": spec((*frame, 3), "u1"), "label": spec((), "i4"), "domain": spec((), "i4")}
        mask = (*frame, len(about.get("regions", ())))
        if mask[-1]:
            found["mask"] = spec(mask, "u1")
        if about.get("raters"):
            count = len(about["raters"])
            found |= {"raters": spec((count, *mask), "u1"), "rater_weight": spec((count,), "f4")}
        if hasattr(data_config, "oct_size"):
            slices = -(-data_config.slices // getattr(data_config, "depth_stride", 1))
            found["volume"] = spec((data_config.oct_size, data_config.oct_size, slices), "u1")
        found |= {"fovea": spec((2,), "f4"), "size": spec((2,), "i4"), "frame": spec((4,), "i4")}
        if hasattr(data_config, "scale"):
            side, scale = size // data_config.scale, data_config.scale
            found |= {name_of(n, scale): spec((n * side, n * side, 3), "u1") for n in steps(scale)}
            found["target_weight"] = spec((), "f4")
    always = {"weight": spec((), "f4"), "mask_weight": spec((), "f4"), "index": spec((), "i4")}
    return always | found


def into(like: Any, plain: Any, where: Path, name: str) -> Any:
    """Puts arrays read as plain dictionaries into the structure of ``like``, by their paths.

    Raises:
      InputError: one is missing or has another shape.
    """
    found = trees.named_leaves(plain)

    def take(path: str, leaf: Any) -> np.ndarray:
        value = found.get(path)
        if value is None or value.shape != leaf.shape:
            raise InputError(
                f"Checkpoint {where} does not fit its config.json: {name}/{path} is "
                f"{'missing' if value is None else f'of the shape {value.shape}'}, expected {leaf.shape}. Restore the "
                "run with the version in its config.json."
            )
        return np.asarray(value, leaf.dtype)

    return trees.map_named(take, like)
