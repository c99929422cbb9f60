"""What a lane does with a batch: decodes the images that are quick to decode, one forward for all, an outcome each.

Where lanes are processes a quick image rides along as bytes: one handover less. Any other is decoded before it is
queued, so that no neighbour waits for it. An image that cannot be decoded is an error in its own place.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from app.batching import Lane
from app.engine import Answer, Ask, AttentionAsk, Card, Engine, OutOfMemory
from app.errors import InternalError, Overloaded, ServiceError
from app.images import Picture, decode
from app.thread_lane import ThreadLane

logger = logging.getLogger("nam.forward")


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A picture, the seconds that its decoding took, and the instant of ``time.monotonic()`` at which that began: one
    clock for all processes of a machine; 0.0 where nothing was decoded."""

    picture: Picture
    decode_s: float
    decode_at: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One image on its way to the engine, encoded or decoded, and what is asked of it. ``trace``: the span of its
    request, as a ``traceparent``, where that is recorded."""

    image: bytes | Decoded
    top_k: int
    attention: AttentionAsk | None = None
    trace: str = ""

    @property
    def forwards(self) -> int:
        """Images' worth of forwards: one, and where effects are asked for one for each gate that is held and one more
        to compare with."""
        if (ask := self.attention) is None or not (ask.effects or ask.channel_effects):
            return 1
        return 2 + len(ask.blocks) * (ask.effects + ask.channel_effects * ask.top_channels)


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """What the image was, what the engine said, the seconds of its decoding and of its batch's forward, and the
    instants at which they began. ``batch``: the span of its batch, as a ``traceparent``, where that is recorded."""

    picture: Picture
    answer: Answer
    decode_s: float
    model_s: float
    decode_at: float = 0.0
    model_at: float = 0.0
    batch: str = ""


Outcome = Done | ServiceError


def timed_decode(image: bytes, *, size: int, crop: float, max_pixels: int) -> Decoded:
    """Raises what :func:`app.images.decode` does."""
    started = time.monotonic()
    picture = decode(image, size=size, crop=crop, max_pixels=max_pixels)
    return Decoded(picture, time.monotonic() - started, started)


class Run(Protocol):
    """What runs jobs: the card of the engine behind it, and its lanes, opened on the event loop that calls them."""

    @property
    def card(self) -> Card: ...

    def lanes(self, on_restart: Callable[[], None], on_end: Callable[[str], None]) -> list[Lane[Job, Outcome]]: ...

    def memory(self) -> dict[str, int]: ...

    async def close(self) -> None: ...


class Forward:
    """The engine in this process: jobs in, as many outcomes out, in their order; lanes are threads that call it, one
    call at a time a lane. ``on_forward`` is given the seconds of every forward."""

    def __init__(self, engine: Engine, max_pixels: int, on_forward: Callable[[float], None]) -> None:
        self._engine = engine
        self._max_pixels = max_pixels
        self._on_forward = on_forward
        self._lanes: list[ThreadLane[Job, Outcome]] = []

    @property
    def card(self) -> Card:
        return self._engine.card

    def lanes(
        self, on_restart: Callable[[], None] = lambda: None, on_end: Callable[[str], None] = lambda _: None
    ) -> list[Lane[Job, Outcome]]:
        """Both are for lanes that can be started again, and told when one is, and when none can be; a thread cannot."""
        self._lanes = [ThreadLane(self, f"lane-{number}") for number in range(self.card.lanes)]
        return list(self._lanes)

    def memory(self) -> dict[str, int]:
        """As :meth:`app.engine.Engine.memory`."""
        return self._engine.memory()

    async def close(self) -> None:
        """The engine ends with the process."""
        for lane in self._lanes:
            lane.close()

    def __call__(self, jobs: Sequence[Job]) -> list[Outcome]:
        decoded = [self._decoded(job.image) for job in jobs]
        ready = [(job, image) for job, image in zip(jobs, decoded, strict=True) if isinstance(image, Decoded)]
        done = iter(self._run(ready) if ready else ())
        return [next(done) if isinstance(image, Decoded) else image for image in decoded]

    def _run(self, ready: list[tuple[Job, Decoded]]) -> list[Outcome]:
        asks = [Ask(image.picture.pixels, job.top_k, job.attention) for job, image in ready]
        started = time.monotonic()
        answers = self._answers(asks)
        model_s = time.monotonic() - started
        self._on_forward(model_s)
        return [
            answer
            if isinstance(answer, ServiceError)
            else Done(image.picture, answer, image.decode_s, model_s, image.decode_at, started)
            for (_, image), answer in zip(ready, answers, strict=True)
        ]

    def _answers(self, asks: list[Ask]) -> list[Answer | ServiceError]:
        """In halves where the device's memory is not enough; whom even a forward alone does not fit may come again."""
        try:
            return list(self._engine(asks))
        except OutOfMemory as error:
            logger.warning("a batch of %d did not fit: %s", len(asks), error)
        if len(asks) == 1:
            return [Overloaded("The device has no memory for this image now.")]
        half = len(asks) // 2
        return [*self._answers(asks[:half]), *self._answers(asks[half:])]

    def _decoded(self, image: bytes | Decoded) -> Decoded | ServiceError:
        if isinstance(image, Decoded):
            return image
        card = self._engine.card
        try:
            return timed_decode(image, size=card.size, crop=card.crop, max_pixels=self._max_pixels)
        except ServiceError as error:
            return error
        except Exception:
            logger.exception("an image of %d bytes was not decoded", len(image))
            return InternalError()
