import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ophjax.data import images
from ophjax.data.images import parse_code, read_codes, read_image, read_mask
from ophjax.errors import InputError

RAMP = np.linspace(0, 255, 32).astype(np.uint8)
GREY = np.broadcast_to(RAMP, (24, 32))  # wider than high, so that width and height cannot be mistaken
COLOUR = np.stack([GREY, GREY[:, ::-1], np.full_like(GREY, 60)], -1)


def save(path, array, **options):
    Image.fromarray(np.ascontiguousarray(array)).save(path, **options)
    return path


def test_image_of_the_wanted_size_is_unchanged(tmp_path):
    square = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    read = read_image(save(tmp_path / "a.png", square), 20)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, square)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp", ".jpg"])
def test_formats(tmp_path, suffix):
    read = read_image(save(tmp_path / f"a{suffix}", COLOUR), 16)
    expected = np.asarray(Image.fromarray(COLOUR).resize((16, 16), Image.Resampling.BILINEAR))
    # JPEG and WebP lose detail; on a smooth ramp that stays below a tenth of the range.
    assert np.abs(read.astype(int) - expected).max() <= (25 if suffix in (".jpg", ".webp") else 0)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_modes_become_rgb(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.fromarray(COLOUR).convert(mode).save(path)
    read = read_image(path, 16)
    assert read.shape == (16, 16, 3)
    if mode in ("L", "LA"):
        assert (read == read[..., :1]).all()
    if mode in ("RGBA", "CMYK"):
        expected = np.asarray(Image.fromarray(COLOUR).resize((16, 16), Image.Resampling.BILINEAR))
        # CMYK without black is the exact complement; rounding alone may differ.
        assert np.abs(read.astype(int) - expected).max() <= 1


def test_palette_with_transparency(tmp_path):
    palette = Image.fromarray(COLOUR).convert("P")
    palette.save(tmp_path / "a.png", transparency=bytes([0, 128] + [255] * 254))
    assert read_image(tmp_path / "a.png", 16).shape == (16, 16, 3)


def test_sixteen_bits_are_scaled_over_their_range(tmp_path):
    values = np.broadcast_to(RAMP.astype(np.uint16) * 257, (32, 32))
    read = read_image(save(tmp_path / "a.png", values), 32)
    np.testing.assert_array_equal(read[..., 0], np.broadcast_to(RAMP, (32, 32)))


def test_float_pixels_are_refused(tmp_path):
    path = save(tmp_path / "a.tif", GREY.astype(np.float32))
    with pytest.raises(InputError, match=r"a\.tif is neither of 8 nor of 16 bits"):
        read_image(path, 16)


def test_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6  # displayed turned by a quarter to the right
    path = save(tmp_path / "a.jpg", GREY, exif=exif, quality=95)
    assert images.image_size(path) == (24, 32)
    read = read_image(path, 32)[..., 0].astype(int)
    # The ramp ran left to right and now runs from top to bottom.
    assert (np.diff(read.mean(1)) > 0).all() and np.ptp(read.mean(0)) < 5


LAID = np.ascontiguousarray(GREY) // 2 * 2 + (np.indices((24, 32))[0] > 11)  # no symmetry


def late(path):
    """Moves the EXIF chunk of a PNG behind its pixels, where some programs write it."""
    content = path.read_bytes()
    start = content.index(b"eXIf") - 4
    chunk = content[start : start + 12 + int.from_bytes(content[start : start + 4], "big")]
    content = content.replace(chunk, b"")
    path.write_bytes(content[:-12] + chunk + content[-12:])
    return path


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("kind", ["png", "late", "palette", "tif", "lzw"])
def test_all_readers_agree_on_orientation(tmp_path, kind, orientation):
    """Size, image, mask and colours. Pillow 13 gives a TIFF's size as displayed already, and reads an uncompressed one
    that is turned as noise where it maps the file into memory."""
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    path = tmp_path / ("a.tif" if kind in ("tif", "lzw") else "a.png")
    picture = Image.fromarray(LAID.astype(np.uint8))
    if kind == "palette":
        picture = picture.convert("P")
        picture.putpalette([part for i in range(256) for part in (i, 255 - i, 9)])
    picture.save(path, exif=exif, **({"compression": "tiff_lzw"} if kind == "lzw" else {}))
    if kind == "late":
        late(path)
    shown = {1: LAID, 3: LAID[::-1, ::-1], 6: np.rot90(LAID, -1), 7: LAID.T[::-1, ::-1]}[orientation]
    assert images.image_size(path) == shown.shape[::-1]
    np.testing.assert_array_equal(read_codes(path), shown)
    for read in (images.read_whole, images.read_colours):
        np.testing.assert_array_equal(read(path)[..., 0], shown)


@pytest.mark.parametrize("suffix", ["tif", "gif", "webp", "png"])
def test_several_pages_or_frames_are_refused(tmp_path, suffix):
    pages = [Image.fromarray(np.ascontiguousarray(one)) for one in (GREY, 255 - GREY)]
    pages[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=pages[1:])
    for read in (images.image_size, images.read_whole, read_codes):
        with pytest.raises(InputError, match=rf"a\.{suffix} holds several pages or frames"):
            read(tmp_path / f"a.{suffix}")


def test_previews_are_no_pages(tmp_path):
    """A JPEG with a second picture (MPO), as cameras write it; a TIFF with a copy of less resolution."""
    for name, kind in (("a.jpg", "MPO"), ("a.tif", "TIFF")):
        small = Image.fromarray(COLOUR[::2, ::2])
        small.encoderinfo = {"tiffinfo": {254: 1}}
        Image.fromarray(COLOUR).save(tmp_path / name, kind, save_all=True, append_images=[small])
    for name in ("a.jpg", "a.tif"):
        assert images.image_size(tmp_path / name) == (32, 24)
        assert images.read_whole(tmp_path / name).shape == (24, 32, 3)
    np.testing.assert_array_equal(images.read_whole(tmp_path / "a.tif"), COLOUR)


@pytest.mark.parametrize(("largest", "white"), [(4095, 243), (3900, 15), (65535, 15), (1023, 15), (None, 15)])
def test_sixteen_bits_by_the_largest_value(tmp_path, largest, white):
    """Twelve bits in sixteen: of a TIFF that names that range, unless its values go further."""
    values = np.broadcast_to(np.linspace(0, 3900, 32).astype(np.uint16), (32, 32))
    path = save(tmp_path / "a.tif", values, tiffinfo={281: largest} if largest else {})
    assert images.read_whole(path).max() == white  # 3900 of 4095, or of 65535


def test_large_jpeg_is_averaged(tmp_path):
    checks = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    read = read_image(save(tmp_path / "a.jpg", checks, quality=95), 32)
    # A board of single pixels averages to mid grey; picking pixels would give black or white.
    assert np.abs(read.astype(int) - 127).max() < 12


def bomb(path, width, height):
    """Writes a PNG of a few bytes whose header claims width x height pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


@pytest.mark.parametrize("side", [10_001, 20_000])  # just above our limit; above Pillow's own as well
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_more_than_100_megapixels(tmp_path, side):
    path = bomb(tmp_path / "big.png", side, 10_000)
    for read in (images.image_size, read_codes, lambda path: read_image(path, 32)):
        with pytest.raises(InputError, match=r"big\.png has more than 100 megapixels"):
            read(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".gif", ".tif", ".webp"])
def test_truncated(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    path = save(tmp_path / f"short{suffix}", noise)
    content = path.read_bytes()
    for kept in (0, 10, len(content) // 2):
        path.write_bytes(content[:kept])
        with pytest.raises(InputError, match=r"short.*cannot be decoded"):
            read_image(path, 32)


def test_not_an_image(tmp_path):
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(InputError, match=r"a\.png cannot be decoded"):
        read_image(tmp_path / "a.png", 32)
    with pytest.raises(InputError, match=r"no image file .*b\.png"):
        read_image(tmp_path / "b.png", 32)
    with pytest.raises(InputError, match="cannot be decoded"):
        read_image(tmp_path, 32)


def test_damaged_bytes_never_escape(tmp_path):
    """Any byte broken: either it still decodes, or an InputError; nothing else."""
    content = bytearray(save(tmp_path / "a.png", COLOUR).read_bytes())
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(content), 60):
        damaged = content.copy()
        damaged[position] ^= 0x55
        (tmp_path / "b.png").write_bytes(damaged)
        try:
            read_image(tmp_path / "b.png", 16)
        except InputError as error:
            assert "b.png" in str(error)


# Masks -----------------------------------------------------------------------


def test_codes_of_every_mode(tmp_path):
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    palette = Image.fromarray(values, "L").convert("P")
    palette.putpalette([9, 9, 9] * 256)  # colours must not matter
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_codes(tmp_path / "p.png"), values)
    np.testing.assert_array_equal(read_codes(save(tmp_path / "l.png", values)), values)
    np.testing.assert_array_equal(read_codes(save(tmp_path / "w.png", values.astype(np.uint16))), values)
    np.testing.assert_array_equal(read_codes(save(tmp_path / "b.png", values > 2)), values > 2)
    colour = np.repeat(values[..., None], 3, -1)
    np.testing.assert_array_equal(read_codes(save(tmp_path / "c.png", colour)), values)


def indexed(path, indices, *palette):
    picture = Image.fromarray(np.array(indices, np.uint8)).convert("P")
    picture.putpalette([part for colour in palette for part in colour])
    picture.save(path)
    return path


WHITE, MIDDLE, BLACK, RED = (255, 255, 255), (128, 128, 128), (0, 0, 0), (255, 0, 0)


@pytest.mark.parametrize("suffix", ["gif", "png"])
def test_palettes_of_greys_are_looked_up(tmp_path, suffix):
    """Programs put white first as they like: read by index, such a mask is silently turned over."""
    path, binary = tmp_path / f"m.{suffix}", parse_code("binary")
    for indices, first, second in (([[0, 1], [1, 1]], WHITE, BLACK), ([[1, 0], [0, 0]], BLACK, WHITE)):
        for codes in (indices, [[0, 0]] * 2, [[1, 1]] * 2):  # all or none, too
            indexed(path, codes, first, second)
            shown = np.array([first[0], second[0]])[np.array(codes, int)]
            np.testing.assert_array_equal(read_codes(path), shown)
            np.testing.assert_array_equal(read_mask(path, 2, binary)[..., 0], shown // 255)
    Image.fromarray(np.array([[255, 0], [0, 0]], np.uint8)).convert("RGB").quantize(2).save(path)
    np.testing.assert_array_equal(read_codes(path), [[255, 0], [0, 0]])


def test_palettes_that_only_colour_indices_are_passed_over(tmp_path):
    nested = [[0, 1], [2, 1]]
    for palette in ((BLACK, RED, (0, 255, 0)), (WHITE, RED, BLACK), (WHITE, WHITE, BLACK)):
        np.testing.assert_array_equal(read_codes(indexed(tmp_path / "m.png", nested, *palette)), nested)
    # A picture of the white ground alone has no region.
    ground = indexed(tmp_path / "m.png", [[0, 0]], WHITE, RED, BLACK)
    assert not read_codes(ground).any()
    # Rim and cup by index, in greys that the eye can tell: the code knows the indices only.
    grey = indexed(tmp_path / "m.png", nested, BLACK, MIDDLE, WHITE)
    mask = read_mask(grey, 2, parse_code("drishti"))
    np.testing.assert_array_equal(mask.sum(-1), nested)
    # The same greys are codes where they are known, in any order.
    for indices, palette in ((nested, (WHITE, MIDDLE, BLACK)), ([[2, 1], [0, 1]], (BLACK, MIDDLE, WHITE))):
        np.testing.assert_array_equal(
            read_mask(indexed(tmp_path / "m.png", indices, *palette), 2, parse_code("refuge")), mask
        )


def test_colour_mask_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"m\.png is a colour picture"):
        read_codes(save(tmp_path / "m.png", COLOUR))


def test_mask_values_above_a_byte_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"m\.png has pixel values outside"):
        read_codes(save(tmp_path / "m.png", np.full((4, 4), 300, np.uint16)))


def test_regions_by_code(tmp_path):
    path = save(tmp_path / "m.png", np.array([[0, 1], [2, 1]], np.uint8))
    mask = read_mask(path, 2, parse_code("disc=1,2;cup=2"))
    np.testing.assert_array_equal(mask[..., 0], [[0, 1], [1, 1]])
    np.testing.assert_array_equal(mask[..., 1], [[0, 0], [1, 0]])
    refuge = save(tmp_path / "r.png", np.array([[255, 128], [0, 128]], np.uint8))
    np.testing.assert_array_equal(read_mask(refuge, 2, parse_code("refuge")), mask)


def test_unknown_codes_are_named(tmp_path):
    path = save(tmp_path / "m.png", np.array([[0, 7], [2, 9]], np.uint8))
    with pytest.raises(InputError, match=r"m\.png holds the pixel values 0, 2, 7, 9, .* knows only 0, 1, 2"):
        read_mask(path, 2, parse_code("drishti"))


def test_mask_is_resized_by_area_and_stays_nested(tmp_path):
    y, x = np.indices((300, 301)) / 300 - 0.5
    radius = np.hypot(y, x)
    path = save(tmp_path / "m.png", ((radius < 0.4).astype(np.uint8) + (radius < 0.39)))
    mask = read_mask(path, 64, parse_code("disc=1,2;cup=2"))
    assert set(np.unique(mask)) == {0, 1} and (mask[..., 0] >= mask[..., 1]).all()
    # The area of a disc of radius 0.4: the edge, 160 of 4096 pixels, is right to a few pixels on average.
    assert abs(mask[..., 0].mean() - np.pi * 0.16) < 0.005


def test_half_covered_pixel_is_set(tmp_path):
    path = save(tmp_path / "m.png", np.array([[1, 0, 0, 0], [1, 0, 1, 0]] * 2, np.uint8))
    np.testing.assert_array_equal(read_mask(path, 2, parse_code("binary"))[..., 0], [[1, 0], [1, 0]])


def test_code_is_described():
    assert parse_code(" disc = 2, 1 ; cup=2;").describe() == "background=0;disc=1,2;cup=2"
    assert parse_code("binary").regions == {"region": (1, 255)}
    assert parse_code("refuge").background == (255,)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("binray", "Did you mean 'binary'"),
        ("", "Unknown mask code"),
        ("disc=", "disc="),
        ("disc=1,x", "disc=1,x"),
        ("disc=256", "from 0 to 255"),
        ("disc=1;disc=2", "named once"),
        ("a b=1", "a b=1"),
        ("background=0", "names no region"),
        ("cup=0;disc=0,128", "value 0 is both background and region"),
    ],
)
def test_bad_codes(text, reason):
    with pytest.raises(InputError, match=reason):
        parse_code(text)


def test_a_box_of_an_image(tmp_path):
    """It is read as if it were an image of its own; a large JPEG is not decoded too coarsely for it."""
    y, x = np.mgrid[:600, :900]
    waves = 127 + 60 * np.sin(x / 4) * np.cos(y / 4)  # a period of 25 pixels
    whole = np.stack([x / 4, y / 4, waves], -1).astype(np.uint8)
    box = images.Box(0.5, 0.25, 0.6, 0.4)  # 90 x 90 of 900 x 600
    part = whole[150:240, 450:540]
    read = read_image(save(tmp_path / "a.png", whole), 30, box)
    # Only at the border do they see other neighbours.
    np.testing.assert_array_equal(read[1:-1, 1:-1], read_image(save(tmp_path / "b.png", part), 30)[1:-1, 1:-1])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 90, box), part)
    # JPEG itself is off by a few levels; decoded at an eighth, enough for the whole image, it would lose the waves.
    coded = read_image(save(tmp_path / "a.jpg", whole, quality=95, subsampling=0), 30, box)
    np.testing.assert_allclose(coded.astype(int), read.astype(int), atol=8)


def test_square_around(tmp_path):
    region = np.zeros((40, 100), np.uint8)
    region[10:14, 30:38] = 255
    square = images.square_around(tmp_path, region, 2.0)
    assert square.of(100, 40) == pytest.approx((26, 4, 42, 20))  # 2 x 8 around (34, 12)
    assert images.square_around(tmp_path, region, 3.0).of(100, 40) == pytest.approx((22, 0, 46, 24)), "12 - 12 = 0"
    assert images.square_around(tmp_path, region, 4.0).of(100, 40) == pytest.approx((18, 0, 50, 32)), "moved in"
    assert images.square_around(tmp_path, region, 9.0).of(100, 40) == pytest.approx((14, 0, 54, 40)), "cut to 40"
    assert images.square_around(tmp_path, region[:, ::-1], 9.0).of(100, 40) == pytest.approx((46, 0, 86, 40))
    with pytest.raises(InputError, match="is empty"):
        images.square_around(tmp_path / "mask.png", np.zeros((4, 4), np.uint8), 2.0)
