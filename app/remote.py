"""The engine in a process of its own, and how an HTTP process reaches it: over a Unix socket, to one queue for all.

In an HTTP process :class:`RemoteBatcher` stands where a Batcher would; :class:`EngineServer` is the other end.
"""

import asyncio
import itertools
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from app import wire
from app.batching import Closed, DeadlineExceeded, QueueFull, Served
from app.engine import Card, EngineFailed
from app.forward import Job, Outcome
from app.messages import Messages, Part, message
from app.services import Lanes

logger = logging.getLogger("nam.remote")
Future = asyncio.Future[Served[Outcome]]


class RemoteBatcher(asyncio.Protocol):
    """As a Batcher to its callers. ``card`` is what the engine's process sent first."""

    card: Card

    def __init__(self) -> None:
        self._messages, self._numbers = Messages(), itertools.count()
        self._waiting: dict[int, Future] = {}
        self._transport: asyncio.WriteTransport | None = None
        self._greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def connect(cls, socket: Path) -> "RemoteBatcher":
        """Raises OSError where nothing listens, Closed where the engine's process ends before it has said a word."""
        _, batcher = await asyncio.get_running_loop().create_unix_connection(cls, str(socket))
        await batcher._greeted
        return batcher

    @property
    def healthy(self) -> bool:
        return self._transport is not None

    def submit(self, job: Job, deadline: float) -> Future:
        """As :meth:`app.batching.Batcher.submit`; EngineFailed for what its run raises."""
        if self._transport is None:
            raise Closed("the engine's process is gone")
        number, loop = next(self._numbers), asyncio.get_running_loop()
        self._waiting[number] = future = loop.create_future()
        future.add_done_callback(partial(self._leave, number, loop.call_at(deadline, self._expire, number)))
        told, parts = wire.put_jobs([job])
        self._transport.writelines(message({"number": number, "deadline": deadline, "jobs": told}, parts))
        return future

    def close(self) -> None:
        """Whoever waits still, waits no longer: the server has seen to it that nobody does."""
        if self._transport is not None:
            self._transport.close()

    def _expire(self, number: int) -> None:
        if (future := self._waiting.get(number)) is not None and not future.done():
            future.set_exception(DeadlineExceeded("the deadline passed before there was a result"))

    def _leave(self, number: int, timer: asyncio.TimerHandle, future: Future) -> None:
        """Its end, whichever; the engine's process hears of one that it has not told itself."""
        timer.cancel()
        if self._waiting.pop(number, None) and self._transport is not None:
            self._transport.writelines(message({"abandoned": number}))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        for head, payload in self._messages.feed(data):
            self._take(head, payload)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        futures: list[asyncio.Future[Any]] = [self._greeted, *self._waiting.values()]
        for future in futures:
            if not future.done():
                future.set_exception(Closed("the engine's process is gone"))

    def _take(self, head: dict[str, Any], payload: memoryview) -> None:
        if "card" in head:
            self.card = wire.take_card(head["card"])
            self._greeted.set_result(None)
            return
        future = self._waiting.pop(head["number"], None)
        if future is None or future.done():
            return
        match head["kind"]:
            case "served":
                (outcome,) = wire.take_outcomes(head["outcomes"], payload)
                future.set_result(Served(outcome, *head["served"]))
            case "full":
                future.set_exception(QueueFull(head["retry_after_s"]))
            case "late":
                future.set_exception(DeadlineExceeded("the deadline passed before there was a result"))
            case "closed":
                future.set_exception(Closed("the engine takes no work"))
            case _:
                future.set_exception(EngineFailed("the engine failed"))


class EngineServer(asyncio.Protocol):
    """One HTTP process's connection to the engine: a task a job, its answer written when it is there."""

    def __init__(self, batcher: Lanes, card: Card) -> None:
        self._batcher, self._card = batcher, card
        self._messages = Messages()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._write({"card": wire.put_card(self._card)})

    def data_received(self, data: bytes) -> None:
        for head, payload in self._messages.feed(data):
            if "abandoned" in head:
                if task := self._tasks.get(head["abandoned"]):
                    task.cancel()
            else:
                number = head["number"]
                self._tasks[number] = task = asyncio.create_task(self._answer(number, head, payload))
                task.add_done_callback(lambda _, number=number: self._tasks.pop(number, None))  # type: ignore[misc]

    def connection_lost(self, error: Exception | None) -> None:
        """Nobody waits for these answers any more."""
        self._transport = None
        for task in list(self._tasks.values()):
            task.cancel()

    async def _answer(self, number: int, head: dict[str, Any], payload: memoryview) -> None:
        try:
            (job,) = wire.take_jobs(head["jobs"], payload)
            served = await self._batcher.submit(job, head["deadline"])
        except QueueFull as full:
            self._write({"number": number, "kind": "full", "retry_after_s": full.retry_after_s})
        except DeadlineExceeded:
            self._write({"number": number, "kind": "late"})
        except Closed:
            self._write({"number": number, "kind": "closed"})
        except Exception:
            logger.exception("a batch failed")
            self._write({"number": number, "kind": "failed"})
        else:
            told, parts = wire.put_outcomes([served.result])
            times = [served.queue_s, served.run_s, served.batch_size, served.queued_at]
            self._write({"number": number, "kind": "served", "served": times, "outcomes": told}, parts)

    def _write(self, head: dict[str, Any], parts: Sequence[Part] = ()) -> None:
        if self._transport is not None:
            self._transport.writelines(message(head, parts))
