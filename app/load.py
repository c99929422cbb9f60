"""The load generator behind ``nam bench``: plain HTTP/1.1 over keep-alive connections, the standard library alone.

One thread and non-blocking sockets, because it runs on the cores of the server that it measures. A closed loop keeps
``concurrency`` requests under way; an open loop sends at the instants of a Poisson process, whether answers come or
not, and a request's time runs from that instant, also where it had to wait for a connection.

What counts: the requests that began within the measured seconds, all of which are waited for. Figures a second, and
CPU and bytes a request, are of what ended within them. Instants are of ``time.perf_counter()``, in seconds.
"""

import errno
import heapq
import itertools
import math
import random
import resource
import select
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol
from urllib.parse import urlsplit

from app.http_answer import Answer
from app.load_report import Report, Tally, Totals, report_of

_RECEIVE = 2**17  # bytes at most in one call
_PAUSE_S = 0.01  # what a caller of a closed loop waits after an error, so that a dead server costs no core
_GRACE_S = 10.0  # how long answers are waited for after the measured seconds
_BOTH = selectors.EVENT_READ | selectors.EVENT_WRITE

_clock = time.perf_counter


@dataclass(frozen=True)
class Plan:
    """What to send and how: ``bodies`` in turn to ``url``, path and query included.

    ``rate``: arrivals a second, or 0 for a closed loop of ``concurrency`` callers. ``requests``: at most so many count,
    or 0 for all that begin in ``seconds``. ``deadline_ms``: sent as X-Timeout-Ms, or 0 for none.
    """

    url: str
    bodies: tuple[bytes, ...]
    content_type: str = "image/jpeg"
    key: str = ""
    concurrency: int = 32
    rate: float = 0.0
    seconds: float = 10.0
    requests: int = 0
    warmup_s: float = 1.0
    deadline_ms: int = 0
    max_connections: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for a plan that cannot be followed."""
        parts = urlsplit(self.url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{self.url}: the address begins with http://, the only protocol spoken here")
        if not self.bodies or min(self.concurrency, self.max_connections) < 1:
            raise ValueError("a plan has at least one body and one connection")
        if min(self.rate, self.warmup_s, self.requests, self.deadline_ms) < 0 or self.seconds <= 0:
            raise ValueError("times, rates and numbers are not negative, and seconds are above 0")
        if any(sign in self.url + self.content_type + self.key for sign in "\r\n"):
            raise ValueError("a line break has no place in an address, a content type or a key")


class Server(Protocol):
    """What a server on this machine costs."""

    def cpu_s(self) -> float:
        """Its CPU time so far."""

    def watch(self) -> None:
        """From now on look at its memory."""

    def peak_mb(self) -> float:
        """The most memory since ``watch``, which ends."""


def run(plan: Plan, server: Server | None = None) -> Report:
    """Put the load on the server. Raises OSError where its address does not resolve or nothing listens there."""
    return _Load(plan, server).run()


class _Connection:
    __slots__ = ("answer", "began", "busy", "counts", "error", "out", "sock", "writing")

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.answer = sock, Answer()
        self.began, self.counts, self.busy = 0.0, False, False
        self.out: bytes | memoryview = b""  # what is still to be sent
        self.writing = True  # whether the selector looks for room to send; at first that means: connected
        self.error = ""  # what sending met: the answer may have come before it


class _Load:
    """The loop. Requests wait in ``_due`` for a connection; whatever has its time waits in ``_timers``."""

    def __init__(self, plan: Plan, server: Server | None) -> None:
        self._plan, self._server = plan, server
        self._family, self._address = _reach(plan.url)
        self._bodies = itertools.cycle(_requests(plan))
        self._deadline_s = plan.deadline_ms / 1000 or math.inf
        self._most = plan.max_connections if plan.rate else plan.concurrency
        _allow_files(self._most + 64)
        self._random = random.Random(plan.seed)  # noqa: S311 - arrivals are no secret
        self._selector = selectors.DefaultSelector()
        self._open = 0
        self._idle: list[_Connection] = []
        self._due: deque[tuple[float, bool]] = deque()  # when a request began, and whether it counts
        self._timers: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = itertools.count()
        self._counting = self._stopped = self._over = False
        self._begun = self._pending = 0  # of the requests that count
        self._totals, self._tally = Totals(), Tally()
        self._first, self._last = Totals(), Totals()
        self._looking_s = 0.0  # what asking for the server's CPU time took: not the load's

    def run(self) -> Report:
        try:
            self._begin(_clock())
            while not self._over:
                self._fire(_clock())
                for key, _ in self._wait():
                    self._ready(key.data)
            if not self._last.at:
                self._last = self._seen()
            peak_mb = None if self._server is None else self._server.peak_mb()
            return report_of(self._first, self._last, self._tally, peak_mb)
        finally:
            for key in list(self._selector.get_map().values()):
                key.data.sock.close()
            self._selector.close()

    # Time.

    def _begin(self, now: float) -> None:
        if self._plan.warmup_s:
            self._at(now + self._plan.warmup_s, self._start_window)
        else:
            self._start_window(now)
        if self._plan.rate:
            self._at(now + self._random.expovariate(self._plan.rate), self._arrive_and_go_on)
        for _ in range(0 if self._plan.rate else self._plan.concurrency):
            self._arrive(_clock())

    def _start_window(self, _: float) -> None:
        if self._server is not None:
            self._server.watch()
        self._first = self._seen()
        self._counting = True
        self._at(self._first.at + self._plan.seconds, self._end_window)

    def _end_window(self, _: float) -> None:
        if not self._stopped:
            self._last = self._seen()
            self._stop()

    def _stop(self) -> None:
        """No further request counts. A closed loop goes on until those that do are answered: they wait as before."""
        self._counting, self._stopped = False, True
        self._at(_clock() + _GRACE_S, self._give_up)
        self._settle()

    def _give_up(self, _: float) -> None:
        self._tally.errors["unanswered"] += self._pending
        self._over = True

    def _settle(self) -> None:
        self._over = self._over or (self._stopped and not self._pending)

    def _seen(self) -> Totals:
        before = time.thread_time()
        server_s = None if self._server is None else self._server.cpu_s()
        self._looking_s += time.thread_time() - before
        client_s = time.thread_time() - self._looking_s
        return replace(self._totals, at=_clock(), client_s=client_s, server_s=server_s)

    def _at(self, when: float, act: Callable[[float], None]) -> None:
        heapq.heappush(self._timers, (when, next(self._numbers), act))

    def _fire(self, now: float) -> None:
        while self._timers[0][0] <= now and not self._over:
            when, _, act = heapq.heappop(self._timers)
            act(when)

    def _wait(self) -> list[tuple[selectors.SelectorKey, int]]:
        """Selectors wait in whole milliseconds: too coarse for arrivals, so there ``select`` waits for the selector."""
        timeout = 0.0 if self._over else max(0.0, self._timers[0][0] - _clock())
        if self._plan.rate and timeout:
            select.select([self._selector.fileno()], [], [], timeout)
            timeout = 0.0
        return self._selector.select(timeout)

    # Requests.

    def _arrive_and_go_on(self, when: float) -> None:
        self._arrive(when)
        if not self._stopped:
            self._at(when + self._random.expovariate(self._plan.rate), self._arrive_and_go_on)

    def _arrive(self, when: float) -> None:
        if self._over:
            return
        counts = self._counting
        if counts:
            self._pending += 1
            self._begun += 1
            if self._begun == self._plan.requests:
                self._stop()
        self._due.append((when, counts))
        self._dispatch()

    def _dispatch(self) -> None:
        while self._due:
            if self._idle:
                connection = self._idle.pop()
                self._take(connection)
                self._send(connection)
            elif self._open < self._most:
                self._connect()
            else:
                return

    def _connect(self) -> None:
        try:
            sock = socket.socket(self._family, socket.SOCK_STREAM)
        except OSError as error:
            self._fail(self._due.popleft()[1], _name(error))
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(sock)
        self._open += 1
        self._take(connection)
        try:
            sock.connect(self._address)
        except BlockingIOError:
            pass
        except OSError as error:
            connection.error = _name(error)
        self._selector.register(sock, _BOTH, connection)

    def _take(self, connection: _Connection) -> None:
        connection.began, connection.counts = self._due.popleft()
        connection.busy = True
        self._totals.asked += 1
        connection.answer.begin()
        connection.out = next(self._bodies)

    def _send(self, connection: _Connection) -> None:
        try:
            sent = connection.sock.send(connection.out)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            connection.error = connection.error or _name(error)
            connection.out, sent = b"", 0
        self._totals.sent += sent
        connection.out = memoryview(connection.out)[sent:] if sent < len(connection.out) else b""
        if connection.writing != bool(connection.out):
            connection.writing = not connection.writing
            self._selector.modify(connection.sock, _BOTH if connection.writing else selectors.EVENT_READ, connection)

    def _ready(self, connection: _Connection) -> None:
        if connection.writing:
            self._send(connection)
        try:
            data = connection.sock.recv(_RECEIVE)
            whole = connection.answer.feed(data) if data and connection.busy else False
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(connection, connection.error or _name(error))
            return
        except ValueError:
            self._lose(connection, "malformed answer")
            return
        self._totals.received += len(data)
        if whole or (not data and connection.answer.until_close):
            self._answered(connection)
        elif not data or not connection.busy:
            self._lose(connection, connection.error or f"closed {_where(connection.answer)} an answer")

    def _answered(self, connection: _Connection) -> None:
        now, answer = _clock(), connection.answer
        seconds = now - connection.began
        self._totals.ended += 1
        if 200 <= answer.status < 300:
            self._totals.ok += 1
            self._totals.good += seconds <= self._deadline_s
        if connection.counts:
            self._tally.add(answer, seconds)
            self._pending -= 1
            self._settle()
        connection.busy = False
        if answer.closes or connection.out or connection.error:
            self._close(connection)
        else:
            self._idle.append(connection)
        if self._plan.rate:
            self._dispatch()
        else:
            self._arrive(now)

    def _lose(self, connection: _Connection, name: str) -> None:
        """The connection is of no more use; where nothing was asked on it, nothing was lost."""
        self._close(connection)
        if connection.busy:
            self._fail(connection.counts, name)
        else:
            self._idle.remove(connection)
        self._dispatch()

    def _fail(self, counts: bool, name: str) -> None:
        if counts:
            self._tally.errors[name] += 1
            self._pending -= 1
            self._settle()
        if not self._plan.rate:
            self._at(_clock() + _PAUSE_S, self._arrive)

    def _close(self, connection: _Connection) -> None:
        self._selector.unregister(connection.sock)
        connection.sock.close()
        self._open -= 1


def _reach(url: str) -> tuple[socket.AddressFamily, Any]:
    """Where a connection came about. Raises OSError where none does."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port or 80), timeout=5) as probe:
        return probe.family, probe.getpeername()


def _allow_files(count: int) -> None:
    """Each connection is an open file: so many of them, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))


def _requests(plan: Plan) -> list[bytes]:
    """Each body with its head, as it goes out."""
    parts = urlsplit(plan.url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"POST {target} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Type: {plan.content_type}"]
    lines += [f"Authorization: Bearer {plan.key}"] if plan.key else []
    lines += [f"X-Timeout-Ms: {plan.deadline_ms}"] if plan.deadline_ms else []
    head = "\r\n".join(lines).encode("latin-1")
    return [head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body for body in plan.bodies]


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


def _where(answer: Answer) -> str:
    return "within" if answer.begun else "before"
