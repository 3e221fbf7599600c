"""Settings of the process: compiled programs are kept between runs, memory between steps."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import jax


def cache_programs(folder: Path | None = None) -> None:
    """Keeps compiled programs for the next run, in ``~/.cache/ophjax`` or the folder given.

    ``JAX_COMPILATION_CACHE_DIR`` names another folder and comes first.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(folder or Path.home() / ".cache" / "ophjax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def keep_memory() -> None:
    """On CPUs, keeps freed memory for the next step; elsewhere does nothing.

    glibc gives large blocks back after every step and faults them in again at the next, tens of thousands of
    page faults a step; keeping them gains 10 to 15 %.
    """
    if not sys.platform.startswith("linux") or jax.default_backend() != "cpu":
        return
    trim_threshold, mmap_max = -1, -4  # names of glibc's mallopt: M_TRIM_THRESHOLD, M_MMAP_MAX
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
    except (OSError, AttributeError):
        pass  # another C library: nothing to gain, nothing lost
