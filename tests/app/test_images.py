"""app/images.py: what is accepted, what the pixels are, what is refused, and what hostile files may cost.

Every image is made here: `noise` for exact formats; `slopes`, smooth, for lossy ones. Tolerances are said at the test.
"""

import io
import logging
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from app import images, limits
from app.errors import BadImage, BadRequest, ImageTooLarge, ServiceError, UnsupportedMediaType
from app.images import ACCEPTED, Picture, decode
from nam.geometry import crop_box

# The module silences PIL's warnings for the process; pytest puts its own filters above.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\..*")

MEGAPIXEL = 1_000_000
Pixels = npt.NDArray[np.uint8]

# Saved without loss, except JPEG.
LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "WEBP": {"lossless": True, "exact": True}, "BMP": {}, "TIFF": {}}
OPTIONS: dict[str, dict[str, Any]] = {**LOSSLESS, "GIF": {}, "JPEG": {"quality": 95, "subsampling": 0}}


def noise(width: int = 37, height: int = 29, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def slopes(width: int = 48, height: int = 40) -> Image.Image:
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, 255 - across], axis=-1).astype(np.uint8))


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def read(data: bytes, size: int = 16, crop: float = 1.0, max_pixels: int = MEGAPIXEL) -> Picture:
    return decode(data, size=size, crop=crop, max_pixels=max_pixels)


def shrunk(image: Image.Image, size: int = 16, crop: float = 1.0) -> Pixels:
    """The reference: the picture in RGB first, then one resize of the box."""
    box = crop_box(*image.size, crop)
    small = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(small).transpose(2, 0, 1)


def apart(one: npt.ArrayLike, other: npt.ArrayLike) -> int:
    """The largest difference, in grey levels of 0 to 255."""
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


def png(width: int, height: int, depth: int, colour: int, rows: list[bytes], *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG written by hand, for the kinds PIL does not write. `extra`: chunks before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", header), *extra, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def tiff(*tags: tuple[int, int], pixels: bytes) -> bytes:
    """A little-endian TIFF of 32-bit tags, written by hand; PIXELS and LENGTH stand for where and how long they are."""
    start = 8 + 2 + 12 * len(tags) + 4
    values = {PIXELS: start, LENGTH: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, values.get(value, value)) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels


PIXELS, LENGTH = -1, -2
GREY = ((258, 8), (259, 8), (262, 1), (277, 1))  # 8 bits, deflated, black is zero, one sample


def bmp(width: int, height: int, compression: int, pixels: bytes) -> bytes:
    """An 8-bit BMP of 256 greys, written by hand."""
    palette = b"".join(bytes((level, level, level, 0)) for level in range(256))
    start = 54 + len(palette)
    head = struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start)
    return head + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, 0, 0, 0, 256, 0) + palette + pixels


# What comes out.


@pytest.mark.parametrize("format", LOSSLESS)
@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_a_lossless_format_gives_the_same_pixels_as_one_resize_of_the_original(format: str, crop: float) -> None:
    data = encode(noise(), format, **LOSSLESS[format])
    assert apart(read(data, crop=crop).pixels, shrunk(noise(), crop=crop)) == 0


def test_gif_gives_the_pixels_of_its_palette() -> None:
    image = noise().quantize(256)
    assert apart(read(encode(image, "GIF")).pixels, shrunk(image)) == 0


@pytest.mark.parametrize(("format", "levels"), [("JPEG", 4), ("WEBP", 12)])
def test_a_lossy_format_gives_nearly_the_original(format: str, levels: int) -> None:
    data = encode(slopes(), format, quality=95)
    assert 0 < apart(read(data).pixels, shrunk(slopes())) <= levels


def test_jpeg_gives_exactly_what_pil_decodes_at_full_size() -> None:
    data = encode(noise(500, 375), "JPEG", quality=90)
    assert apart(read(data, size=64).pixels, shrunk(Image.open(io.BytesIO(data)), size=64)) == 0


@pytest.mark.parametrize("format", ACCEPTED)
def test_a_picture_says_what_it_was(format: str) -> None:
    picture = read(encode(noise(37, 29), format))
    assert (picture.format, picture.width, picture.height) == (format, 37, 29)


