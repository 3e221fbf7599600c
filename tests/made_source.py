"""A source that notes what is read of it, and says that its examples are large."""

import numpy as np

from ophjax.data.sources import Arrays


def counted(bytes_each):
    """A hundred small images that claim so many bytes each, and the list of the positions read so far."""
    read = []

    class Counted(Arrays):
        example_bytes = bytes_each

        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    return Counted([str(i) for i in range(100)], {"image": np.zeros((100, 2, 2, 3), np.uint8)}), read
