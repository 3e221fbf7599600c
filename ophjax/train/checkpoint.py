"""The thin wall around Orbax: whole checkpoints, written in the background, never half visible."""

from __future__ import annotations

import json
import logging
import sys
import warnings
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ophjax import trees
from ophjax.errors import InputError
from ophjax.nets import pretrained
from ophjax.types import TrainState


class Checkpoints:
    """The checkpoints of one run: the last ``keep`` and the best by one score.

    A checkpoint is a state (arrays, sharded as they are) and a ``meta`` dictionary (JSON). Saving returns
    at once; a checkpoint that was not finished when the process died is never offered again. With ``read_only``
    the folder, which may be that of a run still going on, is left as it is. A sum over all bytes of the state lies in
    the meta (not where a process holds only a part of the state): storage changes bits now and then, and says nothing.

    Raises:
      InputError: the score of a checkpoint is damaged.
    """

    def __init__(self, folder: Path, *, keep: int = 2, read_only: bool = False) -> None:
        from orbax import checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as policies

        _hush()
        _check_scores(folder)
        # One copy of what is replicated is written whole. By default Orbax cuts each leaf into one slice a device,
        # which for the hundreds of small leaves of these nets takes many times as long as writing them.
        whole = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
        ocp.type_handlers.register_type_handler(jax.Array, whole, override=True)
        self.folder = folder
        self._ocp = ocp
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            item_names=("state", "meta"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(keep),
                        policies.BestN(
                            get_metric_fn=lambda scores: scores["watch"], n=1, keep_checkpoints_without_metrics=False
                        ),
                    ]
                ),
                best_fn=lambda scores: scores["watch"],
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                read_only=read_only,
            ),
        )

    def steps(self) -> list[int]:
        """The steps that can be restored, in order."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """The step of the best score that can be restored; None where none has one."""
        return self._manager.best_step()

    def save(self, step: int, state: Any, meta: dict[str, Any], *, watch: float | None = None) -> None:
        """Starts writing a checkpoint; ``watch`` is its score, larger being better.

        Raises:
          InputError: the disk is full or the folder cannot be written; earlier checkpoints stay whole.
        """
        notes = meta | {"checksum": checksum(state)}
        items = self._ocp.args.Composite(state=self._ocp.args.StandardSave(state), meta=self._ocp.args.JsonSave(notes))
        try:
            self._manager.save(step, args=items, metrics=None if watch is None else {"watch": watch}, force=True)
        except (OSError, ValueError) as error:
            raise self._unwritten(error) from error

    def meta(self, step: int) -> dict[str, Any]:
        """Reads what was saved beside the state of ``step``.

        Raises:
          InputError: the file is missing or damaged.
        """
        return {name: value for name, value in self._notes(step).items() if name != "checksum"}

    def _notes(self, step: int) -> dict[str, Any]:
        path = self.folder / str(step) / "meta" / "metadata"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except Exception as error:  # JSON of any shape
            raise InputError(
                f"Checkpoint {self.folder / str(step)} cannot be read: {error}. Delete that folder to go on from "
                "the checkpoint before it."
            ) from error

    def restore(self, step: int, like: Any) -> Any:
        """Reads the state of ``step`` in the shapes, types and shardings of ``like``.

        Raises:
          InputError: the checkpoint is damaged or belongs to another method or configuration.
        """
        try:
            # Orbax meets another shape in the middle of reading, and then leaves threads and warnings behind.
            found, wanted = (trees.named_leaves(tree) for tree in (self._shapes(step), like))
            for name in found.keys() & wanted.keys():
                if found[name].shape != wanted[name].shape:
                    raise ValueError(f"{name} has the shape {found[name].shape}, not {wanted[name].shape}.")
            return self._restored(step, like)
        except Exception as error:  # Orbax and TensorStore raise many kinds, all of which mean this.
            raise InputError(
                f"Checkpoint {self.folder / str(step)} does not fit this method and configuration, or is damaged: "
                f"{first_line(error)} Run the command in the run's config.json, or delete that folder to go on from "
                "the checkpoint before it."
            ) from error

    def read(self, step: int) -> dict[str, Any]:
        """Reads the state of ``step`` as plain dictionaries of NumPy arrays, whatever devices it was saved from.

        Raises:
          InputError: the checkpoint is damaged.
        """
        try:
            # Without a target, Orbax restores only to as many devices and processes as there were.
            like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), self._shapes(step))
            return self._restored(step, like)
        except Exception as error:  # Orbax and TensorStore raise many kinds, all of which mean this.
            raise self._unreadable(step, error) from error

    def shapes(self, step: int) -> dict[str, Any]:
        """Reads the shapes and types of the state of ``step``, as plain dictionaries; no array is read.

        Raises:
          InputError: the checkpoint is damaged.
        """
        try:
            return self._shapes(step)
        except Exception as error:
            raise self._unreadable(step, error) from error

    def _restored(self, step: int, like: Any) -> Any:
        arguments = self._ocp.args.Composite(state=self._ocp.args.StandardRestore(like))
        state = self._manager.restore(step, args=arguments)["state"]
        try:
            noted = self._notes(step).get("checksum")
        except InputError:  # told by what needs the meta
            noted = None
        found = checksum(state)
        if None not in (noted, found) and noted != found:
            raise ValueError("Its numbers are not those that were saved.")
        return state

    def _shapes(self, step: int) -> Any:
        return self._ocp.StandardCheckpointHandler().metadata(self.folder.absolute() / str(step) / "state").tree

    def should_stop(self, step: int) -> bool:
        """Whether the cluster has announced that it takes the machines back (several processes only)."""
        return jax.process_count() > 1 and self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Returns when all is on disk."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._unwritten(error) from error

    def close(self) -> None:
        """Waits for what is being written, and ends."""
        try:
            self._manager.close()
        except (OSError, ValueError) as error:
            raise self._unwritten(error) from error

    def _unreadable(self, step: int, error: Exception) -> InputError:
        return InputError(
            f"Checkpoint {self.folder / str(step)} cannot be read: {first_line(error)} Delete that folder to use the "
            "checkpoint before it."
        )

    def _unwritten(self, error: Exception) -> InputError:
        late = isinstance(error, TimeoutError)  # a process that stood still, a disk that is far too slow
        mend = "see whether the disk answers" if late else "make room or mend the folder's permissions"
        return InputError(
            f"A checkpoint could not be written to {self.folder}{' in time' if late else ''}: {error}. Earlier "
            f"checkpoints are whole: {mend}, then run the same command with --resume."
        )


def checksum(state: Any) -> int | None:
    """The sum of the CRC-32 of all arrays; None where this process holds only a part of one."""
    total = 0
    for leaf in jax.tree.leaves(state):
        if not (getattr(leaf, "is_fully_addressable", True) or leaf.is_fully_replicated):
            return None
        content: Any = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
        total += zlib.crc32(content)
    return total % 2**32


def _check_scores(folder: Path) -> None:
    """Orbax reads the scores of all checkpoints at once, and without them offers none."""
    for path in sorted(folder.glob("*/metrics/metrics")):
        try:
            if not isinstance(json.loads(path.read_bytes())["watch"], float):
                raise ValueError("It is no number.")
        except FileNotFoundError:  # another process has just removed this checkpoint
            continue
        except Exception as error:
            raise InputError(
                f"The score of checkpoint {path.parents[1]} cannot be read: {first_line(error)} Delete the folder "
                f"{path.parent}: only this score is lost, the checkpoint is not."
            ) from error


def _hush() -> None:
    """Keeps the echoes of an error off the screen: the error itself is raised, once.

    Orbax logs the traceback of what it raises. At the first error it closes its event loop, and asyncio logs, and
    TensorStore's threads print, a traceback for each of the hundreds of leaves still under way; Python warns of those
    that had not begun, maybe as late as at its own end.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", r"coroutine '\S*(serialize|write)\S*' was never awaited", RuntimeWarning)
    if not isinstance(sys.unraisablehook, _Echoes):
        sys.unraisablehook = _Echoes(sys.unraisablehook)


