"""The one error a user can cause, so that commands can show it without a traceback."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class InputError(ValueError):
    """Something given by the user cannot be used.

    The message is one paragraph that says what was given, what was expected and what to do.
    Commands print it and exit with code 2; in a notebook it is an ordinary ``ValueError``.
    """


class OtherRunError(InputError):
    """A run's folder holds another run."""


class DivergedError(InputError):
    """The loss became NaN or infinite. The message names the stage, the step and the last good checkpoint."""


def unknown(kind: str, given: str, known: list[str] | tuple[str, ...]) -> InputError:
    """Builds the error for a wrong name: it lists the right ones and guesses the one that was meant."""
    import difflib

    near = difflib.get_close_matches(given, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(f"Unknown {kind} {given!r}. Known: {', '.join(known)}.{hint}")


def check_options(config: Any, rules: Mapping[str, tuple[bool, str]], *, part: str = "method") -> None:
    """Raises InputError for the first field of a configuration that breaks its rule.

    Args:
      config: of a method, or of another part of a run.
      rules: for each field, whether its rule holds and what is expected of it.
      part: of the run, as its options are named.
    """
    for name, (holds, expected) in rules.items():
        if not holds:
            option = f"--{part}.{name.replace('_', '-')}"
            given = getattr(config, name.replace("-", "_"))
            raise InputError(f"{option} is {given}; expected {expected}. --help explains the options.")


def parse_options(kind: type[T], words: Sequence[str], *, prog: str, hint: str, description: str | None = None) -> T:
    """Reads the options of a dataclass by tyro; --help prints them and leaves.

    Args:
      kind: the dataclass, with a default for every field.
      words: of the command line.
      prog: the command.
      hint: how to see the options; ends the message.
      description: for --help.

    Raises:
      InputError: with the parser's message, a box of several lines, as one paragraph.
    """
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=words, prog=prog, description=description)
    except SystemExit as leaving:
        if not leaving.code:
            raise
        text = " ".join(re.sub(r"\x1b\[[0-9;]*m|[\u2500-\u257f]", " ", said.getvalue()).split())
        text = re.sub(r" For full helptext, \w+ \S+ --help", "", text)
        raise InputError(f"{text.removesuffix('.')}. {hint}") from None


STOPPED = 75
"""The exit code of a command that was stopped and can go on (EX_TEMPFAIL)."""


def ends_like_ctrl_c() -> None:
    """Makes SIGTERM a ``KeyboardInterrupt``, where a signal can be handled (in the main thread)."""
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def as_command(run: Callable[[list[str]], Any]) -> int:
    """Runs a command line as a shell wants it; returns the exit code.

    Args:
      run: takes the words after the command's name; gives what there is to print, an exit code, or nothing.

    Returns:
      What ``run`` gave, 0, 2 for an ``InputError``, whose paragraph is printed, or 75 where Ctrl-C or SIGTERM ended it.
    """
    ends_like_ctrl_c()
    try:
        said = run(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return STOPPED
    if isinstance(said, int):
        return said
    if isinstance(said, str):
        print(said)
    return 0
