"""The connections. The usual request, ``POST /predict`` with the image as its body and nothing asked besides, is
answered here, from the parser's calls to the answer's bytes without a task: the framework, its tasks and its router
take longer than all else that the event loop does for it. Every other request is uvicorn's, and so the application's.

The guards are the application's own, and so is the answer, byte by byte but for its times: a test holds them together.
"""

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import cast

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app import batching, guards, schemas, serving
from app.errors import BadRequest, Draining, InternalError, ServiceError
from app.forward import Outcome
from app.services import Services
from app.trace import CLIENT_GONE, Trace
from app.uploads import not_empty

logger = logging.getLogger("nam.protocol")

PATH = b"/predict"
_ROUTE = PATH.decode()
_TOP_K = 5
_SAFE = b"".join(b"%b: %b\r\n" % header for header in guards.safe_headers(()))
# Bytes of a head, of the trailers behind a body, of a chunk's own line: the parser itself would take any number.
_MOST_HEAD = 2**16
_MOST_FIELDS = 100  # of a head: each takes up to thirty times its bytes
# Bytes that are parsed at a time: what follows a request within them waits as a request, a hundred times as large.
_PIECE = 2**12
# Whoever sends one of these asks for more than the usual.
_ASKING = (b"accept-language", b"content-encoding", b"transfer-encoding")


