"""Data sets: each module listed here has a ``Config`` and ``make(config) -> Dataset``."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from ophjax.errors import unknown

DATASETS: dict[str, str] = {
    "phantoms": "ophjax.data.phantoms",
    "lesions": "ophjax.data.lesions",
    "organs": "ophjax.data.organs",
    "angles": "ophjax.data.angles",
    "bscans": "ophjax.data.bscans",
    "textures": "ophjax.data.textures",
    "shapes": "ophjax.data.shapes",
    "superres": "ophjax.data.superres",
    "folder": "ophjax.data.folder",
    "imagefolder": "ophjax.data.imagefolder",
    "domains": "ophjax.data.multi",
    "table": "ophjax.data.table",
    "drishti": "ophjax.data.builders.drishti",
    "ph2": "ophjax.data.builders.ph2",
    "shenzhen": "ophjax.data.builders.shenzhen",
    "ddti": "ophjax.data.builders.ddti",
    "isic": "ophjax.data.builders.isic",
    "tn3k": "ophjax.data.builders.tn3k",
    "medmnist": "ophjax.data.builders.medmnist",
    "vessels": "ophjax.data.builders.vessels",
    "cells": "ophjax.data.builders.cells",
    "bubil": "ophjax.data.builders.bubil",
    "qubiq": "ophjax.data.builders.qubiq",
    "riga": "ophjax.data.builders.riga",
    "refuge7": "ophjax.data.builders.refuge7",
    "papila": "ophjax.data.builders.papila",
    "xrays": "ophjax.data.builders.xrays",
    "refuge": "ophjax.data.builders.refuge",
    "asoct": "ophjax.data.builders.asoct",
    "abdomen": "ophjax.data.builders.abdomen",
    "prostate": "ophjax.data.builders.prostate",
    "eyes": "ophjax.data.eyes",
    "goals": "ophjax.data.builders.goals",
    "gamma": "ophjax.data.builders.gamma",
    "foveas": "ophjax.data.builders.foveas",
    "octlayers": "ophjax.data.builders.octlayers",
}


def load(name: str) -> ModuleType:
    """Imports the module of a data set; an unknown name is an InputError that lists the known ones."""
    if name not in DATASETS:
        raise unknown("data set", name, tuple(DATASETS))
    return importlib.import_module(DATASETS[name])


def make(name: str, config: Any) -> Any:
    """Makes a data set: from the files that its loader knows, or where the given folder is a prepared one from that.

    Raises:
      InputError: as the data set's ``make``, ``shards.read`` or ``tfds.read``.
    """
    from ophjax.data import shards, tfds

    home = shards.home_of(config)
    if home is not None:
        return shards.read(home, name, config)
    home = tfds.home_of(config)
    if home is not None and tfds.is_prepared(home):
        return tfds.read(home, name, config)
    if home is not None and name not in tfds.OTHERS:
        raise tfds.refuse(home, name)
    return load(name).make(config)
