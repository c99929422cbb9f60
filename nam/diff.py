"""Two checkpoints' channel weights beside each other, block by block: numbers, a table, and a picture.

Weights are shares, ``w_c = |gamma_c| / sum |gamma|``, whatever the weighting a network was trained with; they are shown
as multiples of their mean, w * C, so that blocks of any width compare.
"""

import io
import math
from typing import TypedDict

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from nam.build import Model
from nam.maps import channel_weights
from nam.ranks import spearman


class BlockDiff(TypedDict):
    """One block. ``spearman``: the rank correlation of the weights, None where those of one side are all equal;
    ``total_variation``: half the sum of the changes, 0 for the same weights and 1 for none in common; ``moved``: the
    channel whose weight changes most; ``before``, ``after``: its w * C; ``peak_before``, ``peak_after``: max(w) * C."""

    block: str
    channels: int
    spearman: float | None
    total_variation: float
    moved: int
    before: float
    after: float
    peak_before: float
    peak_after: float


def compared(a: Model, b: Model) -> dict[str, tuple[Tensor, Tensor]]:
    """The channel weights of both, by block. Raises ValueError where they are not of the same blocks and widths."""
    first, second = channel_weights(a), channel_weights(b)
    if not first or not second:
        raise ValueError(f"the {'second' if first else 'first'} network has no NAM, so no channel weights")
    widths, others = ({name: len(w) for name, w in weights.items()} for weights in (first, second))
    if widths != others:
        name = next(n for n in [*widths, *others] if widths.get(n) != others.get(n))
        here, there = (
            f"{count} channels" if count else "no such block" for count in (widths.get(name), others.get(name))
        )
        raise ValueError(f"the networks' blocks differ: {name} has {here} in the first and {there} in the second")
    return {name: (w, second[name]) for name, w in first.items()}


def diff(weights: dict[str, tuple[Tensor, Tensor]]) -> list[BlockDiff]:
    """Of what :func:`compared` gives, first block to last."""
    return [_of_block(name, a, b) for name, (a, b) in weights.items()]


def _of_block(name: str, a: Tensor, b: Tensor) -> BlockDiff:
    count, moved = len(a), int((a - b).abs().argmax())
    correlation = float(spearman(a, b))
    return {
        "block": name,
        "channels": count,
        "spearman": None if math.isnan(correlation) else round(correlation, 4),
        "total_variation": round(float((a - b).abs().sum()) / 2, 5),
        "moved": moved,
        "before": round(float(a[moved]) * count, 4),
        "after": round(float(b[moved]) * count, 4),
        "peak_before": round(float(a.max()) * count, 4),
        "peak_after": round(float(b.max()) * count, 4),
    }


def table(blocks: list[BlockDiff]) -> str:
    """As text to read. Where nothing moved there is no channel to name."""
    lines = [f"{'block':12}{'channels':>9}{'Spearman':>10}{'variation':>11}{'max(w)*C':>18}  largest change, w*C"]
    for block in blocks:
        spearman = "-" if block["spearman"] is None else f"{block['spearman']:.3f}"
        peaks = f"{block['peak_before']:.3f} -> {block['peak_after']:.3f}"
        moved = f"channel {block['moved']}: {block['before']:.3f} -> {block['after']:.3f}"
        lines.append(
            f"{block['block']:12}{block['channels']:9}{spearman:>10}{block['total_variation']:11.5f}{peaks:>18}  "
            + (moved if block["total_variation"] else "none")
        )
    return "\n".join(lines)


_SIDE, _LEFT, _TOP, _RIGHT, _FOOT, _COLUMNS = 200, 44, 44, 12, 40, 4
_INK, _PAPER, _QUIET, _DOT = (20, 20, 20), (255, 255, 255), (105, 105, 105), (158, 40, 100)


def draw(weights: dict[str, tuple[Tensor, Tensor]], names: tuple[str, str]) -> bytes:
    """A PNG, byte-deterministic for one version of Pillow: a panel a block, a dot a channel, w * C of the first network
    across and of the second upwards. Dots on the diagonal have not moved. ``names``: of the two networks."""
    panels = [_panel(block, a * len(a), b * len(b)) for block, (a, b) in weights.items()]
    width, height = panels[0].size
    columns, head = min(_COLUMNS, len(panels)), 34
    sheet = Image.new("RGB", (columns * width, head + -(-len(panels) // columns) * height), _PAPER)
    said = f"Channel weights, w times their number. Across: {names[0]}. Upwards: {names[1]}."
    ImageDraw.Draw(sheet).text((12, 12), said, _INK, _font(14))
    for i, panel in enumerate(panels):
        row, column = divmod(i, columns)
        sheet.paste(panel, (column * width, head + row * height))
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=False, compress_level=6)
    return out.getvalue()


def _panel(name: str, a: Tensor, b: Tensor) -> Image.Image:
    panel = Image.new("RGB", (_LEFT + _SIDE + _RIGHT, _TOP + _SIDE + _FOOT), _PAPER)
    pen, end = ImageDraw.Draw(panel), max(float(a.max()), float(b.max()), 1.0) * 1.05
    left, bottom = _LEFT, _TOP + _SIDE
    pen.text((left, _TOP - 22), f"{name}, {len(a)} channels", _INK, _font(13))
    pen.rectangle((left, _TOP, left + _SIDE, bottom), outline=_QUIET)
    pen.line((left, bottom, left + _SIDE, _TOP), _QUIET)
    for tick in (0.0, end / 2, end):
        along = round(_SIDE * tick / end)
        pen.text((left + along, bottom + 4), f"{tick:.2f}", _QUIET, _font(11), anchor="ma")
        pen.text((left - 4, bottom - along), f"{tick:.2f}", _QUIET, _font(11), anchor="rm")
    for x, y in zip((a / end * _SIDE).round().tolist(), (b / end * _SIDE).round().tolist(), strict=True):
        pen.ellipse((left + x - 2, bottom - y - 2, left + x + 2, bottom - y + 2), fill=_DOT)
    return panel


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
