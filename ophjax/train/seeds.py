"""Many seeds in one program: the same method trained from several seeds side by side, by ``vmap`` over its state.

Each seed has its own start, order of examples and randomness, those that a run of its own would have, so that its
numbers are that run's up to rounding. At the test the seeds are an ensemble: their outputs are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ophjax.keys import at
from ophjax.types import Batch, Key, Logs, Method, Outputs, Stage, TrainState

if TYPE_CHECKING:
    import grain

    from ophjax.data.sources import Example


def root_of(seed: int | jax.Array) -> Key:
    """The key from which everything random in the training of a seed follows."""
    return at(jax.random.key(seed), "train")


def side_by_side(method: Method, seeds: Sequence[int]) -> Method:
    """Makes a method of one for each seed; with a single seed it is the method itself.

    In its state every leaf of ``params``, ``opt`` and ``extra`` has a first axis of seeds, and batches of training have
    a second one, ``[b, s, ...]`` (see ``Abreast``); the first stays that of the examples, which devices share. Batches
    of evaluation are one for all. Outputs and exported maps are means over the seeds, pictures (uint8) rounded; logs
    too. Only what a net has in coordinates of its own (``Method.own``) is laid side by side.

    Args:
      method: of one seed.
      seeds: different ones.
    """
    if len(seeds) == 1:
        return method
    over = TrainState(step=None, params=0, opt=0, extra=0)  # type: ignore[arg-type]

    def keys(*names: str | jax.Array) -> Key:
        return jax.vmap(lambda seed: at(root_of(seed), *names))(jnp.asarray(seeds))

    def init(key: Key, batch: Batch) -> TrainState:
        del key
        return jax.vmap(lambda key: method.init(key, batch), out_axes=over)(keys("init"))

    def widen(stage: Stage) -> Stage:
        def step(key: Key, state: TrainState, batch: Batch) -> tuple[TrainState, Logs]:
            del key
            run = jax.vmap(stage.step, in_axes=(0, over, 1), out_axes=(over, 0))
            state, logs = run(keys(stage.name, state.step), state, batch)
            return state, {name: value.mean() for name, value in logs.items()}

        def enter(key: Key, state: TrainState) -> TrainState:
            del key
            return jax.vmap(stage.enter, in_axes=(0, over), out_axes=over)(keys("enter", stage.name), state)

        return stage._replace(step=step, enter=enter)

    def averaged(function: Callable[[Key, TrainState, Batch], Outputs]) -> Callable[..., Outputs]:
        def together(key: Key, state: TrainState, batch: Batch) -> Outputs:
            outputs = jax.vmap(function, in_axes=(None, over, None))(key, state, batch)
            return {
                name: jnp.concatenate(list(value), -1) if name in method.own else mean(value)
                for name, value in outputs.items()
            }

        return together

    return method._replace(
        init=init,
        stages=tuple(map(widen, method.stages)),
        predict=averaged(method.predict),
        export=averaged(method.export) if method.export else None,
    )


def mean(of_seeds: jax.Array) -> jax.Array:
    """The mean over the first axis, in the same type.

    Raises:
      TypeError: integers other than uint8 (pictures): the mean of two classes is a third one.
    """
    if not (jnp.issubdtype(of_seeds.dtype, jnp.floating) or of_seeds.dtype == jnp.uint8):
        raise TypeError(f"A method's output of {of_seeds.dtype} cannot be averaged over seeds. Give probabilities.")
    found = of_seeds.mean(0)
    return (jnp.round(found) if of_seeds.dtype == jnp.uint8 else found).astype(of_seeds.dtype)


def member(state: TrainState, number: int) -> TrainState:
    """The state of one of the seeds that were trained side by side, as a run of its own would have it."""
    return state.replace(
        **{name: jax.tree.map(lambda leaf: leaf[number], getattr(state, name)) for name in ("params", "opt", "extra")}
    )


def spec_abreast(batch: Any, seeds: int) -> Any:
    """The shapes and types of a batch of training for so many seeds, from those of one."""
    if seeds == 1:
        return batch
    return {
        name: jax.ShapeDtypeStruct((spec.shape[0], seeds, *spec.shape[1:]), spec.dtype) for name, spec in batch.items()
    }


class Abreast:
    """Streams of batches side by side: the k-th batches of all are stacked on a second axis, ``[b, s, ...]``.

    It has what the train loop asks of a stream: ``get_state``, ``set_state``, ``close``.
    """

    def __init__(self, streams: Sequence[grain.DatasetIterator[Example]]) -> None:
        self.streams = streams

    def __next__(self) -> Example:
        batches = [next(stream) for stream in self.streams]
        return {name: np.stack([batch[name] for batch in batches], 1) for name in batches[0]}

    def get_state(self) -> dict[str, Any]:
        """Where all of them stand, fit for JSON."""
        return {"abreast": [stream.get_state() for stream in self.streams]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        for stream, own in zip(self.streams, state["abreast"], strict=True):
            stream.set_state(own)

    def close(self) -> None:
        """Ends all."""
        for stream in self.streams:
            stream.close()
