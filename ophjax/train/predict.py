"""Predictions of a trained network on new images: batches that fit into memory, files that cannot be read left out."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ophjax.data.incoming import Case, Read
from ophjax.errors import InputError
from ophjax.keys import at
from ophjax.train import mesh as meshes
from ophjax.train.restore import Restored
from ophjax.types import Batch, Key, Outputs, TrainState

MOST = {"cpu": 16}
"""Largest batch for each device; more gains nothing on a CPU. 64 on all others."""
SHARE = 0.5
"""Share of the free memory that a batch may take by XLA's account: what reading and writing take comes on top."""


class Skipped(NamedTuple):
    """A file that could not be read, and why."""

    file: Path
    reason: str


class _Noted(dict[str, Any]):
    """A batch that notes which entries are read."""

    def __init__(self, entries: Mapping[str, Any], seen: set[str]):
        super().__init__(entries)
        self._seen = seen

    def __getitem__(self, name: str) -> Any:
        self._seen.add(name)
        return super().__getitem__(name)


def entries_read(run: Restored) -> set[str]:
    """Finds out which entries of a batch the method's ``predict`` reads, by tracing it."""
    seen: set[str] = set()
    batch = {name: jax.ShapeDtypeStruct((1, *spec.shape), spec.dtype) for name, spec in run.example.items()}
    jax.eval_shape(
        lambda state, batch: run.method.predict(jax.random.key(0), state, _Noted(batch, seen)), run.state, batch
    )
    return seen


class Predictor:
    """The forward pass of a run, compiled for a batch that fits into memory; rows are split over all devices.

    The first batch size is what was asked for, or else ``MOST`` for each device, or the number of images where that is
    less; in full multiples of the devices. It is halved as long as XLA's account of the program, or the device itself
    when it runs, says that memory does not suffice.

    Args:
      run: the trained network.
      batch_size: asked for; 0: none.
      images: how many there are to predict; 0: not known.

    Attributes:
      batch_size: of the program at present.
    """

    def __init__(self, run: Restored, *, batch_size: int = 0, images: int = 0):
        self._run, self._mesh = run, meshes.make_mesh()
        self._key = at(jax.random.key(0), "predict")
        self._state = jax.device_put(run.state, meshes.replicated(self._mesh))
        self._reads = entries_read(run)
        ways = self._mesh.size
        most = MOST.get(jax.default_backend(), 64) * ways
        wanted = batch_size or min(images or most, most)
        self.batch_size = -(-wanted // ways) * ways
        self._program: Callable[..., Outputs] | None = None

    def __call__(self, examples: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """Predicts examples of one shape, any number of them; returns the outputs of each.

        Raises:
          InputError: an example lacks what the network reads, or not even one row for each device fits into memory.
        """
        rows = [{name: self._entry(one, name) for name in self._reads} for one in examples]
        while True:
            try:
                program = self._program or self._compile(rows[0])
                found: list[dict[str, np.ndarray]] = []
                for first in range(0, len(rows), self.batch_size):
                    part = rows[first : first + self.batch_size]
                    padded = part + [part[0]] * (self.batch_size - len(part))
                    batch = {name: np.stack([row[name] for row in padded]) for name in self._reads}
                    outputs = program(self._key, self._state, meshes.place(batch, self._mesh))
                    arrays = {name: np.asarray(value) for name, value in outputs.items()}
                    found += [{name: value[i] for name, value in arrays.items()} for i in range(len(part))]
                return found
            except (MemoryError, jax.errors.JaxRuntimeError) as error:
                if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                self._halve()

    def _entry(self, example: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        if name in example:
            return example[name]
        if name in ("index", "weight", "mask_weight"):
            spec = self._run.example[name]
            return np.full(spec.shape, name == "weight", spec.dtype)
        raise InputError(f"The network of {self._run.folder} reads {name!r}, which new images do not give.")

    def _compile(self, row: Mapping[str, np.ndarray]) -> Callable[..., Outputs]:
        whole, split = meshes.replicated(self._mesh), meshes.split_rows(self._mesh)

        def forward(key: Key, state: TrainState, batch: Batch) -> Outputs:
            return self._run.method.predict(key, state, batch)

        jitted = jax.jit(forward, in_shardings=(whole, whole, split), out_shardings=split)
        while True:
            batch = {name: jax.ShapeDtypeStruct((self.batch_size, *row[name].shape), row[name].dtype) for name in row}
            program = jitted.lower(self._key, self._state, batch).compile()
            memory, free = program.memory_analysis(), free_bytes()
            needed = 0 if memory is None else memory.temp_size_in_bytes + memory.output_size_in_bytes
            if free is None or needed <= SHARE * free or self.batch_size == self._mesh.size:
                self._program = program
                return program
            self._halve()

    def _halve(self) -> None:
        ways = self._mesh.size
        if self.batch_size <= ways:
            raise InputError(
                f"Not even {ways} image(s), one for each device, fit into memory. Use a machine with more of it."
            )
        self.batch_size = -(-(self.batch_size // 2) // ways) * ways
        self._program = None


def free_bytes() -> int | None:
    """Free memory of the first device in bytes; None where the platform does not say."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def read_cases(
    inputs: Mapping[str, tuple[Path, Read]], *, ahead: int = 4
) -> Iterator[tuple[Path, list[Case] | Skipped]]:
    """Reads inputs in order, some ahead in threads; what cannot be read comes as ``Skipped``."""

    def attempt(file: Path, read: Read) -> list[Case] | Skipped:
        try:
            return read()
        except InputError as error:
            return Skipped(file, str(error))
        except (OSError, ValueError, MemoryError) as error:
            return Skipped(file, f"{type(error).__name__}: {error}")

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        waiting: deque[tuple[Path, Future[list[Case] | Skipped]]] = deque()
        try:
            for file, read in inputs.values():
                waiting.append((file, pool.submit(attempt, file, read)))
                if len(waiting) > ahead:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def predict_cases(
    predictor: Predictor, read: Iterable[tuple[Path, list[Case] | Skipped]], *, done: Callable[[], Any] = lambda: None
) -> Iterator[tuple[Path, Case, dict[str, np.ndarray]] | Skipped]:
    """Predicts what has been read, batch by batch; ``done`` is called once for each file."""
    waiting: list[tuple[Path, Case]] = []

    def flush() -> Iterator[tuple[Path, Case, dict[str, np.ndarray]]]:
        outputs = predictor([case.example for _, case in waiting]) if waiting else []
        for (file, case), found in zip(waiting, outputs, strict=True):
            yield file, case, found
        waiting.clear()

    for file, cases in read:
        if isinstance(cases, Skipped):
            yield cases
        else:
            for case in cases:
                waiting.append((file, case))
                if len(waiting) >= predictor.batch_size:
                    yield from flush()
        done()
    yield from flush()
