"""Data sets: each module listed here has a ``Config`` and ``make(config) -> Dataset``."""

from __future__ import annotations

import importlib
from types import ModuleType

from ophjax.errors import unknown

DATASETS: dict[str, str] = {
    "phantoms": "ophjax.data.phantoms",
    "folder": "ophjax.data.folder",
    "drishti": "ophjax.data.builders.drishti",
    "ph2": "ophjax.data.builders.ph2",
    "shenzhen": "ophjax.data.builders.shenzhen",
    "ddti": "ophjax.data.builders.ddti",
}


def load(name: str) -> ModuleType:
    """Imports the module of a data set; an unknown name is an InputError that lists the known ones."""
    if name not in DATASETS:
        raise unknown("data set", name, tuple(DATASETS))
    return importlib.import_module(DATASETS[name])
