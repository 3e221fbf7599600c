"""A run folder of the hyper-initializer with a drawn hypernetwork in its one checkpoint, without any training."""

import dataclasses
import json
from contextlib import closing

import jax.numpy as jnp
from made_run import drawn

from ophjax.data import shapes
from ophjax.methods import hyperinit
from ophjax.train.checkpoint import Checkpoints
from ophjax.train.runfolder import plain_config


def write_run(folder, **changes):
    """Writes config.json and one checkpoint; returns the state that is in it. ``changes`` are to the configuration."""
    config = dataclasses.replace(
        hyperinit.Config(), **hyperinit.SMOKE, **changes, classes=shapes.TASKS["source"], regions=("lesion",)
    )
    method = hyperinit.make(config)
    batch = {
        "image": jnp.zeros((2, 16, 16, 3), jnp.uint8), "label": jnp.zeros(2, jnp.int32),
        "mask": jnp.zeros((2, 16, 16, 1), jnp.uint8), "mask_weight": jnp.ones(2), "weight": jnp.ones(2),
        "index": jnp.arange(2),
    }  # fmt: skip
    state = drawn(method, batch)
    folder.mkdir()
    about = {"method": "hyperinit", "data": "shapes", "config": plain_config(method=config)}
    (folder / "config.json").write_text(json.dumps(about))
    with closing(Checkpoints(folder / "checkpoints")) as saved:
        saved.save(0, state, {})
        saved.wait()
    return state
