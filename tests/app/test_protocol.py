"""The usual request's short way, over real connections: whatever it answers, the endpoint would have answered."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx2
import pytest
import uvicorn

from app.board import Load
from app.forward import Forward
from app.main import create_app
from app.protocol import Protocol, _Exchange
from app.services import lanes_here
from app.settings import Settings
from tests.fakes import FakeEngine, picture, until

PNG = {"content-type": "image/png"}
OWN = {"x-request-id", "server-timing", "date"}


class Server:
    """A listening service around the fake engine. ``short``: grows by one with each request on the short way."""

    def __init__(self, engine: FakeEngine, load: Load, port: int, short: list[_Exchange], own: uvicorn.Server) -> None:
        self.engine, self.load, self.port, self.short, self._own = engine, load, port, short, own
        self.url = f"http://127.0.0.1:{port}"

    def post(self, body: Any, path: str = "/predict", **headers: str) -> httpx2.Response:
        return httpx2.post(self.url + path, content=body, headers=PNG | headers, timeout=60)

    def end(self) -> None:
        """As after SIGTERM, once the grace is over."""
        self.load.draining = self._own.should_exit = True

    def connections(self) -> int:
        return len(self._own.server_state.connections)

    def open_connections(self) -> list[Any]:
        return list(self._own.server_state.connections)

    def count(self, line: str) -> float:
        text = httpx2.get(self.url + "/metrics", timeout=60).text
        return next((float(one.rpartition(" ")[2]) for one in text.splitlines() if one.startswith(line + " ")), 0.0)


@contextmanager
def listening(*, timeout_keep_alive: int = 5, **settings: Any) -> Iterator[Server]:
    engine, load, short = FakeEngine(), Load(), list[_Exchange]()
    knobs = Settings(log_level="warning", **settings)

    class Counted(Protocol):
        def on_headers_complete(self) -> None:
            super().on_headers_complete()
            short.extend([self.cycle] if isinstance(self.cycle, _Exchange) else [])

    app = create_app(knobs, lanes_here(lambda s, on_forward: Forward(engine, s.max_pixels, on_forward)), load)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            app,
            http=Counted,
            loop="uvloop",
            ws="none",
            timeout_keep_alive=timeout_keep_alive,
            log_config=None,
            lifespan="on",
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        until(lambda: server.started)
        try:
            yield Server(engine, load, listener.getsockname()[1], short, server)
        finally:
            engine.gate.set()
            server.should_exit = True
            thread.join(60)
            assert (load.requests, load.body_bytes) == (0, 0)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with listening(max_body_bytes=100_000) as running:
        yield running


@pytest.fixture(autouse=True)
def forget(request: pytest.FixtureRequest) -> None:
    if "server" in request.fixturenames:
        request.getfixturevalue("server").short.clear()


def both(server: Server, body: bytes, headers: dict[str, str]) -> list[tuple[int, dict[str, str], bytes]]:
    """The short way's answer and the endpoint's, which a query that says the default reaches."""
    answers = [
        httpx2.post(server.url + path, content=body, headers=headers, timeout=60)
        for path in ("/predict", "/predict?top_k=5")
    ]
    assert len(server.short) == 1
    return [
        (answer.status_code, {k: v for k, v in answer.headers.items() if k not in OWN}, answer.content)
        for answer in answers
    ]


@pytest.mark.parametrize(
    "headers",
    [
        PNG,
        {"content-type": "application/octet-stream"},
        {"content-type": "application/octet-stream ; q=1"},
        {"content-type": "image/jpeg; q=1"},
        {},
        PNG | {"connection": "close"},
        PNG | {"x-timeout-ms": "9000"},
    ],
    ids=[
        "image",
        "bytes",
        "bytes with a parameter",
        "image with a parameter",
        "undeclared",
        "last of its connection",
        "deadline",
    ],
)
def test_it_answers_as_the_endpoint_does(server: Server, headers: dict[str, str]) -> None:
    one, other = both(server, picture(200), headers)
    assert one[0] == 200
    assert one == other


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP"])
def test_every_format_is_the_same_either_way(server: Server, form: str) -> None:
    one, other = both(server, picture(50, form), PNG)
    assert one[0] == 200
    assert one == other


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", PNG, 400),
        (b"nothing known", PNG, 415),
        (picture()[:40], PNG, 422),
        (b"x" * 100_001, PNG, 413),
        (picture(), PNG | {"x-timeout-ms": "soon"}, 422),
    ],
    ids=["empty", "unknown", "cut", "too large", "a bad deadline"],
)
def test_it_refuses_as_the_endpoint_does(server: Server, body: bytes, headers: dict[str, str], status: int) -> None:
    code = 'nam_refusals_total{code="%s"}'
    (one, ours, text), (_, theirs, other) = both(server, body, headers)
    problem = json.loads(text)
    assert (one, ours) == (status, theirs)
    assert problem | {"request_id": ""} == json.loads(other) | {"request_id": ""}
    assert server.count(code % problem["code"]) >= 2


def test_keys_are_asked_for_on_either_way() -> None:
    with listening(api_keys="one,two") as server:
        for path in ("/predict", "/predict?top_k=5"):
            assert server.post(picture(), path).status_code == 401
            assert server.post(picture(), path, authorization="Bearer three").status_code == 401
            assert server.post(picture(), path, authorization="Bearer two").status_code == 200
        assert len(server.short) == 3
        assert server.engine.batches == [1, 1]


def test_a_good_id_is_kept_and_a_bad_one_replaced(server: Server) -> None:
    assert server.post(picture(), **{"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    replaced = [server.post(picture(), **{"x-request-id": "a b"}).headers["x-request-id"] for _ in range(2)]
    assert len({"a b", *replaced}) == 3
    assert len(server.short) == 3


def test_it_is_counted_and_timed_like_any_other(server: Server) -> None:
    line = 'nam_requests_total{route="/predict",status="200"}'
    before = server.count(line)
    answer = server.post(picture())
    assert server.count(line) == before + 1
    assert answer.headers["x-batch-size"] == "1"
    assert [part.split(";")[0].strip() for part in answer.headers["server-timing"].split(",")] == [
        "decode",
        "queue",
        "model",
    ]


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/predict?lang=zh", PNG),
        ("/predict", PNG | {"accept-language": "zh"}),
        ("/predict", {"content-type": "application/json"}),
        ("/predict", PNG | {"content-encoding": "gzip"}),
        ("/predict", PNG | {"expect": "100-continue"}),
        ("/predict", {"content-type": "application/octet-streamx"}),
        ("/attention", PNG),
    ],
    ids=["query", "language", "json", "encoded", "expecting", "another type", "attention"],
)
def test_whoever_asks_for_more_goes_to_the_endpoint(server: Server, path: str, headers: dict[str, str]) -> None:
    httpx2.post(server.url + path, content=picture(), headers=headers, timeout=60)
    assert server.short == []


def test_a_body_of_unknown_length_goes_to_the_endpoint(server: Server) -> None:
    assert server.post(iter([picture()[:10], picture()[10:]])).status_code == 200
    assert server.short == []


def test_another_method_is_the_routers_to_refuse(server: Server) -> None:
    assert httpx2.get(server.url + "/predict", timeout=60).status_code == 405
    assert server.short == []


@contextmanager
def connected(server: Server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        yield connection


def head(length: int, *more: str) -> bytes:
    lines = ["POST /predict HTTP/1.1", "Host: x", "Content-Type: image/png", f"Content-Length: {length}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def answers(connection: socket.socket, count: int) -> list[tuple[int, bytes]]:
    """So many answers, each its status and its body."""
    got, data = [], b""
    while len(got) < count:
        top, found, rest = data.partition(b"\r\n\r\n")
        length = int(top.lower().partition(b"content-length: ")[2].split(b"\r")[0]) if found else 0
        if found and len(rest) >= length:
            got.append((int(top[9:12]), rest[:length]))
            data = rest[length:]
        else:
            more = connection.recv(65536)
            assert more, "the connection was closed"
            data += more
    return got


def test_a_body_in_pieces_is_put_together(server: Server) -> None:
    image = picture(200)
    with connected(server) as connection:
        for piece in (head(len(image)), image[:1], image[1:20], image[20:]):
            connection.sendall(piece)
            threading.Event().wait(0.02)
        ((status, body),) = answers(connection, 1)
    assert status == 200
    assert json.loads(body)["predictions"][0]["index"] == 8
    assert len(server.short) == 1


def test_pipelined_requests_are_answered_in_their_order(server: Server) -> None:
    images = [picture(25 * level) for level in range(4)]
    other = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with connected(server) as connection:
        connection.sendall(b"".join(head(len(image)) + image for image in images[:2]) + other)
        connection.sendall(b"".join(head(len(image)) + image for image in images[2:]))
        got = answers(connection, 5)
    assert [json.loads(body).get("predictions", [{"index": "healthz"}])[0]["index"] for _, body in got] == [
        0,
        1,
        "healthz",
        2,
        3,
    ]


def test_a_refused_body_is_read_to_its_end_and_the_connection_goes_on(server: Server) -> None:
    image = picture(50)
    with connected(server) as connection:
        connection.sendall(head(100_001))
        assert answers(connection, 1)[0][0] == 413
        connection.sendall(b"x" * 100_001 + head(len(image)) + image)
        assert answers(connection, 1)[0][0] == 200


@pytest.mark.parametrize(
    ("settings", "status"), [({"body_idle_ms": 1000}, 408), ({"timeout_ms": 50}, 504)], ids=["idle", "late"]
)
def test_a_body_that_does_not_come_is_not_waited_for(settings: dict[str, int], status: int) -> None:
    with listening(**settings) as server, connected(server) as connection:
        connection.sendall(head(1000) + b"some")
        assert answers(connection, 1)[0][0] == status
        assert len(server.short) == 1
        if status == 408:
            assert connection.recv(1) == b""  # closed: a trickle would go on


def test_a_body_that_goes_on_coming_is_waited_for() -> None:
    image = picture(100)
    with listening(body_idle_ms=1000) as server, connected(server) as connection:
        connection.sendall(head(len(image)))
        for place in range(0, len(image), 1 + len(image) // 6):
            threading.Event().wait(0.2)
            connection.sendall(image[place : place + 1 + len(image) // 6])
        assert answers(connection, 1)[0][0] == 200


def ask_for_more_than_fits(connection: socket.socket) -> None:
    """Two thousand answers of 20 kB: more than the buffers between the two hold."""
    connection.settimeout(0.2)
    with suppress(TimeoutError):
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 2000)
    connection.settimeout(60)


def read_all(connection: socket.socket) -> int:
    """How many bytes there are until the connection ends, however it does."""
    count = 0
    with suppress(ConnectionResetError):
        while data := connection.recv(2**20):
            count += len(data)
    return count


def test_a_caller_that_reads_nothing_is_cut() -> None:
    with listening(body_idle_ms=1000) as server, connected(server) as connection:
        until(lambda: server.connections() == 1)
        ask_for_more_than_fits(connection)
        until(lambda: server.connections() == 0)
        assert read_all(connection) < 20_000_000
        assert server.post(picture()).status_code == 200


def test_a_caller_that_reads_slowly_is_not() -> None:
    with listening(body_idle_ms=1000) as server, connected(server) as connection:
        ask_for_more_than_fits(connection)
        for _ in range(15):
            threading.Event().wait(0.1)
            left = 2**20
            while left:
                got = len(connection.recv(left))
                assert got, "it was cut"
                left -= got


def held(server: Server) -> Callable[[], bool]:
    return lambda: server.load.requests == 1


def test_a_caller_that_leaves_while_sending_costs_nothing(server: Server) -> None:
    with connected(server) as connection:
        connection.sendall(head(1000) + b"some")
        until(held(server))
        assert server.load.body_bytes == 1000
    until(lambda: not server.load.requests and not server.load.body_bytes)
    assert server.count('nam_requests_total{route="/predict",status="499"}') >= 1


def test_a_caller_that_leaves_while_queued_is_not_served() -> None:
    image = picture()
    with listening() as server:
        server.engine.gate.clear()
        with connected(server) as first:
            first.sendall(head(len(image)) + image)
            until(lambda: server.engine.batches == [1])
            with connected(server) as second:
                second.sendall(head(len(image)) + image)
                until(lambda: server.load.requests == 2)
            until(held(server))
            server.engine.gate.set()
            assert answers(first, 1)[0][0] == 200
        assert server.post(image).status_code == 200
        assert server.engine.batches == [1, 1]


def test_an_engine_that_fails_is_a_500_and_the_connection_goes_on(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    image = picture()
    server.engine.error = RuntimeError("out of memory")
    with connected(server) as connection:
        for status in (500, 200):
            connection.sendall(head(len(image)) + image)
            ((got, body),) = answers(connection, 1)
            assert got == status
            assert b"out of memory" not in body
    assert "out of memory" in caplog.text


def test_what_is_under_way_when_the_service_ends_is_told_so() -> None:
    image, told = picture(), list[tuple[int, bytes]]()

    def wait(connection: socket.socket) -> None:
        with suppress(AssertionError, OSError):
            told.extend(answers(connection, 1))

    with listening() as server, connected(server) as connection:
        server.engine.gate.clear()
        connection.sendall(head(len(image)) + image)
        until(lambda: server.engine.batches == [1])
        waiting = threading.Thread(target=wait, args=(connection,))
        waiting.start()
        server.end()
        waiting.join(60)
    assert [status for status, _ in told] == [503]
    assert json.loads(told[0][1])["code"] == "draining"


def test_a_body_that_is_not_whole_when_the_service_ends_is_told_so() -> None:
    with listening() as server, connected(server) as connection:
        connection.sendall(head(1000) + b"some")
        until(held(server))
        server.end()
        ((status, body),) = answers(connection, 1)
        assert (status, json.loads(body)["code"]) == (503, "draining")


def test_who_sends_without_reading_is_held_back() -> None:
    many = 100_000  # the kernel holds ten thousand answers
    with listening(api_keys="one") as server, connected(server) as connection:
        connection.settimeout(1)
        with suppress(TimeoutError):
            connection.sendall(head(0) * many)
        assert settled(lambda: len(server.short)) < many // 2


def settled(count: Callable[[], int]) -> int:
    """What is counted once it grows no more."""
    last = -1
    while (now := count()) != last:
        last = now
        threading.Event().wait(0.5)
    return now


def test_an_early_answers_timer_does_not_end_the_next_request() -> None:
    image = picture()
    with listening(timeout_keep_alive=1) as server, connected(server) as connection:
        server.engine.gate.clear()
        connection.sendall(head(0) + head(len(image)) + image)
        assert answers(connection, 1)[0][0] == 400
        threading.Event().wait(1.5)
        server.engine.gate.set()
        assert answers(connection, 1)[0][0] == 200
