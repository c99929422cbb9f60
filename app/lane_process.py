"""Lanes as processes: each has an engine of one lane and decodes for itself, so that no two wait for one interpreter's
lock, and a decoder that crashes takes one batch with it, not the service.

The parent's :class:`ProcessLanes` has a Batcher's lanes; :func:`main`, ``python -m app.lane_process``, is the other
end. A batch is one message there and one back (:mod:`app.wire`).
"""

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, cast

import orjson

from app import batching, logs, wire
from app.choice import choose, load_engine
from app.engine import Card, Engine, EngineError, EngineFailed
from app.forward import Done, Forward, Job, Outcome, Run
from app.settings import Settings

logger = logging.getLogger("nam.lane")

_MOST_PIECES = 512  # that one call of sendmsg takes; the kernel allows 1024


class LaneDied(RuntimeError):
    """The process of a lane ended while it had a batch."""


class Stream:
    """Messages over a blocking socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def send(self, head: dict[str, Any], parts: Sequence[wire.Part] = ()) -> None:
        """In one call of the kernel where it takes all at once, and without a copy of ours."""
        pieces = wire.message(head, parts)
        for start in range(0, len(pieces), _MOST_PIECES):
            _send_all(self._socket, pieces[start : start + _MOST_PIECES])

    def take(self) -> tuple[dict[str, Any], memoryview]:
        """The next message. Raises EOFError where the other end is gone."""
        head, payload = wire.LENGTHS.unpack(self._exactly(wire.LENGTHS.size))
        told: dict[str, Any] = orjson.loads(self._exactly(head))
        return told, self._exactly(payload)

    def close(self) -> None:
        self._socket.close()

    def _exactly(self, count: int) -> memoryview:
        buffer = memoryview(bytearray(count))
        filled = 0
        while filled < count:
            if not (more := self._socket.recv_into(buffer[filled:])):
                raise EOFError
            filled += more
        return buffer


def _send_all(connection: socket.socket, pieces: list[wire.Part]) -> None:
    sent = connection.sendmsg(pieces)
    for piece in pieces:
        if sent < len(piece):
            connection.sendall(memoryview(piece)[sent:])
        sent = max(0, sent - len(piece))


class _Lane:
    """One process, started in the constructor; ``card`` is there once it is warm."""

    def __init__(self, settings: Settings, number: int) -> None:
        self._socket, theirs = socket.socketpair()
        self._connection: _Connection | None = None
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "app.lane_process", str(theirs.fileno()), str(number)],
                env=settings.environment(),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

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
            if self._connection is None:
                _, self._connection = await asyncio.get_running_loop().create_unix_connection(
                    _Connection, sock=self._socket
                )
            head, payload = await self._connection.ask({"jobs": told, "alone": alone}, parts)
        except OSError:
            await asyncio.to_thread(self.wait)
            raise LaneDied(f"a lane's process ended with code {self._process.returncode}") from None
        if "outcomes" not in head:
            raise EngineFailed("the engine failed; the log says why")
        return wire.take_outcomes(head["outcomes"], payload)

    def close(self) -> None:
        """On the event loop, where it has run anything."""
        if self._connection is None:
            self._socket.close()
        else:
            self._connection.close()

    def wait(self) -> None:
        """The process ends when its socket does; one that does not is killed."""
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class _Connection(asyncio.Protocol):
    """Asks a lane, one question at a time."""

    def __init__(self) -> None:
        self._messages = wire.Messages()
        self._answer: asyncio.Future[tuple[dict[str, Any], memoryview]] | None = None
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    async def ask(self, head: dict[str, Any], parts: Sequence[wire.Part]) -> tuple[dict[str, Any], memoryview]:
        """Raises ConnectionResetError where the lane is gone."""
        if self._transport is None:
            raise ConnectionResetError
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.writelines(wire.message(head, parts))
        try:
            return await self._answer
        except asyncio.CancelledError:  # its answer will still come, and must not be taken for the next one's
            self.close()
            raise

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        for message in self._messages.feed(data):
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(message)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError())


class ProcessLanes:
    """As many processes as there are lanes, started and warm when it is there. A lane that dies is started again."""

    def __init__(self, settings: Settings, on_forward: Callable[[float], None]) -> None:
        cores = os.cpu_count() or 1
        count = settings.lanes or cores
        threads = settings.threads or max(1, cores // count)
        self._settings = settings.model_copy(update={"lanes": 1, "threads": threads})
        self._on_forward, self._busy = on_forward, 0
        self._lanes = [_Lane(self._settings, number) for number in range(count)]
        try:
            cards = [lane.card() for lane in self._lanes]
        except EngineError:
            self._close_all()
            raise
        self.card = replace(cards[0], lanes=count)

    def lanes(self) -> list[batching.Lane[Job, Outcome]]:
        """The first alone can take all cores; it is the one that a Batcher gives to whoever comes alone."""
        return [partial(self._run, number) for number in range(len(self._lanes))]

    def memory(self) -> dict[str, int]:
        """They are on the CPU."""
        return {}

    async def close(self) -> None:
        """Also a lane that is stuck in a call: it is killed."""
        for lane in self._lanes:
            lane.close()
        await asyncio.to_thread(self._wait_for_all)

    async def _run(self, number: int, jobs: list[Job]) -> list[Outcome]:
        self._busy += 1
        try:
            outcomes = await self._lanes[number].run(jobs, alone=self._busy == 1)
        except LaneDied as error:
            logger.error("%s; it is started again", error)
            self._lanes[number].close()
            self._lanes[number] = await asyncio.to_thread(self._again, number)
            raise
        finally:
            self._busy -= 1
        if (done := next((outcome for outcome in outcomes if isinstance(outcome, Done)), None)) is not None:
            self._on_forward(done.model_s)
        return outcomes

    def _again(self, number: int) -> _Lane:
        """Raises EngineError where it cannot be."""
        lane = _Lane(self._settings, number)
        lane.card()
        return lane

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


def main() -> int:
    """One lane: says its card, then answers batches until its socket is closed."""
    settings = Settings()
    logs.configure(settings.log_level, settings.log_format)
    connection, number = int(sys.argv[1]), int(sys.argv[2])
    stream = Stream(socket.socket(fileno=connection))
    lone_threads = (os.cpu_count() or 1) if number == 0 else settings.threads
    try:
        engine = load_engine(settings, lone_threads=lone_threads)
    except EngineError as error:
        stream.send({"refused": str(error)})
        return 2
    forward = Forward(engine, settings.max_pixels, lambda _: None)
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