class Protocol(HttpToolsProtocol):
    """One connection. ``cycle`` is the request that the parser is at, in either way."""

    exchange: "_Exchange | None" = None  # the usual request that is not answered yet
    _answering: RequestResponseCycle | None = None  # the last that the application began to answer
    _unread: asyncio.TimerHandle | None = None  # runs while what was written is not read
    _unasked: asyncio.TimerHandle | None = None  # runs while what comes is a head, or a body that was refused already
    _unasked_bytes = 0
    _beside = 0  # bytes since the last head that was whole, or the last piece of a body
    _in_body = False
    _last_answered = False  # nothing that still comes is looked at
    later = b""  # came behind requests that wait for the answer before theirs, or that were answered at once
    _answered_at_once = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self.flow = _Flow(self)
        self._limit_unasked()
        if len(self.connections) > self._services.settings.max_connections:
            self.transport.abort()

    @property
    def _services(self) -> Services:
        services: Services = self.app_state["services"]
        return services

    @property
    def _idle_s(self) -> float:
        return self._services.settings.body_idle_ms / 1000

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:  # it is a trailer: nothing asks for them, and they may be any number
            return
        if len(self.headers) == _MOST_FIELDS:
            raise BadRequest
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._is_offered_another:
            return
        self._beside = 0
        self._forget_unasked()
        self._unset_keepalive_if_required()  # an answer within these same bytes has set it
        headers = guards.by_name(self.headers)
        if self._is_usual(headers):
            self.exchange = self.cycle = _Exchange(self, self._services)  # type: ignore[assignment]
            self._in_body = True
            self.exchange.begin(headers)
        else:
            super().on_headers_complete()  # raises where the head is none: the request before it is the last then
            self._in_body = True
            self.cycle.transport = cast(asyncio.Transport, _Outlet(self))
            if self._services.load.draining:
                self.cycle.keep_alive = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        self._beside = 0
        if isinstance(self.cycle, _Exchange):
            self.cycle.take(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_offered_another:
            return
        self._in_body = False
        self._forget_unasked()
        if isinstance(self.cycle, _Exchange):
            self.cycle.run()
        else:
            super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        if self._last_answered:
            self._take_unasked(len(data))
            return
        for at in range(0, len(data), _PIECE):
            if self.pipeline or self.later:
                self.later += data[at:]
                return
            self._answered_at_once = False
            self._parse(data[at : at + _PIECE])
            if self.transport.is_closing() or self._last_answered:
                return
            if self._answered_at_once and len(data) > at + _PIECE:  # others have their turn
                self.later += data[at + _PIECE :]
                self.flow.pause_reading()
                self.loop.call_soon(self._go_on)
                return
        if self.exchange is not None:
            self.exchange.wait_for_more()
        elif self.timeout_keep_alive_task is None and (self.cycle is None or self.cycle.response_complete):
            self._take_unasked(len(data))

    def _go_on(self) -> None:
        """With what was left for later, where nobody waits for an answer before theirs."""
        if self.later and not self.pipeline:
            later, self.later = self.later, b""
            self.flow.resume_reading()
            self.data_received(later)

    def _parse(self, piece: bytes) -> None:
        self._beside += len(piece)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as stopped:
            if self._is_offered_another:
                self._decline(piece[stopped.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("")
        if self._beside > _MOST_HEAD:
            self.transport.abort()

    @property
    def _is_offered_another(self) -> bool:
        """Whether a request would rather go on in another protocol, as Java's clients do: the parser leaves it there,
        without its body."""
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def _decline(self, rest: bytes) -> None:
        """The request once more, without the offer."""
        start = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        kept = [b"%b: %b\r\n" % line for line in self.headers if line[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._parse(b"".join((start, *kept, b"\r\n", rest)))

    def on_response_complete(self) -> None:
        if self.transport.is_closing():  # once all is read, which nobody but us bounds
            self._watch_reading(before=None)
        if self._last_answered:
            return
        self._answered_at_once = True
        super().on_response_complete()
        self._go_on()

    def finish(self) -> None:
        """The last answer is written. Where the body is not whole, closing now would take the answer away from whoever
        is still sending: it is read on for a while, and told that there is no more to come."""
        if not self._in_body or self.transport.is_closing():
            self.transport.close()
        elif not self._last_answered:
            self._last_answered = True
            self._limit_unasked()
            self.pipeline.clear()
            self.later = b""
            self.flow.resume_reading()  # which waited for an application that would read the body
            self.transport.write_eof()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch_reading(before=None)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP ends the connection and is told so in the contract's shape: after the answer that is owed to
        a request before it, and never beside the answer that this one has had."""
        self._beside = 0  # the parser keeps nothing of it
        unanswered = self.cycle is not None and not self.cycle.response_complete
        if unanswered and not self._in_body:
            self.cycle.keep_alive = False
            return
        answered = self._in_body and self.cycle is not None and self.cycle.response_complete
        if not (answered or self.pipeline):
            self.transport.write(_no_request(self._services, self.server_state.default_headers))
        self.transport.close()
        self._watch_reading(before=None)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reading(before=None)

    def resume_writing(self) -> None:
        self._stop_watching()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        self._forget_unasked()
        self._unset_keepalive_if_required()  # which uvicorn leaves where the other end resets the connection
        self.pipeline.clear()
        self.later = b""
        if self._answering is not None:  # which need not be the cycle that the parser is at
            self._answering.disconnected = True
            self._answering.message_event.set()
        if self.exchange is not None:
            self.exchange.abandon()
        if isinstance(self.cycle, _Exchange):
            self.cycle = None
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The grace is over: what is under way is told so."""
        super().shutdown()
        if self.exchange is not None:
            self.exchange.drain()

    def _limit_unasked(self) -> None:
        self._unasked_bytes = 0
        self._unasked = self.loop.call_later(self._idle_s, self.transport.abort)

    def _take_unasked(self, count: int) -> None:
        """What no request takes: the head of the next one while it is not whole, the rest of a body after its refusal.
        Either comes within the pause that a body may make, and is of bounded size; else the connection ends."""
        if self._unasked is None:
            self._limit_unasked()
            return
        self._unasked_bytes += count
        if self._in_body and self._unasked_bytes > self._services.settings.max_body_bytes:
            self.transport.abort()

    def _forget_unasked(self) -> None:
        if self._unasked is not None:
            self._unasked.cancel()
            self._unasked = None

    def _watch_reading(self, before: int | None) -> None:
        """Whoever reads nothing of an answer for as long as a body may pause is cut, and its place is given back."""
        self._stop_watching()
        unread = self.transport.get_write_buffer_size()
        if unread == before:
            self.transport.abort()
            return
        self._unread = self.loop.call_later(self._idle_s, self._watch_reading, unread)

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
            and not self.expect_100_continue
            and b"content-length" in headers
            and not any(name in headers for name in _ASKING)
            and _is_raw(headers.get(b"content-type", b"image/"))
        )


def _is_raw(media_type: bytes) -> bool:
    return media_type.startswith(b"image/") or media_type.partition(b";")[0].rstrip() == b"application/octet-stream"


def _no_request(services: Services, headers: list[tuple[bytes, bytes]]) -> bytes:
    """The answer to what the parser could not read."""
    id_ = guards.request_id({})
    told = guards.refusal(services, BadRequest("What came is no request of HTTP/1.1."), id_)
    guards.account(services, "-", "other", told.status_code, 0.0, id_, received=0, sent=len(told.body), trace=None)
    lines = (*headers, *told.raw_headers, (b"x-request-id", id_.encode()), (b"connection", b"close"))
    head = (STATUS_LINE[told.status_code], *(b"%b: %b\r\n" % line for line in lines), _SAFE, b"\r\n")
    return b"".join((*head, bytes(told.body)))


class _Flow(FlowControl):
    """Nothing is read while requests wait for the answer before theirs: uvicorn would read on at each of those answers,
    and each time that the application looks for a body, and parse and keep all that comes."""

    def __init__(self, connection: Protocol) -> None:
        super().__init__(connection.transport)
        self._connection = connection

    def resume_reading(self) -> None:
        if not (self._connection.pipeline or self._connection.later):
            super().resume_reading()


class _Outlet:
    """What uvicorn writes an answer to: the connection, which knows better when to close."""

    def __init__(self, connection: Protocol) -> None:
        self._connection, self.write = connection, connection.transport.write
        self.is_closing = connection.transport.is_closing

    def close(self) -> None:
        self._connection.finish()


class _Exchange:
    """One usual request. ``response_complete``, ``keep_alive``: what uvicorn asks of the request that it is at."""

    def __init__(self, connection: Protocol, services: Services) -> None:
        self._connection, self._services = connection, services
        self.response_complete, self.keep_alive = False, connection.parser.should_keep_alive()
        self._started, self._id, self._received = time.monotonic(), "", 0
        self._trace: Trace | None = None
        self._admitted: guards.Admitted | None = None
        self._pieces: list[bytes] = []
        self._work: asyncio.Future[batching.Served[Outcome]] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, headers: guards.Headers) -> None:
        """All that can be refused before the body is read."""
        self._id = guards.request_id(headers)
        self._trace = guards.begin_trace(self._services, "POST", _ROUTE, _ROUTE, headers)
        try:
            guards.check_key(self._services, headers)
            self._admitted = guards.Admitted(self._services, headers)
        except Exception as error:
            self._fail(error)

    def take(self, piece: bytes) -> None:
        """A piece of the body, whose length was declared and is held already."""
        if not self.response_complete:
            self._pieces.append(piece)
            self._received += len(piece)

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
            self._work = serving.begin(self._services, not_empty(image), k, self._admitted.deadline, trace=self._trace)
        except Exception as error:
            self._fail(error)
        else:
            self._work.add_done_callback(self._answer)

    def abandon(self) -> None:
        """The caller is gone: so is the work, unless it is being done."""
        if self._work is not None:
            self._work.cancel()
        self._end(CLIENT_GONE)

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
            served = serving.finished(self._services, work.result(), self._trace)
            body = schemas.to_json(schemas.predict_answer(card, served.done, "en"))
        except Exception as error:
            self._fail(error)
            return
        finally:
            del work  # its error's traceback holds this frame, and those that have the image
        times = (f"{name.lower()}: {value}\r\n".encode() for name, value in serving.timing_headers([served]).items())
        self._write(200, [b"vary: Accept-Language\r\ncontent-type: application/json\r\n", *times], body)

    def _fail(self, error: Exception) -> None:
        if isinstance(error, batching.BatcherError):
            error = serving.refused(self._services, error)
        if not isinstance(error, ServiceError):
            logger.error("request %s failed", self._id, extra=guards.log_fields(self._id, self._trace), exc_info=error)
            error = InternalError()
        told = guards.refusal(self._services, error, self._id)
        if told.headers.get("connection") == "close":
            self.keep_alive = False
        ours = (b"content-length", b"connection")  # which _write says itself
        lines = (b"%b: %b\r\n" % header for header in told.raw_headers if header[0] not in ours)
        self._write(told.status_code, lines, bytes(told.body))

    def _write(self, status: int, lines: Iterable[bytes], body: bytes) -> None:
        connection = self._connection
        if self._services.load.draining:
            self.keep_alive = False
        head = (
            STATUS_LINE[status],
            *(b"%b: %b\r\n" % header for header in connection.server_state.default_headers),
            *lines,
            b"x-request-id: %b\r\n" % self._id.encode(),
            _SAFE,
            b"" if self.keep_alive else b"connection: close\r\n",
            b"content-length: %d\r\n\r\n" % len(body),
        )
        connection.transport.write(b"".join((*head, body)))
        self._end(status, len(body))
        if not self.keep_alive:
            connection.finish()
        connection.on_response_complete()

    def _end(self, status: int, sent: int = 0) -> None:
        """Whatever the end: nothing is held, and it is accounted for."""
        self.response_complete, self._connection.exchange = True, None
        self._stop_waiting()
        self._pieces, self._work = [], None
        if self._admitted is not None:
            self._admitted.close()
        seconds, told = time.monotonic() - self._started, {"received": self._received, "sent": sent}
        guards.account(self._services, "POST", _ROUTE, status, seconds, self._id, **told, trace=self._trace)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
