"""What stands in front of the endpoints, as pure ASGI, outermost first; ``main.py`` has the order as data.

* ``RequestContext``: request id, access log, request metrics; whatever error reaches it leaves in the contract's shape.
* ``Keys``: who may ask at all.
* ``Admission``: whether a request for answers may start, and how many bytes of it, how slowly, until when.

State of a request lives in an object made per call, never on a middleware.
"""

import asyncio
import hmac
import itertools
import logging
import re
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass

import orjson
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import (
    BadParameter,
    BodyTooLarge,
    DeadlineExceeded,
    Draining,
    InternalError,
    NotFound,
    NotReady,
    Overloaded,
    RequestTimeout,
    ServiceError,
    Unauthorized,
    problem,
)
from app.services import Services

logger = logging.getLogger("nam.access")

# nginx's word for a caller that left before its answer; for the log and the metrics, nobody receives it.
_CLIENT_GONE = 499
# How much longer than expected a wait may become before an accepted request misses its deadline.
_MARGIN = 1.25
_GOOD_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def problem_response(error: ServiceError, request_id: str) -> Response:
    """The one shape of every error, RFC 9457."""
    body = orjson.dumps(problem(error, request_id))
    return Response(body, error.status, error.headers, media_type="application/problem+json")


class RequestContext:
    """Gives each request an id (a good one of the caller's is kept), measures and logs it, answers for its errors."""

    def __init__(self, app: ASGIApp, routes: Collection[str]) -> None:
        self.app = app
        self.routes = frozenset(routes)
        # Unlike any other process's and unlike each other; a random number for each would cost a call of the kernel.
        self._ids = map(f"{secrets.token_hex(8)}{{:016x}}".format, itertools.count(1))

    def new_id(self) -> str:
        return next(self._ids)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        else:
            await _Exchange(self, scope, receive, send).run()


class _Exchange:
    """One request under way and what is known of its answer."""

    def __init__(self, owner: RequestContext, scope: Scope, receive: Receive, send: Send) -> None:
        self.owner, self.scope, self.receive, self.send = owner, scope, receive, send
        sent = _header(scope, b"x-request-id").decode("latin-1")
        self.id = sent if _GOOD_ID.fullmatch(sent) else owner.new_id()
        self.head = scope["method"] == "HEAD"
        self.status = 0
        scope["state"]["request_id"] = self.id

    async def run(self) -> None:
        started = time.monotonic()
        try:
            await self.owner.app(self._inner_scope(), self.receive, self._send)
        except ClientDisconnect:
            self.status = _CLIENT_GONE
        except asyncio.CancelledError:  # the drain is over: what is left is told so
            if not self.status:
                await self._answer(Draining())
            raise
        except Exception as error:
            await self._answer(error)
        finally:
            self._account(time.monotonic() - started)

    def _inner_scope(self) -> Scope:
        """What the application sees. Raises NotFound for a path that the router would take for another one: its
        patterns also match before a final newline, and admission would not know the path.

        HEAD is answered as GET without the body, and Range is ignored, as RFC 9110 (9.3.2, 14.2) has both.
        """
        if not self.scope["path"].isprintable():
            raise NotFound
        if not self.head and not _header(self.scope, b"range"):
            return self.scope
        headers = [(name, value) for name, value in self.scope["headers"] if name != b"range"]
        return {**self.scope, "headers": headers, "method": "GET" if self.head else self.scope["method"]}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            extra = [(b"x-request-id", self.id.encode("latin-1")), (b"x-content-type-options", b"nosniff")]
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        elif self.head:
            message = {**message, "body": b""}
        await self.send(message)

    async def _answer(self, error: Exception) -> None:
        if not isinstance(error, ServiceError):
            logger.error("request %s failed", self.id, exc_info=error)
            error = InternalError()
        if self.status:  # half an answer is out: closing the connection is the only honest end
            raise error
        count_refusal(self.scope, error)
        await problem_response(error, self.id)(self.scope, self.receive, self._send)

    def _account(self, seconds: float) -> None:
        path = self.scope["path"]
        route = path if path in self.owner.routes else "other"
        _services(self.scope).metrics.on_request(route, self.status, seconds)
        logger.info("%s %s %d %.1f ms %s", self.scope["method"], route, self.status, 1000 * seconds, self.id)


