"""The words between requests and models: what is asked of an engine, what it answers, what it says of itself. No torch.

The real ones are ``openvino_engine.py`` and ``torch_engine.py``; the fake one is ``tests/fakes.py``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Maps = Literal["none", "top", "all"]
Floats = NDArray[np.float32]


class EngineError(RuntimeError):
    """The engine cannot start: weights that do not load, a device that is not there, a warm-up that failed."""


class EngineFailed(RuntimeError):
    """The engine raised in another process, whose log says what."""


class OutOfMemory(RuntimeError):
    """The device's memory was not enough for this call; for a smaller one it may be."""


class DeviceLost(RuntimeError):
    """The device answers no call any more; another process may find it well."""


@dataclass(frozen=True)
class AttentionAsk:
    """Which gates are wanted: of these blocks, so many of the strongest channels, these maps, the effects of the blocks
    or not, those of the strongest channels or not, and these further kinds of map."""

    blocks: frozenset[str]
    top_channels: int = 8
    maps: Maps = "top"
    effects: bool = False
    channel_effects: bool = False
    methods: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Ask:
    """One image: uint8 (3, S, S), RGB, S the card's; the ``top_k`` best labels, and the attention or not."""

    pixels: NDArray[np.uint8]
    top_k: int = 5
    attention: AttentionAsk | None = None


@dataclass(frozen=True)
class BlockAttention:
    """One block's gates for one image, fp32. ``map``: (H, W), None without maps; ``top``: channels by falling weight;
    ``top_maps``: (len(top), H, W), None without maps; ``channel_maps``: (C, H, W) where all maps were asked for;
    ``methods``: the further maps asked for by their kind, (H, W), but those that the block has not; ``effect`` and
    ``top_effects``, (len(top),): differences of logits, None unless asked for."""

    name: str
    minimum: float
    maximum: float
    mean: float
    std: float
    channel_mean: Floats
    top: list[int]
    map: Floats | None = None
    top_maps: Floats | None = None
    channel_maps: Floats | None = None
    effect: float | None = None
    top_effects: Floats | None = None
    methods: dict[str, Floats] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        ask: AttentionAsk,
        seen: tuple[Floats, Floats, Floats],
        order: list[int],
        gates: Callable[[list[int]], Floats],
        methods: dict[str, Floats],
    ) -> "BlockAttention":
        """``seen``: spread (4,), channel means (C,), map (H, W); ``order``: all channels by falling weight; ``gates``:
        from channels to their gates, (n, H, W), asked only for what is wanted; ``methods``: the further maps."""
        spread, channel_mean, map_ = seen
        minimum, maximum, mean, std = spread.tolist()
        top, drawn = order[: ask.top_channels], ask.maps != "none"
        return cls(
            name,
            minimum,
            maximum,
            mean,
            std,
            channel_mean,
            top,
            map=map_ if drawn else None,
            top_maps=gates(top) if drawn else None,
            channel_maps=gates(list(range(len(order)))) if ask.maps == "all" else None,
            methods=methods,
        )


@dataclass(frozen=True)
class Answer:
    """Class indices and their probabilities, best first, both (top_k,); a BlockAttention for each block asked for."""

    indices: NDArray[np.int64]
    probabilities: Floats
    blocks: tuple[BlockAttention, ...] = ()


@dataclass(frozen=True)
class Label:
    """A class: its id in the data set, its English name, its Chinese name or the English one."""

    id: str
    en: str
    zh: str


@dataclass(frozen=True)
class Block:
    """A block with attention: its feature shape, and its channels' weights, fp32 (C,), sum 1."""

    name: str
    height: int
    width: int
    weights: Floats

    @property
    def channels(self) -> int:
        return len(self.weights)


@dataclass(frozen=True)
class Card:
    """What an engine serves. ``size`` and ``crop``: the input square, as :mod:`nam.geometry` has them; ``max_batch``:
    the largest batch that pays; ``lanes``: how many calls in parallel pay; ``lanes_decode``: whether they decode
    small images too, being processes of their own; ``methods``: the further kinds of map that can be asked for;
    ``notes``: what limits the attention; ``warm_start``: it was never trained, so that every answer carries the notes;
    ``facts``: the weights' own card and the engine's choices, JSON for ``/model``."""

    name: str
    labels: tuple[Label, ...]
    size: int
    crop: float
    blocks: tuple[Block, ...]
    sha256: str
    max_batch: int
    lanes: int
    lanes_decode: bool = False
    methods: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warm_start: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, told: dict[str, Any], *, max_batch: int, lanes: int, **choices: str) -> "Card":
        """``told``: as :mod:`nam.describe` has it; ``choices``: the engine's own, for ``facts``."""
        return cls(
            name=told["name"],
            labels=tuple(Label(*label) for label in told["labels"]),
            size=told["size"],
            crop=told["crop"],
            blocks=tuple(Block(name, h, w, np.array(shares, np.float32)) for name, h, w, shares in told["blocks"]),
            sha256=told["sha256"],
            max_batch=max_batch,
            lanes=lanes,
            methods=tuple(told["methods"]),
            notes=tuple(told["notes"]),
            warm_start=told["warm_start"],
            facts={**told["facts"], **choices},
        )


class Engine(Protocol):
    """Called from one lane's thread at a time a lane. It answers a list of asks in their order, or raises for all:
    OutOfMemory, DeviceLost, or whatever befell it.

    ``crowded``: whether other processes use the same cores; set from outside."""

    card: Card
    crowded: bool

    def __call__(self, asks: Sequence[Ask]) -> list[Answer]: ...

    def memory(self) -> dict[str, int]:
        """Bytes of the device by kind: ``allocated``, ``reserved``, ``free``; nothing where it has none of its own."""
        ...
