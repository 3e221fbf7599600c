import zlib

import jax
import numpy as np

from ophjax.keys import at


def bits(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_places_have_their_own_keys():
    """Other names, other order, other depth, other root: other keys. The same place: the same key."""
    root = jax.random.key(0)
    places = [(), ("flip",), ("drop",), ("flip", 3), ("flip", 4), (3, "flip"), ("flip", "drop"), ("drop", "flip")]
    keys = [bits(at(root, *place)) for place in places] + [bits(at(jax.random.key(1), "flip"))]
    assert len(set(keys)) == len(keys)
    assert bits(at(root, "flip", 3)) == bits(at(at(root, "flip"), 3))


def test_names_mean_the_same_on_every_machine():
    """Python's own hash of a string changes with each process; CRC-32 ("123456789": cbf43926, its check value) not."""
    assert zlib.crc32(b"123456789") == 0xCBF43926
    root = jax.random.key(7)
    assert bits(at(root, "123456789")) == bits(jax.random.fold_in(root, 0xCBF43926))


def test_traced_numbers():
    """A step counter inside a compiled program gives the key that the number outside gives."""
    traced = jax.jit(lambda step: jax.random.key_data(at(jax.random.key(0), "step", step)))(np.int32(5))
    assert tuple(np.asarray(traced).tolist()) == bits(at(jax.random.key(0), "step", 5))
