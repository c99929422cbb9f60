"""nam/geometry.py: the box lies where it should, inside the picture, and PIL takes it for every shape."""

import itertools

import pytest
from PIL import Image

from nam.geometry import crop_box

SIZES = [(1, 1), (1, 65500), (65500, 1), (2, 3), (7, 5), (64, 64), (375, 500), (501, 333), (65535, 3)]


@pytest.mark.parametrize(
    ("width", "height", "crop", "box"),
    [
        (64, 64, 1.0, (0, 0, 64, 64)),
        (500, 375, 1.0, (62.5, 0, 437.5, 375)),
        (375, 500, 1.0, (0, 62.5, 375, 437.5)),
        (256, 256, 0.875, (16, 16, 240, 240)),
        (1, 65500, 1.0, (0, 32749.5, 1, 32750.5)),
    ],
)
def test_the_box_is_the_centred_square(
    width: int, height: int, crop: float, box: tuple[float, float, float, float]
) -> None:
    assert crop_box(width, height, crop) == box


def test_the_whole_shorter_side_is_the_default() -> None:
    assert crop_box(30, 20) == crop_box(30, 20, 1.0)


@pytest.mark.parametrize(("size", "crop"), [*itertools.product(SIZES, (1.0, 0.875, 0.33, 1e-12))])
def test_the_box_is_a_square_inside_the_picture_and_about_its_centre(size: tuple[int, int], crop: float) -> None:
    left, upper, right, lower = crop_box(*size, crop)
    assert 0 <= left < right <= size[0]
    assert 0 <= upper < lower <= size[1]
    assert right - left == pytest.approx(lower - upper, abs=1e-9)
    assert (left + right, upper + lower) == pytest.approx(size)


@pytest.mark.parametrize(("size", "crop"), [*itertools.product(SIZES, (1.0, 0.875, 1e-12))])
def test_pil_resizes_every_box_in_one_step(size: tuple[int, int], crop: float) -> None:
    box = crop_box(*size, crop)
    assert Image.new("L", size, 7).resize((8, 8), Image.Resampling.BILINEAR, box=box).getextrema() == (7, 7)


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (-1, 5)])
def test_a_picture_without_pixels_has_no_box(width: int, height: int) -> None:
    with pytest.raises(ValueError, match="at least one pixel"):
        crop_box(width, height)


@pytest.mark.parametrize("crop", [0.0, -1.0, 1.01, float("nan")])
def test_a_crop_out_of_range_is_refused(crop: float) -> None:
    with pytest.raises(ValueError, match="crop"):
        crop_box(10, 10, crop)
