"""A JPEG decodes as it did when its golden pixels were made (tests/golden/make.py); codecs may differ by two levels."""

from pathlib import Path

import numpy as np

from app.images import decode

GOLDEN = Path(__file__).parent.parent / "golden"


def test_the_golden_photo() -> None:
    picture = decode((GOLDEN / "photo.jpg").read_bytes(), size=64, crop=1.0, max_pixels=10**6)
    difference = np.abs(picture.pixels.astype(int) - np.load(GOLDEN / "photo.npy"))
    assert (picture.width, picture.height) == (160, 120)
    assert difference.max() <= 2
    assert difference.mean() < 0.1
