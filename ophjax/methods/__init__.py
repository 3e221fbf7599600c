"""The systems, one file each: ``Config`` with the defaults we take for the paper's, and ``make(config) -> Method``."""

from __future__ import annotations

import importlib
from types import ModuleType

from ophjax.errors import unknown

METHODS: dict[str, str] = {
    "seatrans": "ophjax.methods.seatrans",
}


def load(name: str) -> ModuleType:
    """Imports the module of a method.

    Raises:
      InputError: there is no method of that name; the message lists those there are.
    """
    if name not in METHODS:
        raise unknown("method", name, tuple(METHODS))
    return importlib.import_module(METHODS[name])
