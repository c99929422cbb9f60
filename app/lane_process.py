"""Lanes as processes: each has an engine of one lane and decodes for itself, so that no two wait for one interpreter's
lock, and what ends one of them or holds it up is not the end of the service.

The parent's :class:`ProcessLanes` has a Batcher's lanes; :func:`main`, ``python -m app.lane_process``, is the other
end. A batch is one message there and one back (:mod:`app.wire`).
"""

import asyncio
import itertools
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from app import batching, logs, wire
from app.child_process import ChildProcess
from app.choice import choose, load_engine
from app.cores import usable_cores
from app.decoders import Decoders
from app.engine import Card, Engine, EngineError, EngineFailed
from app.errors import InternalError, ServiceError
from app.forward import Decoded, Done, Forward, Job, Outcome, Run
from app.messages import Stream
from app.settings import Settings

logger = logging.getLogger("nam.lane")

# Of CPU time, for an image that takes a few milliseconds: a lane that decodes for longer is stuck and ends itself.
DECODE_S = 2.0
# A batch whose last caller is gone for so long is stuck, whatever it does: its lane is killed.
STUCK_S = 5.0
START_S = 120.0  # what a lane may take to start again: the graph is there
PAUSE_S = 1.0  # before a lane that could not be started again is tried once more
TRIES = 3  # so often; where no lane lives any more, the service has failed then


class LaneDied(RuntimeError):
    """The process of a lane ended while it had a batch."""


class _Lane(ChildProcess):
    """One process; ``card`` is there once it is warm. ``lone_threads``: CPU threads of an image that comes alone."""

    def __init__(self, settings: Settings, lone_threads: int) -> None:
        super().__init__("app.lane_process", str(lone_threads), environment=settings.environment())

    def card(self) -> Card:
        """Waits until the lane is warm. Raises EngineError where it cannot be."""
        try:
            head, _ = Stream(self._socket).take()
        except (EOFError, OSError):
            raise EngineError("a lane's process ended before it was ready; the lines above say why") from None
        if "refused" in head:
            raise EngineError(head["refused"])
        return wire.take_card(head["card"])

    async def run(self, jobs: list[Job], alone: bool) -> list[Outcome]:
        told, parts = wire.put_jobs(jobs)
        try:
            head, payload = await self.ask({"jobs": told, "alone": alone}, parts)
        except ConnectionError:
            raise LaneDied(f"a lane's process ended {await asyncio.to_thread(self.wait)}") from None
        if "outcomes" not in head:
            raise EngineFailed("the engine failed; the log says why")
        return wire.take_outcomes(head["outcomes"], payload)