@pytest.mark.parametrize("size", [1, 2, 64])
def test_pixels_are_planes_of_bytes_that_belong_to_the_picture(size: int) -> None:
    pixels = read(encode(noise(), "PNG"), size=size).pixels
    assert (pixels.shape, pixels.dtype.name) == ((3, size, size), "uint8")
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert pixels.flags.owndata


def test_a_picture_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        read(encode(noise(), "PNG")).width = 1  # type: ignore[misc]


def test_bytes_and_views_of_bytes_are_the_same() -> None:
    data = encode(noise(), "PNG")
    assert apart(decode(memoryview(data), size=16, crop=1.0, max_pixels=MEGAPIXEL).pixels, read(data).pixels) == 0


def test_the_planes_are_red_green_blue() -> None:
    assert read(encode(Image.new("RGB", (9, 9), (1, 2, 3)), "PNG")).pixels[:, 5, 5].tolist() == [1, 2, 3]


@pytest.mark.parametrize("size", [(1, 1), (1, 65500), (65500, 1), (2, 1), (3, 3)])
@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_tiny_and_odd_shapes_are_pictures_too(size: tuple[int, int], crop: float) -> None:
    picture = read(encode(Image.new("RGB", size, (9, 8, 7)), "PNG"), size=64, crop=crop)
    assert apart(picture.pixels, np.array([9, 8, 7]).reshape(3, 1, 1)) == 0


def test_threads_do_not_disturb_one_another() -> None:
    files = [encode(noise(seed=seed), format) for seed in range(4) for format in ACCEPTED]
    alone = [read(data).pixels for data in files]
    with ThreadPoolExecutor(4) as pool:
        together = [picture.pixels for picture in pool.map(read, files * 3)]
    assert apart(together, alone * 3) == 0


# Colour.


