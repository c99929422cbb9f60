"""What a connection may cost that asks for nothing, or not at once: bounded in time, in bytes, in number."""

import base64
import socket
import struct
import threading
import time
from contextlib import ExitStack, suppress
from typing import cast

import httpx2
import orjson
import pytest
from uvicorn.protocols.http.flow_control import FlowControl

from app.protocol import Protocol, _Flow
from tests.app.test_protocol import PNG, Server, answers, connected, head, listening, read_all
from tests.fakes import picture, until

IMAGE = picture(50)


def seconds_until_closed(connection: socket.socket) -> float:
    started = time.monotonic()
    read_all(connection)
    return time.monotonic() - started


def dribble(connection: socket.socket, piece: bytes, every_s: float, most: int) -> int:
    """How many pieces it took until the other end was closed."""
    for count in range(most):
        try:
            connection.sendall(piece)
        except OSError:
            return count
        threading.Event().wait(every_s)
    return most


@pytest.mark.parametrize("begun", [b"", b"POST /predict HT", b"\r\n"], ids=["nothing", "a part", "empty lines"])
def test_a_head_that_does_not_come_is_not_waited_for(begun: bytes) -> None:
    with listening(body_idle_ms=200) as server, connected(server) as connection:
        connection.sendall(begun)
        assert seconds_until_closed(connection) < 5


@pytest.mark.parametrize("line", [b"x-more: 1\r\n", b"\r\n"], ids=["lines", "empty lines"])
@pytest.mark.parametrize("kept", [False, True], ids=["a new connection", "a kept one"])
def test_a_head_that_trickles_is_cut(kept: bool, line: bytes) -> None:
    with listening(body_idle_ms=1000) as server, connected(server) as connection:
        if kept:
            connection.sendall(head(len(IMAGE)) + IMAGE)
            assert answers(connection, 1)[0][0] == 200
        if line.strip():
            connection.sendall(b"POST /predict HTTP/1.1\r\n")
        assert dribble(connection, line, 0.1, 100) < 60


def test_a_head_without_an_end_is_of_bounded_size() -> None:
    with listening() as server, connected(server) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert dribble(connection, b"x-more: %b\r\n" % (b"x" * 10_000), 0.02, 100) < 50


