"""Arrays out of npz files that others wrote: without pickle, and with no more memory than the file can fill."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np

from ophjax.errors import InputError

DEFLATE = 1032
"""Deflate, with which npz and nii.gz are packed, makes at most so many bytes of one."""


def read_npz(path: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Reads the named arrays of an npz file, or all of them.

    Raises:
      InputError: the file is missing, damaged, no npz, or lacks one of the names.
    """
    most, arrays = 0, {}
    try:
        most = DEFLATE * path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            known = {entry.removesuffix(".npy"): entry for entry in archive.namelist()}
            for name in known if names is None else names:
                with archive.open(known[name]) as member:
                    _check(member, most)
                with archive.open(known[name]) as member:
                    arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
    except KeyError as error:
        raise InputError(f"{path} has no array {error}. Give the official file.") from error
    except Exception as error:  # a damaged file makes zipfile, zlib and NumPy raise nearly anything
        said = " ".join(str(error).split())[:300]
        raise InputError(
            f"{path} cannot be read as an npz file ({type(error).__name__}: {said}). Download it again."
        ) from error
    return arrays


def _check(member: IO[bytes], most: int) -> None:
    """Raises ValueError where an array's header claims more than ``most`` bytes, which NumPy would ask for at once."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(member)
    if math.prod(shape) * dtype.itemsize > most:
        raise ValueError(f"an array claims the shape {shape}, more than the file can hold")
