"""The numbers of an attention answer -> a picture to look at, as PNG. Byte-deterministic for one version of Pillow.

Top left the photo with its labels; then a panel a block, its map laid over the photo with a colour bar that carries the
map's true range: panels are stretched to be seen, and the bar says by how much. Below, the last block's strongest
channels. Reads the answer that ``/attention`` gives, so that the picture and the numbers are the same.
"""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

PHOTO = 224  # side of every panel, px
_BAR, _GAP, _TEXT, _COLUMNS = 14, 16, 40, 4
_INK, _PAPER, _QUIET = (20, 20, 20), (255, 255, 255), (105, 105, 105)

# Six anchors of a dark-to-light ramp, in equal steps, every one lighter than the last: it reads without colour too.
_RAMP = np.array([(13, 8, 60), (84, 15, 109), (158, 40, 100), (219, 80, 62), (251, 155, 28), (250, 245, 160)], float)

Panel = Image.Image
Pixels = NDArray[np.uint8]


def draw(photo: Pixels, answer: dict[str, Any]) -> bytes:
    """photo: uint8 (3, 224, 224), RGB, the square that the network saw. answer: of ``/attention``, maps included."""
    square = Image.fromarray(photo.transpose(1, 2, 0))
    panels = [_first(square, answer)]
    panels += [_mapped(square, block["map"], block["name"], _spread(block)) for block in answer["blocks"]]
    if answer["blocks"]:
        panels += _channels(square, answer["blocks"][-1])
    out = io.BytesIO()
    _sheet(panels).save(out, "PNG", optimize=False, compress_level=6)
    return out.getvalue()


def colours(values: NDArray[np.float32], low: float, high: float) -> Pixels:
    """Values (H, W) -> RGB (H, W, 3) along the ramp, ``low`` darkest, ``high`` lightest; all dark where equal."""
    place = (np.asarray(values, float) - low) / (high - low if high > low else 1.0) * (len(_RAMP) - 1)
    return np.stack([np.interp(place, range(len(_RAMP)), channel) for channel in _RAMP.T], -1).round().astype(np.uint8)


def _first(square: Image.Image, answer: dict[str, Any]) -> Panel:
    best = answer["predictions"][0]
    return _panel(square, best["label"], f"{best['probability']:.1%} {answer['model']}")


def _channels(square: Image.Image, block: dict[str, Any]) -> list[Panel]:
    return [
        _mapped(
            square, channel["map"], f"{block['name']} channel {channel['channel']}", f"weight {channel['weight']:.5f}"
        )
        for channel in block["top_channels"][: 2 * _COLUMNS]
    ]


def _spread(block: dict[str, Any]) -> str:
    effect = "" if block["effect"] is None else f", effect {block['effect']:+.3f}"
    return f"gates {block['gates']['min']:.3f} to {block['gates']['max']:.3f}{effect}"


def _mapped(square: Image.Image, values: Any, title: str, line: str) -> Panel:
    array = np.asarray(values, np.float32)
    low, high = float(array.min()), float(array.max())
    layer = Image.fromarray(colours(array, low, high)).resize(square.size, Image.Resampling.NEAREST)
    panel = _panel(Image.blend(square.convert("L").convert("RGB"), layer, 0.6), title, line)
    _bar(panel, low, high)
    return panel


def _panel(image: Image.Image, title: str, line: str) -> Panel:
    panel = Image.new("RGB", (PHOTO, _TEXT + PHOTO + _BAR + _TEXT // 2), _PAPER)
    panel.paste(image, (0, _TEXT))
    pen = ImageDraw.Draw(panel)
    pen.text((0, 0), title, _INK, _font(15))
    pen.text((0, 20), line, _QUIET, _font(12))
    return panel


def _bar(panel: Panel, low: float, high: float) -> None:
    """The true range, under the map."""
    ramp = colours(np.linspace(0, 1, PHOTO, dtype=np.float32)[None], 0, 1)
    panel.paste(Image.fromarray(ramp).resize((PHOTO, _BAR // 2)), (0, _TEXT + PHOTO + 2))
    pen, top = ImageDraw.Draw(panel), _TEXT + PHOTO + _BAR // 2 + 4
    pen.text((0, top), f"{low:.4f}", _QUIET, _font(12))
    pen.text((PHOTO, top), f"{high:.4f}", _QUIET, _font(12), anchor="ra")


def _sheet(panels: list[Panel]) -> Image.Image:
    width, height = panels[0].size
    rows = -(-len(panels) // _COLUMNS)
    sheet = Image.new("RGB", (_GAP + _COLUMNS * (width + _GAP), _GAP + rows * (height + _GAP)), _PAPER)
    for i, panel in enumerate(panels):
        row, column = divmod(i, _COLUMNS)
        sheet.paste(panel, (_GAP + column * (width + _GAP), _GAP + row * (height + _GAP)))
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
