"""The connections. The usual request, ``POST /predict`` with the image as its body and nothing asked besides, is
answered here, from the parser's calls to the answer's bytes without a task: the framework, its tasks and its router
take longer than all else that the event loop does for it. Every other request is uvicorn's, and so the application's.

The guards are the application's own, and so is the answer, byte by byte but for its times: a test holds them together.
"""

import asyncio
import logging
import time
from collections.abc import Iterable

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app import batching, guards, schemas, serving
from app.errors import Draining, InternalError, ServiceError
from app.forward import Outcome
from app.services import Services
from app.uploads import not_empty

logger = logging.getLogger("nam.protocol")

PATH = b"/predict"
_TOP_K = 5
# Whoever sends one of these asks for more than the usual.
_ASKING = (b"accept-language", b"content-encoding", b"transfer-encoding")


class Protocol(HttpToolsProtocol):
    """One connection. ``cycle`` is the request that the parser is at, in either way."""

    exchange: "_Exchange | None" = None  # the usual request that is not answered yet
    _answering: RequestResponseCycle | None = None  # the last that the application began to answer
    _unread: asyncio.TimerHandle | None = None  # runs while what was written is not read

    def on_headers_complete(self) -> None:
        self._unset_keepalive_if_required()  # an answer within these same bytes has set it
        headers = guards.by_name(self.headers)
        if self._is_usual(headers):
            self.exchange = self.cycle = _Exchange(self, self.app_state["services"])  # type: ignore[assignment]
            self.exchange.begin(headers)
        else:
            super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        if isinstance(self.cycle, _Exchange):
            self.cycle.take(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if isinstance(self.cycle, _Exchange):
            self.cycle.run()
        else:
            super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.exchange is not None:
            self.exchange.wait_for_more()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reading(before=None)

    def resume_writing(self) -> None:
        self._stop_watching()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        self.pipeline.clear()
        if self._answering is not None:  # which need not be the cycle that the parser is at
            self._answering.disconnected = True
            self._answering.message_event.set()
        if self.exchange is not None:
            self.exchange.abandon()
        if isinstance(self.cycle, _Exchange):
            self.cycle = None  # type: ignore[assignment]
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The grace is over: what is under way is told so."""
        super().shutdown()
        if self.exchange is not None:
            self.exchange.drain()

    def _watch_reading(self, before: int | None) -> None:
        """Whoever reads nothing of an answer for as long as a body may pause is cut, and its place is given back."""
        unread = self.transport.get_write_buffer_size()
        if unread == before:
            self.transport.abort()
            return
        idle_s = self.app_state["services"].settings.body_idle_ms / 1000
        self._unread = self.loop.call_later(idle_s, self._watch_reading, unread)

    def _stop_watching(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _is_usual(self, headers: guards.Headers) -> bool:
        return (
            self.url == PATH
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
            and (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused  # uvicorn's way waits for whoever does not read
            and not (self.expect_100_continue or self.parser.should_upgrade())
            and b"content-length" in headers
            and not any(name in headers for name in _ASKING)
            and _is_raw(headers.get(b"content-type", b"image/"))
        )


def _is_raw(media_type: bytes) -> bool:
    return media_type.startswith(b"image/") or media_type.partition(b";")[0].rstrip() == b"application/octet-stream"


class _Exchange:
    """One usual request. ``response_complete``, ``keep_alive``: what uvicorn asks of the request that it is at."""

    def __init__(self, connection: Protocol, services: Services) -> None:
        self._connection, self._services = connection, services
        self.response_complete, self.keep_alive = False, connection.parser.should_keep_alive()
        self._started, self._id = time.monotonic(), ""
        self._admitted: guards.Admitted | None = None
        self._pieces: list[bytes] = []
        self._work: asyncio.Future[batching.Served[Outcome]] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, headers: guards.Headers) -> None:
        """All that can be refused before the body is read."""
        self._id = guards.request_id(headers)
        try:
            guards.check_key(self._services, headers)
            self._admitted = guards.Admitted(self._services, headers)
        except Exception as error:
            self._fail(error)

    def take(self, piece: bytes) -> None:
        """A piece of the body, whose length was declared and is held already."""
        if not self.response_complete:
            self._pieces.append(piece)

    def wait_for_more(self) -> None:
        """Until the next piece, where the body is not whole."""
        if self._admitted is None or self._work is not None:
            return
        self._stop_waiting()
        until, late = self._admitted.patience()
        self._timer = self._connection.loop.call_at(until, lambda: self._fail(late()))

    def run(self) -> None:
        """The body is whole."""
        if self.response_complete or self._admitted is None:
            return
        self._stop_waiting()
        image, self._pieces = b"".join(self._pieces), []
        try:
            k = min(_TOP_K, len(self._services.engine.card.labels))
            self._work = serving.begin(self._services, not_empty(image), k, self._admitted.deadline)
        except Exception as error:
            self._fail(error)
        else:
            self._work.add_done_callback(self._answer)

    def abandon(self) -> None:
        """The caller is gone: so is the work, unless it is being done."""
        if self._work is not None:
            self._work.cancel()
        self._end(guards.CLIENT_GONE)

    def drain(self) -> None:
        self.keep_alive = False
        if self._work is not None:
            self._work.cancel()
        self._fail(Draining())

    def _answer(self, work: asyncio.Future[batching.Served[Outcome]]) -> None:
        if self.response_complete:
            if not work.cancelled():
                work.exception()  # which nobody else will ask for
            return
        card = self._services.engine.card
        try:
            served = serving.finished(self._services, work.result())
            body = schemas.to_json(schemas.predict_answer(card, served.done, "en"))
        except Exception as error:
            self._fail(error)
            return
        times = (f"{name.lower()}: {value}\r\n".encode() for name, value in serving.timing_headers([served]).items())
        self._write(200, [b"vary: Accept-Language\r\ncontent-type: application/json\r\n", *times], body)

    def _fail(self, error: Exception) -> None:
        if isinstance(error, batching.BatcherError):
            error = serving.refused(self._services, error)
        if not isinstance(error, ServiceError):
            logger.error("request %s failed", self._id, exc_info=error)
            error = InternalError()
        told = guards.refusal(self._services, error, self._id)
        if told.headers.get("connection") == "close":
            self.keep_alive = False
        ours = (b"content-length", b"connection")  # which _write says itself
        lines = (b"%b: %b\r\n" % header for header in told.raw_headers if header[0] not in ours)
        self._write(told.status_code, lines, bytes(told.body))

    def _write(self, status: int, lines: Iterable[bytes], body: bytes) -> None:
        connection = self._connection
        head = (
            STATUS_LINE[status],
            *(b"%b: %b\r\n" % header for header in connection.server_state.default_headers),
            *lines,
            b"x-request-id: %b\r\nx-content-type-options: nosniff\r\n" % self._id.encode(),
            b"" if self.keep_alive else b"connection: close\r\n",
            b"content-length: %d\r\n\r\n" % len(body),
        )
        connection.transport.write(b"".join((*head, body)))
        self._end(status)
        if not self.keep_alive:
            connection.transport.close()
        connection.on_response_complete()

    def _end(self, status: int) -> None:
        """Whatever the end: nothing is held, and it is accounted for."""
        self.response_complete, self._connection.exchange = True, None
        self._stop_waiting()
        self._pieces, self._work = [], None
        if self._admitted is not None:
            self._admitted.close()
        guards.account(self._services, "POST", PATH.decode(), status, time.monotonic() - self._started, self._id)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
