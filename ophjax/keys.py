"""Named random keys: one key in, named keys out, none stored."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import jax

if TYPE_CHECKING:
    from ophjax.types import Key


def at(key: Key, *names: str | int | jax.Array) -> Key:
    """Derives the key that belongs to a place in the program.

    Each name is folded in, in order: strings by their CRC-32 (stable between runs and
    machines), integers and traced integer scalars as they are. Two places with different
    names get independent keys, and a restored step number restores the randomness.

    >>> import jax
    >>> root = jax.random.key(0)
    >>> bool((jax.random.key_data(at(root, "flip", 3)) == jax.random.key_data(at(root, "flip", 3))).all())
    True
    """
    for name in names:
        key = jax.random.fold_in(key, zlib.crc32(name.encode()) if isinstance(name, str) else name)
    return key
