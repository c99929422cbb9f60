"""Bytes of an image in, an S x S RGB picture out: `decode`. It runs in a process of its own or a lane's: no torch.

The first bytes decide the format, and one decoder, chosen by us, reads the rest: no other plugin of PIL sees the bytes.
What the header says is checked before pixels are decoded (:mod:`app.limits`).

Colour: grey, palette, CMYK, YCbCr and LAB become RGB; transparent parts lie on white; 16 bits become 8 by /257, rounded
(of 16-bit colour PIL keeps the upper byte, at most one level away); 1-bit is black and white. Colour profiles are
ignored, as in training. TIFF of 32-bit or signed integers and of floats is refused: nothing in it says which values
mean black and white. Of an animation, or of several pages, the first picture counts.
"""

import logging
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from app import limits
from app.errors import BadImage, BadRequest, ImageTooLarge, ServiceError, UnsupportedMediaType
from app.jpeg import jpeg_pixels, jpeg_size
from nam.geometry import crop_box

log = logging.getLogger("nam.images")

# Both belong to the process, so they are set once, here, and never in a thread. PIL's pixel limit has one value for all
# callers and warns before it refuses: `max_pixels` is the limit instead. PIL's warnings about damage would fill stderr.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", module=r"PIL\.")

QUICK_BYTES, QUICK_PIXELS, QUICK_SCANS = 2**18, 2**19, 4  # a JPEG within all three decodes in 4 ms or less
SMALL_TILE = 256 * 256  # pixels; TIFF tiles of this size are the custom, however small the picture
MAX_COVER = 8  # how often a TIFF's tiles may cover its area: once a plane, and PIL reads six planes at most

