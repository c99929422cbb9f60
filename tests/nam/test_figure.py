"""The picture of an attention: deterministic, and its colours are the numbers."""

import io

import numpy as np
import pytest
from PIL import Image

from nam.figure import PHOTO, colours, draw


def answer(blocks: int = 2) -> dict:
    rng = np.random.default_rng(0)
    maps = rng.uniform(0.2, 0.7, (blocks, 4, 4)).astype(np.float32)
    return {
        "model": "small",
        "predictions": [{"label": "cat", "probability": 0.5}],
        "blocks": [
            {
                "name": f"layer{i}.0",
                "map": maps[i],
                "gates": {"min": 0.1, "max": 0.9},
                "effect": 0.25,
                "top_channels": [{"channel": 3, "weight": 0.4, "map": maps[i]}],
            }
            for i in range(blocks)
        ],
    }


def photo() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (3, PHOTO, PHOTO), dtype=np.uint8)


def test_the_same_numbers_give_the_same_bytes() -> None:
    assert draw(photo(), answer()) == draw(photo(), answer())


def test_other_numbers_give_another_picture() -> None:
    changed = answer()
    changed["blocks"][1]["map"] = changed["blocks"][1]["map"][::-1].copy()
    assert draw(photo(), changed) != draw(photo(), answer())


@pytest.mark.parametrize(("blocks", "rows"), [(0, 1), (2, 1), (3, 2), (16, 5)])
def test_the_sheet_holds_a_panel_for_the_photo_each_block_and_channel(blocks: int, rows: int) -> None:
    with Image.open(io.BytesIO(draw(photo(), answer(blocks)))) as sheet:
        assert sheet.width == 4 * (PHOTO + 16) + 16
        assert rows == round(sheet.height / (PHOTO + 90))


def test_colours_run_from_dark_to_light_with_the_numbers() -> None:
    ramp = colours(np.linspace(0.3, 0.6, 50, dtype=np.float32)[None], 0.3, 0.6)[0].astype(int)
    lightness = ramp @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all()
    assert ramp[0].tolist() == [13, 8, 60]
    assert ramp[-1].tolist() == [250, 245, 160]


def test_a_flat_map_is_drawn_flat() -> None:
    flat = colours(np.full((3, 3), 0.5, np.float32), 0.5, 0.5)
    assert len(np.unique(flat.reshape(-1, 3), axis=0)) == 1
