"""The load generator against small real servers, and ``nam bench`` around it.

Times are held only to what they are at least: a slow machine makes them longer.
"""

import argparse
import asyncio
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from app import load
from app.bench_command import ProcessTree, add_bench_command, made_jpegs
from app.http_answer import Answer
from app.load import Plan
from app.load_report import Report
from app.processes import descent, stats
from tests.fakes import until

Reply = Callable[[int, asyncio.StreamWriter], Awaitable[None]]


def answer(status: int = 200, body: bytes = b"{}", **fields: object) -> bytes:
    lines = [f"HTTP/1.1 {status} Word", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Stub:
    """A server that answers its n-th request, from 0, with what ``reply`` writes; it remembers what came."""

    def __init__(self, reply: Reply, reads: bool) -> None:
        self.reply, self.reads = reply, reads
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.tasks: list[Any] = []
        self.connections = 0
        self.url = ""
        self.ready = threading.Event()

    async def serve(self) -> None:
        self.loop, self.ended = asyncio.get_running_loop(), asyncio.Event()
        self.server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        self.ready.set()
        await self.ended.wait()
        self.server.close()
        await asyncio.sleep(0)  # who has just connected is served first
        for writer in self.writers:
            writer.transport.abort()
        await asyncio.gather(*self.tasks)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        self.tasks.append(asyncio.current_task())
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while not writer.is_closing():
                await self._exchange(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        number = len(self.heads) - 1
        if self.reads:
            length = int(head.partition("Content-Length: ")[2].partition("\r\n")[0])
            self.bodies.append(await reader.readexactly(length))
        await self.reply(number, writer)
        await writer.drain()


@contextmanager
def served(reply: Reply, *, reads: bool = True) -> Iterator[Stub]:
    stub = Stub(reply, reads)
    thread = threading.Thread(target=asyncio.run, args=[stub.serve()])
    thread.start()
    assert stub.ready.wait(60)
    try:
        yield stub
    finally:
        stub.loop.call_soon_threadsafe(stub.ended.set)
        thread.join()


def saying(*answers: bytes) -> Reply:
    """These answers in turn."""

    async def reply(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(answers[number % len(answers)])

    return reply


def run(stub: Stub, path: str = "/predict", **fields: Any) -> Report:
    """One caller, no warm-up, one small body, unless said otherwise; ten seconds at most."""
    plan: dict[str, Any] = {"bodies": (b"image",), "concurrency": 1, "warmup_s": 0.0, **fields}
    return load.run(Plan(stub.url + path, **plan))


def told(figure: float | None) -> float:
    assert figure is not None
    return figure


def test_as_many_requests_count_as_were_asked_for_and_bodies_go_in_turn() -> None:
    bodies = (b"one", b"two", b"three")
    with served(saying(answer())) as stub:
        report = run(stub, bodies=bodies, concurrency=4, requests=25)
    assert (report.requests, report.refused, report.errors) == (25, 0, {})
    assert stub.connections == 4 + 1  # and one to see that somebody listens
    assert {body: stub.bodies.count(body) > 7 for body in bodies} == dict.fromkeys(bodies, True)
    assert report.received_bytes == len(answer())
    assert len(stub.heads[0]) + 3 <= report.sent_bytes <= len(stub.heads[0]) + 5


def test_the_request_is_as_asked_for() -> None:
    with served(saying(answer())) as stub:
        run(stub, "/attention?maps=none", requests=1, content_type="image/png", key="secret", deadline_ms=250)
    line, *fields = stub.heads[0].split("\r\n")
    assert line == "POST /attention?maps=none HTTP/1.1"
    assert fields[:-2] == [
        f"Host: {stub.url.removeprefix('http://')}",
        "Content-Type: image/png",
        "Authorization: Bearer secret",
        "X-Timeout-Ms: 250",
        "Content-Length: 5",
    ]


def test_times_are_those_of_the_server() -> None:
    async def reply(number: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.02)
        writer.write(answer())

    with served(reply) as stub:
        report = run(stub, concurrency=4, requests=12)
    figures = [told(figure) for figure in (report.p50_ms, report.p90_ms, report.p99_ms, report.p999_ms, report.max_ms)]
    assert figures == sorted(figures)
    assert figures[0] >= 20
    assert report.throughput_per_s <= 4 / 0.02 + 4 / report.seconds
    assert report.seconds >= 3 * 0.02


def test_what_comes_in_the_warm_up_does_not_count() -> None:
    async def reply(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(503 if number == 0 else 200))

    with served(reply) as stub:
        report = run(stub, warmup_s=0.1, seconds=0.5)
    assert report.refused == 0
    assert 0 < report.requests < len(stub.heads)
    assert report.seconds >= 0.5


def test_refusals_and_other_statuses_are_told_apart() -> None:
    with served(saying(answer(), answer(503), answer(200), answer(504), answer(422))) as stub:
        report = run(stub, requests=50)
    assert (report.requests, report.refused) == (50, 10)
    assert report.errors == {"status 422": 10, "status 504": 10}
    assert told(report.refused_p50_ms) <= told(report.refused_p99_ms)


def test_a_server_that_refuses_all_has_no_percentiles() -> None:
    with served(saying(answer(503))) as stub:
        report = run(stub, requests=3)
    assert (report.requests, report.refused, report.throughput_per_s) == (3, 3, 0)
    assert (report.p50_ms, report.max_ms, report.mean_batch) == (None, None, None)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Batch-Size: 4\r\n\r\n"
CHUNKED += b"5;name=value\r\nhello\r\n10\r\n0\r\n\r\n HTTP/1.1 5\r\n0\r\nTrailer: yes\r\n\r\n"
WHOLE = {
    "length": answer(body=b"x" * 30, X_Batch_Size=4),
    "no body": answer(body=b"", X_Batch_Size=4),
    "chunks": CHUNKED,
    "interim": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + answer(X_Batch_Size=4),
    "without content": b"HTTP/1.1 204 No Content\r\nx-batch-size:4\r\n\r\n",
}


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE)
def test_an_answer_is_whole_with_its_last_byte_however_it_is_cut(data: bytes, step: int) -> None:
    read = Answer()
    for _ in range(2):  # one after the other on one connection
        read.begin()
        pieces = [data[at : at + step] for at in range(0, len(data), step)]
        assert [read.feed(piece) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        assert (read.batch, read.closes) == (4, False)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 two hundred\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        answer() + b"more",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
        b"HTTP/1.1 200 OK\r\nFiller: " + b"x" * 2**17,
    ],
)
def test_what_is_no_answer_is_an_error_and_the_load_goes_on(data: bytes) -> None:
    with served(saying(answer(), data)) as stub:
        report = run(stub, requests=4)
    assert report.errors == {"malformed answer": 2}
    assert report.requests == 4


@pytest.mark.parametrize(
    ("last_words", "name"), [(answer()[:-1], "closed within an answer"), (b"", "closed before an answer")]
)
def test_a_connection_that_is_cut_is_an_error_by_name_and_the_load_goes_on(last_words: bytes, name: str) -> None:
    async def reply(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(last_words if number == 2 else answer())
        if number == 2:
            writer.close()

    with served(reply) as stub:
        report = run(stub, requests=10)
    assert (report.requests, report.errors) == (10, {name: 1})


def test_a_reset_is_an_error_by_name() -> None:
    async def reply(number: int, writer: asyncio.StreamWriter) -> None:
        if number == 1:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        else:
            writer.write(answer())

    with served(reply) as stub:
        report = run(stub, requests=5)
    assert (report.requests, report.errors) == (5, {"ECONNRESET": 1})


@pytest.mark.parametrize(
    "closing",
    [answer(Connection="close"), b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", b"HTTP/1.1 200 OK\r\n\r\n{}"],
    ids=["said", "HTTP/1.0", "no length"],
)
def test_a_connection_that_ends_with_its_answer_is_opened_anew(closing: bytes) -> None:
    async def reply(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(closing)
        writer.close()

    with served(reply) as stub:
        report = run(stub, requests=5)
    assert (report.requests, report.errors) == (5, {})
    assert stub.connections >= 5 + 1


def test_an_idle_connection_that_ends_loses_nothing() -> None:
    async def reply(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(answer())
        if number == 0:
            asyncio.get_running_loop().call_later(0.02, writer.close)

    with served(reply) as stub:
        report = run(stub, rate=20.0, requests=6)
    assert report.requests == 6
    assert sum(report.errors.values()) <= 1  # where the next arrival met the end


def test_large_bodies_and_answers_go_in_pieces() -> None:
    async def reply(number: int, writer: asyncio.StreamWriter) -> None:
        for piece in (answer(body=b"y" * 2**20)[at : at + 70_000] for at in range(0, 2**21, 70_000)):
            writer.write(piece)
            await asyncio.sleep(0)

    body = os.urandom(2**22)
    with served(reply) as stub:
        report = run(stub, bodies=(body,), concurrency=2, requests=4)
    assert (report.requests, report.errors) == (4, {})
    assert all(received == body for received in stub.bodies)
    assert report.received_bytes > 2**20


def test_a_refusal_before_the_body_was_read_is_a_refusal() -> None:
    async def reply(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(503))
        await writer.drain()
        await writer.wait_closed()  # nothing is read: the caller has to end it

    with served(reply, reads=False) as stub:
        report = run(stub, bodies=(b"x" * 2**24,), requests=3)
    assert (report.requests, report.refused, report.errors) == (3, 3, {})


def test_a_batch_counts_once_however_many_answers_tell_of_it() -> None:
    with served(saying(answer(X_Batch_Size=1), *[answer(X_Batch_Size=4)] * 4)) as stub:
        assert run(stub, requests=5).mean_batch == pytest.approx(2.5)


@pytest.mark.parametrize(("deadline_ms", "in_time"), [(5, False), (60_000, True)])
def test_what_comes_after_its_deadline_is_no_goodput(deadline_ms: int, in_time: bool) -> None:
    async def reply(number: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.01)
        writer.write(answer())

    with served(reply) as stub:
        report = run(stub, deadline_ms=deadline_ms, requests=5)
    assert report.throughput_per_s > 0
    assert report.goodput_per_s == (report.throughput_per_s if in_time else 0)


def test_arrivals_that_wait_for_a_connection_are_counted_from_their_instant() -> None:
    """The first answer takes 0.3 s, all others none: of what arrives meanwhile each waits for the rest of it."""

    async def reply(number: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3 if number == 0 else 0)
        writer.write(answer())

    with served(reply) as stub:
        report = run(stub, rate=200.0, max_connections=1, requests=100)
    assert report.requests == 100
    assert stub.connections == 1 + 1
    assert told(report.p50_ms) >= 5
    assert told(report.p90_ms) >= 100
    assert told(report.max_ms) >= 300


def test_an_open_loop_does_not_wait_for_answers() -> None:
    everyone = asyncio.Event()

    async def reply(number: int, writer: asyncio.StreamWriter) -> None:
        if number == 19:
            everyone.set()
        await everyone.wait()
        writer.write(answer())

    with served(reply) as stub:
        report = run(stub, rate=2000.0, requests=20)
    assert (report.requests, report.errors, stub.connections) == (20, {}, 20 + 1)


def test_what_is_never_answered_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_GRACE_S", 0.05)

    async def reply(number: int, writer: asyncio.StreamWriter) -> None:
        if number == 0:
            await writer.wait_closed()
        writer.write(answer())

    with served(reply) as stub:
        report = run(stub, concurrency=2, requests=5)
    assert (report.requests, report.errors) == (5, {"unanswered": 1})


def test_a_server_that_goes_away_is_counted_not_hammered() -> None:
    async def reply(number: int, writer: asyncio.StreamWriter) -> None:
        stub.server.close()
        writer.write(answer(Connection="close"))
        writer.close()

    with served(reply) as stub:
        report = run(stub, requests=4)
    assert report.errors == {"ECONNREFUSED": 3}
    assert report.seconds >= 2 * load._PAUSE_S


def test_a_server_that_was_never_there_is_an_error_at_once() -> None:
    with served(saying(answer())) as stub:
        pass
    with pytest.raises(ConnectionRefusedError):
        run(stub)


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "https://127.0.0.1/predict"},
        {"url": "127.0.0.1:8000"},
        {"bodies": ()},
        {"concurrency": 0},
        {"seconds": 0.0},
        {"rate": -1.0},
        {"key": "a\r\nb: c"},
    ],
)
def test_a_plan_that_cannot_be_followed_is_refused(wrong: dict[str, Any]) -> None:
    right: dict[str, Any] = {"url": "http://127.0.0.1/predict", "bodies": (b"image",)}
    with pytest.raises(ValueError, match=r"."):
        Plan(**right | wrong)


@pytest.fixture
def family() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has used 50 ms of CPU, by itself and by a child that it has not ended yet."""
    code = "import time\nwhile time.process_time() < 0.05: pass\nprint(flush=True); input()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        until(lambda: {fields[0] for fields in descent(process.pid, stats()).values()} == {"S"})  # both wait
        yield process
        process.communicate(b"\n")


def test_a_process_counts_with_its_children(family: subprocess.Popen[bytes]) -> None:
    tree = ProcessTree(family.pid)
    tree.watch()
    assert tree.cpu_s() >= 0.04  # whole hundredths
    assert tree.peak_mb() >= tree.pss_mb() > 1


def test_the_servers_cost_is_told_by_image(family: subprocess.Popen[bytes]) -> None:
    plan: dict[str, Any] = {"bodies": (b"image",), "concurrency": 1, "warmup_s": 0.0, "requests": 5}
    with served(saying(answer())) as stub:
        report = load.run(Plan(stub.url, **plan), ProcessTree(family.pid))
    assert report.server_cpu_ms == 0
    assert told(report.server_pss_mb) > 1


def test_a_process_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ProcessLookupError):
        ProcessTree(2**22 + 1)


def bench(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_bench_command(parser.add_subparsers())
    given = parser.parse_args(["bench", *map(str, arguments)])
    code: int = given.run(given)
    return code


def test_the_command_tells_medians_and_ends_with_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, out = tmp_path / "photo.jpg", tmp_path / "out.json"
    image.write_bytes(b"\xff\xd8\xff")
    with served(saying(answer(), answer(503))) as stub:
        options = ("--requests", 10, "--repeat", 3, "--warmup", 0, "--concurrency", 1, "--key", "secret")
        assert bench("--url", stub.url, "--image", image, "--json", out, *options) == 0
    told = capsys.readouterr().out
    line, written = json.loads(told.splitlines()[-1]), json.loads(out.read_text())
    assert set(stub.bodies) == {b"\xff\xd8\xff"}
    assert line == {name: value for name, value in written.items() if name != "runs"}
    assert [one["requests"] for one in written["runs"]] == [10] * 3
    assert line["min"]["p50_ms"] <= line["median"]["p50_ms"] <= line["max"]["p50_ms"]
    assert "refused (503)" in told
    assert "secret" not in told + out.read_text()


def test_without_an_answer_the_command_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with served(saying(answer(422))) as stub:
        assert bench("--url", stub.url, "--requests", 2, "--warmup", 0, "--concurrency", 1) == 1
    told = capsys.readouterr().out
    assert "error: status 422: 2" in told
    assert "made here" in told
    assert set(stub.bodies) <= set(made_jpegs())
