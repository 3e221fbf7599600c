"""Settings of the process that must be made before JAX starts to work."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path


def settle(cache: Path | None = None) -> None:
    """Keeps freed memory for the next step (CPU) and compiled programs for the next run.

    glibc gives large blocks back after every step and faults them in again at the next, tens of thousands of
    page faults a step; keeping them gains 10 to 15 % on CPUs. The cache of compiled programs lies in ``cache``,
    by default ``~/.cache/ophjax``, unless ``JAX_COMPILATION_CACHE_DIR`` names another folder.
    """
    if sys.platform == "linux" and os.environ.get("JAX_PLATFORMS", "cpu") == "cpu":
        trim_threshold, mmap_max = -1, -4  # names of glibc's mallopt: M_TRIM_THRESHOLD, M_MMAP_MAX
        try:
            libc = ctypes.CDLL(None)
            libc.mallopt(mmap_max, 0)
            libc.mallopt(trim_threshold, 2**31 - 1)
        except (OSError, AttributeError):
            pass  # another C library: nothing to gain, nothing lost
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache or Path.home() / ".cache" / "ophjax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
