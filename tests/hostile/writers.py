"""Image files written by hand, for the kinds that Pillow reads and does not write."""

import io
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Samples = npt.NDArray[Any]  # (height, width, samples), or (height, width) of one

# Adam7: the first column and row of each pass, and the steps to its next.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(width: int, height: int, depth: int, colour: int, idat: bytes, *extra: bytes, interlaced: int = 0) -> bytes:
    """``idat``: the compressed rows; ``extra``: chunks before them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", idat) + chunk(b"IEND")


def png(values: Samples, depth: int, colour: int, *extra: bytes, interlaced: bool = False) -> bytes:
    """Samples of ``depth`` bits, as they are."""
    height, width = values.shape[:2]
    parts = [values[y::down, x::across] for x, y, across, down in _PASSES] if interlaced else [values]
    rows = b"".join(b"\0" + _packed(row, depth) for part in parts if part.size for row in part)
    return png_of(width, height, depth, colour, zlib.compress(rows), *extra, interlaced=int(interlaced))


def _packed(row: Samples, depth: int) -> bytes:
    if depth >= 8:
        return row.astype(f">u{depth // 8}").tobytes()
    bits = np.unpackbits(row.astype(np.uint8).reshape(-1, 1), axis=1)[:, -depth:]
    return np.packbits(bits.ravel()).tobytes()


def segment(marker: int, body: bytes = b"") -> bytes:
    """Of a JPEG."""
    return bytes((0xFF, marker)) + struct.pack(">H", 2 + len(body)) + body


def after_start(jpeg: bytes, *segments: bytes) -> bytes:
    """A JPEG with segments right after its start."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def sized(jpeg: bytes, width: int, height: int) -> bytes:
    """A JPEG that says another size."""
    at = next(at for at in range(len(jpeg)) if jpeg[at] == 0xFF and jpeg[at + 1] in (0xC0, 0xC1, 0xC2))
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


def ycck(picture: Image.Image) -> bytes:
    """A JPEG of Adobe's YCCK. Pillow writes four planes as they are, inverted; the marker's last byte says what they
    hold: here luminance and colour of the inverted picture, and no black."""
    luminance = Image.eval(picture, lambda level: 255 - level).convert("YCbCr")
    planes = [Image.eval(plane, lambda level: 255 - level) for plane in luminance.split()]
    data = bytearray(encode(Image.merge("CMYK", (*planes, Image.new("L", picture.size))), "JPEG", quality=95))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


def exif(orientation: int) -> bytes:
    return b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHHI", 0x0112, 3, 1, orientation, 0, 0)


def bmp(head: bytes, rows: Iterable[bytes], palette: bytes = b"") -> bytes:
    """``head``: the second header, which begins with its length; each row is filled up to four bytes."""
    pixels = b"".join(row + bytes(-len(row) % 4) for row in rows)
    start = 14 + len(head) + len(palette)
    return struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start) + head + palette + pixels


def bmp_head(width: int, height: int, bits: int, compression: int = 0, colours: int = 0) -> bytes:
    return struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, colours, 0)


Tags = dict[int, tuple[int, Sequence[int]]]  # type (3: 16 bits, 4: 32 bits), values
_SIZES = {1: "B", 3: "H", 4: "I", 16: "Q"}


def tiff(tags: Tags, pieces: Sequence[bytes], *, order: str = "<", big: bool = False) -> bytes:
    """One directory, then what does not fit into it, then the strips or tiles: their places and lengths are added."""
    offsets, counts = (324, 325) if 322 in tags else (273, 279)
    word, number, entry = ("Q", "Q", 20) if big else ("I", "H", 12)
    told = {**tags, offsets: (4, [0] * len(pieces)), counts: (4, [len(piece) for piece in pieces])}
    head = 16 if big else 8
    end = head + struct.calcsize("<" + number) + entry * len(told) + struct.calcsize("<" + word)
    at = end + sum(len(_values(order, *value)) for value in told.values())
    for index, piece in enumerate(pieces):
        told[offsets][1][index] = at  # type: ignore[index]
        at += len(piece)
    directory, behind = struct.pack(order + number, len(told)), b""
    for tag, (type_, values) in sorted(told.items()):
        packed = _values(order, type_, values)
        if len(packed) > struct.calcsize("<" + word):
            packed, behind = struct.pack(order + word, end + len(behind)), behind + packed
        filled = packed.ljust(struct.calcsize("<" + word), b"\0")
        directory += struct.pack(order + "HH" + word, tag, type_, len(values)) + filled
    directory = (directory + bytes(struct.calcsize("<" + word)) + behind).ljust(_total(told, order) + end - head, b"\0")
    return _tiff_head(order, big) + directory + b"".join(pieces)


def _total(told: Tags, order: str) -> int:
    return sum(len(_values(order, *value)) for value in told.values())


def _values(order: str, type_: int, values: Sequence[int]) -> bytes:
    return struct.pack(f"{order}{len(values)}{_SIZES[type_]}", *values)


def _tiff_head(order: str, big: bool) -> bytes:
    mark = b"II" if order == "<" else b"MM"
    return mark + (struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HI", 42, 8))


def tiff_tags(width: int, height: int, photometric: int, samples: int = 1, bits: int = 8, **more: int) -> Tags:
    """``more``: tags by ``t`` and their number, such as ``t259``."""
    plain: Tags = {256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * samples), 259: (3, [1])}
    named = {int(name[1:]): (4 if value > 65535 else 3, [value]) for name, value in more.items()}
    return {
        **plain,
        262: (3, [photometric]),
        277: (3, [samples]),
        **({} if "t322" in more else {278: (4, [height])}),
        **named,
    }


def tiles(values: Samples, side: int) -> list[bytes]:
    """Of a TIFF: squares in rows, filled up with zeros."""
    height, width = values.shape[:2]
    filled = np.pad(values, ((0, -height % side), (0, -width % side), *((0, 0),) * (values.ndim - 2)))
    return [
        filled[y : y + side, x : x + side].tobytes()
        for y in range(0, len(filled), side)
        for x in range(0, filled.shape[1], side)
    ]
