"""What every engine does alike, on arrays that are made here."""

from dataclasses import replace

import numpy as np

from app.array_engine import ArrayEngine, Kind
from app.engine import Ask, AttentionAsk, Floats
from tests.fakes import CARD

PIXELS = np.zeros((3, 8, 8), np.uint8)


class Counting(ArrayEngine[str]):
    """Remembers the kind and the number of images of its calls."""

    def __init__(self, most_looks: int | None) -> None:
        super().__init__(replace(CARD, max_batch=8), ["lane"], most_looks)
        self.calls: list[tuple[Kind, int]] = []

    def infer(self, lane: str, images: list[np.ndarray], kind: Kind, *, alone: bool) -> dict[str, Floats]:
        self.calls.append((kind, len(images)))
        arrays = {"probabilities": np.full((len(images), 10), 0.1, np.float32)}
        for block in self.card.blocks:
            shape = (len(images), block.channels, block.height, block.width)
            arrays |= {f"gates.{block.name}": np.zeros(shape, np.float32), f"map.{block.name}": np.zeros(shape[::2])}
            arrays |= {
                f"spread.{block.name}": np.zeros((len(images), 4)),
                f"channel_mean.{block.name}": np.zeros(shape[:2]),
            }
        return arrays

    def held(self, pixels: np.ndarray, blocks: np.ndarray, channels: np.ndarray) -> Floats:
        self.calls.append(("labels", -len(blocks)))
        return np.zeros((len(blocks), 10), np.float32)


def asks(count: int, **asked: bool) -> list[Ask]:
    return [Ask(PIXELS, 5, AttentionAsk(frozenset({"layer1.0"}), 4, "none", **asked)) for _ in range(count)]


def test_calls_that_look_at_gates_may_be_smaller_than_others() -> None:
    engine = Counting(most_looks=3)
    engine([Ask(PIXELS)] * 8 + asks(7))
    assert engine.calls == [("labels", 8), ("gates", 3), ("gates", 3), ("gates", 1)]


def test_and_so_are_those_for_effects() -> None:
    engine = Counting(most_looks=3)
    engine(asks(1, effects=True, channel_effects=True))
    assert engine.calls == [("gates", 1), ("labels", -3), ("labels", -3)]


def test_the_warm_up_keeps_to_that() -> None:
    engine = Counting(most_looks=2)
    engine.warm_up([4, 2], ("labels", "gates"))
    assert engine.calls == [("labels", 1), ("labels", 4), ("labels", 2), ("gates", 1), ("gates", 2)]
