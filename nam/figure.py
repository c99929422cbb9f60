"""The numbers of an attention answer -> a PNG to look at. Byte-deterministic for a version of Pillow and zlib.

Above, the photo and its labels; then a tile a block, its map laid over the photo, and under it a colour bar with the
map's true range: tiles are stretched to be seen, and the bar says by how much. Below, the last block's strongest
channels. Reads the answer that ``/attention`` gives, so that the picture and the numbers are the same. Free of torch.

All text is ASCII, labels in English with their class ids: the font that Pillow brings draws boxes for much else.
"""

import struct
import textwrap
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFont

PHOTO = 224  # side of the photo, px
_GAP, _COLUMNS, _LINE, _BAR = 16, 4, 15, 8
_MAP, _CHANNEL = 192, 88  # sides of the tiles
_WIDTH = _GAP + _COLUMNS * (_MAP + _GAP)
_MOST_CHANNELS = 16
_INK, _PAPER, _QUIET, _FAINT = (20, 20, 20), (255, 255, 255), (105, 105, 105), (225, 225, 225)
_CAPTION = (
    "Each map is stretched from its own lowest to its own highest value, which stand under it: compare these before "
    "the colours. Gates lie between 0 and 1; a map that is nearly the same everywhere points at nothing."
)

# Six anchors of a dark-to-light ramp, in equal steps, every one lighter than the last: it reads without colour too.
_ANCHORS = np.array([(13, 8, 60), (84, 15, 109), (158, 40, 100), (219, 80, 62), (251, 155, 28), (250, 245, 160)], float)
_STEPS = [np.interp(np.linspace(0, 5, 256), range(6), channel) for channel in _ANCHORS.T]
_RAMP = np.stack(_STEPS, -1).round().astype(np.uint8)
_OVER = 0.6  # how much of a map's colour covers the photo
_TINTS = (_RAMP * _OVER).astype(np.uint8)

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class _Tile:
    """A map (H, W) to lay over the photo, and the words above it."""

    values: NDArray[np.float32]
    title: str
    lines: Sequence[str]


def draw(photo: Pixels, answer: dict[str, Any]) -> bytes:
    """photo: uint8 (3, 224, 224), RGB, the square that the network saw. answer: of ``/attention``, maps included; where
    it has further kinds of map, these are drawn in place of the paper's."""
    square, blocks = Image.fromarray(np.ascontiguousarray(photo.transpose(1, 2, 0))), answer["blocks"]
    maps = [_map_tile(block, kind) for block in blocks for kind in _kinds(blocks) if kind in block]
    channels = _channel_tiles(blocks[-1]) if blocks else []
    notes = [line for note in [_CAPTION, *answer.get("notes", [])] for line in textwrap.wrap(_ascii(note), 130)]
    top = PHOTO + 2 * _GAP
    below = top + _height(maps, _MAP, _COLUMNS)
    end = below + _height(channels, _CHANNEL, 2 * _COLUMNS)
    sheet = Image.new("RGB", (_WIDTH, end + _LINE * len(notes) + _GAP), _PAPER)
    _head(sheet, square, answer)
    _grid(sheet, square, maps, top, _MAP, _COLUMNS)
    _grid(sheet, square, channels, below, _CHANNEL, 2 * _COLUMNS)
    for i, line in enumerate(notes):
        sheet.paste(_note(line), (_GAP, end + i * _LINE))
    return _png(np.asarray(sheet))


def colours(values: NDArray[np.float32], low: float, high: float) -> Pixels:
    """Values (H, W) -> RGB (H, W, 3) along the ramp, ``low`` darkest, ``high`` lightest; all dark where equal."""
    return _RAMP[_steps(values, low, high)]


def _steps(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.intp]:
    """Places along the ramp, 0 to 255."""
    place = (np.asarray(values, np.float64) - low) / (high - low if high > low else 1.0)
    return (255 * place).round().astype(np.intp)


def _png(pixels: Pixels) -> bytes:
    """RGB (H, W, 3) -> PNG, each row as its difference from the one above (filter 2): as small as Pillow's choice among
    all filters at this level, in 10 ms instead of 24, and zlib leaves the interpreter to others meanwhile."""
    height, width, _ = pixels.shape
    flat, rows = pixels.reshape(height, -1), np.full((height, 1 + 3 * width), 2, np.uint8)
    rows[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.data, 2)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def range_words(low: float, high: float) -> tuple[str, str]:
    """Four significant digits of both, or as many as tell them apart: a fp32 has nine."""
    pairs = [(f"{low:#.{digits}g}", f"{high:#.{digits}g}") for digits in range(4, 10)]
    return next((pair for pair in pairs if pair[0] != pair[1]), pairs[0])


