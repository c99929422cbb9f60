"""The picture of an attention: deterministic, golden, and its colours are the numbers."""

import copy
import io
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nam.figure import PHOTO, colours, draw, range_words
from tests.golden.make import GOLDEN_FIGURE, golden_answer, golden_square

ROOT = Path(__file__).parents[2]
MAP = slice(294, 294 + 192), slice(16, 16 + 192)  # where the first block's map lies


def drawn(answer: dict, photo: np.ndarray | None = None) -> np.ndarray:
    """Decoded by Pillow, which checks what we wrote."""
    with Image.open(io.BytesIO(draw(golden_square() if photo is None else photo, answer))) as sheet:
        assert (sheet.format, sheet.mode) == ("PNG", "RGB")
        return np.asarray(sheet)


def test_the_golden_picture() -> None:
    with Image.open(GOLDEN_FIGURE) as golden:
        assert np.array_equal(drawn(golden_answer()), np.asarray(golden))


def test_another_process_draws_the_same_bytes() -> None:
    code = """if True:
        import hashlib
        from nam.figure import draw
        from tests.golden.make import golden_answer, golden_square
        print(hashlib.sha256(draw(golden_square(), golden_answer())).hexdigest())"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == sha256(draw(golden_square(), golden_answer())).hexdigest()


def test_the_photo_is_shown_as_it_is() -> None:
    sheet = drawn(golden_answer())
    assert np.array_equal(sheet[16 : 16 + PHOTO, 16 : 16 + PHOTO], golden_square().transpose(1, 2, 0))


def test_a_map_is_laid_over_the_photo_pixel_by_pixel() -> None:
    """Over a black photo its colours are the map's, by the share that covers."""
    answer = golden_answer()
    map_ = np.asarray(answer["blocks"][0]["map"])
    sheet = drawn(answer, np.zeros((3, PHOTO, PHOTO), np.uint8))
    expected = (colours(map_, map_.min(), map_.max()) * 0.6).astype(np.uint8)
    assert np.array_equal(sheet[MAP], expected.repeat(48, 0).repeat(48, 1))


def changed(*path: object, value: object) -> np.ndarray:
    answer = copy.deepcopy(golden_answer())
    at = answer
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return drawn(answer)


@pytest.mark.parametrize(
    "path",
    [
        ("predictions", 1, "probability"),
        ("blocks", 0, "gates", "max"),
        ("blocks", 1, "effect"),
        ("blocks", 1, "top_channels", 0, "weight"),
        ("blocks", 1, "top_channels", 1, "effect"),
    ],
)
def test_every_number_is_in_the_picture(path: tuple) -> None:
    other, golden = changed(*path, value=0.0123), drawn(golden_answer())
    assert other.shape == golden.shape
    assert (other != golden).any()


def test_the_range_under_a_map_is_the_maps() -> None:
    """The same colours, other numbers: what differs is the text under the map."""
    answer = golden_answer()
    stretched = [[2 * value for value in row] for row in answer["blocks"][0]["map"]]
    rows = np.flatnonzero((changed("blocks", 0, "map", value=stretched) != drawn(answer)).any((1, 2)))
    assert rows.size
    assert rows.min() > MAP[0].stop
    assert rows.max() < MAP[0].stop + 30


def test_further_kinds_of_map_are_drawn_in_place_of_the_papers() -> None:
    answer = golden_answer()
    answer["blocks"][1]["map_class"] = [[0.0, 1.0], [2.0, 3.0]]
    expected = (colours(np.array([[0.0, 1.0], [2.0, 3.0]]), 0, 3) * 0.6).astype(np.uint8)
    sheet = drawn(answer, np.zeros((3, PHOTO, PHOTO), np.uint8))
    assert np.array_equal(sheet[MAP], expected.repeat(96, 0).repeat(96, 1))


def test_a_label_that_the_font_cannot_write_leaves_its_class_id() -> None:
    unreadable = changed("predictions", 0, "label", value="东西")
    assert np.array_equal(unreadable, changed("predictions", 0, "label", value=""))
    assert np.array_equal(
        changed("predictions", 0, "label", value="crêpe"), changed("predictions", 0, "label", value="crepe")
    )


@pytest.mark.parametrize(("blocks", "channels"), [(0, 2), (1, 0), (33, 40)])
def test_any_number_of_blocks_and_channels_fits(blocks: int, channels: int) -> None:
    answer = golden_answer()
    block = answer["blocks"][0]
    block["top_channels"] = (block["top_channels"] * channels)[:channels]
    answer["blocks"] = [block] * blocks
    rows = -(-blocks // 4)
    tall = drawn(answer).shape[0]
    assert tall - 256 == pytest.approx(
        275 * rows + (0 if not (blocks and channels) else 185 * (1 + (channels > 8))), abs=80
    )


def test_colours_run_from_dark_to_light_with_the_numbers() -> None:
    ramp = colours(np.linspace(0.3, 0.6, 50, dtype=np.float32)[None], 0.3, 0.6)[0].astype(int)
    lightness = ramp @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all()
    assert ramp[0].tolist() == [13, 8, 60]
    assert ramp[-1].tolist() == [250, 245, 160]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.5, 0.66712345, ("0.5000", "0.6671")),
        (0.49998, 0.50001, ("0.49998", "0.50001")),
        (-1.5, 12.0, ("-1.500", "12.00")),
        (0.5, 0.5, ("0.5000", "0.5000")),
    ],
)
def test_a_range_is_told_in_as_many_digits_as_it_takes(low: float, high: float, words: tuple[str, str]) -> None:
    assert range_words(low, high) == words


def test_a_flat_map_is_drawn_flat() -> None:
    flat = colours(np.full((3, 3), 0.5, np.float32), 0.5, 0.5)
    assert len(np.unique(flat.reshape(-1, 3), axis=0)) == 1