class Keys:
    """``Authorization: Bearer <key>`` on every path but health, where keys are set.

    Compared in constant time, on the raw path of the scope: a URL that is rebuilt from the Host header can be made to
    look like another one (Starlette's BadHost, fixed in 1.0.1).
    """

    OPEN = frozenset({"/healthz", "/readyz"})

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self.OPEN:
            self._check(scope, _services(scope).settings.keys)
        await self.app(scope, receive, send)

    def _check(self, scope: Scope, keys: tuple[str, ...]) -> None:
        if not keys:
            return
        scheme, _, sent = Headers(scope=scope).get("authorization", "").partition(" ")
        # Every key is compared, so that the time says nothing of which one fitted.
        fits = [hmac.compare_digest(sent.encode("latin-1"), key.encode()) for key in keys]
        if scheme.lower() != "bearer" or not any(fits):
            raise Unauthorized


class Admission:
    """Refuses work before its body is read: not ready, draining, full, or declared too large. Then counts the bytes as
    they arrive, bounds the pauses between them, and stamps the deadline, an instant of ``time.monotonic()``."""

    def __init__(self, app: ASGIApp, paths: Collection[str]) -> None:
        self.app = app
        self.paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in self.paths:
            await self.app(scope, receive, send)
        else:
            await self._admit(scope, receive, send)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = _services(scope)
        headers = Headers(scope=scope)
        _refuse_if_unfit(services)
        timeout_s = _timeout_s(headers, services)
        _refuse_if_too_late(services, timeout_s)
        scope["state"]["deadline"] = deadline = time.monotonic() + timeout_s
        body = _Body(services, receive, deadline)
        services.load.requests += 1
        try:
            body.reserve(_declared_length(headers))
            await self.app(scope, body.receive, send)
        finally:
            services.load.requests -= 1
            body.release()


@dataclass
class _Body:
    """The bytes of one request: ``held`` of the service's allowance, ``seen`` so far."""

    services: Services
    source: Receive
    deadline: float
    held: int = 0
    seen: int = 0
    complete: bool = False

    def reserve(self, total: int) -> None:
        """Hold ``total`` bytes in all. Raises BodyTooLarge or Overloaded."""
        settings, load = self.services.settings, self.services.load
        if total > settings.max_body_bytes:
            raise BodyTooLarge(f"The body is larger than {settings.max_body_bytes} bytes.")
        more = max(0, total - self.held)
        if load.all_body_bytes + more > settings.max_inflight_bytes:
            raise Overloaded("The service holds as many bytes of bodies as it may.")
        load.body_bytes += more
        self.held += more

    def release(self) -> None:
        self.services.load.body_bytes -= self.held
        self.held = 0

    async def receive(self) -> Message:
        """The next piece of the body. Raises RequestTimeout where it does not come in time."""
        if self.complete:  # what comes now is the end of the connection, whenever that is
            return await self.source()
        idle_until = time.monotonic() + self.services.settings.body_idle_ms / 1000
        late = DeadlineExceeded if self.deadline <= idle_until else RequestTimeout
        try:
            async with asyncio.timeout_at(min(idle_until, self.deadline)):
                message = await self.source()
        except TimeoutError:
            raise late from None
        self.complete = not message.get("more_body", False)
        self.seen += len(message.get("body", b""))
        self.reserve(self.seen)
        return message


def _refuse_if_unfit(services: Services) -> None:
    if services.load.draining:
        raise Draining
    if not services.batcher.healthy:
        raise NotReady
    if (under_way := services.load.all_requests) >= services.settings.max_requests:
        raise Overloaded(f"{under_way} requests are under way already.")


def _refuse_if_too_late(services: Services, timeout_s: float) -> None:
    """Who would get no answer in time is better told so now: what is under way, at the pace of late, takes longer."""
    wait_s = services.load.all_requests * services.load.image_s
    if _MARGIN * wait_s > timeout_s:
        retry_after = {"Retry-After": str(max(1, round(wait_s)))}
        raise Overloaded(f"The wait would be {wait_s:.1f} s, longer than the deadline.", headers=retry_after)


def _timeout_s(headers: Headers, services: Services) -> float:
    """The caller's deadline or the service's, whichever is nearer, in seconds from now. Raises BadParameter."""
    sent = headers.get("x-timeout-ms")
    longest = services.settings.timeout_ms
    if sent is None:
        return longest / 1000
    if not (sent.isascii() and sent.isdigit() and int(sent[:18]) > 0):
        raise BadParameter("X-Timeout-Ms is a whole number of milliseconds, 1 at least.")
    return min(int(sent[:18]), longest) / 1000


def _declared_length(headers: Headers) -> int:
    """Content-Length, which the server has checked; 0 for a body in chunks."""
    return int(headers.get("content-length", "0"))


def count_refusal(scope: Scope, error: ServiceError) -> None:
    _services(scope).metrics.refusals.labels(error.code).inc()


def _header(scope: Scope, name: bytes) -> bytes:
    """The value of a request's header, its name in lower case; the first, or none."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return b""


def _services(scope: Scope) -> Services:
    services: Services = scope["state"]["services"]
    return services