@pytest.mark.parametrize(
    ("mode", "format", "options"),
    [
        ("1", "PNG", {}),
        ("1", "BMP", {}),
        ("1", "TIFF", {"compression": "group4"}),
        ("L", "PNG", {}),
        ("L", "BMP", {}),
        ("L", "GIF", {}),
        ("L", "TIFF", {}),
        ("P", "PNG", {}),
        ("P", "BMP", {}),
        ("P", "GIF", {}),
        ("P", "TIFF", {}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("RGB", "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("RGB", "TIFF", {"big_tiff": True}),
        ("CMYK", "TIFF", {}),
        ("YCbCr", "TIFF", {}),
        ("LAB", "TIFF", {}),
    ],
)
def test_every_opaque_mode_becomes_rgb(mode: str, format: str, options: dict[str, Any]) -> None:
    image = noise().convert(mode)
    assert apart(read(encode(image, format, **options)).pixels, shrunk(image)) == 0


def test_black_and_white_is_resized_as_grey() -> None:
    levels = np.unique(read(encode(noise(64, 64).convert("1"), "PNG")).pixels)
    assert len(levels) > 2


@pytest.mark.parametrize("progressive", [False, True])
def test_grey_jpeg_is_grey(progressive: bool) -> None:
    image = slopes().convert("L")  # tolerance: quality 95 moves a level by 3 at most here
    pixels = read(encode(image, "JPEG", quality=95, progressive=progressive)).pixels
    assert apart(pixels, shrunk(image)) <= 3


def test_cmyk_jpeg_is_stored_inverted_as_adobe_does_and_read_so() -> None:
    red = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert b"Adobe" in red
    assert apart(read(red).pixels[:, 8, 8], [255, 0, 0]) <= 2  # JPEG's own rounding


@pytest.mark.parametrize("profile", [b"junk", b"\0" * 3000])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_colour_profiles_are_ignored_junk_or_not(format: str, profile: bytes) -> None:
    plain, profiled = encode(slopes(), format), encode(slopes(), format, icc_profile=profile)
    assert len(profiled) > len(plain)
    assert apart(read(profiled).pixels, read(plain).pixels) == 0


# Transparency.


def see_through(width: int = 37, height: int = 29) -> Image.Image:
    """Noise in all four bands."""
    return Image.merge("RGBA", (*noise(width, height).split(), noise(width, height, seed=1).getchannel(0)))


def laid_on_white(image: Image.Image) -> Image.Image:
    """The formula, in floats, rounded once."""
    values = np.asarray(image.convert("RGBA")).astype(float)
    alpha = values[..., 3:] / 255
    return Image.fromarray((values[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_laid_on_white_before_the_resize(format: str) -> None:
    data = encode(see_through(), format, **OPTIONS[format])
    assert apart(read(data).pixels, shrunk(laid_on_white(see_through()))) <= 1  # PIL blends in integers


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_grey_with_alpha_is_laid_on_white(format: str) -> None:
    image = see_through().convert("LA")
    assert apart(read(encode(image, format)).pixels, shrunk(laid_on_white(image))) <= 1  # as above


def test_a_hidden_colour_does_not_bleed_into_the_seen() -> None:
    def half_hidden(colour: str) -> bytes:
        image = Image.new("RGBA", (40, 40), "black")
        image.paste(Image.new("RGBA", (20, 40), colour), (0, 0))
        image.putalpha(Image.new("L", (40, 40), 255))
        image.paste(
            Image.merge("RGBA", (*Image.new("RGB", (21, 40), colour).split(), Image.new("L", (21, 40)))), (0, 0)
        )
        return encode(image, "PNG")

    assert apart(read(half_hidden("#ff0000")).pixels, read(half_hidden("#00ff7f")).pixels) == 0


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(format: str) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    image.paste(0, (0, 0, 4, 8))
    pixels = read(encode(image, format, transparency=0), size=8).pixels
    assert pixels[:, 0, 0].tolist() == [255, 255, 255]
    assert pixels[:, 0, 7].tolist() == [200, 0, 0]


def test_a_palette_with_many_alphas_is_laid_on_white() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    pixels = read(encode(image, "PNG", transparency=bytes([0, 128])), size=8).pixels
    assert apart(pixels[:, 0, 0], [227, 127, 127]) <= 1  # PIL blends in integers


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_grey_of_a_png_is_white_at_every_depth(depth: int) -> None:
    row = bytes(2) if depth == 16 else bytes(1)  # one black pixel, which is the transparent one
    data = png(1, 1, depth, 0, [row], (b"tRNS", b"\0\0"))
    assert read(data, size=1).pixels.ravel().tolist() == [255, 255, 255]


@pytest.mark.parametrize(("depth", "row", "grey"), [(2, b"\x40", 85), (4, b"\x30", 51), (16, b"\x12\x34", 18)])
def test_transparent_levels_between_black_and_white_are_found_at_the_files_depth(
    depth: int, row: bytes, grey: int
) -> None:
    level = {2: 1, 4: 3, 16: 0x1234}[depth]
    hidden, other = ((b"tRNS", struct.pack(">H", key)) for key in (level, level + 1))
    assert read(png(1, 1, depth, 0, [row], hidden), size=1).pixels.ravel().tolist() == [255] * 3
    assert read(png(1, 1, depth, 0, [row], other), size=1).pixels.ravel().tolist() == [grey] * 3


@pytest.mark.parametrize(("depth", "colour"), [(8, (10, 20, 30)), (16, (0x0A63, 0x1401, 0x1EFF))])
def test_the_transparent_colour_of_a_png_is_white(depth: int, colour: tuple[int, int, int]) -> None:
    row = struct.pack(">3H" if depth == 16 else ">3B", *colour)
    hidden, other = ((b"tRNS", struct.pack(">3H", *colour[:2], blue)) for blue in (colour[2], 7))
    assert read(png(1, 1, depth, 2, [row], hidden), size=1).pixels.ravel().tolist() == [255, 255, 255]
    assert read(png(1, 1, depth, 2, [row], other), size=1).pixels.ravel().tolist() == [10, 20, 30]


def test_premultiplied_grey_with_alpha_is_laid_on_white() -> None:
    tags = ((256, 1), (257, 1), (259, 1), (262, 1), (273, PIXELS), (277, 2), (278, 1), (279, LENGTH), (338, 1))
    data = bytearray(tiff((258, 0x00080008), *tags, pixels=bytes([64, 128])))
    data[10:22] = struct.pack("<HHIHH", 258, 3, 2, 8, 8)  # two samples of 8 bits, which no 32-bit tag can say
    assert apart(read(bytes(data), size=1).pixels, 64 + 127) <= 1  # PIL divides and multiplies in integers


# More than 8 bits.


def sixteen_bits() -> npt.NDArray[np.uint16]:
    """Every 16-bit level once."""
    return np.arange(65536, dtype=np.uint16).reshape(256, 256)


ROUNDED = np.rint(np.arange(65536) / 257).reshape(256, 256)


@pytest.mark.parametrize(("format", "kind"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")])
def test_16_bit_grey_is_divided_by_257_and_rounded(format: str, kind: str) -> None:
    data = encode(Image.fromarray(sixteen_bits().astype(kind)), format)
    assert apart(read(data, size=256).pixels, ROUNDED) == 0


@pytest.mark.parametrize("options", [{"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}])
def test_compressed_16_bit_tiff_is_scaled_too(options: dict[str, Any]) -> None:
    data = encode(Image.fromarray(sixteen_bits()), "TIFF", **options)
    assert apart(read(data, size=256).pixels, ROUNDED) == 0


@pytest.mark.parametrize("colour", [2, 4, 6])
def test_16_bit_colour_and_alpha_keep_their_upper_byte(colour: int) -> None:
    samples = {2: 3, 4: 2, 6: 4}[colour]
    values = np.repeat(sixteen_bits()[..., None], samples, axis=-1)
    values[..., 3 if colour != 4 else 1 :] = 65535
    rows = [row.tobytes() for row in values.astype(">u2")]
    assert apart(read(png(256, 256, 16, colour, rows), size=256).pixels, ROUNDED) <= 1  # PIL cuts, where we round


def test_12_bit_grey_tiff_is_scaled_by_its_own_range() -> None:
    first, second = np.arange(4096).reshape(2048, 2).T
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8).tobytes()
    tags = ((256, 64), (257, 64), (258, 12), (259, 1), (262, 1), (273, PIXELS), (277, 1), (278, 64), (279, LENGTH))
    assert (
        apart(read(tiff(*tags, pixels=packed), size=64).pixels, np.rint(np.arange(4096) * 255 / 4095).reshape(64, 64))
        == 0
    )


def test_16_bit_grey_tiff_may_count_from_white() -> None:
    tags = ((256, 1), (257, 1), (258, 16), (259, 1), (262, 0), (273, PIXELS), (277, 1), (278, 1), (279, LENGTH))
    assert read(tiff(*tags, pixels=b"\0\0"), size=1).pixels.max() == 255
    assert read(tiff(*tags, pixels=b"\xff\xff"), size=1).pixels.max() == 0


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_floats_and_32_bit_integers_are_refused_in_plain_words(kind: type[np.generic]) -> None:
    data = encode(Image.fromarray(np.zeros((4, 4), dtype=kind)), "TIFF")
    with pytest.raises(BadImage, match="send 8 or 16 bits"):
        read(data)


def test_signed_bytes_are_refused_too() -> None:
    """PIL takes them for unsigned ones."""
    tags = ((256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, PIXELS), (277, 1), (278, 1), (279, LENGTH))
    assert read(tiff(*tags, pixels=b"\xff"), size=1).pixels.max() == 255
    with pytest.raises(BadImage, match="signed"):
        read(tiff(*tags, (339, 2), pixels=b"\xff"))


# The first picture of several.


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], **LOSSLESS.get(format, {}))
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    assert read(data).pixels[:, 8, 8].tolist() == [255, 0, 0]


def test_a_stereo_jpeg_is_its_first_jpeg() -> None:
    data = encode(slopes(), "MPO", save_all=True, append_images=[slopes().rotate(180)])
    picture = read(data)
    assert (picture.format, picture.width) == ("JPEG", 48)
    assert apart(picture.pixels, shrunk(slopes())) <= 12  # JPEG at PIL's quality, 75


# Orientation.


def noted(orientation: int, kind: int = 3) -> bytes:
    """EXIF that holds the orientation alone; the kind is a 16-bit number, or another to be wrong."""
    return b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHHI", 0x0112, kind, 1, orientation, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(40, 30), (37, 29), (30, 41), (24, 24)])
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_the_picture_is_turned_upright(format: str, size: tuple[int, int], orientation: int) -> None:
    data = encode(noise(*size), format, exif=noted(orientation), **OPTIONS[format])
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    picture = read(data, crop=0.875)
    assert (picture.width, picture.height) == upright.size
    # The two passes of the resize change places from 5 on, with 8-bit rounding between them.
    assert apart(picture.pixels, shrunk(upright, crop=0.875)) <= (1 if orientation > 4 else 0)


@pytest.mark.parametrize(("orientation", "kind"), [(0, 3), (9, 3), (65535, 3), (0x3600, 2), (6, 5), (6, 99)])
def test_an_unknown_orientation_is_upright(orientation: int, kind: int) -> None:
    data = encode(noise(), "PNG", exif=noted(orientation, kind))
    assert apart(read(data).pixels, shrunk(noise())) == 0


DAMAGED = [noted(6)[:length] for length in range(28)] + [  # the last is cut within the number
    b"Exif\0\0" + rest for rest in (b"", b"MM", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40)
]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_costs_the_orientation_and_not_the_picture(format: str) -> None:
    plain = read(encode(noise(), format, **OPTIONS[format]))
    for exif in DAMAGED:
        picture = read(encode(noise(), format, exif=exif, **OPTIONS[format]))
        assert (picture.width, apart(picture.pixels, plain.pixels)) == (plain.width, 0), exif


# Damage.


@pytest.mark.parametrize("format", ACCEPTED)
@pytest.mark.parametrize("place", range(64))
def test_a_truncated_file_is_refused_unless_only_its_end_mark_is_gone(format: str, place: int) -> None:
    data = encode(noise(), format, **OPTIONS[format])
    cut = data[: 12 + (len(data) - 12) * place // 64]
    with pytest.raises(BadImage, match=format):
        read(cut)


@pytest.mark.parametrize("format", ACCEPTED)
def test_a_truncated_file_never_gives_another_picture(format: str) -> None:
    data = encode(noise(), format, **OPTIONS[format])
    whole = read(data).pixels
    for missing in range(1, 40):
        try:
            assert apart(read(data[:-missing]).pixels, whole) == 0
        except BadImage:
            continue


@pytest.mark.parametrize("format", ACCEPTED)
def test_flipped_bits_never_raise_anything_but_our_errors(format: str) -> None:
    data = encode(noise(), format, **OPTIONS[format])
    generator = np.random.default_rng(0)
    outcomes = set()
    for _ in range(100):
        damaged = bytearray(data)
        for place in (*generator.integers(12, 60, 2), generator.integers(12, len(data))):
            damaged[place] = generator.integers(256)
        outcomes.add(outcome(bytes(damaged)))
    assert outcomes <= {"ok", "bad_image", "image_too_large"}


def outcome(data: bytes) -> str:
    try:
        read(data)
    except ServiceError as error:
        return error.code
    return "ok"


@pytest.mark.parametrize(
    "kind",
    [
        AssertionError,
        EOFError,
        Image.DecompressionBombError,
        MemoryError,
        OSError,
        OverflowError,
        SyntaxError,
        ValueError,
        struct.error,
        zlib.error,
    ],
)
def test_whatever_a_decoder_raises_is_a_bad_image_and_its_words_stay_in_the_log(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(PngImagePlugin.PngImageFile):
        def load(self) -> Any:
            raise kind("heap at 0x7f00beef")

    monkeypatch.setitem(images.READERS, "PNG", Broken)
    with caplog.at_level(logging.INFO, "nam.images"), pytest.raises(BadImage) as caught:
        read(encode(noise(), "PNG"))
    assert "0x7f00beef" not in caught.value.detail
    assert "0x7f00beef" in caplog.text


def test_a_mistake_of_the_caller_is_no_bad_image() -> None:
    with pytest.raises(ValueError, match="crop"):
        read(encode(noise(), "PNG"), crop=2.0)


def test_truncated_images_stay_errors_for_the_whole_process() -> None:
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_warnings_of_pil_neither_show_nor_refuse_a_picture() -> None:
    grey = ((256, 1), (257, 1), *GREY[:1], (259, 1), *GREY[2:3], (273, PIXELS), *GREY[3:], (278, 1), (279, LENGTH))
    data = bytearray(tiff(*grey, (305, 0), pixels=b"\x07"))
    data[-17 - 1 + 1 : -5] = struct.pack("<HHII", 305, 2, 4000, 9999)  # a text that lies outside the file
    code = (
        f"from app.images import decode; print(decode({bytes(data)!r}, size=1, crop=1.0, max_pixels=9).pixels.ravel())"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("[7 7 7]\n", "")


# What is not accepted.


def test_no_bytes_are_a_bad_request() -> None:
    with pytest.raises(BadRequest):
        read(b"")


@pytest.mark.parametrize(
    ("head", "name", "instead"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC", "JPEG"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC", "JPEG"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "AVIF", "JPEG"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif", "AVIF", "JPEG"),
        (b"\xff\x0a\x00\x10", "JPEG XL", "PNG"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL", "PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG", "PNG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- drawn -->\n<svg/>", "SVG", "PNG"),
        (b"%PDF-1.7\n", "PDF", "page"),
    ],
)
def test_known_formats_that_are_not_accepted_are_told_what_to_send(head: bytes, name: str, instead: str) -> None:
    with pytest.raises(UnsupportedMediaType, match=f"^{name} is not accepted: send .*{instead}"):
        read(head + bytes(100))


@pytest.mark.parametrize("format", ["PPM", "ICO", "PCX", "TGA", "AVIF"])
def test_a_format_only_pil_knows_is_not_accepted(format: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        read(encode(noise(), format))


@pytest.mark.parametrize("data", [b"\0", b"hello", b"RIFF\0\0\0\0WAVEfmt ", b"GIF90a" + bytes(99), bytes(1000)])
def test_unknown_bytes_are_told_every_format_that_is_accepted(data: bytes) -> None:
    with pytest.raises(UnsupportedMediaType) as caught:
        read(data)
    assert all(format in caught.value.detail for format in ACCEPTED)


def test_the_first_bytes_choose_the_one_decoder() -> None:
    signature, other = encode(noise(), "PNG")[:8], encode(noise(), "GIF")
    with pytest.raises(BadImage, match="PNG"):
        read(signature + other)


# What costs more than it should.


@pytest.mark.parametrize("format", ACCEPTED)
def test_the_cap_on_pixels_is_exact(format: str) -> None:
    data = encode(noise(37, 29), format)
    assert read(data, max_pixels=37 * 29).width == 37
    with pytest.raises(ImageTooLarge, match="37x29"):
        read(data, max_pixels=37 * 29 - 1)


@pytest.mark.parametrize("format", ACCEPTED)
def test_the_size_is_read_from_the_header_before_any_pixel(format: str) -> None:
    data = encode(noise(), format, **OPTIONS[format])
    if format == "TIFF":  # PIL writes the directory first
        assert data[4:8] == b"\x08\0\0\0"
    cut = data[: len(data) * 95 // 100]
    assert outcome(cut) == "bad_image"
    with pytest.raises(ImageTooLarge):
        read(cut, max_pixels=100)


def test_pils_own_limit_is_out_of_the_way() -> None:
    assert Image.MAX_IMAGE_PIXELS is None


def test_a_side_has_a_limit_of_its_own() -> None:
    with pytest.raises(ImageTooLarge, match="1x65536"):
        read(encode(Image.new("1", (1, 65536)), "PNG"))


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (0, 0)])
def test_an_image_without_pixels_is_a_bad_image(width: int, height: int) -> None:
    gif = b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + b"," + bytes(4)
    gif += struct.pack("<HHB", width, height, 0) + b"\x02\x02\x4c\x01\0;"
    for data in (png(width, height, 8, 0, []), bmp(width, height, 0, b""), gif):
        assert outcome(data) == "bad_image"


def test_a_webp_canvas_is_measured_before_it_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(images.READERS, "WEBP")
    data = b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff" * 6
    with pytest.raises(ImageTooLarge, match="16777216x16777216"):
        read(data)


@pytest.mark.parametrize("lossless", [False, True])
def test_the_canvas_of_every_kind_of_webp_is_found(lossless: bool) -> None:
    assert limits.webp_canvas(encode(noise(), "WEBP", lossless=lossless)) == (37, 29)
    assert limits.webp_canvas(encode(see_through(), "WEBP", lossless=lossless)) == (37, 29)


def test_the_disposal_of_a_gif_frame_is_not_prepared_in_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: Any) -> None:
        raise AssertionError("4 GB allocated")

    monkeypatch.setattr("PIL.Image.core.fill", fill)
    head = b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + b"!\xf9\x04" + bytes([2 << 2]) + bytes(4)
    with pytest.raises(ImageTooLarge, match="65535x65535"):
        read(head + b"," + bytes(4) + b"\xff\xff\xff\xff\0\x08\0;")


TILED = ((256, 10), (257, 10), *GREY)
TILE = ((324, PIXELS), (325, LENGTH))


def test_a_tiff_of_common_tiles_is_read() -> None:
    data = tiff(*TILED, (322, 256), (323, 256), *TILE, pixels=zlib.compress(b"\x07" * 65536))
    assert read(data, max_pixels=100).pixels.max() == 7


def test_a_tiff_whose_tiles_are_far_larger_than_it_is_is_refused() -> None:
    with pytest.raises(ImageTooLarge, match="32768x32768"):
        read(tiff(*TILED, (322, 32768), (323, 32768), *TILE, pixels=zlib.compress(b"")))


@pytest.mark.parametrize("twice", [(322, 32768), (256, 32768), (257, 32768)])
def test_a_tiff_that_says_something_twice_is_refused(twice: tuple[int, int]) -> None:
    tags = sorted((*TILED, (322, 16), (323, 16), *TILE), key=lambda tag: tag[0])
    tags.insert(next(place for place, tag in enumerate(tags) if tag[0] == twice[0]), twice)
    with pytest.raises(BadImage, match="twice"):
        read(tiff(*tags, pixels=zlib.compress(bytes(256))))


def test_a_tiff_whose_strips_cover_it_again_and_again_is_refused() -> None:
    rows, offsets = 99, 40
    plain = ((256, 100), (257, 100), (258, 8), (259, 1), (262, 1), (273, PIXELS), (277, 1), (278, rows), (279, LENGTH))
    data = bytearray(tiff(*plain, pixels=struct.pack("<I", 300) * offsets + bytes(10_000)))
    data[10 + 5 * 12 + 4 : 10 + 5 * 12 + 8] = struct.pack("<I", offsets)
    with pytest.raises(BadImage, match="many times"):
        read(bytes(data))


@pytest.mark.parametrize("compression", [1, 2])
def test_run_length_bmp_is_refused_in_plain_words(compression: int) -> None:
    with pytest.raises(BadImage, match="Run-length"):
        read(bmp(4, 1, compression, b"\4\7\0\1"))


def test_plain_bmp_of_the_same_kind_is_read() -> None:
    assert read(bmp(4, 1, 0, b"\7\7\7\7")).pixels.max() == 7


def profile_chunk(size: int) -> tuple[bytes, bytes]:
    return b"iCCP", b"x\0\0" + zlib.compress(bytes(size))


@pytest.mark.parametrize(
    "bomb",
    [
        [profile_chunk(2_000_000)],
        [profile_chunk(100)] * 17,
        [(b"zTXt", b"x\0\0" + zlib.compress(bytes(2_000_000)))],
        [(b"zTXt", b"x\0\0" + zlib.compress(bytes(1_000_000)))] * 70,
        [(b"iTXt", b"x\0\1\0\0\0" + zlib.compress(bytes(2_000_000)))],
    ],
)
def test_a_png_whose_notes_inflate_to_megabytes_is_refused(bomb: list[tuple[bytes, bytes]]) -> None:
    assert outcome(png(1, 1, 8, 0, [b"\0"])) == "ok"
    assert outcome(png(1, 1, 8, 0, [b"\0"], *bomb)) == "bad_image"


def scans(count: int) -> bytes:
    """A progressive JPEG of so many scans: the last one of an encoder's ten, again and again."""
    data = encode(noise(16, 16), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (count - data.count(b"\xff\xda")) + b"\xff\xd9"


def test_a_jpeg_may_have_two_hundred_scans_and_no_more() -> None:
    assert outcome(scans(limits.MAX_JPEG_SCANS)) == "ok"
    with pytest.raises(BadImage, match="200 scans"):
        read(scans(limits.MAX_JPEG_SCANS + 1))


def test_a_large_jpeg_may_have_fewer_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SCANNED_PIXELS", 16 * 16 * 20)
    assert outcome(scans(20)) == "ok"
    with pytest.raises(BadImage, match="20 scans"):
        read(scans(21))


def test_scans_within_a_thumbnail_or_after_the_end_do_not_count() -> None:
    data = encode(noise(16, 16), "JPEG")
    note = b"\xff\xe5" + struct.pack(">H", 602) + b"\xff\xda" * 300
    assert outcome(data[:2] + note + data[2:] + b"\0\0" + b"\xff\xda\0\2" * 300) == "ok"


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", 2 + len(body)) + body


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def in_pieces(format: str, count: int) -> bytes:
    """An image between whose parts there are so many that say nothing."""
    data = encode(slopes(), format)
    match format:
        case "JPEG":
            return data[:2] + segment(0xE1, noted(1)) + segment(0xFE, b"") * count + data[2:]
        case "PNG":
            return data[:33] + chunk(b"abCd") * count + data[33:]
        case _:
            at = data.index(b",")
            return data[:at] + b"!\xfe" + b"\x01a" * count + b"\0" + data[at:]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF"])
def test_an_image_in_a_million_pieces_is_refused_and_one_in_a_thousand_is_not(format: str) -> None:
    assert outcome(in_pieces(format, 1000)) == "ok"
    assert outcome(in_pieces(format, limits.MAX_SMALL_READS)) == "bad_image"


def test_no_byte_of_junk_between_segments_is_read_alone_forever() -> None:
    data = encode(slopes(), "JPEG")
    with pytest.raises(BadImage, match="pieces"):
        read(data[:2] + segment(0xE1, noted(1)) + b"\x01" * limits.MAX_SMALL_READS + data[2:])


def test_a_cameras_file_of_many_pictures_is_none_of_much_exif() -> None:
    """Multi-Picture Format: each behind the one before, each with its own; a panorama has dozens."""
    assert outcome(encode(slopes(), "JPEG", exif=noted(6)) * 30) == "ok"


def test_exif_in_many_segments_is_refused() -> None:
    data = encode(slopes(), "JPEG")
    assert outcome(data[:2] + segment(0xE1, noted(1)) * limits.MAX_JPEG_EXIF + data[2:]) == "ok"
    with pytest.raises(BadImage, match="again and again"):
        read(data[:2] + segment(0xE1, noted(1)) * (limits.MAX_JPEG_EXIF + 1) + data[2:])


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_exif_of_a_million_numbers_is_refused(format: str) -> None:
    def numbered(count: int) -> bytes:
        directory = b"Exif\0\0II*\0" + struct.pack("<IHHHII", 8, 1, 0x0112, 5, count, 26) + bytes(4)
        return encode(slopes(), format, exif=directory + b"\1\0\0\0" * 2 * count)

    assert outcome(numbered(1000)) == "ok"
    with pytest.raises(BadImage, match="EXIF"):
        read(numbered(limits.MAX_EXIF_BYTES // 8))


def striped(strips: int) -> bytes:
    plain = ((256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (273, PIXELS), (277, 1), (278, 1), (279, LENGTH))
    data = bytearray(tiff(*plain, pixels=struct.pack("<I", 8) * strips))
    data[10 + 5 * 12 + 4 : 10 + 5 * 12 + 8] = struct.pack("<I", strips)
    return bytes(data)


def test_a_tiff_of_more_strips_than_rows_can_be_is_refused_before_they_are_read() -> None:
    assert outcome(striped(8)) == "ok"
    with pytest.raises(BadImage, match="numbers"):
        read(striped(limits.MAX_TIFF_NUMBERS + 1))


@pytest.mark.parametrize("head", [b"II*\0\x08\0\0\0\xff\xff", b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" + b"\xff" * 8])
def test_a_tiff_of_thousands_of_tags_is_refused(head: bytes) -> None:
    with pytest.raises(BadImage, match="tags"):
        read(head + bytes(100))


def test_a_bigtiff_whose_directory_pil_would_look_for_elsewhere_is_refused_in_plain_words() -> None:
    with pytest.raises(BadImage, match="little-endian"):
        read(b"MM\0+\0\x08\0\0" + struct.pack(">QQ", 16, 0) + bytes(99))


def test_what_is_read_again_and_again_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_READ_BYTES", 10_000)
    with pytest.raises(BadImage, match="pieces"):
        read(encode(noise(99, 99), "BMP"))


def test_a_large_jpeg_of_many_segments_is_not_searched_for_its_scans_forever() -> None:
    data = scans(20)
    with pytest.raises(BadImage, match="pieces"):
        limits.check_scans(data[:2] + segment(0xFE, b"") * limits.MAX_SMALL_READS + data[2:], 2**27)
