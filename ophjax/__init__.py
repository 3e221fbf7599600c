"""Published systems of ophthalmic and medical image analysis as pure functions over Flax modules."""

from __future__ import annotations

from typing import Any

__version__ = "0.2.0"

# What is imported by name from here; loaded when it is asked for, so that ``import ophjax`` stays light.
_LAZY = {"hyper_init": "ophjax.nets.hyperinit", "trace_graph": "ophjax.nets.graph"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'ophjax' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
