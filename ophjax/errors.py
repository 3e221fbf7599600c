"""The one error a user can cause, so that commands can show it without a traceback."""


class InputError(ValueError):
    """Something given by the user cannot be used.

    The message is one paragraph that says what was given, what was expected and what to do.
    Commands print it and exit with code 2; in a notebook it is an ordinary ``ValueError``.
    """


class DivergedError(InputError):
    """The loss became NaN or infinite. The message names the stage, the step and the last good checkpoint."""


def unknown(kind: str, given: str, known: list[str] | tuple[str, ...]) -> InputError:
    """Builds the error for a wrong name: it lists the right ones and guesses the one that was meant."""
    import difflib

    near = difflib.get_close_matches(given, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(f"Unknown {kind} {given!r}. Known: {', '.join(known)}.{hint}")
