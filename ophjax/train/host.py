"""Settings of the process: what compiles fast code, and what is kept between runs and between steps."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import sys
from pathlib import Path

import jax

# A flag that XLA does not know ends the process: later versions must be tried before they are added here.
_YNNPACK = "--xla_cpu_experimental_ynn_fusion_type"
_OLDEST, _NEWEST = (0, 10), (0, 12)


def prepare_compiler(folder: Path | None = None) -> None:
    """Has compiled programs kept for the next run, and convolutions on CPUs computed by Eigen; to be called first.

    Programs are kept in ``~/.cache/ophjax`` or the folder given; ``JAX_COMPILATION_CACHE_DIR`` names another one and
    comes first. XLA would give convolutions to YNNPACK, with which a kernel's gradient takes up to six times as long
    (BUILD_NOTES, "Steps against PyTorch"). XLA reads its flags once, when JAX first compiles or asks for devices. What
    ``XLA_FLAGS`` says of YNNPACK is left as it is; so are all flags on TPU hosts, whose own library reads them too.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(folder or Path.home() / ".cache" / "ophjax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    flags, known = os.environ.get("XLA_FLAGS", ""), _OLDEST <= jax.__version_info__[:2] <= _NEWEST
    if known and _YNNPACK not in flags and importlib.util.find_spec("libtpu") is None:
        os.environ["XLA_FLAGS"] = f"{flags} {_YNNPACK}=-individual_convolution".strip()


def keep_memory() -> None:
    """On CPUs, keeps freed memory for the next step; elsewhere does nothing.

    glibc gives large blocks back after every step and faults them in again at the next, tens of thousands of
    page faults a step; keeping them gains 10 to 15 %.
    """
    if jax.default_backend() == "cpu":
        trim_threshold, mmap_max = -1, -4  # names of glibc's mallopt: M_TRIM_THRESHOLD, M_MMAP_MAX
        _glibc("mallopt", mmap_max, 0)
        _glibc("mallopt", trim_threshold, 2**31 - 1)


def release_memory() -> None:
    """Gives freed memory back to the system: after compiling, which takes several times what a small step needs."""
    _glibc("malloc_trim", 0)


def _glibc(function: str, *numbers: int) -> None:
    """Calls one of glibc's; with another C library there is nothing to gain and nothing lost."""
    with contextlib.suppress(OSError, AttributeError):
        if sys.platform.startswith("linux"):
            getattr(ctypes.CDLL(None), function)(*numbers)
