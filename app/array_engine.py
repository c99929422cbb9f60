"""What every engine does alike: lanes for calls side by side, and arrays of numbers into answers. No torch.

An engine adds where the arrays come from: :meth:`ArrayEngine.infer` and :meth:`ArrayEngine.effects`. They are, for n
images: probabilities (n, classes) and, where the gates are wanted too, of every block the four that
:mod:`nam.outputs` names: spread (n, 4), channel means (n, C), map (n, H, W), gates (n, C, H, W); all fp32.
"""

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from app.engine import Answer, Ask, BlockAttention, Card, EngineError, Floats

Pixels = NDArray[np.uint8]
Lane = TypeVar("Lane")


class ArrayEngine(Generic[Lane]):
    """``lanes``: what one call at a time uses, whatever that is; as many calls as there are lanes may run at once."""

    def __init__(self, card: Card, lanes: list[Lane]) -> None:
        self.card, self.crowded = card, False
        self._order = [(-block.weights).argsort(kind="stable").tolist() for block in card.blocks]
        self._lanes, self._idle, self._lock = tuple(lanes), lanes, threading.Lock()

    def infer(self, lane: Lane, images: list[Pixels], *, looks: bool, alone: bool) -> list[Floats]:
        """The arrays, which the lane's next call may overwrite. ``alone``: no other call is under way, and nothing else
        is in this one."""
        raise NotImplementedError

    def effects(self, pixels: Pixels, label: int) -> list[float]:
        """What each block's gate does for the label of one image, as :func:`nam.maps.effects` has it, in fp32."""
        raise NotImplementedError

    def __call__(self, asks: Sequence[Ask]) -> list[Answer]:
        looking = [i for i, ask in enumerate(asks) if ask.attention and self.card.blocks]
        plain = [i for i in range(len(asks)) if i not in looking]
        answers: dict[int, Answer] = {}
        with self._lane() as (lane, alone):
            for looks, places in ((False, plain), (True, looking)):
                for chunk in _chunks(places, self.card.max_batch):
                    some = [asks[i] for i in chunk]
                    outputs = self.infer(
                        lane, [ask.pixels for ask in some], looks=looks, alone=alone and len(asks) == 1
                    )
                    answers |= zip(chunk, self._answers(some, outputs), strict=True)
        return [answers[i] for i in range(len(asks))]

    def warm_up(self, batches: Sequence[int]) -> None:
        """Every lane, every kind of call, one image alone and these numbers of images beside another call. Raises
        EngineError for what is not finite."""
        blank = np.zeros((3, self.card.size, self.card.size), np.uint8)
        kinds = (False, True) if self.card.blocks else (False,)
        calls = [(1, True), *((count, False) for count in batches)]
        for lane, looks, (count, alone) in itertools.product(self._lanes, kinds, calls):
            outputs = self.infer(lane, [blank] * count, looks=looks, alone=alone)
            if not all(np.isfinite(output).all() for output in outputs):
                raise EngineError("the warm-up gave numbers that are not finite")

    @contextmanager
    def _lane(self) -> Iterator[tuple[Lane, bool]]:
        """A lane for one call, and whether no other call is under way."""
        with self._lock:
            lane = self._idle.pop()
            alone = len(self._idle) + 1 == len(self._lanes) and not self.crowded
        try:
            yield lane, alone
        finally:
            with self._lock:
                self._idle.append(lane)

    def _answers(self, asks: list[Ask], outputs: list[Floats]) -> Iterator[Answer]:
        """Copies: the lane's next call overwrites the outputs."""
        probabilities, *blocks = outputs
        best = _best(probabilities, max(ask.top_k for ask in asks))
        for i, ask in enumerate(asks):
            indices = best[i, : ask.top_k]
            looks = self._looks(ask, [output[i] for output in blocks])
            yield Answer(indices, probabilities[i, indices], self._with_effects(ask, looks, int(indices[0])))

    def _looks(self, ask: Ask, outputs: list[Floats]) -> list[BlockAttention]:
        """What one image's outputs, four a block, say to its ask."""
        if (wanted := ask.attention) is None or not outputs:
            return []
        looks = []
        for j, block in enumerate(self.card.blocks):
            if block.name in wanted.blocks:
                spread, channel_mean, map_, gates = outputs[4 * j : 4 * j + 4]
                seen = (spread, channel_mean.copy(), map_.copy())
                looks.append(BlockAttention.of(block.name, wanted, seen, self._order[j], gates.__getitem__))
        return looks

    def _with_effects(self, ask: Ask, looks: list[BlockAttention], label: int) -> tuple[BlockAttention, ...]:
        if not (looks and ask.attention and ask.attention.effects):
            return tuple(looks)
        names = [block.name for block in self.card.blocks]
        effects = dict(zip(names, self.effects(ask.pixels, label), strict=True))
        return tuple(replace(look, effect=effects[look.name]) for look in looks)


def _chunks(places: list[int], most: int) -> Iterator[list[int]]:
    yield from (places[start : start + most] for start in range(0, len(places), most))


def _best(probabilities: Floats, k: int) -> NDArray[np.int64]:
    """The indices of the k largest in each row, best first, ties by index: (B, k)."""
    k = min(k, probabilities.shape[1])
    some = np.sort(np.argpartition(-probabilities, k - 1, axis=1)[:, :k], axis=1)
    order = (-np.take_along_axis(probabilities, some, 1)).argsort(axis=1, kind="stable")
    return np.take_along_axis(some, order, 1)