class ProcessLanes:
    """As many processes as there are lanes, started and warm when it is there. One that dies or is stuck is started
    again, and nobody waits for that: a batch goes to whichever process is idle."""

    def __init__(self, settings: Settings, on_forward: Callable[[float], None]) -> None:
        cores = usable_cores()
        count = settings.lanes or cores
        threads = settings.threads or max(1, cores // count)
        self._settings = settings.model_copy(update={"lanes": 1, "threads": threads})
        self._on_forward = on_forward
        self._on_restart: Callable[[], None] = lambda: None
        self._on_end: Callable[[str], None] = lambda _: None
        self._longest_s = settings.timeout_ms / 1000 + STUCK_S
        self._busy = 0
        self._lone_threads = [count * threads] + [threads] * (count - 1)
        self._lanes = [_Lane(self._settings, lone_threads) for lone_threads in self._lone_threads]
        try:
            cards = [lane.card() for lane in self._lanes]
        except EngineError:
            self._close_all()
            raise
        self.card = replace(cards[0], lanes=count, lanes_decode=True)
        self._decoders = Decoders(settings, self.card)
        self._idle: asyncio.PriorityQueue[int] = asyncio.PriorityQueue()
        for number in range(count):
            self._idle.put_nowait(number)
        self._starting: set[asyncio.Task[None]] = set()  # one for each lane that is down

    def lanes(
        self, on_restart: Callable[[], None] = lambda: None, on_end: Callable[[str], None] = lambda _: None
    ) -> list[batching.Lane[Job, Outcome]]:
        """The first process alone can take what all have; it is the one that whoever comes alone gets."""
        self._on_restart, self._on_end = on_restart, on_end
        return [self._run] * len(self._lanes)

    def memory(self) -> dict[str, int]:
        """They are on the CPU."""
        return {}

    async def close(self) -> None:
        """Also a lane that is stuck in a call: it is killed."""
        for task in self._starting:
            task.cancel()
        for lane in self._lanes:
            lane.close()
        await self._decoders.close()
        await asyncio.to_thread(self._wait_for_all)

    async def _run(self, jobs: list[Job]) -> list[Outcome]:
        """A lane that dies takes no job with it: each is run again alone, but the one that it dies of."""
        try:
            outcomes = await self._by_any(jobs)
        except LaneDied as error:
            logger.error("%s while it had %d images", error, len(jobs))
            outcomes = await asyncio.gather(*map(self._again, jobs))
        if (done := next((outcome for outcome in outcomes if isinstance(outcome, Done)), None)) is not None:
            self._on_forward(done.model_s)
        return outcomes

    async def _again(self, job: Job) -> Outcome:
        """Bytes are decoded elsewhere now: what they did to a lane, they do to a decoder."""
        try:
            if isinstance(job.image, bytes):
                deadline = time.monotonic() + self._settings.timeout_ms / 1000
                job = replace(job, image=await self._decoders.decode(job.image, self.card.size, deadline))
            (outcome,) = await self._by_any([job])
        except ServiceError as error:
            return error
        except (LaneDied, EngineFailed, TimeoutError) as error:
            logger.error("%s while it had one image, tried for the second time", error)
            return InternalError()
        return outcome

    async def _by_any(self, jobs: list[Job]) -> list[Outcome]:
        """By the first process that is idle. Raises LaneDied; EngineFailed; TimeoutError once all callers are gone."""
        number = await self._idle.get()
        while not (lane := self._lanes[number]).alive:
            self._start_again(number)
            number = await self._idle.get()
        self._busy += 1
        try:
            async with asyncio.timeout(self._longest_s):
                return await lane.run(jobs, alone=self._busy == 1)
        finally:
            self._busy -= 1
            if lane.alive:
                self._idle.put_nowait(number)
            else:
                self._start_again(number)

    def _start_again(self, number: int) -> None:
        self._on_restart()
        self._starting.add(task := asyncio.ensure_future(self._started_again(number)))
        task.add_done_callback(self._starting.discard)

    async def _started_again(self, number: int) -> None:
        for tries in itertools.count(1):
            self._lanes[number].kill()
            ended = await asyncio.to_thread(self._lanes[number].wait)
            logger.error("lane %d ended %s and is started again", number, ended)
            try:
                self._lanes[number] = _Lane(self._settings, self._lone_threads[number])
                async with asyncio.timeout(START_S):
                    await asyncio.to_thread(self._lanes[number].card)
                break
            except (EngineError, OSError):
                logger.exception("lane %d could not be started again", number)
                if tries >= TRIES and len(self._starting) == len(self._lanes):
                    self._on_end("no lane can be started again")
                await asyncio.sleep(PAUSE_S)
        self._idle.put_nowait(number)

    def _close_all(self) -> None:
        for lane in self._lanes:
            lane.close()
        self._wait_for_all()

    def _wait_for_all(self) -> None:
        for lane in self._lanes:
            lane.wait()


def open_run(settings: Settings, on_forward: Callable[[float], None]) -> Run:
    """Where the table has OpenVINO, a process a lane; else the engine in this process. Raises EngineError."""
    if choose(settings.engine, settings.device, settings.dtype).engine == "openvino":
        return ProcessLanes(settings, on_forward)
    return Forward(load_engine(settings), settings.max_pixels, on_forward)


class _Forward(Forward):
    """Ends the process, whatever decoder it is in, where an image takes DECODE_S to decode."""

    def _decoded(self, image: bytes | Decoded) -> Decoded | ServiceError:
        signal.setitimer(signal.ITIMER_PROF, DECODE_S)
        try:
            return super()._decoded(image)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> int:
    """One lane: says its card, then answers batches until its socket is closed."""
    settings = Settings()
    logs.configure(settings.log_level, settings.log_format)
    connection, lone_threads = int(sys.argv[1]), int(sys.argv[2])
    stream = Stream(socket.socket(fileno=connection))
    try:
        engine = load_engine(settings, lone_threads=lone_threads)
    except EngineError as error:
        stream.send({"refused": str(error)})
        return 2
    forward = _Forward(engine, settings.max_pixels, lambda _: None)
    with suppress(EOFError, ConnectionError):  # the parent is gone
        stream.send({"card": wire.put_card(engine.card)})
        while True:
            _serve(stream, engine, forward)
    return 0


def _serve(stream: Stream, engine: Engine, forward: Forward) -> None:
    head, payload = stream.take()
    engine.crowded = not head["alone"]
    try:
        told, parts = wire.put_outcomes(forward(wire.take_jobs(head["jobs"], payload)))
    except Exception:
        logger.exception("a batch of %d failed", len(head["jobs"]))
        stream.send({"failed": True})
    else:
        stream.send({"outcomes": told}, parts)


if __name__ == "__main__":
    sys.exit(main())
