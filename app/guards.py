"""Who may ask, how much, how slowly, and until when; and what is told of it afterwards. Decisions alone:
``middleware.py`` asks for them where a request goes through the framework, ``protocol.py`` where it does not."""

import hashlib
import hmac
import itertools
import logging
import re
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence

import orjson
from starlette.responses import Response

from app.errors import (
    BadParameter,
    BodyTooLarge,
    DeadlineExceeded,
    Draining,
    NotReady,
    Overloaded,
    RequestTimeout,
    ServiceError,
    Unauthorized,
    problem,
)
from app.services import Services
from app.trace import Trace, heard

logger = logging.getLogger("nam.access")

Headers = Mapping[bytes, bytes]

# What every answer says: it is what its type says. And what is said of those that do not say how they may be kept:
# they may tell of somebody's image.
NO_SNIFFING = (b"x-content-type-options", b"nosniff")
NOT_KEPT = (b"cache-control", b"no-store")

# What the arguments of a request's line are called, where it is an object.
_LINE = {"names": ("method", "route", "status", "ms", "request_id")}
# Probes come all day long and say nothing: no spans of them.
_PROBES = frozenset({"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
# How much longer than expected a wait may become before an accepted request misses its deadline.
_MARGIN = 1.25
_GOOD_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Unlike any other process's and unlike each other; a random number for each would cost a call of the kernel.
_ids = map(f"{secrets.token_hex(8)}{{:016x}}".format, itertools.count(1))


def by_name(headers: Sequence[tuple[bytes, bytes]]) -> Headers:
    """The first value of each, their names in lower case."""
    return dict(reversed(headers))


def request_id(headers: Headers) -> str:
    """The caller's where it is a good one, else a new one."""
    sent = headers.get(b"x-request-id", b"").decode("latin-1")
    return sent if _GOOD_ID.fullmatch(sent) else next(_ids)


def safe_headers(told: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """What an answer with these headers says besides."""
    kept = any(name.lower() in (b"cache-control", b"etag") for name, _ in told)
    return [NO_SNIFFING] if kept else [NO_SNIFFING, NOT_KEPT]


def check_key(services: Services, headers: Headers) -> None:
    """``Authorization: Bearer <key>``, where keys are set. Raises Unauthorized.

    Digests are compared, all of them and each in constant time: the time says neither how much of a key was right nor
    how long it is, nor which one fitted.
    """
    if not (digests := services.settings.key_digests):
        return
    scheme, _, sent = headers.get(b"authorization", b"").partition(b" ")
    digest = hashlib.sha256(sent.strip(b" ")).digest()
    fits = [hmac.compare_digest(digest, one) for one in digests]
    if scheme.lower() != b"bearer" or not any(fits):
        raise Unauthorized


class Admitted:
    """A request for answers that may start. From here on it counts; ``close`` ends that.

    ``deadline``: an instant of ``time.monotonic()``. Raises Draining, NotReady, Overloaded, BadParameter, BodyTooLarge.
    """

    __slots__ = ("_answer", "_held", "_seen", "_services", "deadline")

    def __init__(self, services: Services, headers: Headers) -> None:
        _refuse_if_unfit(services)
        timeout_s = _timeout_s(headers.get(b"x-timeout-ms"), services)
        _refuse_if_too_late(services, timeout_s)
        self._services, self._held, self._seen, self._answer = services, 0, 0, 0
        self.deadline = time.monotonic() + timeout_s
        self._reserve(int(headers.get(b"content-length", b"0")))  # which the server has checked
        services.load.requests += 1

    def take(self, count: int) -> None:
        """So many bytes of the body have come. Raises BodyTooLarge, Overloaded."""
        self._seen += count
        self._reserve(self._seen)

    def hold(self, count: int) -> None:
        """So many bytes of an answer, until it is read: many callers together must not have more of them in memory than
        of bodies. Raises Overloaded."""
        self._hold(count)
        self._answer += count

    def patience(self) -> tuple[float, type[ServiceError]]:
        """The instant by which the next piece of the body must come, and what it is where it does not."""
        idle_until = time.monotonic() + self._services.settings.body_idle_ms / 1000
        return (idle_until, RequestTimeout) if idle_until < self.deadline else (self.deadline, DeadlineExceeded)

    def close(self) -> None:
        load = self._services.load
        load.requests -= 1
        load.body_bytes -= self._held + self._answer

    def _reserve(self, total: int) -> None:
        """Hold so many bytes in all."""
        if total <= self._held:
            return
        if total > (most := self._services.settings.max_body_bytes):
            raise BodyTooLarge(f"The body is larger than {most} bytes.")
        self._hold(total - self._held)
        self._held = total

    def _hold(self, more: int) -> None:
        load = self._services.load
        if load.all_body_bytes + more > self._services.settings.max_inflight_bytes:
            raise Overloaded("The service holds as many bytes of bodies and answers as it may.")
        load.body_bytes += more


def begin_trace(services: Services, method: str, path: str, route: str | None, headers: Headers) -> Trace | None:
    """The request's trace: ours where traces are on, else the caller's, else none."""
    if services.traces is None or route in _PROBES:
        return heard(headers)
    return services.traces.begin(method, path, route, headers)


def account(
    services: Services,
    method: str,
    route: str,
    status: int,
    seconds: float,
    id_: str,
    *,
    received: int,
    sent: int,
    trace: Trace | None,
) -> None:
    """The request's line in the log, its place in the metrics, its spans. ``received``, ``sent``: bytes of bodies."""
    services.metrics.on_request(route, status, seconds, received, sent)
    if logger.isEnabledFor(logging.INFO):
        extra = _LINE if trace is None else {**_LINE, "trace_id": trace.id}
        logger.info("%s %s %d %.1f ms %s", method, route, status, 1000 * seconds, id_, extra=extra)
    if trace is not None:
        trace.end(status, received, sent)


def log_fields(id_: str, trace: Trace | None) -> dict[str, str]:
    """What every line about a request says of it beside its words."""
    return {"request_id": id_} if trace is None else {"request_id": id_, "trace_id": trace.id}


def refusal(services: Services, error: ServiceError, id_: str, path: str = "") -> Response:
    """The one shape of every error, RFC 9457; it is counted."""
    services.metrics.refusals.labels(error.code).inc()
    return Response(
        orjson.dumps(problem(error, id_, path)), error.status, error.headers, media_type="application/problem+json"
    )


def check_ready(services: Services) -> None:
    """Warm, not draining, and the engine's lanes live. Raises Draining, NotReady."""
    if services.load.draining:
        raise Draining
    if not services.batcher.healthy:
        raise NotReady


def _refuse_if_unfit(services: Services) -> None:
    check_ready(services)
    if (under_way := services.load.all_requests) >= services.settings.max_requests:
        raise Overloaded(f"{under_way} requests are under way already.")


def _refuse_if_too_late(services: Services, timeout_s: float) -> None:
    """Who would get no answer in time is better told so now: what is under way, at the pace of late, takes longer."""
    wait_s = services.load.all_requests * services.load.image_s
    if _MARGIN * wait_s > timeout_s:
        retry_after = {"Retry-After": str(max(1, round(wait_s)))}
        raise Overloaded(f"The wait would be {wait_s:.1f} s, longer than the deadline.", headers=retry_after)


def _timeout_s(sent: bytes | None, services: Services) -> float:
    """The caller's deadline or the service's, whichever is nearer, in seconds from now. Raises BadParameter."""
    longest = services.settings.timeout_ms
    if sent is None:
        return longest / 1000
    if not (sent.isdigit() and int(sent[:18]) > 0):
        raise BadParameter("X-Timeout-Ms is a whole number of milliseconds, 1 at least.")
    return min(int(sent[:18]), longest) / 1000
