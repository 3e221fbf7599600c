"""Presets: the paper's scale, a demo for a laptop, and the size of the tests; and options that say what differs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ophjax import data, methods
from ophjax.errors import unknown
from ophjax.train.loop import Config as TrainConfig

PRESETS = ("demo", "paper", "smoke")


def preset(name: str, method: str, dataset: str | None = None) -> tuple[Any, Any, TrainConfig]:
    """Makes the three configurations of a preset: method, data (by default the method's own), training.

    ``paper`` leaves every default of the method as it is, on images of 256 x 256 (or as the data
    set's own ``PAPER`` says). ``demo`` is made for two CPU cores:
    a few minutes on the phantoms. ``smoke`` takes seconds and learns nothing. What a preset changes stands beside each
    ``Config``, in dictionaries of its name. What a method asks of a data set stands in its ``NEEDS``, by name of the
    data set for all presets, and by name/preset for one.

    Raises:
      InputError: unknown preset, method or data set.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    module = methods.load(method)
    source = data.load(dataset or module.DATA)
    method_config, data_config = module.Config(), source.Config()
    data_config, train = dataclasses.replace(data_config, **getattr(source, "PAPER", {"size": 256})), TrainConfig()
    if name == "demo":
        method_config = dataclasses.replace(method_config, **module.DEMO)
        data_config = dataclasses.replace(data_config, **getattr(source, "DEMO", {"size": 96}))
        train = dataclasses.replace(train, eval_every=200)
    elif name == "smoke":
        method_config = dataclasses.replace(method_config, **module.SMOKE)
        data_config = dataclasses.replace(data_config, **getattr(source, "SMOKE", {"size": 32}))
        train = dataclasses.replace(train, batch_size=8, eval_every=2, log_every=1)
    needs, known = getattr(module, "NEEDS", {}), dataset or module.DATA
    data_config = dataclasses.replace(data_config, **needs.get(known, {}) | needs.get(f"{known}/{name}", {}))
    return method_config, data_config, dataclasses.replace(train, **module.TRAIN.get(name, {}))


def flags(part: str, changes: Mapping[str, Any]) -> list[str]:
    """Writes changes to a configuration (``part``: method, data or train) as options of run.py."""
    words: list[str] = []
    for name, value in changes.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{part}.{option}" if value else f"--{part}.no-{option}")
        else:
            words += [f"--{part}.{option}", *map(str, value if isinstance(value, (list, tuple)) else (value,))]
    return words
