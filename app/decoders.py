"""Where images are decoded: processes that can be killed (:mod:`app.decode_process`), as many as ``NAM_DECODERS`` says.

A thread that is stuck in C, or crashes there, is the whole service's end or one place fewer for good. A process costs
its image nothing but itself, and the next one is there in a fifth of a second.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable

import numpy as np
import orjson

from app.child_process import ChildProcess, Message
from app.cores import usable_cores
from app.engine import Card
from app.errors import BadImage, DeadlineExceeded, Draining, InternalError, ServiceError, of_code
from app.forward import Decoded
from app.images import Picture
from app.settings import MIB, Settings

logger = logging.getLogger("nam.decoders")

# Bytes a pixel that decoding may take, of which lossless WebP with alpha takes 16.2, all else less; and what is beside.
PIXEL_BYTES, BESIDE_BYTES = 20, 64 * MIB
# A decode that nobody waits for any more gets as long as a new process would take.
GRACE_S = 0.5
START_S = 30.0  # what a new one may take, whatever else the machine is at

_Outcome = Decoded | ServiceError


class Decoders:
    """Started as they are needed, each kept until an image ends it. ``on_loss`` is called for every one that does."""

    def __init__(self, settings: Settings, card: Card, on_loss: Callable[[], None] = lambda: None) -> None:
        self._seconds = min(settings.decode_timeout_ms, settings.timeout_ms) / 1000
        self._environment = settings.environment() | {"OPENBLAS_NUM_THREADS": "1"}  # which would start some
        self._options = {
            "crop": card.crop,
            "max_pixels": settings.max_pixels,
            "memory": PIXEL_BYTES * settings.max_pixels + 2 * settings.max_body_bytes + BESIDE_BYTES,
            "seconds": self._seconds + 1,  # what is left to itself; while we live, we are first
            "log": (settings.log_level, settings.log_format),
        }
        self._on_loss = on_loss
        # The service's, shared among its processes that speak HTTP.
        self._places = asyncio.Semaphore(-(-(settings.decoders or usable_cores()) // settings.workers))
        self._all: set[ChildProcess] = set()
        self._idle: list[ChildProcess] = []  # the last used last
        self._work: set[asyncio.Task[_Outcome]] = set()
        self._closed = False

    async def decode(self, image: bytes, size: int, deadline: float) -> Decoded:
        """``size``: the side of the picture. Raises what :func:`app.images.decode` does, DeadlineExceeded, Draining."""
        try:
            async with asyncio.timeout_at(deadline):
                await self._places.acquire()
                outcome = await asyncio.shield(self._begin(image, size, deadline))
        except TimeoutError:
            outcome = DeadlineExceeded()  # raised beyond: its context would be the task's that it ends
        try:
            if isinstance(outcome, ServiceError):
                raise outcome
            return outcome
        finally:
            del outcome  # its traceback holds this frame, and so the image until the garbage is collected

    async def close(self) -> None:
        """Whatever they are at. Who waits for a place is told so, and starts no further one."""
        self._closed = True
        for task in self._work:
            task.cancel()
        for decoder in self._all:
            decoder.kill()
        ended = tuple(self._all)
        await asyncio.to_thread(lambda: [decoder.wait() for decoder in ended])

    def _begin(self, image: bytes, size: int, deadline: float) -> asyncio.Task[_Outcome]:
        """A place is taken, and given back when the decoder is idle or dead: not when the caller is gone."""
        self._work.add(work := asyncio.create_task(self._outcome(image, size, deadline)))
        work.add_done_callback(self._work.discard)
        work.add_done_callback(lambda _: self._places.release())
        return work

    async def _outcome(self, image: bytes, size: int, deadline: float) -> _Outcome:
        """Whoever ends one decoder may not be to blame, and gets another; whoever ends two is."""
        if self._closed:
            return Draining()
        for _ in range(2):
            try:
                decoder = await self._any()
            except OSError:
                logger.exception("no decoder could be started")
                return InternalError()
            if (outcome := await self._by(decoder, image, size, deadline)) is not None:
                return outcome
        return BadImage("Decoding the image ended the decoder.")

    async def _any(self) -> ChildProcess:
        """One that is idle and alive, else a new one. Raises OSError."""
        while self._idle:
            if (decoder := self._idle.pop()).alive:
                return decoder
            await self._lose(decoder, "while it was idle")
        return await self._started()

    async def _started(self) -> ChildProcess:
        options = orjson.dumps(self._options).decode()
        self._all.add(decoder := ChildProcess("app.decode_process", options, environment=self._environment))
        try:
            async with asyncio.timeout(START_S):
                await decoder.hear()
        except (ConnectionError, TimeoutError):
            decoder.kill()
            await self._lose(decoder, "before it was ready")
            raise
        return decoder

    async def _by(self, decoder: ChildProcess, image: bytes, size: int, deadline: float) -> _Outcome | None:
        """None where the decoder died, or its answer is no picture and no refusal."""
        outcome: _Outcome | None = None
        try:
            async with asyncio.timeout_at(min(time.monotonic() + self._seconds, deadline + GRACE_S)):
                outcome = _taken(await decoder.ask({"size": size}, [image]), size)
        except Exception as error:  # it takes too long, is gone, or its answer is none
            decoder.kill()
            if isinstance(error, TimeoutError):
                outcome = BadImage(f"Decoding the image takes longer than {self._seconds:g} s.")
            digest = hashlib.sha256(image).hexdigest()[:12]
            await self._lose(decoder, f"over an image of {len(image)} bytes, sha256 {digest}...")
        else:
            self._idle.append(decoder)
        return outcome

    async def _lose(self, decoder: ChildProcess, when: str) -> None:
        self._on_loss()
        decoder.close()
        self._all.discard(decoder)
        logger.error("a decoder ended %s %s", await asyncio.to_thread(decoder.wait), when)


def _taken(message: Message, size: int) -> _Outcome:
    head, payload = message
    if "refused" in head:
        code, detail = head["refused"]
        return of_code(code)(detail)
    *facts, decode_s, decode_at = head["picture"]
    return Decoded(Picture(np.frombuffer(payload, np.uint8).reshape(3, size, size), *facts), decode_s, decode_at)
