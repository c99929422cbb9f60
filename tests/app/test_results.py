"""An image's answer does not hang on whom it shares its batch with: the shipped weights, the CPU's engines."""

from collections.abc import Sequence

import numpy as np
import pytest

from app.choice import load_engine
from app.engine import Ask, Engine
from app.images import decode
from app.settings import Settings
from tests.chaos.service import photo

COUNT = 12


@pytest.fixture(scope="module", params=["openvino float32", "openvino auto", "torch float32"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """``auto`` is bf16 where the CPU multiplies it, and float32 again where it does not."""
    name, dtype = request.param.split()
    return load_engine(Settings(engine=name, device="cpu", dtype=dtype, lanes=1, max_batch=4))


@pytest.fixture(scope="module")
def pixels(engine: Engine) -> list[np.ndarray]:
    photos = (photo(seed, side=60 + 5 * seed) for seed in range(COUNT))
    return [decode(one, size=engine.card.size, crop=engine.card.crop, max_pixels=10**7).pixels for one in photos]


def probabilities(engine: Engine, pixels: Sequence[np.ndarray], size: int) -> np.ndarray:
    """(n, classes), in batches of so many."""
    told = np.zeros((len(pixels), len(engine.card.labels)), np.float32)
    for start in range(0, len(pixels), size):
        answers = engine([Ask(one, told.shape[1]) for one in pixels[start : start + size]])
        for row, answer in zip(told[start:], answers, strict=False):
            row[answer.indices] = answer.probabilities
    return told


@pytest.mark.parametrize("size", [1, 4])
def test_it_is_the_same_to_the_bit_beside_any_neighbours_in_any_place(
    engine: Engine, pixels: list[np.ndarray], size: int
) -> None:
    order = np.random.default_rng(size).permutation(COUNT)
    told = probabilities(engine, pixels, size)
    assert (probabilities(engine, [pixels[i] for i in order], size) == told[order]).all()
    assert len(np.unique(told, axis=0)) == COUNT


@pytest.mark.parametrize("size", [3, 4])
def test_it_is_the_same_in_batches_of_any_size(engine: Engine, pixels: list[np.ndarray], size: int) -> None:
    """1e-5 in float32; in bf16 a rounding may fall otherwise (tests/bench/RESULTS.md has what was measured)."""
    apart = np.abs(probabilities(engine, pixels, size) - probabilities(engine, pixels, 1)).max()
    assert apart <= (1e-5 if engine.card.facts["dtype"] == "float32" else 0.01)
