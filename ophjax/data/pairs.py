"""Pairs for super-resolution: images at several scales, and how training batches are made up of them.

An example holds ``target`` uint8 [s h, s w, 3] (the truth), ``image`` uint8 [h, w, 3] (the input), for scales above 2
``image_x2``, ``image_x4`` (the truth in between), and ``target_weight`` float32 [], 0 where only the input is known and
the other images mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ophjax.data.sources import Chained, Example, Grouped, Source
from ophjax.errors import InputError
from ophjax.transforms.resizing import resize_bytes

SCALES = (2, 4, 8)


def name_of(times: int, scale: int) -> str:
    """Names the entry that holds the image at so many times the size of the input."""
    return "image" if times == 1 else "target" if times == scale else f"image_x{times}"


def steps(scale: int) -> list[int]:
    """Lists the sizes of an example's images, as multiples of the input's: 1, 2, ..., scale.

    Raises:
      InputError: the scale is none of 2, 4, 8.
    """
    if scale not in SCALES:
        raise InputError(f"The scale is {scale}; give --data.scale 2, 4 or 8.")
    return [2**i for i in range(scale.bit_length())]


def pyramid(target: np.ndarray, scale: int, *, border: str = "mirror", rounded: bool = True) -> Example:
    """Makes an example of an image by MATLAB's bicubic shrinking; sides must be multiples of the scale."""
    found = {
        name_of(times, scale): resize_bytes(target, scale // times, border=border, rounded=rounded)
        for times in steps(scale)[:-1]
    }
    return found | {"target": target, "target_weight": np.ones((), np.float32)}


def subsampled(target: np.ndarray, scale: int) -> Example:
    """Makes an example of an image by taking every n-th pixel: what a camera of another kind gives."""
    found = {name_of(times, scale): target[:: scale // times, :: scale // times] for times in steps(scale)[:-1]}
    kept = {name: np.ascontiguousarray(image) for name, image in found.items()}
    return kept | {"target": target, "target_weight": np.ones((), np.float32)}


def input_only(image: np.ndarray, scale: int) -> Example:
    """Makes an example of an input whose truth is not known."""
    height, width, _ = image.shape
    blank = {
        name_of(times, scale): np.zeros((times * height, times * width, 3), np.uint8) for times in steps(scale)[1:]
    }
    return blank | {"image": image, "target_weight": np.zeros((), np.float32)}


def halves(source: Source, images: Sequence[int] | None = None) -> Source:
    """Lets two halves of the examples take turns: even rows of a batch from one, odd rows from the other.

    Args:
      source: the examples.
      images: a number of the image that each example was cut from; none: each is an image of its own. The halves share
        no image (every second one), unless there is one only: then they are its upper and its lower tiles.
    """
    if len(source) < 2:
        raise InputError("The training split has one example; the search needs two halves of it. Add images.")
    images = range(len(source)) if images is None else images
    different = sorted(set(images))
    if len(different) == 1:
        middle = len(source) // 2
        return Grouped(source, [range(middle), range(middle, len(source))])
    parts = [set(different[half::2]) for half in (0, 1)]
    return Grouped(source, [[i for i, image in enumerate(images) if image in part] for part in parts])


def with_inputs(paired: Source, inputs: Source, *, tenths: int = 3) -> Source:
    """Mixes inputs without truth into training batches: so many of ten rows (dualsr spec, (d): 30 %).

    Raises:
      InputError: too few examples to make up the shares.
    """
    shares = ((paired, 0, 10 - tenths), (inputs, len(paired), tenths))
    for source, _, parts in shares:
        if len(source) < parts:
            raise InputError(
                f"Adaptation mixes {10 - tenths} paired images with {tenths} inputs; it needs as many of each, and "
                f"there are {len(paired)} and {len(inputs)}. Add images."
            )
    groups = [
        range(first + part, first + len(source), parts) for source, first, parts in shares for part in range(parts)
    ]
    return Grouped(Chained([paired, inputs]), groups)
