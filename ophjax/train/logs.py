"""What a run says: one JSON line per event in a file, a progress bar or plain lines for the reader."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from ophjax.errors import DivergedError, InputError
from ophjax.types import Logs


def plain(value: Any) -> Any:
    """Turns arrays and NumPy scalars into what JSON holds; NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


class EventLog:
    """Appends events to ``metrics.jsonl``; with ``path=None`` (processes other than the first) says nothing.

    Raises:
      InputError: on making or writing, where the disk is full or the folder cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self._path, self._file = path, None
        if path is None:
            return
        try:
            # Unbuffered: what could not be written is not tried again on closing.
            self._file = path.open("ab", buffering=0)
            if path.is_file() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
                self._append(b"\n")  # a killed process left half a line, which must not swallow the next
        except OSError as error:
            raise self._unwritten(error) from error

    def write(self, event: str, **entries: Any) -> None:
        if self._file is None:
            return
        line = {"event": event} | {name: plain(value) for name, value in entries.items()}
        try:
            self._append((json.dumps(line | {"time": round(time.time(), 3)}) + "\n").encode())
        except OSError as error:
            raise self._unwritten(error) from error

    def close(self) -> None:
        if self._file:
            self._file.close()

    def _append(self, text: bytes) -> None:
        if self._file is not None and self._file.write(text) < len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _unwritten(self, error: OSError) -> InputError:
        return InputError(
            f"{self._path} could not be written: {error.strerror or error}. What was saved before is whole: make room "
            "or mend the folder's permissions, then run the same command with --resume."
        )


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Reads the events of a run; damaged lines, such as a last one cut short by a killed process, are skipped."""
    if not path.exists():
        return
    for line in path.read_bytes().split(b"\n"):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):  # no JSON, no UTF-8, or a hundred thousand brackets
            continue
        if isinstance(event, dict):
            yield event


class StepLog:
    """Follows the steps of one stage without holding them up: lines in the log, a progress bar, and the search for NaN.

    Where the output is a terminal it draws a bar with rate and time left, else it prints a plain line now and then.
    """

    def __init__(
        self,
        log: EventLog,
        stage: str,
        *,
        total: int,
        before: int,
        done: int,
        every: int,
        batch_size: int,
        quiet: bool,
        kept: Callable[[], list[int]],
    ) -> None:
        self._log, self._stage, self._total, self._before = log, stage, total, before
        self._every, self._batch_size, self._quiet, self._kept = every, batch_size, quiet, kept
        self._pending: list[tuple[int, Logs]] = []
        self._mark, self._since = done, time.perf_counter()
        self._bar = None
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=stage, unit="step", dynamic_ncols=True)

    def note(self, done: int, logs: Logs) -> None:
        """Takes the logs of step ``done`` without waiting for them; now and then reads the ones before."""
        if self._pending and (done - 1) % self._every == 0:
            self.flush()
        self._pending.append((done, logs))
        if self._bar is not None:
            self._bar.update()

    def flush(self) -> None:
        """Waits for all steps noted so far, checks them and writes the last one down.

        Raises:
          DivergedError: a value was NaN or infinite.
        """
        if not self._pending:
            return
        values: dict[str, float] = {}
        for done, logs in self._pending:
            values = {name: float(value) for name, value in jax.device_get(logs).items()}
            self.check(self._before + done, values)
        rate = (done - self._mark) * self._batch_size / max(time.perf_counter() - self._since, 1e-9)
        self._log.write("train", stage=self._stage, step=self._before + done, images_per_s=round(rate, 2), **values)
        text = {name: f"{value:.4g}" for name, value in values.items()}
        if self._bar is not None:
            self._bar.set_postfix(text)
        elif not self._quiet:
            words = "  ".join(f"{name} {value}" for name, value in text.items())
            print(f"{self._stage}  step {done}/{self._total}  {words}  {rate:.0f} images/s", flush=True)
        self._pending.clear()
        self._mark = done
        self.restart()

    def restart(self) -> None:
        """Starts the clock of the rate anew, after an evaluation, say."""
        self._since = time.perf_counter()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def check(self, step: int, values: Mapping[str, float]) -> None:
        """Raises DivergedError, and logs it, where one of the values of ``step`` (over all stages) is no number."""
        wrong = ", ".join(name for name, value in values.items() if not math.isfinite(value))
        if not wrong:
            return
        kept = self._kept()
        self._log.write("diverged", stage=self._stage, step=step, entries=wrong)
        good = f"The last good checkpoint is that of step {kept[-1]}." if kept else "No checkpoint had been saved yet."
        raise DivergedError(
            f"Stage {self._stage!r} diverged at step {step}: {wrong} became NaN or infinite. {good} Look for broken "
            "images in the data, or lower the learning rate, then start again under another --name."
        )


def say(text: str) -> None:
    """Prints one line, above the progress bar where there is one, from the first process only."""
    if jax.process_index() == 0:
        if sys.stderr.isatty():
            from tqdm import tqdm

            tqdm.write(text)
        else:
            print(text, flush=True)
