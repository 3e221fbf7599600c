"""Where arrays live: the device mesh, the sharding of state and batches, and several processes."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ophjax import trees
from ophjax.errors import InputError

Overrides = Sequence[tuple[str, PartitionSpec]]
SMALL = 2**18
"""Leaves with fewer numbers than this replicate: splitting them costs more in messages than it saves."""


def start_processes(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Starts ``jax.distributed``: by cluster detection where all three are None, else by hand.

    Must run before anything touches a device. On CPUs the collectives are gloo's.

    Raises:
      InputError: only some of the three were given, or the processes did not find each other.
    """
    given = [value is not None for value in (coordinator, processes, process)]
    if any(given) and not all(given):
        raise InputError(
            f"--distributed got --coordinator {coordinator}, --processes {processes}, --process {process}. "
            "Give all three, or none where the cluster is detected (SLURM, Open MPI, Kubernetes, Cloud TPU)."
        )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"--distributed could not start: {error} Expected a detectable cluster or --coordinator HOST:PORT "
            "--processes N --process I, the coordinator's port reachable from every host."
        ) from error


LOST = (
    "Another process of this run has ended or cannot be reached, and this one cannot go on alone. What was saved is "
    "whole: see what the other processes say, then start all of them again with --resume."
)


def is_lost(error: BaseException) -> bool:
    """Whether this is how a process learns that another one is gone: its sums over all devices fail."""
    lost = isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1
    return lost and "RESOURCE_EXHAUSTED" not in str(error)


def wait_no_longer(code: int, *, seconds: float = 20) -> None:
    """Ends this process with a code when the others do not end as well within so many seconds.

    At its end a process waits five minutes for the others (``jax.distributed``). Those that have met the same error
    come; one that works on waits in a sum over all devices for this one, and learns of its end only then (``is_lost``).
    """
    if jax.distributed.is_initialized():
        timer = threading.Timer(seconds, os._exit, (code,))
        timer.daemon = True
        timer.start()


def make_mesh(data: int | None = None, model: int = 1) -> Mesh:
    """Lays all devices out as ``(data, model)``; ``data=None`` takes what ``model`` leaves over.

    Several processes lie one after the other, so that each reads one block of every batch. (``jax.make_mesh`` follows a
    TPU slice's rings, in which the hosts of most slices take turns.)

    Raises:
      InputError: the product is not the number of devices.
    """
    devices = jax.device_count()
    size = devices // max(model, 1) if data is None else data
    if model < 1 or size < 1 or size * model != devices:
        raise InputError(
            f"The mesh was to be data={'all' if data is None else data} x model={model}, but there are {devices} "
            f"devices. Choose --train.model-parallel so that it divides {devices}, and data = {devices} / model."
        )
    names, kinds = ("data", "model"), (AxisType.Auto, AxisType.Auto)
    if jax.process_count() == 1:
        return jax.make_mesh((size, model), names, axis_types=kinds)
    ordered = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered).reshape(size, model), names, axis_types=kinds)


def connect(mesh: Mesh) -> None:
    """Lets the processes find each other, by small sums over the whole mesh and over each of its axes.

    Gloo, the CPUs' collectives, connects devices at the first sum over them and gives up after 30 seconds, by less
    than which the compile of a large program may not differ between processes. Once connected they wait for each other.
    """
    if jax.process_count() == 1:
        return
    spread = NamedSharding(mesh, PartitionSpec("data", "model"))
    ones = jax.make_array_from_callback(mesh.devices.shape, spread, lambda rows: np.ones((1, 1), np.float32))
    jax.block_until_ready(jax.jit(lambda x: (x.sum(), x.sum(0), x.sum(1)))(ones))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: rows over ``data``, the same rows on all of ``model``."""
    return NamedSharding(mesh, PartitionSpec("data"))


def state_shardings(state: Any, mesh: Mesh, *, overrides: Overrides = (), small: int = SMALL) -> Any:
    """Chooses a sharding for each leaf of a state (arrays or ``ShapeDtypeStruct``).

    The first override whose pattern is found in the leaf's path wins. Otherwise leaves under ``small``
    numbers replicate and larger ones split their largest axis that ``model`` divides.
    """
    parts = mesh.shape["model"]

    def choose(name: str, leaf: Any) -> NamedSharding:
        for pattern, spec in overrides:
            if re.search(pattern, name):
                return NamedSharding(mesh, spec)
        fitting = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or leaf.size < small or not fitting:
            return replicated(mesh)
        widest = max(fitting, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*("model" if axis == widest else None for axis in range(leaf.ndim))))

    return trees.map_named(choose, state)


def local_share(mesh: Mesh, batch_size: int) -> tuple[int, int, int]:
    """Says which part of each global batch this process reads: ``(rows, index, count)``.

    Raises:
      InputError: the batch does not divide over the ``data`` axis.
    """
    ways = mesh.shape["data"]
    if batch_size % ways:
        raise InputError(
            f"The batch size is {batch_size}, but the mesh splits batches {ways} ways. "
            f"Give --train.batch-size a multiple of {ways}, or use fewer devices for data."
        )
    mine = [i for i, row in enumerate(mesh.devices) if any(d.process_index == jax.process_index() for d in row)]
    if mine != list(range(mine[0], mine[0] + len(mine))) or mine[0] % len(mine) or ways % len(mine):
        raise InputError(
            f"This process's devices hold the parts {mine} of {ways} of each batch, which is no block of equal size in "
            "every process. Choose --train.model-parallel so that no process's devices lie in two places."
        )
    count = ways // len(mine)
    return batch_size // count, mine[0] // len(mine), count


def place(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays from the rows that this process has read."""
    rows = split_rows(mesh)
    return {name: jax.make_array_from_process_local_data(rows, value) for name, value in batch.items()}


def spec_of(batch: Mapping[str, np.ndarray], rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of the global batch of ``rows`` examples to which a local batch belongs."""
    return {name: jax.ShapeDtypeStruct((rows, *value.shape[1:]), value.dtype) for name, value in batch.items()}


def with_shardings(abstract: Any, shardings: Any) -> Any:
    """Joins shapes and shardings into the target that a checkpoint is restored to."""
    return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), abstract, shardings)
