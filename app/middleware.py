"""What stands in front of the endpoints, as pure ASGI, outermost first; ``main.py`` has the order as data,
``guards.py`` what each decides.

* ``RequestContext``: request id, access log, request metrics; whatever error reaches it leaves in the contract's shape.
* ``Keys``: who may ask at all.
* ``Admission``: whether a request for answers may start, and how many bytes of it, how slowly, until when.

State of a request lives in an object made per call, never on a middleware.
"""

import asyncio
import logging
import time
from collections.abc import Collection, Mapping

from starlette.requests import ClientDisconnect
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import guards
from app.errors import Draining, InternalError, NotFound, ServiceError
from app.services import Services
from app.trace import CLIENT_GONE, of_request

logger = logging.getLogger("nam.access")


class Routes:
    """Which of some routes a path is of, by the router's own patterns: the two cannot disagree."""

    def __init__(self, routes: Collection[str]) -> None:
        self._plain = frozenset(routes)
        self._patterns = [(compile_path(route)[0], route) for route in routes if "{" in route]

    def find(self, path: str) -> str | None:
        if path in self._plain:
            return path
        return next((route for pattern, route in self._patterns if pattern.match(path)), None)


class RequestContext:
    """Gives each request an id (a good one of the caller's is kept), measures and logs it, answers for its errors."""

    def __init__(self, app: ASGIApp, routes: Collection[str]) -> None:
        self.app = app
        self.routes = Routes(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        else:
            await _Exchange(self, scope, receive, send).run()


class _Exchange:
    """One request under way and what is known of its answer."""

    def __init__(self, owner: RequestContext, scope: Scope, receive: Receive, send: Send) -> None:
        self.owner, self.scope, self.receive, self.send = owner, scope, receive, send
        self.headers = guards.by_name(scope["headers"])
        self.id = guards.request_id(self.headers)
        self.head = scope["method"] == "HEAD"
        self.route = owner.routes.find(scope["path"])
        self.status = self.received = self.sent = 0
        self.trace = guards.begin_trace(_services(scope), scope["method"], scope["path"], self.route, self.headers)
        scope["state"]["request_id"] = self.id

    async def run(self) -> None:
        started = time.monotonic()
        of_request.set(self.trace)
        try:
            await self.owner.app(self._inner_scope(), self._receive, self._send)
        except ClientDisconnect:
            self.status = CLIENT_GONE
        except asyncio.CancelledError:  # the drain is over: what is left is told so; but Ray: the caller is gone
            if not _services(self.scope).load.draining:
                self.status = CLIENT_GONE
            elif not self.status:
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
        if not self.head and b"range" not in self.headers:
            return self.scope
        headers = [(name, value) for name, value in self.scope["headers"] if name != b"range"]
        return {**self.scope, "headers": headers, "method": "GET" if self.head else self.scope["method"]}

    async def _receive(self) -> Message:
        message = await self.receive()
        self.received += len(message.get("body", b""))
        return message

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            extra = [(b"x-request-id", self.id.encode("latin-1")), *guards.safe_headers(message.get("headers", ()))]
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        elif self.head:
            message = {**message, "body": b""}
        self.sent += len(message.get("body", b""))
        await self.send(message)

    async def _answer(self, error: Exception) -> None:
        if not isinstance(error, ServiceError):
            logger.error("request %s failed", self.id, extra=guards.log_fields(self.id, self.trace), exc_info=error)
            error = InternalError()
        if self.status:  # half an answer is out: closing the connection is the only honest end
            raise error
        answer = guards.refusal(_services(self.scope), error, self.id, self.scope["path"])
        await answer(self.scope, self.receive, self._send)

    def _account(self, seconds: float) -> None:
        services, route = _services(self.scope), self.route or "other"
        told = {"received": self.received, "sent": self.sent}
        guards.account(services, self.scope["method"], route, self.status, seconds, self.id, **told, trace=self.trace)


class Keys:
    """A key on every path but health, where keys are set, and but for what ``NAM_OPEN`` names: the page asks for a key
    itself, so it must load without one.

    On the raw path of the scope: a URL that is rebuilt from the Host header can be made to look like another one
    (Starlette's BadHost, fixed in 1.0.1).
    """

    HEALTH = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
    # What each word opens: paths, and beginnings of paths. None of these files holds a secret.
    DOORS: Mapping[str, tuple[frozenset[str], tuple[str, ...]]] = {
        "page": (frozenset({"/"}), ("/web/",)),
        "docs": (frozenset({"/docs", "/openapi.json", "/web/docs.js", "/web/icon.svg"}), ("/docs/assets/",)),
        "metrics": (frozenset({"/metrics"}), ()),
    }

    def __init__(self, app: ASGIApp, doors: Collection[str]) -> None:
        self.app = app
        self._open = self.HEALTH.union(*(self.DOORS[door][0] for door in doors))
        self._below = tuple(start for door in doors for start in self.DOORS[door][1])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_open(scope["path"]):
            guards.check_key(_services(scope), guards.by_name(scope["headers"]))
        await self.app(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        return path in self._open or path.startswith(self._below)


class Admission:
    """Refuses work before its body is read: not ready, draining, full, or declared too large. Then counts the bytes as
    they arrive, bounds the pauses between them, and stamps the deadline, an instant of ``time.monotonic()``."""

    def __init__(self, app: ASGIApp, paths: Collection[str]) -> None:
        self.app = app
        self.paths = Routes(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or self.paths.find(scope["path"]) is None:
            await self.app(scope, receive, send)
            return
        admitted = guards.Admitted(_services(scope), guards.by_name(scope["headers"]))
        scope["state"]["deadline"], scope["state"]["hold"] = admitted.deadline, admitted.hold
        try:
            await self.app(scope, _Body(admitted, receive).receive, send)
        finally:
            admitted.close()


class _Body:
    """The body of one admitted request."""

    def __init__(self, admitted: guards.Admitted, source: Receive) -> None:
        self.admitted, self.source, self.complete = admitted, source, False

    async def receive(self) -> Message:
        """The next piece. Raises RequestTimeout or DeadlineExceeded where it does not come in time, BodyTooLarge."""
        if self.complete:  # what comes now is the end of the connection, whenever that is
            return await self.source()
        until, late = self.admitted.patience()
        try:
            async with asyncio.timeout_at(until):
                message = await self.source()
        except TimeoutError:
            raise late from None
        self.complete = not message.get("more_body", False)
        self.admitted.take(len(message.get("body", b"")))
        return message


def _services(scope: Scope) -> Services:
    services: Services = scope["state"]["services"]
    return services
