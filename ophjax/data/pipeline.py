"""Batches out of a source: endless and shuffled for training, padded and in order for evaluation (Grain)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from ophjax.data.sources import Example, Source, size_of
from ophjax.errors import InputError

if TYPE_CHECKING:
    import grain

AHEAD_BYTES = 1 << 29
"""Batches of large examples (volumes) are read ahead up to so many bytes, but always one, while the step works."""


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    process: tuple[int, int] = (0, 1),
    threads: int | None = None,
) -> grain.DatasetIterator[Example]:
    """Iterates without end over shuffled batches, each epoch in a new order.

    The order of all examples is one, given by the seed; process i of n reads the i-th part of every batch. The
    k-th batches of n processes one after the other are thus, row by row, the k-th batch of one process with n
    times the batch size. Epochs follow each other without a gap, so that every batch is full, even where the source is
    smaller than one. Where the source has ``groups`` (domains, classes), the rows of a batch are taken from them in
    turn, each shuffled on its own, so that all have equal shares and the small ones begin again sooner.

    Args:
      source: the examples.
      batch_size: examples in a batch of this process.
      seed: of the order, not negative.
      process: (index, count) of this process.
      threads: that decode, each a batch at a time; the default is the number of cores, at most 16.

    Returns:
      A Grain iterator of batches: the examples stacked, ``weight`` float32 [b] of ones, ``index`` int32 [b]
      the position in the source, and ``mask_weight`` float32 [b], ones where the source does not say. Its
      ``get_state()`` is a small dict fit for JSON; after ``set_state(state)`` it goes on exactly there. End
      it with ``close()``.

    Raises:
      InputError: for an empty source, or a batch size or seed that cannot be. Reading raises what the source
        raises.
    """
    import grain

    index, count = _check(source, batch_size, process)
    if not 0 <= seed < 1 << 32:
        raise InputError(f"The seed is {seed}; give an integer from 0 to 2**32 - 1.")
    groups = getattr(source, "groups", [range(len(source))])
    if not all(len(group) for group in groups):
        sizes = ", ".join(str(len(group)) for group in groups)
        raise InputError(f"One of the {len(groups)} domains or classes of the training data is empty ({sizes} images).")
    orders = [
        grain.MapDataset.source(group).seed((seed + i) % (1 << 32)).shuffle().repeat() for i, group in enumerate(groups)
    ]
    order = orders[0] if len(orders) == 1 else grain.MapDataset.mix(orders)
    return _batches(source, order, batch_size, index, count, threads)


def eval_batches(
    source: Source, *, batch_size: int, process: tuple[int, int] = (0, 1), threads: int | None = None
) -> grain.DatasetIterator[Example]:
    """Iterates once over a source, in order; every process gets the same number of full batches.

    Process i of n reads the i-th part of every batch. What lacks to full batches is padding: the first
    example again, real values being safe in any computation, with ``weight`` and ``mask_weight`` 0 and
    ``index`` -1.

    Arguments, result and errors are those of ``train_batches``.
    """
    import grain

    index, count = _check(source, batch_size, process)
    total = -(-len(source) // (batch_size * count)) * batch_size * count
    return _batches(source, grain.MapDataset.range(total), batch_size, index, count, threads)


def _batches(
    source: Source,
    order: grain.MapDataset[int],
    batch_size: int,
    index: int,
    count: int,
    threads: int | None,
) -> grain.DatasetIterator[Example]:
    mine = slice(index * batch_size, (index + 1) * batch_size)

    def read(positions: np.ndarray) -> Example:
        examples = [_read(source, int(position)) for position in positions[mine]]
        return {name: _stack(name, [example[name] for example in examples]) for name in examples[0]}

    # Positions are batched, which costs nothing, and each process reads its rows of every batch.
    options = _options(threads, batch_size * size_of(source))
    return iter(order.batch(batch_size * count).map(read).to_iter_dataset(options))


def _check(source: Source, batch_size: int, process: tuple[int, int]) -> tuple[int, int]:
    index, count = process
    if not 0 <= index < count:
        raise ValueError(f"process {index} of {count}")
    if len(source) == 0:
        raise InputError("The data split is empty. Put examples into it, or check the split fractions.")
    if batch_size < 1:
        raise InputError(f"The batch size is {batch_size}; give a positive integer.")
    return index, count


def _stack(name: str, arrays: list[np.ndarray]) -> np.ndarray:
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) > 1:
        raise InputError(
            f"The examples of a batch differ in the shape of {name!r}: {', '.join(map(str, shapes))}. All images of a "
            "data set, whatever their domain, must have one size and the same channels: stretch or convert them first."
        )
    return np.stack(arrays)


def _read(source: Source, position: int) -> Example:
    real = position < len(source)
    example = {"mask_weight": np.ones((), np.float32), **source[position if real else 0]}
    if not real:
        example["mask_weight"] = np.zeros((), np.float32)
    example["weight"] = np.asarray(real, np.float32)
    example["index"] = np.asarray(position if real else -1, np.int32)
    return example


def _options(threads: int | None, batch_bytes: int) -> grain.ReadOptions:
    import grain

    # Threads, not processes: Pillow and NumPy release the interpreter lock, and workers would copy batches.
    threads = threads or min(os.cpu_count() or 1, 16)
    # Grain's own default keeps 500 elements ahead, which here are whole batches.
    ahead = threads + 2
    if batch_bytes:
        ahead = min(ahead, max(AHEAD_BYTES // batch_bytes, 1))
    return grain.ReadOptions(num_threads=min(threads, ahead), prefetch_buffer_size=ahead)
