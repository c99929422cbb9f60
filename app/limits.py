"""What the bytes of a picture may ask of a decoder, checked before one sees them: a hundred bytes can ask for
gigabytes, or minutes. Twenty megabytes can too: PIL walks segments, chunks and blocks in Python, one at a time.
"""

import io
import re
import struct

import numpy as np

from app.errors import BadImage, ImageTooLarge

MAX_SIDE = 65_535  # pixels, the most JPEG and GIF can say; PIL keeps a pointer a row, and its boxes in 32-bit floats
MAX_JPEG_SCANS = 200  # encoders write about ten; each is a pass over every coefficient, however few bytes it has
MAX_SCANNED_PIXELS = 2**30  # scans x pixels, about a second and a half of such passes: 16 scans at 64 megapixels
MAX_PNG_PROFILES = 16  # a PNG has one at most, by chance its letters more; PIL inflates up to a megabyte for each
MAX_JPEG_EXIF = 64  # segments of 64 kB: a picture has one, a camera's file many pictures; PIL joins and copies them
MAX_EXIF_BYTES = 2**20  # as much; PIL makes an object of every number: 20 MB of them kept it busy for 5 s
MAX_TIFF_TAGS = 1000  # a camera's raw file has a hundred
MAX_TIFF_NUMBERS = 2**18  # of one tag: a strip for every row of every plane; 20 MB of strips were 9 s and 1.2 GB
MAX_SMALL_READS = 2**16  # a chunk, a block, a byte of junk: 20 MB of them kept PIL busy for 5 s
MAX_READ_BYTES = 2**32  # PIL reads 64 kB for every strip of a TIFF, however short: 0.5 GB for 8000 rows
_SMALL = 512

# The next JPEG marker that begins a segment, or the end: no stuffing, no fill, no restart, none that stands alone.
_JPEG_SEGMENT = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")
_TIFF_TEXTS = (1, 2, 7)  # types of a tag whose value PIL keeps as bytes


class Reader(io.BytesIO):
    """A file that is read a bounded number of times: exactly as often as PIL does it, whatever it takes the bytes for.

    Raises BadImage.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)  # not copied
        self._small = self._bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        piece = super().read(size)
        self._small += len(piece) < _SMALL
        self._bytes += len(piece)
        if self._small > MAX_SMALL_READS or self._bytes > MAX_READ_BYTES:
            raise BadImage("The image is in too many small pieces.")
        return piece


def check(data: bytes, name: str, max_pixels: int) -> None:
    """What can be said of a format's bytes before they are opened. Raises ImageTooLarge, BadImage, struct.error."""
    match name:
        case "WEBP":
            check_size(*webp_canvas(data), max_pixels)
        case "PNG" if data.count(b"iCCP") > MAX_PNG_PROFILES:
            raise BadImage("The PNG holds more than one colour profile.")
        case "JPEG" if data.count(b"Exif\0\0") > MAX_JPEG_EXIF:
            raise BadImage("The JPEG holds EXIF again and again.")
        case "TIFF":
            _check_tags(data)


def check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"The image is {width}x{height}, {width * height} pixels; at most {max_pixels} are accepted."
        )
    if max(width, height) > MAX_SIDE:
        raise ImageTooLarge(f"The image is {width}x{height}; at most {MAX_SIDE} pixels a side are accepted.")


def webp_canvas(data: bytes) -> tuple[int, int]:
    """Width and height from a WebP's first chunk, else (0, 0): PIL allocates the canvas before it tells the size."""
    match data[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return 0, 0


def check_scans(data: bytes, pixels: int) -> None:
    """Raise BadImage where a JPEG has too many scans for its size."""
    allowed = min(MAX_JPEG_SCANS, max(16, MAX_SCANNED_PIXELS // pixels))
    if scans_at_most(data) > allowed and _has_more_scans(data, allowed):  # the first is fast
        raise BadImage(f"The JPEG has more than {allowed} scans.")


def scans_at_most(data: bytes) -> int:
    """How often a JPEG has the two bytes that a scan begins with, at whatever place: never less than its scans.

    A sixth of the time that ``bytes.count`` takes for a photo.
    """
    even, odd = np.frombuffer(data, ">u2", len(data) // 2), np.frombuffer(data, ">u2", (len(data) - 1) // 2, 1)
    return int(np.count_nonzero(even == 0xFFDA) + np.count_nonzero(odd == 0xFFDA))


def _has_more_scans(data: bytes, allowed: int) -> bool:
    """Whether the first picture of a JPEG file has them; those of a thumbnail within a segment do not count."""
    scans, at = 0, 2
    for _ in range(MAX_SMALL_READS):
        if (segment := _JPEG_SEGMENT.search(data, at)) is None or segment[1] == b"\xd9":
            return False
        if (scans := scans + (segment[1] == b"\xda")) > allowed:
            return True
        at = segment.end() + int.from_bytes(data[segment.end() : segment.end() + 2], "big")
    raise BadImage("The JPEG is in too many small pieces.")


def _check_tags(data: bytes) -> None:
    """Raise BadImage where a TIFF's first directory says too much, or something twice.

    Of a tag that is there twice PIL believes the last and libtiff the first: so a 10x10 picture hides gigabyte tiles.
    """
    entries = _tiff_entries(data)
    if len({tag for tag, _, _ in entries}) < len(entries):
        raise BadImage("The TIFF says something twice.")
    if any(count > MAX_TIFF_NUMBERS and type_ not in _TIFF_TEXTS for _, type_, count in entries):
        raise BadImage(f"The TIFF has a list of more than {MAX_TIFF_NUMBERS} numbers.")


def _tiff_entries(data: bytes) -> list[tuple[int, int, int]]:
    """Tag, type and count of all that a TIFF's first directory says. Raises struct.error where it is cut off."""
    if data.startswith(b"MM\0+"):  # PIL takes it for the old kind, and so another place for its directory
        raise BadImage("Big-endian BigTIFF is not accepted: send it little-endian.")
    order = "<" if data.startswith(b"II") else ">"
    pointer, number, entry = ("8xQ", "Q", "HHQ8x") if b"+" in data[2:4] else ("4xI", "H", "HHI4x")
    (at,) = struct.unpack_from(order + pointer, data)
    (count,) = struct.unpack_from(order + number, data, at)
    if count > MAX_TIFF_TAGS:
        raise BadImage(f"The TIFF has more than {MAX_TIFF_TAGS} tags.")
    first, step = at + struct.calcsize(order + number), struct.calcsize(order + entry)
    count = min(count, (len(data) - first) // step)
    return [struct.unpack_from(order + entry, data, first + step * index) for index in range(count)]