@pytest.mark.parametrize("path", ["/predict", "/healthz"], ids=["of a body that is waited for", "of one that is not"])
@pytest.mark.parametrize("line", [b"x-more: 1\r\n", b"1"], ids=["many", "one"])
def test_trailers_without_an_end_are_of_bounded_size(path: str, line: bytes) -> None:
    """Thirty bytes of memory for each, or each piece of one copied with all that came before."""
    with listening(body_idle_ms=5000) as server, connected(server) as connection:
        connection.sendall(b"POST %b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nx: " % path.encode())
        assert dribble(connection, line * (20_000 // len(line)), 0.02, 100) < 50


def test_a_head_behind_a_request_that_waits_is_of_bounded_size_too() -> None:
    with listening() as server, connected(server) as connection:
        server.engine.gate.clear()
        connection.sendall(head(len(IMAGE)) + IMAGE + b"GET /healthz HTTP/1.1\r\n")
        assert dribble(connection, b"x-more: %b\r\n" % (b"x" * 10_000), 0.02, 100) < 50


def test_a_head_has_a_bounded_number_of_fields() -> None:
    with listening() as server, connected(server) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n" + b"a:\r\n" * 102)
        assert answers(connection, 1)[0][0] == 400


def waiting(server: Server) -> int:
    """Requests that were parsed and wait for the answer before theirs."""
    return sum(len(cast(Protocol, connection).pipeline) for connection in server.open_connections())


def test_of_the_requests_that_are_sent_at_once_few_are_parsed_before_their_turn_and_all_are_answered() -> None:
    """Parsed, each takes a hundred times its bytes."""
    with listening() as server, connected(server) as connection:
        server.engine.gate.clear()
        connection.sendall(head(len(IMAGE)) + IMAGE + b"GET /healthz HTTP/1.1\r\n\r\n" * 2000)
        until(lambda: waiting(server) > 0)
        assert waiting(server) < 300
        server.engine.gate.set()
        assert {status for status, _ in answers(connection, 2001)} == {200}


def test_many_that_are_refused_at_once_let_others_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten connections full of them had the event loop for themselves for as long as they came."""
    turns = list[None]()
    monkeypatch.setattr(_Flow, "pause_reading", lambda flow: turns.append(FlowControl.pause_reading(flow)))
    with listening(api_keys="one") as server, connected(server) as connection:
        connection.sendall(head(0) * 400)
        assert {status for status, _ in answers(connection, 400)} == {401}
    assert turns


class Gates(threading.Event):
    """One for each batch, in turn."""

    def __init__(self, *gates: threading.Event) -> None:
        super().__init__()
        self._gates = iter(gates)

    def wait(self, timeout: float | None = None) -> bool:
        return next(self._gates).wait(timeout)


def test_no_more_is_read_while_requests_wait() -> None:
    """Each answer before theirs, and the application that looks for a body, would have it read on."""
    first, second, some = threading.Event(), threading.Event(), b"GET /healthz HTTP/1.1\r\n\r\n" * 100
    with listening() as server, connected(server) as connection:
        server.engine.gate = Gates(first, second)
        usual = head(len(IMAGE)) + IMAGE
        sender = threading.Thread(target=send_all, args=(connection, usual + some + usual + some * 4000))
        sender.start()
        until(lambda: waiting(server) > 0)
        first.set()
        until(lambda: server.engine.batches == [1, 1])
        time.sleep(0.3)  # in which all would be read
        assert sum(len(cast(Protocol, one).later) for one in server.open_connections()) < 2**20
        second.set()
        connection.shutdown(socket.SHUT_RDWR)
        sender.join()


def send_all(connection: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        connection.sendall(data)


@pytest.mark.parametrize(("before", "status"), [(b"", 400), (head(len(IMAGE)) + IMAGE, 200)], ids=["alone", "behind"])
def test_much_that_is_no_head_takes_nobodys_answer(before: bytes, status: int) -> None:
    with listening() as server, connected(server) as connection:
        connection.sendall(before + b"\xff" * 200_000)
        assert answers(connection, 1)[0][0] == status


@pytest.mark.parametrize("path", ["/predict", "/predict?top_k=1"])
def test_an_offer_of_another_protocol_is_declined_and_the_request_answered(path: str) -> None:
    """Java's clients make it with their first request, whatever that is."""
    offer = head(len(IMAGE), "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    offer = offer.replace(b"/predict", path.encode())
    with listening() as server, connected(server) as connection:
        connection.sendall(offer + IMAGE + head(len(IMAGE)) + IMAGE)
        assert [status for status, _ in answers(connection, 2)] == [200, 200]
        connection.sendall(offer + IMAGE[:9])
        threading.Event().wait(0.1)
        connection.sendall(IMAGE[9:])
        assert answers(connection, 1)[0][0] == 200


def test_trailers_are_no_headers() -> None:
    trailed = b"%x\r\n%b\r\n0\r\nContent-Encoding: gzip\r\n\r\n" % (len(IMAGE), IMAGE)
    with listening() as server, connected(server) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + trailed)
        assert answers(connection, 1)[0][0] == 200


def test_a_kept_connection_may_pause_between_requests() -> None:
    with listening(body_idle_ms=1000) as server, connected(server) as connection:
        for pause in (1.5, 0):
            connection.sendall(head(len(IMAGE)) + IMAGE)
            assert answers(connection, 1)[0][0] == 200
            threading.Event().wait(pause)


@pytest.mark.parametrize("path", ["/predict", "/attention"], ids=["the short way", "the endpoint"])
def test_the_rest_of_a_refused_body_is_read_for_so_long_only(path: str) -> None:
    with listening(body_idle_ms=1000, max_body_bytes=1000) as server, connected(server) as connection:
        connection.sendall(head(10**9).replace(b"/predict", path.encode()))
        assert answers(connection, 1)[0][0] == 413
        assert dribble(connection, b"x", 0.05, 100) < 60


@pytest.mark.parametrize("path", ["/predict", "/attention", "/nowhere"])
def test_the_rest_of_a_refused_body_is_of_bounded_size(path: str) -> None:
    with listening(max_body_bytes=100_000) as server, connected(server) as connection:
        connection.sendall(head(10**9).replace(b"/predict", path.encode()))
        assert answers(connection, 1)[0][0] in (413, 404)
        assert dribble(connection, b"x" * 100_000, 0.01, 1000) < 100


def test_a_refused_body_that_was_whole_leaves_the_next_request_its_time() -> None:
    with listening(body_idle_ms=1000, max_body_bytes=300_000) as server, connected(server) as connection:
        connection.sendall(head(300_001))
        assert answers(connection, 1)[0][0] == 413
        connection.sendall(b"x" * 300_001)
        threading.Event().wait(0.5)
        connection.sendall(head(len(IMAGE)) + IMAGE)
        assert answers(connection, 1)[0][0] == 200


def test_a_body_that_trickles_under_the_pause_ends_at_the_deadline() -> None:
    with listening(body_idle_ms=1000, timeout_ms=1500) as server, connected(server) as connection:
        connection.sendall(head(1000))
        dribble(connection, b"x", 0.1, 20)
        assert answers(connection, 1)[0][0] == 504
        assert (server.load.requests, server.load.body_bytes) == (0, 0)


@pytest.mark.parametrize("path", ["/predict", "/attention"], ids=["the short way", "the endpoint"])
def test_who_is_still_sending_reads_the_refusal_that_ends_the_connection(path: str) -> None:
    """Closed at once, with bytes unread, the kernel would reset it, and the answer be gone."""
    with listening(body_idle_ms=1000) as server, connected(server) as connection:
        connection.sendall(head(1000).replace(b"/predict", path.encode()) + b"some")
        threading.Event().wait(1.5)
        connection.sendall(b"more")
        threading.Event().wait(0.05)
        connection.sendall(b"and more")
        assert answers(connection, 1)[0][0] == 408
        assert connection.recv(1) == b""


def test_a_large_body_that_nobody_reads_is_sent_to_its_end_where_the_refusal_ends_the_connection() -> None:
    """Its first bytes come with its head: reading waits for an application, which has refused it by then."""
    body = b"x" * 2**24
    with listening(body_idle_ms=2000, api_keys="one") as server, connected(server) as connection:
        connection.sendall(head(len(body), "Connection: close").replace(b"/predict", b"/predict/batch") + body)
        assert answers(connection, 1)[0][0] == 401


@pytest.mark.parametrize("kept", [False, True], ids=["while it waits", "once it has had it"])
def test_a_head_that_is_none_takes_nobodys_answer_and_has_its_own(kept: bool) -> None:
    """That it is none is found out when it is whole."""
    with listening() as server, connected(server) as connection:
        good, bad = (b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % target for target in (b"/healthz", b"http://["))
        connection.sendall(good if kept else good + bad)
        assert answers(connection, 1)[0][0] == 200
        if kept:
            connection.sendall(bad)
            assert answers(connection, 1)[0][0] == 400
        assert connection.recv(1) == b""


@pytest.mark.parametrize("path", ["/predict", "/attention", "/healthz"])
def test_while_it_drains_every_answer_is_the_last_of_its_connection(path: str) -> None:
    with listening() as server, connected(server) as connection:
        server.load.draining = True
        connection.sendall(head(len(IMAGE)).replace(b"/predict", path.encode()) + IMAGE)
        assert answers(connection, 1)[0][0] == (405 if path == "/healthz" else 503)
        assert connection.recv(1) == b""


def test_an_answer_that_nobody_reads_does_not_keep_a_closing_connection() -> None:
    """Less than the transport's high-water mark is unread, so that nothing is paused."""
    with listening(body_idle_ms=1000) as server, connected(server) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        until(lambda: server.connections() == 1)
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 400)
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        until(lambda: server.connections() == 0)


def test_a_connection_that_is_reset_leaves_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[object] = []
    monkeypatch.setattr(Protocol, "timeout_keep_alive_handler", lambda connection: late.append(connection))
    with listening(timeout_keep_alive=1) as server:
        with connected(server) as connection:
            connection.sendall(head(len(IMAGE)) + IMAGE)
            assert answers(connection, 1)[0][0] == 200
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        threading.Event().wait(1.2)
        assert late == []


def test_connections_are_of_bounded_number_and_those_that_are_held_go_on() -> None:
    with listening(max_connections=5) as server, ExitStack() as stack:
        held = [stack.enter_context(connected(server)) for _ in range(5)]
        until(lambda: server.connections() == 5)
        assert seconds_until_closed(stack.enter_context(connected(server))) < 5
        held[3].sendall(head(len(IMAGE)) + IMAGE)
        assert answers(held[3], 1)[0][0] == 200
        held.pop().close()
        until(lambda: server.connections() == 4)
        assert httpx2.post(server.url + "/predict", content=IMAGE, headers=PNG, timeout=60).status_code == 200


@pytest.mark.parametrize("path", ["/attention?format=npz", "/v2/models/fake/explain"])
def test_many_that_do_not_read_a_large_answer_hold_bounded_memory(path: str) -> None:
    with listening(max_inflight_bytes=4000) as server:
        body = explained() if "explain" in path else IMAGE
        answers = []
        for held in (0, 3900 - len(body), 0):
            until(lambda: not server.load.requests)  # who has an answer may be there for a moment still
            server.load.body_bytes += held
            answers.append(httpx2.post(server.url + path, content=body, headers=PNG, timeout=60).status_code)
            server.load.body_bytes -= held
        assert answers == [200, 503, 200]


def explained() -> bytes:
    data = [base64.b64encode(IMAGE).decode()]
    return orjson.dumps({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": data}]})