class _Echoes:
    """The hook for what Python cannot raise, deaf to the coroutines that Orbax leaves behind."""

    def __init__(self, before: Callable[[Any], None]) -> None:
        self._before = before

    def __call__(self, ignored: Any) -> None:
        code = getattr(ignored.object, "cr_code", None)
        closed = isinstance(ignored.exc_value, RuntimeError) and "Event loop is closed" in str(ignored.exc_value)
        if not closed and not (code is not None and "orbax" in code.co_filename):
            self._before(ignored)


def first_line(error: Exception) -> str:
    """The first line of an error's text without TensorStore's appendix, or its kind where it has none."""
    text = str(error).strip().partition(" See full TensorStore details")[0]
    return text.splitlines()[0][:300] if text else type(error).__name__


def check_networks(state: TrainState, sources: Sequence[str], *, seeds: int = 1) -> None:
    """Checks that ``take_networks`` will find what it needs. Only shapes are read: ``state`` may be abstract.

    Raises:
      InputError: no such run or network, or its shapes are others.
    """
    for source in sources:
        name, path = _parse(source)
        if path.is_file():
            _put_weights(state, name, path, seeds)
            continue
        with closing(Checkpoints(path, read_only=True)) as saved:
            steps = saved.steps()
            found = saved.shapes(steps[-1]) if steps else {"params": {}, "extra": {}}
        networks = (_network(name, found["params"], found["extra"]), _network(name, state.params, state.extra))
        old, new = ({path: leaf.shape for path, leaf in trees.named_leaves(tree).items()} for tree in networks)
        repeated = {path: (seeds, *shape) for path, shape in old.items()} if seeds > 1 else old
        if name not in found["params"] or new not in (old, repeated):
            raise InputError(
                f"--start-from {source}: that run has the networks {', '.join(found['params']) or 'none'}, and its "
                f"{name!r} must have the shapes of this run's. Give it the same sizes (depth, width, regions), and one "
                "seed or as many as this run's."
            )