# Signatures, tried in this order, then the class of PIL that reads the format.
SIGNATURES: tuple[tuple[str, re.Pattern[bytes]], ...] = (
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.S)),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("BMP", re.compile(rb"BM")),
    ("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]")),
)
ACCEPTED: tuple[str, ...] = tuple(name for name, _ in SIGNATURES)
# Known, not accepted: what to send instead.
REFUSED: tuple[tuple[str, re.Pattern[bytes], str], ...] = (
    ("AVIF", re.compile(rb"....ftyp(avi[fs]|.{4,64}?avif)", re.S), "JPEG, WebP or PNG"),
    ("HEIC", re.compile(rb"....ftyp(he[iv][cmsx]|m[is]f1)", re.S), "JPEG (phones and photo programs export it)"),
    ("JPEG XL", re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"), "JPEG or PNG"),
    ("SVG", re.compile(rb"(\xef\xbb\xbf)?\s*<(svg|(\?xml|!)[^\0]{0,2000}?<svg)", re.I), "a PNG drawn from it"),
    ("PDF", re.compile(rb"\s*%PDF-"), "a JPEG or PNG of the page"),
)

# TIFF tags.
BITS, PHOTOMETRIC, TILE_WIDTH, TILE_HEIGHT, SAMPLE_FORMAT = 258, 262, 322, 323, 339
SIGNED = 2  # of the sample formats

# How a JPEG's notes begin in which an orientation may be: EXIF's and XMP's.
NOTES = (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")

# What turns a stored picture upright, by EXIF orientation; 5 to 8 swap width and height.
UPRIGHT: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class FirstFrame(GifImageFile):
    """A GIF of which only the first frame is read: nothing is disposed of.

    PIL would prepare the disposal, an allocation as large as the frame claims to be, while it reads the header.
    """

    disposal_method = property(lambda _: 0, lambda _, method: None)


READERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": FirstFrame,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
}


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A decoded image, ready for a batch."""

    pixels: npt.NDArray[np.uint8]  # (3, S, S), RGB, 0 to 255, C-contiguous, its own memory
    format: str  # one of ACCEPTED
    width: int  # of the whole image in pixels, upright
    height: int


def decode(data: bytes | memoryview, *, size: int, crop: float, max_pixels: int) -> Picture:
    """Read one image and resize its centred square (side `crop` x the shorter side) to `size` x `size` pixels.

    Turning upright happens after the resize, on the small picture. For EXIF orientations 2 to 4 the pixels equal those
    of turning first; for 5 to 8 the two passes of the resize change places, and the 8-bit rounding between them may
    move a value by 1.

    Raises BadRequest for no bytes, UnsupportedMediaType for a format that is not ACCEPTED, ImageTooLarge where the
    header says more than `max_pixels` (or a side over MAX_SIDE), BadImage for what is damaged, truncated or hostile.
    """
    body = bytes(data)  # costs nothing where they are bytes already
    name = sniff(body)
    coloured, turned = read_in_colour(body, name, max_pixels)
    box = crop_box(*coloured.size, crop)
    small = coloured.resize((size, size), Image.Resampling.BILINEAR, box=box).convert("RGB")
    upright = small.transpose(UPRIGHT[turned]) if turned in UPRIGHT else small
    width, height = coloured.size if turned < 5 else coloured.size[::-1]
    return Picture(np.asarray(upright).transpose(2, 0, 1).copy(order="C"), name, width, height)


def is_quick(data: bytes) -> bool:
    """Whether decoding is a matter of a few milliseconds: a JPEG of common kind and modest size, by its header."""
    if len(data) > QUICK_BYTES or (size := jpeg_size(data)) is None:
        return False
    return size[0] * size[1] <= QUICK_PIXELS and limits.scans_at_most(data) <= QUICK_SCANS


def sniff(data: bytes) -> str:
    """The accepted format whose signature the bytes begin with; raises BadRequest or UnsupportedMediaType."""
    if not data:
        raise BadRequest("The image has no bytes.")
    for name, signature in SIGNATURES:
        if signature.match(data):
            return name
    for name, signature, instead in REFUSED:
        if signature.match(data):
            raise UnsupportedMediaType(f"{name} is not accepted: send {instead}.")
    raise UnsupportedMediaType(
        f"The first bytes are of no accepted image format: send {', '.join(ACCEPTED[:-1])} or {ACCEPTED[-1]}."
    )


def read_in_colour(data: bytes, name: str, max_pixels: int) -> tuple[Image.Image, int]:
    """The image as :func:`in_colour` has it, and its orientation. Whatever a decoder raises is a BadImage, its words a
    line of the log.

    All exceptions, because damaged bytes make PIL raise nearly any; MemoryError too: the size has passed by then.
    """
    try:
        stored, turned = read_jpeg(data, max_pixels) if name == "JPEG" else read(data, name, max_pixels)
        return in_colour(stored), turned
    except ServiceError:
        raise
    except Exception as error:
        log.info("%s of %d bytes refused: %r", name, len(data), error)
        raise BadImage(f"The image begins as {name} but is damaged, truncated or of an unusual kind.") from None


def read_jpeg(data: bytes, max_pixels: int) -> tuple[Image.Image, int]:
    """As `read`, the fast way where there is one."""
    if (size := jpeg_size(data)) is None:
        return read(data, "JPEG", max_pixels)
    limits.check_size(*size, max_pixels)
    limits.check_scans(data, size[0] * size[1])
    if (image := jpeg_pixels(data)) is None:
        return read(data, "JPEG", max_pixels)
    noted = any(begin in data for begin in NOTES)
    return image, orientation(opened(data, "JPEG", max_pixels)) if noted else 1


def read(data: bytes, name: str, max_pixels: int) -> tuple[ImageFile.ImageFile, int]:
    """The image, decoded once its header has passed, and its orientation. Raises ImageTooLarge, BadImage, and whatever
    PIL does."""
    image = opened(data, name, max_pixels)
    limits.check_size(*image.size, max_pixels)
    if isinstance(image, JpegImageFile):
        limits.check_scans(data, image.width * image.height)
    if isinstance(image, BmpImageFile) and image.tile[0].codec_name == "bmp_rle":
        # Read by a Python loop, pixel by pixel: 30 kB kept it busy for 9 s.
        raise BadImage("Run-length encoded BMP is not accepted: send it plain, or as PNG.")
    if isinstance(image, TiffImageFile):
        check_tiles(image, max_pixels)
    if isinstance(image, PngImageFile):
        scale_transparent_colour(image, depth=data[24])
    image.load()
    return image, orientation(image)


def opened(data: bytes, name: str, max_pixels: int) -> ImageFile.ImageFile:
    """The image with its header read. Raises as `read` does."""
    limits.check(data, name, max_pixels)
    return READERS[name](limits.Reader(data))


def check_tiles(image: TiffImageFile, max_pixels: int) -> None:
    """Raise BadImage or ImageTooLarge where decoding a TIFF would cost much more than its size says."""
    if TILE_WIDTH in image.tag_v2:
        tile_width, tile_height = image.tag_v2[TILE_WIDTH], image.tag_v2[TILE_HEIGHT]
        if tile_width * tile_height > max(max_pixels, SMALL_TILE):
            raise ImageTooLarge(
                f"The TIFF's tiles are {tile_width}x{tile_height}; at most {max_pixels} pixels are accepted."
            )
    covered = sum(
        (right - left) * (lower - upper)
        for left, upper, right, lower in (t.extents or (0, 0, 0, 0) for t in image.tile)
    )
    if covered > MAX_COVER * image.width * image.height:
        raise BadImage("The TIFF's strips cover it many times.")


def scale_transparent_colour(image: PngImageFile, depth: int) -> None:
    """Bring a PNG's transparent colour to the 8 bits PIL decodes its pixels to; PIL leaves it at the file's depth."""
    colour = image.info.get("transparency")
    if image.mode == "RGB" and depth == 16 and isinstance(colour, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in colour)
    elif image.mode == "L" and depth < 8 and isinstance(colour, int):
        image.info["transparency"] = colour * 255 // (2**depth - 1)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, as `ImageOps.exif_transpose` finds it; 1 where damaged. PIL turns TIFF itself.

    Raises BadImage where EXIF is larger than any.
    """
    if len(image.info.get("exif", b"")) > limits.MAX_EXIF_BYTES:
        raise BadImage("The image's EXIF is larger than a megabyte.")
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return value if value in UPRIGHT else 1
    except Exception as error:  # a picture is worth more than its notes
        log.debug("EXIF ignored: %r", error)
        return 1


def in_colour(image: Image.Image) -> Image.Image:
    """The same picture, opaque, in mode RGB, RGBX or L, as is cheapest. Raises BadImage for numbers without a range."""
    if image.mode in ("I", "F") or SIGNED in _tiff_tags(image).get(SAMPLE_FORMAT, ()):
        raise BadImage(
            "Images of 32-bit or signed numbers or of floats are not accepted: send 8 or 16 bits, as PNG or TIFF."
        )
    if image.mode.startswith("I;16"):
        return grey_from_16_bits(image)
    if image.has_transparency_data:
        return on_white(image)
    if image.mode in ("L", "RGB", "RGBX"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def on_white(image: Image.Image) -> Image.Image:
    """A picture with alpha laid on white, mode RGB: before the resize, so that hidden colours cannot bleed out."""
    if image.mode == "La":
        image = image.convert("LA")  # PIL converts it to nothing else
    seen = image if image.mode == "RGBA" else image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(seen, mask=seen)
    return white


def grey_from_16_bits(image: Image.Image) -> Image.Image:
    """16-bit grey (12-bit in some TIFF) scaled to mode L, rounded; a transparent level is white."""
    levels = np.asarray(image)
    tags = _tiff_tags(image)
    wide = levels.astype(np.uint32)
    if tags.get(BITS) == (12,):
        wide = np.bitwise_or(wide << 4, wide >> 8, dtype=np.uint32)
    wide *= 255
    wide += 32895
    wide >>= 16  # together round(level / 257), exactly: dividing takes ten times as long
    grey = wide.astype(np.uint8)
    if tags.get(PHOTOMETRIC) == 0:  # white is zero: PIL inverts 8 bits, but not 16
        grey = 255 - grey
    if "transparency" in image.info:
        grey[levels == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def _tiff_tags(image: Image.Image) -> Mapping[int, Any]:
    return image.tag_v2 if isinstance(image, TiffImageFile) else {}
