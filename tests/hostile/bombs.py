"""Pictures that ask for far more than they are, and files that are several things at once."""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator

from tests.hostile.kinds import photo
from tests.hostile.writers import (
    after_start,
    bmp,
    bmp_head,
    chunk,
    encode,
    exif,
    png_of,
    segment,
    sized,
    tiff,
    tiff_tags,
)

MEGABYTE = 2**20
HUGE = ((65_535, 65_535), (30_000, 30_000), (8001, 8000))  # the last is just over 64 megapixels


def zeros(megabytes: int) -> bytes:
    """A zlib stream that inflates to so many megabytes, made a thousandth as long; it has no end."""
    packer = zlib.compressobj(9)
    head = packer.compress(bytes(MEGABYTE)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(MEGABYTE)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * (megabytes - 1)


def huge() -> Iterator[tuple[str, bytes]]:
    """More pixels than are accepted, by their headers."""
    jpeg, webp = encode(photo(), "JPEG"), encode(photo(), "WEBP", lossless=True)
    for width, height in HUGE:
        shape = f"{width}x{height}"
        yield f"png {shape}", png_of(width, height, 8, 2, zlib.compress(b""))
        yield f"png of one bit {shape}", png_of(width, height, 1, 0, zlib.compress(b""))
        yield f"png interlaced {shape}", png_of(width, height, 16, 6, zlib.compress(b""), interlaced=1)
        yield f"jpeg {shape}", sized(jpeg, width, height)
        yield f"jpeg progressive {shape}", sized(encode(photo(), "JPEG", progressive=True), width, height)
        yield f"gif canvas {shape}", gif(width, height, 9, 9)
        yield f"gif frame {shape}", gif(9, 9, width, height)
        yield f"bmp {shape}", bmp(bmp_head(width, height, 24), [])
        yield f"bmp from the top {shape}", bmp(bmp_head(width, -height, 1), [])
        yield f"tiff {shape}", tiff(tiff_tags(width, height, 1), [b"\0"])
        yield f"tiff tile {shape}", tiff(tiff_tags(9, 9, 1, t322=width, t323=height, t259=8), [zlib.compress(b"")])
        yield f"webp canvas {shape}", webp_canvas(width, height)
    yield "png of 2**31", png_of(2**31 - 1, 2**31 - 1, 8, 0, zlib.compress(b""))
    yield "bmp of 2**31", bmp(bmp_head(2**31 - 1, -(2**31), 24), [])
    yield "tiff of 2**32", tiff(tiff_tags(2**32 - 1, 2**32 - 1, 1), [b"\0"])
    yield "webp frame of 16384", webp[:21] + struct.pack("<I", 0x3FFF | 0x3FFF << 14) + webp[25:]
    yield "gif disposal", gif(9, 9, 65_535, 65_535, b"!\xf9\x04\x08\0\0\0\0")


def gif(width: int, height: int, across: int, down: int, before: bytes = b"") -> bytes:
    """A screen and a frame of which nothing comes."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0)
    return screen + before + b"," + bytes(4) + struct.pack("<HHB", across, down, 0) + b"\x08\x01\0\0;"


def webp_canvas(width: int, height: int) -> bytes:
    body = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + body


def empty() -> Iterator[tuple[str, bytes]]:
    """No pixels at all."""
    for width, height in ((0, 9), (9, 0), (0, 0)):
        shape = f"{width}x{height}"
        yield f"png {shape}", png_of(width, height, 8, 2, zlib.compress(b""))
        yield f"jpeg {shape}", sized(encode(photo(), "JPEG"), width, height)
        yield f"gif {shape}", gif(width, height, width, height)
        yield f"bmp {shape}", bmp(bmp_head(width, height, 24), [])
        yield f"tiff {shape}", tiff(tiff_tags(width, height, 1), [b""])


def costly() -> Iterator[tuple[str, bytes]]:
    """Within every size, and dear to read: refused, or read as the little that they are."""
    yield from _costly_png()
    yield from _costly_jpeg()
    yield from _costly_others()


def _costly_png() -> Iterator[tuple[str, bytes]]:
    dot, bomb = zlib.compress(b"\0\0"), zeros(1000)
    for kind, head in ((b"iCCP", b"x\0\0"), (b"zTXt", b"x\0\0"), (b"iTXt", b"x\0\1\0\0\0")):
        yield f"png {kind!r} of a gigabyte", png_of(1, 1, 8, 0, dot, chunk(kind, head + bomb))
        yield f"png {kind!r} of a megabyte, 99 times", png_of(1, 1, 8, 0, dot, *[chunk(kind, head + zeros(1))] * 99)
    yield "png pixels of a gigabyte", png_of(1, 1, 8, 0, bomb)
    yield "png 64 megapixels, black", png_of(8000, 8000, 1, 0, zeros(9))
    yield "png 64 megapixels, nothing there", png_of(8000, 8000, 8, 6, zlib.compress(b""))
    yield "png of a million chunks", png_of(1, 1, 8, 0, dot, chunk(b"abCd") * 1_000_000)
    yield "png of a million texts", png_of(1, 1, 8, 0, dot, chunk(b"tEXt", b"a\0") * 1_000_000)
    yield "png of a million pieces", png_of(1, 1, 8, 0, b"", chunk(b"IDAT") * 1_000_000, chunk(b"IDAT", dot))
    numbers = b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x0112, 5, 2_000_000, 26) + bytes(4) + b"\1\0\0\0" * 4_000_000
    yield "png EXIF of a million numbers", png_of(1, 1, 8, 0, dot, chunk(b"eXIf", numbers))


def _costly_jpeg() -> Iterator[tuple[str, bytes]]:
    plain, noted = encode(photo(), "JPEG"), segment(0xE1, exif(1))
    waves = encode(photo(), "JPEG", progressive=True)
    scan = waves[waves.rindex(b"\xff\xda") : -2]
    for count in (100, 1000, 20_000):
        yield f"jpeg of {count} scans", waves[:-2] + scan * count + b"\xff\xd9"
    large = sized(waves, 8000, 8000)
    yield "jpeg 64 megapixels, few scans there", large
    yield "jpeg 64 megapixels, 99 scans", large[:-2] + scan * 99 + b"\xff\xd9"
    small = {"comments": segment(0xFE), "profiles": segment(0xE2, b"ICC_PROFILE\0\1\1"), "tables": plain[20:89]}
    for name, piece in small.items():
        yield f"jpeg of a million {name}", after_start(plain, noted, piece * (4 * MEGABYTE // len(piece)))
    for length in (10, 600, 65_000):
        piece = segment(0xE1, b"Exif\0\0" + b"x" * length)
        yield f"jpeg EXIF again and again, {length}", after_start(plain, noted, piece * (16 * MEGABYTE // len(piece)))
    yield "jpeg of fill bytes", after_start(plain, noted, b"\xff" * 8 * MEGABYTE)
    yield "jpeg of junk bytes", after_start(plain, noted, b"\x01" * 8 * MEGABYTE)
    yield "jpeg of 12 bits", plain.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c")


def _costly_others() -> Iterator[tuple[str, bytes]]:
    screen = b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0)
    script = encode(photo(), "GIF")
    yield "gif that is javascript", b"GIF89a/*" + script[8:] + b"*/=1;alert(1)//"  # the comment is its width
    yield "gif of junk bytes", screen + b"\x01" * 8 * MEGABYTE + b","
    yield "gif of a million comments", screen + b"!\xfe\x01a\0" * MEGABYTE + b","
    yield "gif of a long comment", screen + b"!\xfe" + b"\x01a" * 4 * MEGABYTE + b"\0,"
    yield "bmp run-length", bmp(bmp_head(8000, 8000, 8, 1, 256), [b"\xff\0" * 30_000], bytes(1024))
    yield "bmp 64 megapixels, nothing there", bmp(bmp_head(8000, 8000, 32), [])
    yield "tiff big MM", tiff(tiff_tags(9, 9, 1), [bytes(81)], order=">", big=True)
    strips = tiff_tags(8, 8, 1) | {278: (4, [1])}
    yield "tiff of a million strips", tiff(strips, [b"\0"] * 1_000_000)
    yield "tiff of a million numbers", tiff(tiff_tags(8, 8, 1) | {1000: (4, [1] * 1_000_000)}, [bytes(64)])
    many = {tag: (3, [1]) for tag in range(1000, 60_000)}
    yield "tiff of thousands of tags", tiff(tiff_tags(8, 8, 1) | many, [bytes(64)])
    looped = bytearray(tiff(tiff_tags(8, 8, 1), [bytes(64)]))
    looped[8 + 2 + 12 * 9 : 8 + 2 + 12 * 9 + 4] = struct.pack("<I", 8)
    yield "tiff whose next page is this one", bytes(looped)
    yield "tiff whose notes are itself", tiff(tiff_tags(8, 8, 1) | {34_665: (4, [8])}, [bytes(64)])
    packed = zeros(60)
    yield "tiff strip of 60 megabytes", tiff(tiff_tags(8000, 8000, 1, t259=8), [packed])


def several_things() -> Iterator[tuple[str, bytes, bool]]:
    """Whether each is an image too."""
    jpeg, png, gif_ = (encode(photo(), name) for name in ("JPEG", "PNG", "GIF"))
    page = b"<!DOCTYPE html><html><script>alert(1)</script></html>"
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.html", (2026, 1, 1, 0, 0, 0)), page)
    zipped, pdf = held.getvalue(), b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj trailer<</Root 1 0 R>>\n"
    yield "jpeg and zip", jpeg + zipped, True
    yield "png and zip", png + zipped, True
    yield "jpeg and pdf within", after_start(jpeg, segment(0xFE, pdf)), True
    yield "jpeg and html within", after_start(jpeg, segment(0xFE, page)), True
    yield "jpeg and php within", after_start(jpeg, segment(0xE1, b"Exif\0\0<?php system($_GET[0]); ?>")), True
    yield "png and html within", png[:33] + chunk(b"tEXt", b"a\0" + page) + png[33:], True
    yield "gif and javascript behind", gif_ + b"*/=1;alert(1)//", True
    yield "jpeg and another jpeg", jpeg + encode(photo().rotate(180), "JPEG"), True
    yield "jpeg and png behind", jpeg + png, True
    yield "gif that is javascript alone", b"GIF89a=1;alert(document.cookie)//", False
    yield "bmp that is javascript", b"BM=1;alert(1);/*" + bytes(99) + b"*/", False
    yield "webp that is sound", b"RIFF" + struct.pack("<I", 100) + b"WAVEfmt " + bytes(99), False
    for name, head in {
        "pdf": pdf,
        "zip": zipped,
        "html": page,
        "junk": b"junk",
        "empty lines": b"\r\n" * 9,
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "windows": b"MZ\x90\0",
        "elf": b"\x7fELF",
        "pickle": b"\x80\x04\x95",
        "numpy": b"\x93NUMPY\x01\0",
    }.items():
        yield f"{name} and jpeg", head + jpeg, False
        yield f"{name} and png", head + png, False
    yield "png's first bytes and jpeg", png[:8] + jpeg, False
    yield "jpeg's first bytes and png", jpeg[:3] + png, False