def _kinds(blocks: list[dict[str, Any]]) -> list[str]:
    return sorted({key for block in blocks for key in block if key.startswith("map_")}) or ["map"]


def _map_tile(block: dict[str, Any], kind: str) -> _Tile:
    gates, effect = block["gates"], block["effect"]
    spread = f"gates {gates['min']:.3f} to {gates['max']:.3f}"
    title = " ".join([block["name"], *kind.split("_")[1:]])
    return _Tile(
        np.asarray(block[kind], np.float32), title, [spread if effect is None else f"{spread}, effect {effect:+z.3f}"]
    )


def _channel_tiles(block: dict[str, Any]) -> list[_Tile]:
    channels = block["top_channels"][:_MOST_CHANNELS]
    return [
        _Tile(
            np.asarray(channel["map"], np.float32),
            f"{block['name']}" if i == 0 else "",
            [
                f"channel {channel['channel']}",
                f"weight {channel['weight']:.5f}",
                *([] if channel["effect"] is None else [f"effect {channel['effect']:+z.5f}"]),
            ],
        )
        for i, channel in enumerate(channels)
    ]


def _head(sheet: Image.Image, square: Image.Image, answer: dict[str, Any]) -> None:
    """The photo, and beside it the labels with their probabilities."""
    sheet.paste(square, (_GAP, _GAP))
    pen, left, right = ImageDraw.Draw(sheet), 2 * _GAP + PHOTO, _WIDTH - _GAP
    pen.text((left, _GAP - 2), _ascii(answer["model"]), _QUIET, _font(14))
    for i, one in enumerate(answer["predictions"][:5]):
        y = _GAP + 30 + i * 39
        label, chance = _ascii(one["label"]), one["probability"]
        pen.text(
            (left, y), _short(" ".join(filter(None, [label, f"({_ascii(one['class_id'])})"])), 60), _INK, _font(15)
        )
        pen.text((right, y), f"{chance:.1%}", _INK, _font(15), anchor="ra")
        pen.rectangle((left, y + 21, right, y + 27), _FAINT)
        pen.rectangle((left, y + 21, left + round(chance * (right - left)), y + 27), tuple(_RAMP[90]))


def _height(tiles: list[_Tile], side: int, columns: int) -> int:
    return _pitch(tiles, side) * -(-len(tiles) // columns) if tiles else 0


def _pitch(tiles: list[_Tile], side: int) -> int:
    """From one row of tiles to the next: title, lines, map, bar, range, gap."""
    return max(map(_words, tiles)) + side + _BAR + 20 + _GAP


def _words(tile: _Tile) -> int:
    """The height of what stands above the map."""
    return 23 + _LINE * len(tile.lines)


def _grid(sheet: Image.Image, square: Image.Image, tiles: list[_Tile], top: int, side: int, columns: int) -> None:
    grey = square.convert("L").resize((side, side), Image.Resampling.BOX)
    dimmed, pen = grey.point(lambda level: level * (1 - _OVER)).convert("RGB"), ImageDraw.Draw(sheet)
    for i, tile in enumerate(tiles):
        row, column = divmod(i, columns)
        x = _GAP + column * ((_WIDTH - _GAP) // columns)
        _lay(sheet, pen, tile, dimmed, x, top + row * _pitch(tiles, side))


def _lay(sheet: Image.Image, pen: ImageDraw.ImageDraw, tile: _Tile, dimmed: Image.Image, x: int, y: int) -> None:
    side, low, high = dimmed.width, float(tile.values.min()), float(tile.values.max())
    pen.text((x, y), tile.title, _INK, _font(14))
    for i, line in enumerate(tile.lines):
        pen.text((x, y + 20 + i * _LINE), line, _QUIET, _font(12))
    y += _words(tile)
    layer = Image.fromarray(_TINTS[_steps(tile.values, low, high)]).resize(dimmed.size, Image.Resampling.NEAREST)
    sheet.paste(ImageChops.add(dimmed, layer), (x, y))
    sheet.paste(_bar(side), (x, y + side + 2))
    lowest, highest = range_words(low, high)
    pen.text((x, y + side + _BAR + 4), lowest, _QUIET, _font(12))
    pen.text((x + side, y + side + _BAR + 4), highest, _QUIET, _font(12), anchor="ra")


@cache
def _bar(width: int) -> Image.Image:
    """The ramp, lowest to highest."""
    return Image.fromarray(colours(np.linspace(0, 1, width, dtype=np.float32)[None].repeat(_BAR, 0), 0, 1))


@lru_cache(64)
def _note(line: str) -> Image.Image:
    """A line of the small print; a model has the same in every picture."""
    strip = Image.new("RGB", (_WIDTH - 2 * _GAP, _LINE), _PAPER)
    ImageDraw.Draw(strip).text((0, 0), line, _QUIET, _font(12))
    return strip


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _ascii(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
