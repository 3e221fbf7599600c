"""Safe decoding of image and mask files: whatever is wrong with one becomes an InputError that names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ophjax.errors import InputError, unknown

if TYPE_CHECKING:
    from jaxtyping import UInt8

MAX_PIXELS = 100_000_000
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")

CODES = {
    "binary": "region=1,255",
    "refuge": "background=255;disc=0,128;cup=0",
    "drishti": "disc=1,2;cup=2",
}
"""Mask codes by name: one region drawn as 1 or 255 on 0; REFUGE's grey levels; rim 1 and cup 2 on 0."""

ORIENTATION = 0x0112  # the EXIF tag; from 5 on width and height are exchanged


class MaskCode(NamedTuple):
    """Which pixel values of a mask file make which region. A value may belong to several (nested) regions.

    Attributes:
      regions: pixel values of each region, by name, in the order of the mask's channels.
      background: pixel values that belong to no region.
    """

    regions: dict[str, tuple[int, ...]]
    background: tuple[int, ...]

    def describe(self) -> str:
        """Writes the code as it would be typed."""
        parts = {"background": self.background, **self.regions}
        return ";".join(f"{name}={','.join(map(str, values))}" for name, values in parts.items())


def parse_code(text: str) -> MaskCode:
    """Reads a mask code: a name out of ``CODES``, or ``region=value,value;region=value``.

    ``disc=1,2;cup=2`` says that pixels of value 1 and 2 are the disc and those of value 2 the cup as well.
    ``background`` names the values of no region; without it, it is 0.

    Raises:
      InputError: where the text does not follow that form or lets a value be background and region.
    """
    form = "Give e.g. 'disc=1,2;cup=2' (region=pixel values, with 'background=...' where it is not 0)."
    if "=" not in text:
        if text not in CODES:
            raise InputError(f"{unknown('mask code', text, tuple(CODES))} {form}")
        text = CODES[text]
    parts: dict[str, tuple[int, ...]] = {}
    for item in filter(None, (item.strip() for item in text.split(";"))):
        name, _, values = item.partition("=")
        name = name.strip()
        numbers = [value.strip() for value in values.split(",")]
        good = all(number.isascii() and number.isdigit() and int(number) <= 255 for number in numbers)
        if not name.isidentifier() or name in parts or not good:
            raise InputError(
                f"The mask code {text!r} cannot be read at {item!r}: each region is named once, by letters, "
                f"digits and '_', and its pixel values are integers from 0 to 255. {form}"
            )
        parts[name] = tuple(sorted({int(number) for number in numbers}))
    background = parts.pop("background", (0,))
    shared = sorted(set(background) & {value for values in parts.values() for value in values})
    if not parts or shared:
        why = f"value {shared[0]} is both background and region" if shared else "it names no region"
        raise InputError(f"The mask code {text!r} cannot be used: {why}. {form}")
    return MaskCode(parts, background)


def image_size(path: Path) -> tuple[int, int]:
    """Reads (width, height) from the header, as the image is displayed (EXIF orientation applied)."""
    with _opened(path) as image:
        width, height = image.size
        # For PNG, getexif would decode the whole file unless the tag stands before the pixels.
        turned = image.format != "PNG" or "exif" in image.info
        if turned and image.getexif().get(ORIENTATION, 1) >= 5:
            width, height = height, width
    return width, height


def read_image(path: Path, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Decodes an image to RGB of 8 bits and stretches it to a square.

    Grey is repeated over the channels, palettes are looked up, transparency is dropped, 16 bits are scaled
    to 8 over their full range, EXIF orientation is applied. The resize is antialiased bilinear. It stretches
    rather than pads, as the authors' loaders do: mask and image are stretched
    alike, and no border has to be ignored by losses and scores.

    Raises:
      InputError: where the file is missing, is no image, is damaged or has more than 100 megapixels.
    """
    from PIL import Image, ImageOps

    with _opened(path) as image:
        # JPEG can be decoded at 1/2, 1/4 or 1/8: at least twice the size wanted leaves the resize its work.
        image.draft(None, (2 * size, 2 * size))
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":
            image = Image.fromarray(_to_bytes(path, np.asarray(image)))
        if "transparency" in image.info:
            image = image.convert("RGBA")
        image = image.convert("RGB")
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(image)


def read_codes(path: Path) -> UInt8[np.ndarray, "h w"]:
    """Decodes the pixel values of a mask file: grey values, palette indices, or 0/1 for one bit a pixel.

    Raises:
      InputError: as ``read_image``, or where the file is a colour picture or has values above 255.
    """
    with _opened(path) as image:
        mode, values = image.mode, np.asarray(image)
    if values.ndim == 3:
        colours = values[..., :1] if mode == "LA" else values[..., :3]
        if mode not in ("LA", "RGB", "RGBA") or (colours != colours[..., :1]).any():
            raise InputError(
                f"Mask {path} is a colour picture (mode {mode}). A mask holds one value for each pixel: save "
                "it as a grey or palette PNG."
            )
        values = colours[..., 0]
    if values.dtype.kind not in "bui" or values.min() < 0 or values.max() > 255:
        raise InputError(f"Mask {path} has pixel values outside 0 to 255. Save it as a grey or palette PNG.")
    return values.astype(np.uint8)


def check_codes(path: Path, values: UInt8[np.ndarray, "h w"], code: MaskCode) -> None:
    """Raises InputError where a mask holds pixel values that the code does not know."""
    known = set(code.background).union(*code.regions.values())
    found = np.flatnonzero(np.bincount(values.ravel(), minlength=256)).tolist()
    if not known.issuperset(found):
        listed = ", ".join(map(str, found[:8])) + (", ..." if len(found) > 8 else "")
        raise InputError(
            f"Mask {path} holds the pixel values {listed}, but the mask code '{code.describe()}' knows only "
            f"{', '.join(map(str, sorted(known)))}. Correct the file (JPEG and smooth resizing make false "
            "values), or for a folder of your own give the right --data.mask-code."
        )


def read_mask(path: Path, size: int, code: MaskCode) -> UInt8[np.ndarray, "size size c"]:
    """Decodes a mask file into one channel of 0/1 for each region, stretched to a square.

    Each region is averaged over the area of the new pixel, which is set where at least half is covered. This
    moves edges less than taking the nearest pixel, and keeps nested regions nested.

    Raises:
      InputError: as ``read_codes``, or where the file holds values that the code does not know.
    """
    from PIL import Image

    values = read_codes(path)
    check_codes(path, values, code)
    channels = []
    for wanted in code.regions.values():
        table = np.zeros(256, np.uint8)
        table[list(wanted)] = 255
        region = table[values]
        if region.shape != (size, size):
            region = np.asarray(Image.fromarray(region).resize((size, size), Image.Resampling.BOX))
        channels.append(region >= 128)  # Pillow rounds half (127.5) up
    return np.stack(channels, -1).astype(np.uint8)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"Image {path} has more than {MAX_PIXELS // 10**6} megapixels, the most that is decoded. Scale "
            "it down or remove it."
        ) from error
    except FileNotFoundError as error:
        raise InputError(f"There is no image file {path}. Check the path.") from error
    # A damaged file makes Pillow raise nearly anything: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as error:
        raise InputError(
            f"{path} cannot be decoded as an image ({type(error).__name__}: {error}). Replace or remove it."
        ) from error


def _to_bytes(path: Path, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "ui" or values.min() < 0 or values.max() > 65535:
        raise InputError(f"Image {path} is neither of 8 nor of 16 bits. Save it as one of these.")
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
