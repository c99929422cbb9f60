"""Every kind of picture that is accepted, odd ones too, and beside each its plain twin: the same pixels as a plain PNG.

The picture is one of the page's examples, small. A twin is made from what was written, never by reading it back.
"""

import struct
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from tests.hostile.writers import (
    after_start,
    bmp,
    bmp_head,
    chunk,
    encode,
    exif,
    png,
    segment,
    tiff,
    tiff_tags,
    tiles,
    ycck,
)

EXAMPLE = Path(__file__).parents[2] / "app" / "web" / "examples" / "espresso.jpg"
SIZE = (96, 72)

Kind = tuple[str, bytes, Image.Image]  # name, file, what it shows


@cache
def photo() -> Image.Image:
    return Image.open(EXAMPLE).convert("RGB").resize(SIZE, Image.Resampling.LANCZOS)


def see_through() -> Image.Image:
    """The photo, its left edge transparent."""
    alpha = np.broadcast_to(np.minimum(np.arange(SIZE[0]) * 12, 255).astype(np.uint8), SIZE[::-1])
    return Image.merge("RGBA", (*photo().split(), Image.fromarray(alpha.copy())))


def on_white(image: Image.Image) -> Image.Image:
    seen = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")


def kinds() -> Iterator[Kind]:
    yield from _png()
    yield from _png_by_hand()
    yield from _jpeg()
    yield from _webp()
    yield from _gif()
    yield from _bmp()
    yield from _tiff()
    yield from _tiff_by_hand()
    yield from _turned()


def _shown(image: Image.Image) -> Image.Image:
    return on_white(image) if image.has_transparency_data else image.convert("RGB")


def _frames() -> dict[str, Any]:
    return {"save_all": True, "append_images": [ImageOps.invert(photo()), photo().rotate(180)], "duration": 50}


def _png() -> Iterator[Kind]:
    few = {bits: photo().quantize(2**bits) for bits in (1, 2, 4, 8)}
    images = {
        "rgb": photo(),
        "grey": photo().convert("L"),
        "black and white": photo().convert("1"),
        "rgba": see_through(),
        "la": see_through().convert("LA"),
        **{f"palette of {bits} bits": image for bits, image in few.items()},
    }
    for name, image in images.items():
        bits = {"bits": int(name[-6])} if image.mode == "P" else {}
        yield f"png {name}", encode(image, "PNG", **bits), _shown(image)
    alphas = bytes(range(255, -1, -1))
    seen = few[8].copy()
    seen.info["transparency"] = alphas
    yield "png palette with alpha", encode(few[8], "PNG", transparency=alphas), on_white(seen)
    for name, options in {
        "stored": {"compress_level": 0},
        "with a junk profile": {"icc_profile": b"junk" * 99},
        "animated": _frames(),
    }.items():
        yield f"png {name}", encode(photo(), "PNG", **options), photo()
    plain = encode(photo(), "PNG")
    yield "png with junk behind", plain + b"junk" * 99, photo()


