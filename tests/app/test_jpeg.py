"""app/jpeg.py: the fast way gives PIL's pixels bit by bit, or nothing at all; then PIL's way decides."""

import io
import struct
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from app import images
from app.errors import ServiceError
from app.jpeg import jpeg_pixels, jpeg_size
from tests.app.test_images import encode, noise, noted, outcome, read

# The module silences PIL's warnings for the process; pytest puts its own filters above.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\..*")

KINDS: dict[str, dict[str, Any]] = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True},
    "RGB": {"keep_rgb": True},
    "restart intervals": {"restart_marker_blocks": 2},
    "quality 5": {"quality": 5},
    "quality 100": {"quality": 100},
    "own Huffman tables": {"optimize": True},
}
ODD = [(1, 1), (3, 5), (17, 31), (8, 8), (64, 1)]


def as_pil(data: bytes) -> Image.Image:
    return JpegImageFile(io.BytesIO(data))


def equal(data: bytes) -> bool:
    mine, theirs = jpeg_pixels(data), as_pil(data)
    assert mine is not None
    assert (mine.mode, mine.size) == ("L" if theirs.mode == "L" else "RGBX", jpeg_size(data))
    return np.array_equal(np.asarray(mine.convert(theirs.mode)), np.asarray(theirs))


def outcomes(data: bytes, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What decoding gives, the fast way where there is one, and by PIL alone."""
    found: list[object] = []
    with monkeypatch.context() as patched:
        for _ in range(2):
            try:
                picture = read(data)
                found.append((picture.width, picture.height, picture.pixels.tobytes()))
            except ServiceError as error:
                found.append(error.code)
            patched.setattr(images, "jpeg_size", lambda _: None)
    return found


@pytest.mark.parametrize("size", ODD)
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_pils_bit_by_bit(kind: str, size: tuple[int, int]) -> None:
    assert equal(encode(noise(*size), "JPEG", **KINDS[kind]))


@pytest.mark.parametrize("size", ODD)
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 5}])
def test_grey_is_pils_grey_bit_by_bit(size: tuple[int, int], options: dict[str, Any]) -> None:
    assert equal(encode(noise(*size).convert("L"), "JPEG", **options))


@pytest.mark.parametrize("subsampling", ["440", "411"])
def test_subsampling_that_pil_does_not_write_is_read_as_pil_reads_it(subsampling: str) -> None:
    assert equal(simplejpeg.encode_jpeg(np.asarray(noise(61, 45)), colorsubsampling=subsampling))


def test_an_ordinary_jpeg_does_without_pils_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(noise(), "JPEG")
    expected = read(data).pixels
    monkeypatch.setattr(images, "JpegImageFile", None)
    monkeypatch.setattr(images, "read", None)
    assert np.array_equal(read(data).pixels, expected)


def test_the_size_is_width_and_height() -> None:
    assert jpeg_size(encode(noise(37, 29), "JPEG")) == (37, 29)


@pytest.mark.parametrize("transform", [0, 2])
def test_cmyk_and_ycck_are_left_to_pil(monkeypatch: pytest.MonkeyPatch, transform: int) -> None:
    data = encode(noise().convert("CMYK"), "JPEG")
    adobe = data.index(b"Adobe") + 11
    data = data[:adobe] + bytes([transform]) + data[adobe + 1 :]
    assert (jpeg_size(data), jpeg_pixels(data)) == (None, None)
    mine, pils = outcomes(data, monkeypatch)
    assert mine == pils
    assert isinstance(mine, tuple)


@pytest.mark.parametrize("factors", [0x14, 0x31, 0x13, 0x24, 0x42, 0x44])
def test_subsampling_of_which_libjpeg_has_no_name_is_left_to_pil(monkeypatch: pytest.MonkeyPatch, factors: int) -> None:
    data = bytearray(encode(noise(61, 45), "JPEG", subsampling=0))
    data[data.index(b"\xff\xc0") + 11] = factors
    mine, pils = outcomes(bytes(data), monkeypatch)
    assert mine == pils


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_pil_turns_it(monkeypatch: pytest.MonkeyPatch, orientation: int) -> None:
    mine, pils = outcomes(encode(noise(), "JPEG", exif=noted(orientation)), monkeypatch)
    assert mine == pils
    assert mine[:2] == ((37, 29) if orientation < 5 else (29, 37))


def test_an_orientation_in_xmp_alone_turns_the_picture_as_pil_does(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(noise(), "JPEG", xmp=b'<rdf:Description tiff:Orientation="6"/>')
    mine, pils = outcomes(data, monkeypatch)
    assert pils[:2] == (29, 37)
    assert mine == pils


# Damage.


@pytest.mark.parametrize("kind", ["4:2:0", "progressive", "restart intervals"])
def test_cut_anywhere_it_is_refused_exactly_where_pil_refuses(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """libjpeg alone would fill with grey what is missing."""
    data = encode(noise(), "JPEG", **KINDS[kind])
    ends = [*range(3, len(data) - 8, 11), *range(len(data) - 8, len(data) + 1)]
    pairs = [outcomes(data[:end], monkeypatch) for end in ends]
    assert all(mine == pils for mine, pils in pairs)
    assert {"bad_image"} < {mine for mine, _ in pairs}


def test_half_a_picture_is_nothing_to_the_fast_way() -> None:
    data = encode(noise(), "JPEG")
    assert jpeg_size(data[: len(data) // 2]) == (37, 29)
    assert jpeg_pixels(data[: len(data) // 2]) is None


@pytest.mark.parametrize("kind", ["4:4:4", "4:2:0", "progressive", "restart intervals", "RGB"])
def test_flipped_bytes_give_what_pil_gives(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    data, generator = encode(noise(), "JPEG", **KINDS[kind]), np.random.default_rng(0)
    seen = set()
    for _ in range(150):
        damaged = bytearray(data)
        for place in (generator.integers(3, len(data)), generator.integers(3, min(len(data), 700))):
            damaged[place] = generator.integers(256)
        mine, pils = outcomes(bytes(damaged), monkeypatch)
        assert mine == pils
        seen.add(type(mine))
    assert seen == {str, tuple}


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xd9", b"no JPEG", bytes(1000)])
def test_what_is_no_jpeg_has_neither_size_nor_pixels(data: bytes) -> None:
    assert (jpeg_size(data), jpeg_pixels(data)) == (None, None)


def test_the_header_alone_is_believed_of_the_size_and_nothing_is_decoded() -> None:
    data = bytearray(encode(noise(), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 65_500, 65_499)
    assert jpeg_size(bytes(data)) == (65_499, 65_500)
    assert outcome(bytes(data)) == "image_too_large"
