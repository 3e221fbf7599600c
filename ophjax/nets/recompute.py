"""Activations computed again in the backward pass instead of being kept (rematerialisation)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

recomputed = jax.make_user_context(default_value=False)
"""Under ``with recomputed(True)`` only the inputs are kept of blocks that nets scan over. The numbers are the same."""


def body(function: Callable[..., Any]) -> Callable[..., Any]:
    """The body of a ``lax.scan`` over blocks. Outside of scans XLA's CPU compiler undoes such a wish (BUILD_NOTES)."""
    return jax.checkpoint(function, prevent_cse=False) if recomputed.value else function
