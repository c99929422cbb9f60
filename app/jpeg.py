"""JPEG, the usual way in: libjpeg-turbo without PIL's detours. Same pixels, bit by bit, in two thirds of the time."""

import numpy as np
import simplejpeg
from PIL import Image

# libjpeg's words for what a JPEG holds, those that it turns into grey or red, green and blue itself.
_DECODED_AS = {"Gray": ("GRAY", "L"), "YCbCr": ("RGBX", "RGBX"), "RGB": ("RGBX", "RGBX")}


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height from the header; None where it is damaged or its colours are not for this way (CMYK)."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError):  # KeyError: a subsampling that it has no name for
        return None
    return (width, height) if colours in _DECODED_AS else None


def jpeg_pixels(data: bytes) -> Image.Image | None:
    """The picture as stored, mode L or RGBX; None where libjpeg warns of anything at all: PIL then decides.

    RGBX, four bytes a pixel, is what PIL keeps inside: the picture is not copied.
    """
    try:
        _, _, colours, _ = simplejpeg.decode_jpeg_header(data)
        colourspace, mode = _DECODED_AS[colours]
        pixels = simplejpeg.decode_jpeg(data, colourspace, strict=True)
    except (ValueError, KeyError):
        return None
    return _wrap(pixels, mode)


def _wrap(pixels: np.ndarray, mode: str) -> Image.Image:
    height, width = pixels.shape[:2]
    return Image.frombuffer(mode, (width, height), pixels, "raw", mode, 0, 1)
