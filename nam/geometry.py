"""Where on a picture a model looks, as plain numbers: training, evaluation and serving share them and cannot drift.

Free of torch and PIL. Whoever resizes takes the box and does one resize of it, bilinear with antialias, to S x S:
`image.resize((S, S), Resampling.BILINEAR, box=crop_box(*image.size, crop))`. Cropping first and resizing once keeps
every shape at S x S: a picture of 1 x 65500 resized by its shorter side would grow to S x 65500 S.
"""


def crop_box(width: int, height: int, crop: float = 1.0) -> tuple[float, float, float, float]:
    """The centred square of a picture: (left, upper, right, lower) in pixels, fractions where the centre needs them.

    Its side is `crop` times the shorter side (0 < crop <= 1), but never less than one pixel: PIL holds a box in 32-bit
    floats and refuses an empty one. The box lies inside the picture; mirroring or transposing the picture mirrors or
    transposes the box. Raises ValueError for a picture without pixels and for a crop out of range.
    """
    if width < 1 or height < 1:
        raise ValueError(f"a picture has at least one pixel, not {width}x{height}")
    if not 0.0 < crop <= 1.0:
        raise ValueError(f"crop is a share of the shorter side, above 0 and at most 1, not {crop}")
    side = max(1.0, crop * min(width, height))
    return (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2