def take_networks(state: TrainState, sources: Sequence[str], *, seeds: int = 1) -> TrainState:
    """Replaces networks, and their batch statistics, by those of other runs, or their backbones by pretrained ones.

    Args:
      state: fresh, for its shapes and shardings.
      sources: ``"NETWORK=RUN_FOLDER"``, of which the newest checkpoint is read, or ``"NETWORK=FILE"`` (see
        ``nets.pretrained``).
      seeds: of the state, side by side: each has what a single net or file gives, or its own where there are as many.

    Raises:
      InputError: as ``check_networks``, or a checkpoint is damaged.
    """
    check_networks(state, sources, seeds=seeds)
    for source in sources:
        name, path = _parse(source)
        if path.is_file():
            name, old = _put_weights(state, name, path, seeds)
        else:
            with closing(Checkpoints(path, read_only=True)) as saved:
                found = saved.read(saved.steps()[-1])
            old = _network(name, found["params"], found["extra"])
        new = _network(name, state.params, state.extra)
        each = jax.tree.map(lambda leaf, like: leaf if leaf.ndim == like.ndim else np.stack([leaf] * seeds), old, new)
        placed = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), each, new)
        stats = state.extra.get("batch_stats", {}) | ({name: placed["stats"]} if placed["stats"] is not None else {})
        state = state.replace(
            params=state.params | {name: placed["params"]},
            extra=state.extra | ({"batch_stats": stats} if stats else {}),
        )
    return state


def _put_weights(state: TrainState, where: str, path: Path, seeds: int) -> tuple[str, dict[str, Any]]:
    """Puts a file's weights into the backbone at ``NETWORK`` or ``NETWORK/PATH``; gives the network's name and tree, in
    which the file's leaves have no axis of seeds."""
    name = where.partition("/")[0]
    if name not in state.params:
        raise InputError(f"--start-from {where}={path}: this run has the networks {', '.join(state.params)}. Name one.")
    own = _network(name, state.params, state.extra)
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:] if seeds > 1 else leaf.shape, leaf.dtype), own)
    params, stats = pretrained.load_backbone(path, one["params"], one["stats"], where)
    new = {"params": params, "stats": stats}
    # What the file does not hold stays as it is.
    return name, jax.tree.map(lambda leaf, spec, before: before if leaf is spec else leaf, new, one, own)


def _parse(source: str) -> tuple[str, Path]:
    name, _, folder = source.partition("=")
    if folder.endswith(pretrained.SUFFIXES) and Path(folder).is_file():
        return name, Path(folder)
    path = Path(folder) / "checkpoints"
    if not folder or not path.is_dir():
        raise InputError(
            f"--start-from {source}: expected NETWORK=RUN_FOLDER, a run with checkpoints in it, or NETWORK=FILE, "
            f"weights ({', '.join(pretrained.SUFFIXES)})."
        )
    return name, path


def _network(name: str, params: Any, extra: Any) -> dict[str, Any]:
    return {"params": params.get(name), "stats": extra.get("batch_stats", {}).get(name)}
