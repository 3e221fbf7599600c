"""Being asked to stop: Ctrl-C and SIGTERM become a flag that the loop reads between steps."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import jax


class StopRequest:
    """Holds ``asked`` true after SIGINT or SIGTERM, so that a run can save and leave.

    A second signal is handled as Python would (Ctrl-C raises), for a run that hangs. Outside the main
    thread, where Python allows no handlers, it stays false; so it does with several processes, which must
    agree on the step they stop at: there SIGTERM belongs to ``jax.distributed`` (see ``Checkpoints.should_stop``).
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if jax.process_count() > 1:
            return self
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:
                return self
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.asked = True
        signal.signal(number, self._before[number])