def _png_by_hand() -> Iterator[Kind]:
    colour, grey = np.asarray(photo()), np.asarray(photo().convert("L"))
    mask = np.asarray(see_through())[..., 3:]
    wide = colour.astype(np.uint32) * 257
    notes = (
        chunk(b"gAMA", struct.pack(">I", 45455)),
        chunk(b"tEXt", b"Comment\0a cup"),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a cup" * 99)),
        chunk(b"tIME", struct.pack(">H5B", 2026, 1, 1, 0, 0, 0)),
        chunk(b"pHYs", struct.pack(">IIB", 1, 9, 0)),
        chunk(b"nuLL", b"unknown"),
    )
    yield "png with notes", png(colour, 8, 2, *notes), photo()
    yield "png interlaced", png(colour, 8, 2, interlaced=True), photo()
    yield "png interlaced grey", png(grey, 8, 0, interlaced=True), photo().convert("L")
    yield "png 16 bits", png(wide, 16, 2), photo()
    yield "png 16 bits interlaced", png(wide, 16, 2, interlaced=True), photo()
    yield "png 16 bits grey", png(grey.astype(np.uint32) * 257, 16, 0), photo().convert("L")
    yield "png 16 bits alpha", png(np.concatenate([wide, mask * np.uint32(257)], -1), 16, 6), on_white(see_through())
    for depth in (1, 2, 4):
        levels, top = grey >> (8 - depth), 2**depth - 1
        yield (
            f"png grey of {depth} bits",
            png(levels, depth, 0),
            Image.fromarray((levels * (255 // top)).astype(np.uint8)),
        )
    plain = encode(photo(), "PNG")
    body = plain[plain.index(b"IDAT") + 4 : -16]
    pieces = b"".join(chunk(b"IDAT", body[at : at + 50]) for at in range(0, len(body), 50))
    yield "png in small pieces", plain[: plain.index(b"IDAT") - 4] + pieces + chunk(b"IEND"), photo()


def _jpeg() -> Iterator[Kind]:
    for name, options in {
        "plain": {},
        "4:2:2": {"subsampling": 1},
        "4:4:4": {"subsampling": 0},
        "progressive": {"progressive": True},
        "optimized": {"optimize": True},
        "restarting": {"restart_marker_blocks": 1},
        "red, green, blue": {"keep_rgb": True},
        "with a junk profile": {"icc_profile": b"junk" * 30_000},
        "with a comment": {"comment": b"a cup\0" * 99},
        "with junk EXIF": {"exif": b"Exif\0\0II*\0\xff\xff\xff\xff"},
    }.items():
        yield f"jpeg {name}", encode(photo(), "JPEG", quality=92, **options), photo()
    grey, plain = photo().convert("L"), encode(photo(), "JPEG", quality=92)
    inks = Image.merge("CMYK", (*ImageOps.invert(photo()).split(), Image.new("L", SIZE)))
    yield "jpeg grey", encode(grey, "JPEG", quality=92), grey
    yield "jpeg grey progressive", encode(grey, "JPEG", quality=92, progressive=True), grey
    yield "jpeg cmyk", encode(inks, "JPEG", quality=92), photo()
    yield "jpeg ycck", ycck(photo()), photo()
    yield (
        "jpeg stereo",
        encode(photo(), "MPO", quality=92, save_all=True, append_images=[ImageOps.invert(photo())]),
        photo(),
    )
    yield "jpeg without JFIF", plain[:2] + plain[20:], photo()
    yield (
        "jpeg with a thumbnail",
        after_start(plain, segment(0xE1, exif(1) + encode(photo().resize((16, 16)), "JPEG"))),
        photo(),
    )
    yield "jpeg with fill bytes", after_start(plain, b"\xff" * 99), photo()
    yield "jpeg with junk behind", plain + b"junk" * 99, photo()


def _webp() -> Iterator[Kind]:
    for name, options in {
        "lossy": {"quality": 92},
        "lossy, quick": {"quality": 92, "method": 0},
        "lossless": {"lossless": True},
        "animated": _frames() | {"lossless": True},
        "with notes": {"quality": 92, "icc_profile": b"junk" * 99, "exif": exif(1), "xmp": b"<x>" * 99},
    }.items():
        yield f"webp {name}", encode(photo(), "WEBP", **options), photo()
    for lossless in (False, True):
        name = f"webp alpha{' lossless' * lossless}"
        yield name, encode(see_through(), "WEBP", lossless=lossless, quality=92, exact=True), on_white(see_through())


def _gif() -> Iterator[Kind]:
    few = photo().quantize(256)
    shown = few.convert("RGB")
    data = encode(few, "GIF")
    hidden = few.copy()
    hidden.info["transparency"] = 7
    yield "gif", data, shown
    yield "gif 87a", encode(few, "GIF", interlace=0).replace(b"GIF89a", b"GIF87a"), shown
    yield "gif not interlaced", encode(few, "GIF", interlace=0), shown
    yield "gif grey", encode(photo().convert("L"), "GIF"), photo().convert("L")
    yield "gif with a comment", encode(few, "GIF", comment=b"a cup" * 999), shown
    yield "gif transparent", encode(few, "GIF", transparency=7), on_white(hidden)
    later = [ImageOps.invert(shown).quantize(256)]
    yield "gif animated", encode(few, "GIF", save_all=True, append_images=later, duration=50), shown


def _bmp() -> Iterator[Kind]:
    few, (width, height) = photo().quantize(256), SIZE
    for image in (photo(), few, photo().convert("L"), photo().convert("1")):
        yield f"bmp {image.mode}", encode(image, "BMP"), image.convert("RGB")
    blue_first = np.asarray(photo())[..., ::-1]
    yield "bmp of 32 bits", encode(see_through(), "BMP"), photo()
    yield "bmp from the top", bmp(bmp_head(width, -height, 24), (row.tobytes() for row in blue_first)), photo()
    core = struct.pack("<IHHHH", 12, width, height, 1, 24)
    yield "bmp of OS/2", bmp(core, (row.tobytes() for row in blue_first[::-1])), photo()
    five = np.asarray(photo()).astype(np.uint16) >> 3
    packed = five[..., 0] << 10 | five[..., 1] << 5 | five[..., 2]
    shown = Image.fromarray((five * 255 // 31).astype(np.uint8))
    yield "bmp of 16 bits", bmp(bmp_head(width, height, 16), (row.tobytes() for row in packed[::-1])), shown


def _tiff() -> Iterator[Kind]:
    for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        for image in (photo(), photo().convert("L"), photo().quantize(256)):
            yield f"tiff {name} {image.mode}", encode(image, "TIFF", compression=name), image.convert("RGB")
    for name in ("group3", "group4", "tiff_ccitt"):
        image = photo().convert("1")
        yield f"tiff {name}", encode(image, "TIFF", compression=name), image.convert("RGB")
    wide = Image.fromarray((np.asarray(photo().convert("L")).astype(np.uint32) * 257).astype(np.uint16))
    inks = Image.merge("CMYK", (*ImageOps.invert(photo()).split(), Image.new("L", SIZE)))
    yield "tiff 16 bits", encode(wide, "TIFF"), photo().convert("L")
    yield "tiff 16 bits lzw", encode(wide, "TIFF", compression="tiff_lzw"), photo().convert("L")
    yield "tiff jpeg", encode(photo(), "TIFF", compression="jpeg", quality=92), photo()
    yield "tiff cmyk", encode(inks, "TIFF"), photo()
    yield "tiff YCbCr", encode(photo().convert("YCbCr"), "TIFF"), photo()
    yield "tiff lab", encode(_lab(), "TIFF"), _lab().convert("RGB")
    yield "tiff rgba", encode(see_through(), "TIFF"), on_white(see_through())
    yield "tiff la", encode(see_through().convert("LA"), "TIFF"), on_white(see_through().convert("LA"))
    yield "tiff big", encode(photo(), "TIFF", big_tiff=True), photo()
    yield "tiff of pages", encode(photo(), "TIFF", save_all=True, append_images=[ImageOps.invert(photo())]), photo()
    yield "tiff with a junk profile", encode(photo(), "TIFF", icc_profile=b"junk" * 99), photo()


def _lab() -> Image.Image:
    return Image.merge("LAB", (photo().convert("L"), Image.new("L", SIZE, 128), Image.new("L", SIZE, 128)))


def _tiff_by_hand() -> Iterator[Kind]:
    colour, grey, (width, height) = np.asarray(photo()), np.asarray(photo().convert("L")), SIZE
    of_colour = tiff_tags(width, height, 2, 3)
    rows = [row.tobytes() for row in colour]
    for order, big in (("<", False), (">", False), ("<", True)):
        name = f"tiff{' big' * big} {'MM' if order == '>' else 'II'}"
        yield name, tiff(of_colour, [colour.tobytes()], order=order, big=big), photo()
        yield f"{name} a strip a row", tiff({**of_colour, 278: (4, [1])}, rows, order=order, big=big), photo()
    for side in (16, 64):
        plain = tiff_tags(width, height, 2, 3, t322=side, t323=side)
        yield f"tiff of tiles {side}", tiff(plain, tiles(colour, side)), photo()
        packed = [zlib.compress(tile) for tile in tiles(colour, side)]
        yield f"tiff of tiles {side} deflated", tiff({**plain, 259: (3, [8])}, packed), photo()
    planes = [colour[..., band].tobytes() for band in range(3)]
    yield "tiff of planes", tiff({**of_colour, 284: (3, [2])}, planes), photo()
    inverted = (255 - grey).tobytes()
    yield "tiff whose zero is white", tiff(tiff_tags(width, height, 0), [inverted]), photo().convert("L")
    wide = (grey.astype(np.uint32) * 257).astype(">u2").tobytes()
    yield "tiff 16 bits MM", tiff(tiff_tags(width, height, 1, bits=16), [wide], order=">"), photo().convert("L")


def _turned() -> Iterator[Kind]:
    """Stored so that EXIF turns them upright."""
    undo = [
        None,
        *(Image.Transpose[name] for name in ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE")),
    ]
    undo += [Image.Transpose.ROTATE_90, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_270]
    for orientation, way in enumerate(undo, 1):
        stored = photo() if way is None else photo().transpose(way)
        for format, options in {"JPEG": {"quality": 92}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}.items():
            name = f"{format.lower()} orientation {orientation}"
            yield name, encode(stored, format, exif=exif(orientation), **options), photo()
