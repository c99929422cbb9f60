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
from array import array
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol
from urllib.parse import urlsplit

_RECEIVE = 2**17  # bytes at most in one call
_MAX_HEAD = 2**16  # bytes; a longer head is no answer to wait for
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


@dataclass(frozen=True)
class Report:
    """One run. ``requests`` = 2xx answers + ``refused`` (503) + ``errors``, which other statuses are among. Percentiles
    are of 2xx answers, of refusals where they say so; None where there was none.

    ``goodput_per_s``: 2xx answers within the deadline. ``mean_batch``: images a forward, n / sum(1 / X-Batch-Size):
    every batch counts once, however many answers tell of it. ``server_cpu_ms``: of the server's processes, by 2xx
    answer. ``client_cpu_ms``, ``sent_bytes``, ``received_bytes``: by answer of any status.
    """

    requests: int
    seconds: float
    throughput_per_s: float
    goodput_per_s: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    max_ms: float | None
    refused: int
    refused_p50_ms: float | None
    refused_p99_ms: float | None
    errors: dict[str, int]
    mean_batch: float | None
    sent_bytes: float
    received_bytes: float
    client_cpu_ms: float
    server_cpu_ms: float | None
    server_pss_mb: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


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


class Answer:
    """One HTTP/1.1 answer, read piece by piece. ``batch``: its X-Batch-Size, or 0; ``closes``: its connection ends."""

    __slots__ = ("_chunked", "_left", "_rest", "batch", "closes", "status")

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget everything and wait for the next answer."""
        self.status = self.batch = 0
        self.closes = self._chunked = False
        self._left = 0.0  # bytes to come of the body, or of a chunk and its line end; -1: the trailer
        self._rest = b""  # what came of an unfinished head or line

    @property
    def begun(self) -> bool:
        return bool(self.status or self._rest)

    @property
    def until_close(self) -> bool:
        """Whether the end of the connection is the end of the body."""
        return self._left == math.inf

    def feed(self, data: bytes) -> bool:
        """Take the next bytes; True once the answer is whole. ValueError for what is no HTTP/1.1 answer."""
        if not self.status:
            data = self._rest + data
            end = data.find(b"\r\n\r\n") + 4
            if end < 4:
                return self._keep(data)
            self._read_head(data[: end - 2].lower())
            data, self._rest = data[end:], b""
            if self.status < 200:  # an interim answer: the real one follows
                self.begin()
                return bool(data) and self.feed(data)
        if self._chunked:
            return self._read_chunks(self._rest + data)
        self._left -= len(data)
        if self._left < 0:
            raise ValueError("more bytes than the answer has")
        return self._left == 0

    def _read_head(self, head: bytes) -> None:
        if not (head.startswith(b"http/1.") and head[9:12].isdigit()):
            raise ValueError("no HTTP/1.1 answer")
        self.status = int(head[9:12])
        batch, connection = _field(head, b"\r\nx-batch-size:"), _field(head, b"\r\nconnection:")
        self.batch = int(batch) if batch.isdigit() else 0
        self.closes = connection == b"close" or (head[7:8] == b"0" and connection != b"keep-alive")
        self._chunked = _field(head, b"\r\ntransfer-encoding:") == b"chunked"
        if self._chunked or self.status < 200 or self.status in (204, 304):
            return
        length = _field(head, b"\r\ncontent-length:")
        self._left = float(int(length)) if length else math.inf
        self.closes |= not length

    def _read_chunks(self, data: bytes) -> bool:
        at, self._rest = 0, b""
        while True:
            skipped = min(max(self._left, 0), len(data) - at)
            self._left -= skipped
            at += int(skipped)
            end = data.find(b"\r\n", at)
            if self._left > 0 or end < 0:
                return self._keep(data[at:])
            line, at = data[at:end], end + 2
            if self._left == 0:
                size = int(line.partition(b";")[0], 16)
                self._left = size + 2 if size else -1
            elif not line:
                return True

    def _keep(self, rest: bytes) -> bool:
        """Not whole: ``rest`` waits for more."""
        if len(rest) > _MAX_HEAD:
            raise ValueError("a head or a line without end")
        self._rest = rest
        return False


def _field(head: bytes, name: bytes) -> bytes:
    """A field's value in a lower-case head; ``name`` has the line end before it and its colon."""
    at = head.find(name)
    return head[at + len(name) : head.find(b"\r\n", at + 2)].strip() if at >= 0 else b""


@dataclass
class _Totals:
    """What has been so far: the difference of two is what a window saw."""

    at: float = 0.0
    asked: int = 0
    ended: int = 0
    ok: int = 0
    good: int = 0
    sent: int = 0
    received: int = 0
    client_s: float = 0.0
    server_s: float | None = None


@dataclass
class _Tally:
    """What became of the requests that count: seconds of 2xx and of 503, everything else by name."""

    ok: "array[float]" = field(default_factory=lambda: array("d"))
    refused: "array[float]" = field(default_factory=lambda: array("d"))
    errors: "Counter[str]" = field(default_factory=Counter)
    told: int = 0  # answers with a batch size
    batches: float = 0.0  # that they stand for

    def add(self, answer: Answer, seconds: float) -> None:
        if 200 <= answer.status < 300:
            self.ok.append(seconds)
            if answer.batch:
                self.told += 1
                self.batches += 1 / answer.batch
        elif answer.status == 503:
            self.refused.append(seconds)
        else:
            self.errors[f"status {answer.status}"] += 1


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
        self._totals, self._tally = _Totals(), _Tally()
        self._first, self._last = _Totals(), _Totals()
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
            return _report(self._first, self._last, self._tally, peak_mb)
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

    def _seen(self) -> _Totals:
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


def _report(first: _Totals, last: _Totals, tally: _Tally, peak_mb: float | None) -> Report:
    seconds, ended, ok = last.at - first.at, last.ended - first.ended, last.ok - first.ok
    errors = {name: count for name, count in sorted(tally.errors.items()) if count}
    server_s = None if first.server_s is None or last.server_s is None else last.server_s - first.server_s
    answered, refused = sorted(tally.ok), sorted(tally.refused)
    return Report(
        requests=len(answered) + len(refused) + sum(errors.values()),
        seconds=seconds,
        throughput_per_s=ok / seconds,
        goodput_per_s=(last.good - first.good) / seconds,
        p50_ms=_percentile_ms(answered, 0.5),
        p90_ms=_percentile_ms(answered, 0.9),
        p99_ms=_percentile_ms(answered, 0.99),
        p999_ms=_percentile_ms(answered, 0.999),
        max_ms=_percentile_ms(answered, 1.0),
        refused=len(refused),
        refused_p50_ms=_percentile_ms(refused, 0.5),
        refused_p99_ms=_percentile_ms(refused, 0.99),
        errors=errors,
        mean_batch=tally.told / tally.batches if tally.told else None,
        sent_bytes=(last.sent - first.sent) / max(1, last.asked - first.asked),
        received_bytes=(last.received - first.received) / max(1, ended),
        client_cpu_ms=1000 * (last.client_s - first.client_s) / max(1, ended),
        server_cpu_ms=1000 * server_s / ok if server_s is not None and ok else None,
        server_pss_mb=peak_mb,
    )


def _percentile_ms(ordered: list[float], share: float) -> float | None:
    """The least time that ``share`` of all do not exceed."""
    return 1000 * ordered[math.ceil(share * len(ordered)) - 1] if ordered else None
