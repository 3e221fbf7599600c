"""The systems, one file each: ``Config`` with the defaults we take for the paper's, and ``make(config) -> Method``."""

from __future__ import annotations

import dataclasses
import importlib
from types import ModuleType
from typing import Any

from ophjax.errors import unknown

METHODS: dict[str, str] = {
    "seatrans": "ophjax.methods.seatrans",
    "fccl": "ophjax.methods.fccl",
    "m2dan": "ophjax.methods.m2dan",
    "ads": "ophjax.methods.ads",
    "diff": "ophjax.methods.diff",
    "selfcal": "ophjax.methods.selfcal",
    "goals": "ophjax.methods.goals",
    "gamma": "ophjax.methods.gamma",
    "dualsr": "ophjax.methods.dualsr",
    "hyperinit": "ophjax.methods.hyperinit",
}


def fit_to(config: Any, data: Any) -> Any:
    """Fills in what a method's configuration takes over from a data set: names of regions, classes, domains, raters;
    the scale of its pairs; the number of training examples."""
    names = {"regions", "classes", "domains", "raters", "scale"}
    changes = {name: getattr(data, name) for name in names & {field.name for field in dataclasses.fields(config)}}
    if hasattr(config, "examples"):
        changes["examples"] = len(data.splits.get("train", ())) or config.examples
    return dataclasses.replace(config, **changes)


def load(name: str) -> ModuleType:
    """Imports the module of a method.

    Raises:
      InputError: there is no method of that name; the message lists those there are.
    """
    if name not in METHODS:
        raise unknown("method", name, tuple(METHODS))
    return importlib.import_module(METHODS[name])
