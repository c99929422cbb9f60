"""What every engine does alike: lanes for calls side by side, and arrays of numbers into answers. No torch.

An engine adds where the arrays come from: :meth:`ArrayEngine.infer` and :meth:`ArrayEngine.held`. They are fp32 and
have the names and shapes that :mod:`nam.outputs` gives them.
"""

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from app.engine import Answer, Ask, BlockAttention, Card, EngineError, Floats

Pixels = NDArray[np.uint8]
Indices = NDArray[np.int64]
Lane = TypeVar("Lane")

# What a call computes: probabilities alone; what is said of the gates too; the further maps too.
Kind = Literal["labels", "gates", "methods"]
KINDS: tuple[Kind, ...] = ("labels", "gates", "methods")


class ArrayEngine(Generic[Lane]):
    """``lanes``: what one call at a time uses, whatever that is; as many calls as there are lanes may run at once.
    ``most_looks``: images in one call that looks at gates, whose outputs are much larger; none: as in any."""

    def __init__(self, card: Card, lanes: list[Lane], most_looks: int | None = None) -> None:
        self.card, self.crowded = card, False
        self._most_looks = most_looks or card.max_batch
        self._order = [(-block.weights).argsort(kind="stable").tolist() for block in card.blocks]
        self._lanes, self._idle, self._lock = tuple(lanes), lanes, threading.Lock()

    def infer(self, lane: Lane, images: list[Pixels], kind: Kind, *, alone: bool) -> dict[str, Floats]:
        """The arrays, which the lane's next call may overwrite. ``alone``: no other call is under way, and nothing else
        is in this one."""
        raise NotImplementedError

    def held(self, pixels: Pixels, blocks: Indices, channels: Indices) -> Floats:
        """Logits (n, classes) of one image, computed in fp32 n times, each time with the gate of a block, or of one of
        its channels, held at its mean; int64 (n,), -1 is none and all, as :mod:`nam.gated` has it."""
        raise NotImplementedError

    def memory(self) -> dict[str, int]:
        return {}

    def __call__(self, asks: Sequence[Ask]) -> list[Answer]:
        kinds = [self._kind(ask) for ask in asks]
        answers: dict[int, Answer] = {}
        with self._lane() as (lane, alone):
            for kind in KINDS:
                places = [i for i, of_ask in enumerate(kinds) if of_ask == kind]
                for chunk in _chunks(places, self._most(kind)):
                    some = [asks[i] for i in chunk]
                    outputs = self.infer(lane, [ask.pixels for ask in some], kind, alone=alone and len(asks) == 1)
                    answers |= zip(chunk, self._answers(some, outputs), strict=True)
        return [answers[i] for i in range(len(asks))]

    def warm_up(self, batches: Sequence[int], kinds: Sequence[Kind]) -> None:
        """Every lane, these kinds of call, one image alone and these numbers of images beside another call. Raises
        EngineError for what is not finite."""
        blank = np.zeros((3, self.card.size, self.card.size), np.uint8)
        calls = [(1, True), *((count, False) for count in batches)]
        for lane, kind, (count, alone) in itertools.product(self._lanes, kinds, calls):
            if count > self._most(kind):
                continue
            outputs = self.infer(lane, [blank] * count, kind, alone=alone)
            if not all(np.isfinite(output).all() for output in outputs.values()):
                raise EngineError("the warm-up gave numbers that are not finite")

    def _most(self, kind: Kind) -> int:
        return self.card.max_batch if kind == "labels" else self._most_looks

    def _kind(self, ask: Ask) -> Kind:
        if ask.attention is None or not self.card.blocks:
            return "labels"
        return "methods" if ask.attention.methods else "gates"

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

    def _answers(self, asks: list[Ask], outputs: dict[str, Floats]) -> Iterator[Answer]:
        """Copies: the lane's next call overwrites the outputs."""
        probabilities = outputs["probabilities"]
        best = _best(probabilities, max(ask.top_k for ask in asks))
        for i, ask in enumerate(asks):
            indices = best[i, : ask.top_k]
            looks = self._looks(ask, {name: output[i] for name, output in outputs.items()})
            yield Answer(indices, probabilities[i, indices], self._with_effects(ask, looks, int(indices[0])))

    def _looks(self, ask: Ask, outputs: dict[str, Floats]) -> list[BlockAttention]:
        """What one image's outputs say to its ask."""
        if (wanted := ask.attention) is None:
            return []
        looks = []
        for block, order in zip(self.card.blocks, self._order, strict=True):
            if block.name in wanted.blocks:
                spread, channel_mean, map_ = (outputs[f"{part}.{block.name}"] for part in _SEEN)
                further = {kind: outputs.get(f"map_{kind}.{block.name}") for kind in sorted(wanted.methods)}
                methods = {kind: values.copy() for kind, values in further.items() if values is not None}
                seen, gates = (spread, channel_mean.copy(), map_.copy()), outputs[f"gates.{block.name}"]
                looks.append(BlockAttention.of(block.name, wanted, seen, order, gates.__getitem__, methods))
        return looks

    def _with_effects(self, ask: Ask, looks: list[BlockAttention], label: int) -> tuple[BlockAttention, ...]:
        """One batch of forwards for all that is asked for, cut where it is too large."""
        if not (looks and (wanted := ask.attention) and (wanted.effects or wanted.channel_effects)):
            return tuple(looks)
        places = {block.name: j for j, block in enumerate(self.card.blocks)}
        holds = [
            (places[look.name], channel)
            for look in looks
            for channel in [*([-1] if wanted.effects else []), *(look.top if wanted.channel_effects else [])]
        ]
        effects = iter(self._effects(ask.pixels, label, holds)) if holds else iter(())
        return tuple(
            replace(
                look,
                effect=float(next(effects)) if wanted.effects else None,
                top_effects=np.array([next(effects) for _ in look.top], np.float32) if wanted.channel_effects else None,
            )
            for look in looks
        )

    def _effects(self, pixels: Pixels, label: int, holds: list[tuple[int, int]]) -> Floats:
        """What gates do for a label, as :func:`nam.maps.effects` has it; ``holds``: block and channel, n: (n,)."""
        pairs = np.array([(-1, -1), *holds], np.int64)
        chunks = [pairs[start : start + self._most_looks] for start in range(0, len(pairs), self._most_looks)]
        of_label = np.concatenate([self.held(pixels, *chunk.T)[:, label] for chunk in chunks])
        effects: Floats = of_label[0] - of_label[1:]
        return effects


_SEEN = ("spread", "channel_mean", "map")


def _chunks(places: list[int], most: int) -> Iterator[list[int]]:
    yield from (places[start : start + most] for start in range(0, len(places), most))


def _best(probabilities: Floats, k: int) -> Indices:
    """The indices of the k largest in each row, best first, ties by index: (B, k)."""
    k = min(k, probabilities.shape[1])
    some = np.sort(np.argpartition(-probabilities, k - 1, axis=1)[:, :k], axis=1)
    order = (-np.take_along_axis(probabilities, some, 1)).argsort(axis=1, kind="stable")
    return np.take_along_axis(some, order, 1)
