"""Safe decoding of image and mask files: whatever is wrong with one becomes an InputError that names it."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from ophjax.data import dicom
from ophjax.errors import InputError, unknown

if TYPE_CHECKING:
    from jaxtyping import UInt8

MAX_PIXELS = 100_000_000
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", dicom.SUFFIX)

CODES = {
    "binary": "region=1,255",
    "refuge": "background=255;disc=0,128;cup=0",
    "drishti": "disc=1,2;cup=2",
}
"""Mask codes by name: one region drawn as 1 or 255 on 0; REFUGE's grey levels; rim 1 and cup 2 on 0."""

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""Pillow's names of what is decoded, whatever the suffix says; of its others some start programs (EPS: Ghostscript)."""

ORIENTATION = 0x0112  # the EXIF tag; from 5 on width and height are exchanged
_WIDTH, _HEIGHT, _SUBFILE, _LARGEST = 0x0100, 0x0101, 0x00FE, 0x0119  # tags of TIFF; the last is MaxSampleValue


class Encoded(Protocol):
    """An image that is encoded somewhere: a ``Path``, or what else has bytes and, as text, says where."""

    @property
    def suffix(self) -> str: ...

    def read_bytes(self) -> bytes: ...


class Box(NamedTuple):
    """A rectangle inside a picture, as shares of its width and height: it fits any size of the same frame."""

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0

    def of(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Gives the rectangle in pixels."""
        return self.left * width, self.top * height, self.right * width, self.bottom * height


WHOLE = Box()


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


def image_size(path: Encoded) -> tuple[int, int]:
    """Reads (width, height) from the header, as the image is displayed (EXIF orientation applied)."""
    if isinstance(path, Path) and path.suffix.lower() == dicom.SUFFIX:
        return dicom.size(path)
    with _opened(path) as image:
        width, height = image.size
        if image.format == "TIFF":  # of which Pillow gives the size as stored (11) or as displayed (13)
            width, height = int(image.tag_v2[_WIDTH]), int(image.tag_v2[_HEIGHT])
        return (height, width) if _is_turned(image) else (width, height)


def read_image(path: Encoded, size: int | tuple[int, int], box: Box = WHOLE) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image to RGB of 8 bits and stretches it, or what lies in ``box``, to a square or to (width, height).

    Grey is repeated over the channels, palettes are looked up, transparency is dropped, EXIF orientation is applied.
    Grey of 16 bits is scaled to 8 over its full range, so that 10 to 14 bits stored in 16 come out dark; of a TIFF
    whose MaxSampleValue is 1023, 4095 or 16383, over that range. The resize is antialiased bilinear. It
    stretches rather than pads, as the authors' loaders do: mask and image are stretched alike, and no border has to be
    ignored by losses and scores.

    Raises:
      InputError: where the file is missing, is no image, is damaged, has several pages or frames (smaller copies in
        the file do not count), or more than 100 megapixels.
    """
    from PIL import Image

    frame = (size, size) if isinstance(size, int) else size
    with _opened(path) as image:
        # JPEG can be decoded at 1/2, 1/4 or 1/8: at least twice the size wanted leaves the resize its work.
        enough = 2 * max(frame) / min(box.right - box.left, box.bottom - box.top)
        image.draft(None, (math.ceil(enough), math.ceil(enough)))
        image = _to_rgb(path, image)
        return np.asarray(image.resize(frame, Image.Resampling.BILINEAR, box.of(*image.size)))


def read_whole(path: Encoded) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image to RGB of 8 bits at its own size, as ``read_image`` does.

    Raises:
      InputError: as ``read_image``.
    """
    with _opened(path) as image:
        return np.asarray(_to_rgb(path, image))


def read_codes(path: Path, known: Collection[int] = ()) -> UInt8[np.ndarray, "h w"]:
    """Decodes the pixel values of a mask file: grey values, or 0/1 for one bit a pixel. EXIF orientation is applied.

    A palette of greys is looked up, since programs put white before black as they like; one of colours, or of greys
    that would not tell the values apart, is passed over: the indices are the values.

    Args:
      path: the file.
      known: pixel values that the mask may have. A palette of other greys is passed over where the indices are known.

    Raises:
      InputError: as ``read_image``, or where the file is a colour picture or has values above 255.
    """
    from PIL import ImageOps

    with _opened(path) as image:
        image = ImageOps.exif_transpose(image)
        mode, values = image.mode, np.asarray(image)
        if mode == "P":
            values = _look_up(values, np.array(image.getpalette(), np.uint8).reshape(-1, 3), set(known))
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


def read_colours(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes a mask file whose classes are colours; transparency is dropped, EXIF orientation is applied.

    Raises:
      InputError: as ``read_image``.
    """
    from PIL import ImageOps

    with _opened(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


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
    """Decodes a mask file into one channel of 0/1 for each region, stretched to a square as by ``stretch_mask``.

    Raises:
      InputError: as ``read_regions``.
    """
    return stretch_mask(read_regions([path], code), size)


def read_regions(paths: Sequence[Path], code: MaskCode) -> list[UInt8[np.ndarray, "h w"]]:
    """Decodes the regions of a mask as they are drawn: 255 inside, 0 outside.

    Args:
      paths: one file with all regions, or one file for each region in the code's order.
      code: pixel values of each region, in its file.

    Raises:
      InputError: as ``read_codes``, or where a file holds values that the code does not know.
    """
    known = {*code.background, *(value for values in code.regions.values() for value in values)}
    drawn = [read_codes(path, known) for path in paths]
    for path, values in zip(paths, drawn, strict=True):
        check_codes(path, values, code)
    regions = []
    for wanted, values in zip(code.regions.values(), drawn * (len(code.regions) // len(drawn)), strict=True):
        table = np.zeros(256, np.uint8)
        table[list(wanted)] = 255
        regions.append(table[values])
    return regions


def stretch_mask(
    regions: Sequence[UInt8[np.ndarray, "h w"]], size: int | tuple[int, int], box: Box = WHOLE
) -> UInt8[np.ndarray, "i j c"]:
    """Stretches regions, or what lies of them in ``box``, to a square or (width, height), one channel of 0/1 each.

    Each region is averaged over the area of the new pixel, which is set where at least half is covered. This
    moves edges less than taking the nearest pixel, and keeps nested regions nested.
    """
    from PIL import Image

    frame, channels = (size, size) if isinstance(size, int) else size, []
    for region in map(Image.fromarray, regions):
        # Pillow rounds half (127.5) up.
        channels.append(np.asarray(region.resize(frame, Image.Resampling.BOX, box.of(*region.size))) >= 128)
    return np.stack(channels, -1).astype(np.uint8)


def square_around(path: Path, region: UInt8[np.ndarray, "h w"], diameters: float) -> Box:
    """Finds the square of so many diameters of a mask's region around its middle, moved and cut to lie in the picture.

    Diameter and middle are those of the region's bounding box (its longer side). Where the square would leave the
    picture it is moved in, and no side is longer than the picture's shorter one: it stays a square.

    Raises:
      InputError: the region is empty.
    """
    height, width = region.shape
    spans = [np.flatnonzero(region.any(axis)) for axis in (0, 1)]
    if not all(span.size for span in spans):
        raise InputError(
            f"Mask {path} is empty, so that the image cannot be cropped by it. Correct it, or take whole frames: "
            "--data.crop 0."
        )
    side = min(diameters * max(span[-1] - span[0] + 1 for span in spans), height, width)
    left, top = (
        min(max((span[0] + span[-1] + 1 - side) / 2, 0.0), whole - side)
        for span, whole in zip(spans, (width, height), strict=True)
    )
    return Box(left / width, top / height, min((left + side) / width, 1.0), min((top + side) / height, 1.0))


@contextmanager
def _opened(path: Encoded) -> Iterator[Any]:
    from PIL import Image

    try:
        if isinstance(path, Path) and path.suffix.lower() == dicom.SUFFIX:
            yield Image.fromarray(dicom.picture(path, most=MAX_PIXELS))
            return
        # Not by name: Pillow 13 maps uncompressed files into memory, and lays out turned ones wrongly.
        stream = path.open("rb") if isinstance(path, Path) else io.BytesIO(path.read_bytes())
        with stream, Image.open(stream, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError
            if getattr(image, "is_animated", False) and _has_pages(image):
                raise InputError(
                    f"{path} holds several pages or frames; one picture is expected. Save each as a file of its own."
                )
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


def _is_turned(image: Any) -> bool:
    """Tells whether width and height are exchanged for display. Of a PNG, only one that has such a tag is decoded."""
    if image.format == "PNG" and "exif" not in image.info:
        place, end = image.fp.tell(), image.fp.seek(0, io.SEEK_END)
        image.fp.seek(max(end - (1 << 16), 0))  # the tag may stand behind the pixels
        text = str(image.info).encode() + image.fp.read()
        image.fp.seek(place)
        if not any(tag in text for tag in (b"eXIf", b"Raw profile type exif", b"tiff:Orientation")):
            return False
    return bool(image.getexif().get(ORIENTATION, 1) >= 5)


def _has_pages(image: Any) -> bool:
    """Tells pages and frames from what a file may hold beside its picture: previews in MPO, and in TIFF copies of less
    resolution and masks of transparency (bits 1 and 4 of NewSubfileType)."""
    if image.format == "TIFF":
        for page in range(1, image.n_frames):
            image.seek(page)
            if not image.tag_v2.get(_SUBFILE, 0) & 5:
                return True
        image.seek(0)
        return False
    return bool(image.format != "MPO")


def _look_up(indices: np.ndarray, palette: np.ndarray, known: set[int]) -> np.ndarray:
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=256))
    if used[-1] >= len(palette):
        return indices
    levels, grey = palette[:, 0], (palette == palette[:, :1]).all(1)
    # A single value says little: the white ground of a palette of colours is no grey level.
    distinct = len(np.unique(levels[used])) == len(used)
    if not distinct or not (grey.all() or (len(used) > 1 and grey[used].all())):
        return indices
    by_index = known.issuperset(used.tolist()) and not known.issuperset(levels[used].tolist())
    return indices if by_index else levels[indices]


def _to_rgb(path: Encoded, image: Any) -> Any:
    from PIL import Image, ImageOps

    largest = image.tag_v2.get(_LARGEST) if image.format == "TIFF" else None
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_bytes(path, np.asarray(image), largest))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _to_bytes(path: Encoded, values: np.ndarray, largest: Any = None) -> np.ndarray:
    if values.dtype.kind not in "ui" or values.min() < 0 or values.max() > 65535:
        raise InputError(f"Image {path} is neither of 8 nor of 16 bits. Save it as one of these.")
    top = 65535
    largest = largest[0] if isinstance(largest, tuple) and len(largest) == 1 else largest
    # What the largest value in a picture happens to be says nothing: pictures of one set would differ in brightness.
    if largest in (1023, 4095, 16383) and values.max() <= largest:
        top = largest
    return ((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)
