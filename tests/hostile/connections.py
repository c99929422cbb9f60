"""Requests whose lengths, heads, targets and timing are not what they should be, and no HTTP at all."""

from collections.abc import Iterator

from tests.hostile.messages import GONE, MEGABYTE, Piece, chunked, jpeg, request


def lengths() -> Iterator[tuple]:
    good, short = jpeg(), len(jpeg()) - 99
    yield "too short", request(good, length=short), 422, {400, GONE}
    yield "too long", request(good, length=len(good) + 99), 408
    for told in ("-5", "+5", "5,5", "5, 6", "0x10", "5 5", "five", "1e3", "9" * 30, "٣", "5;6"):
        yield told, request(b"12345", f"Content-Length: {told}", length=-1), {400, 413}
    yield "twice", request(good, f"Content-Length: {len(good)}"), {200, 400}, {GONE, 400}
    yield "two different", request(good, "Content-Length: 5"), 400
    yield "chunked too", request(chunked(good), "Transfer-Encoding: chunked", length=5), 400
    yield "none", request(length=-1), 400
    yield "zero", request(), 400
    yield "20 MiB and a byte", request(length=20 * MEGABYTE + 1), 413
    yield "2**62", request(length=2**62), 413
    yield "2**64", request(length=2**64), {400, 413}


def chunks() -> Iterator[tuple]:
    good, told = jpeg(), "Transfer-Encoding: chunked"

    def sent(body: bytes, *lines: str) -> bytes:
        return request(body, told, *lines, length=-1)

    yield "good", sent(chunked(good[:99], good[99:])), 200
    yield "a byte each", sent(chunked(*(good[at : at + 1] for at in range(len(good))))), 200
    yield "extensions", sent(chunked(good).replace(b"\r\n", b";a=b;c\r\n", 1)), {200, 400}
    yield "trailers", sent(chunked(good, last=b"0\r\nX-A: b\r\nContent-Length: 5\r\n\r\n")), {200, 400}
    yield "a long extension", sent(b"5;" + b"a" * MEGABYTE), {400, 408, GONE}
    yield "endless trailers", sent(chunked(good, last=b"0\r\n" + b"X-A: b\r\n" * 200_000)), {400, 408, 413, GONE}
    for size in (b"xyz", b"-1", b"0x5", b"5 5", b"", b"f" * 17, b"f" * 16, b" 5"):
        yield f"size {size!r}", sent(size + b"\r\n12345\r\n0\r\n\r\n"), {400, 408, 413}
    yield "longer than said", sent(b"2\r\n12345\r\n0\r\n\r\n"), 400
    yield "never ending", [sent(chunked(good, last=b"")), 2.0], 408
    yield "more than the cap", sent(chunked(*[bytes(MEGABYTE)] * 21)), 413
    for coding in ("gzip, chunked", "chunked, chunked", "identity", "xchunked", "chunked;q=1", "gzip"):
        yield coding, request(chunked(good), f"Transfer-Encoding: {coding}", length=-1), {200, 400, 415, 422}
    yield "twice", sent(chunked(good), told), {200, 400, 422}


def slowness() -> Iterator[tuple]:
    good, drops = jpeg(), [b"x", 0.3] * 20
    yield "nothing of the body", request(length=99), 408
    yield "pauses", [request(length=99), b"x", 0.5, b"x", 2.0], 408
    yield "a trickle, to its deadline", [request(b"", "X-Timeout-Ms: 1500", length=99), *drops], 504
    yield (
        "a trickle, as chunks",
        [request(b"", "Transfer-Encoding: chunked", "X-Timeout-Ms: 1500", length=-1), *[b"1\r\nx\r\n", 0.3] * 20],
        504,
    )
    yield "a slow good one", [request(length=len(good)), *_slowly(good, 5, 0.2)], 200
    yield "a slow head", [b"POST /predict HTTP/1.1\r\n", *[b"X-A: b\r\n", 0.3] * 20], {GONE, 400, 408}
    yield "half a head", [b"POST /predict HT", 3.0], {GONE, 400, 408}
    yield "nothing", [3.0], {GONE, 408}


def _slowly(body: bytes, pieces: int, pause_s: float) -> list[Piece]:
    step = -(-len(body) // pieces)
    return [piece for at in range(0, len(body), step) for piece in (body[at : at + step], pause_s)]


def heads() -> Iterator[tuple]:
    good = jpeg()
    for name, line in {
        "no ASCII": "X-Ä: ö",
        "high bytes": b"X-A: \xff\xfe\x80",
        "UTF-8 id": "X-Request-ID: Größe",
        "empty value": "X-A:",
        "tabs": "X-A:\t b \t",
        "a long one": "X-A: " + "b" * 30_000,
    }.items():
        yield name, request(good, line), {200, 400}
    yield "a thousand", request(good, *["X-A: b"] * 1000), {200, 400}
    yield "a thousand cookies", request(good, *["Cookie: a=b"] * 1000), {200, 400}
    for name, line in {
        "NUL": b"X-A: \0",
        "NUL in a name": b"X-\0: a",
        "no colon": b"X-A",
        "no name": b": a",
        "a blank before the colon": b"X-A : b",
        "folded": b"X-A: a\r\n b",
        "a bare return": b"X-A: a\rb",
        "a bare line end": b"X-A: a\nX-B: b",
    }.items():
        yield name, request(good, line), {200, 400}
    yield "a megabyte", request(good, "X-A: " + "b" * MEGABYTE), {400, GONE}
    yield "a hundred thousand", request(good, *["X-A: b"] * 100_000), {400, GONE}
    yield "an id that splits", request(good, b"X-Request-ID: a\r\nX-Evil: b"), 200
    for told in ("0", "-1", "soon", "1e3", "9" * 40, "1.5", "", "٣"):
        yield f"X-Timeout-Ms {told[:9]}", request(good, f"X-Timeout-Ms: {told}"), {200, 400, 422}
    yield "no host", good and b"POST /predict HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 400
    yield "two hosts", request(good, "Host: y"), {200, 400}
    yield "a host that is none", request(good, "Host: /readyz?a="), {200, 400}


def targets() -> Iterator[tuple]:
    good = jpeg()
    for target in ("http://evil/predict", "HTTP://x:1/predict", "/predict?", "/predict#a", "/predict?top_k=1&top_k=2"):
        yield target, request(good, start=f"POST {target} HTTP/1.1"), {200, 400, 404, 422}
    for target in (
        *(
            "//predict",
            "/predict/",
            "/predict%00",
            "/predict%0a",
            "/predict%2f",
            "/./predict",
            "/a/../predict",
            "/PREDICT",
        ),
        *(
            "/predict;a",
            "/%70redict%",
            "/predict/batch/..",
            "*",
            "predict",
            "x:/predict",
            "/\\predict",
            "/web/../predict",
        ),
        *("/web/%2e%2e/%2e%2e/etc/passwd", "/docs/../../etc/passwd", "/v2/models/../infer", "/v2/models/%0a/infer"),
    ):
        yield target, request(good, start=f"POST {target} HTTP/1.1"), {400, 404, 405}
        yield f"GET {target}", request(start=f"GET {target} HTTP/1.1"), {400, 404, 405}
    yield "bytes", request(good, start=b"POST /\xff\xfe HTTP/1.1"), {400, 404}
    yield "NUL", request(good, start=b"POST /predict\0 HTTP/1.1"), {400, 404}
    yield "none", request(good, start="POST  HTTP/1.1"), 400
    yield "60 kB", request(good, start="POST /" + "a" * 60_000 + " HTTP/1.1"), {400, 404}
    yield "a megabyte", request(good, start="POST /" + "a" * MEGABYTE + " HTTP/1.1"), {400, 404, GONE}
    yield "60 kB of query", request(good, start="POST /predict?lang=" + "a" * 60_000 + " HTTP/1.1"), 422
    yield "ten thousand parameters", request(good, start="POST /predict?" + "a=b&" * 10_000 + " HTTP/1.1"), {200, 400}
    yield "ten thousand blocks", request(good, start="POST /attention?" + "block=x&" * 7000 + " HTTP/1.1"), 422


def versions() -> Iterator[tuple]:
    good = jpeg()
    yield "1.0", request(good, start="POST /predict HTTP/1.0"), 200, GONE
    yield "1.0 kept alive", request(good, "Connection: keep-alive", start="POST /predict HTTP/1.0"), 200
    for version in (
        "HTTP/0.9",
        "HTTP/1.2",
        "HTTP/2.0",
        "HTTP/3.0",
        "HTTP/9.9",
        "http/1.1",
        "HTTP/1",
        "HTTP/1.1 a",
        "ICE/1.0",
        "RTSP/1.0",
    ):
        yield version, request(good, start=f"POST /predict {version}"), {200, 400, 404}
    yield "0.9", b"GET /\r\n", {400, GONE}
    yield "HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), 400
    yield "TLS", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(500), 400
    yield "SSH", b"SSH-2.0-OpenSSH_9.9\r\n", 400
    yield "mail", b"EHLO x\r\n", {400, GONE}
    yield "redis", b"*1\r\n$4\r\nPING\r\n", 400
    yield "zeros", bytes(1000), 400
    yield "empty lines first", b"\r\n" * 9 + request(good), 200
    yield "many empty lines", b"\r\n" * MEGABYTE, {400, GONE}
    yield "several behind each other", request(good) * 20, *[200] * 20
    yield "refused ones and good ones", (request(good[:99]) + request(good)) * 5, *[422, 200] * 5
    yield "a good one and junk", request(good) + b"\0\0junk\r\n\r\n", 200, {400, GONE}
    yield (
        "through the framework and junk",
        request(good, start="POST /predict?top_k=1 HTTP/1.1") + b"\0junk\r\n\r\n",
        200,
        {400, GONE},
    )
    yield "another hidden in a body", request(request(good)), 415


def methods() -> Iterator[tuple]:
    for method in ("PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "PROPFIND", "SEARCH", "PURGE", "LINK", "QUERY"):
        yield method, request(jpeg(), start=f"{method} /predict HTTP/1.1"), {400, 405}
    for method in ("FOO", "post", "POSTT", "P", "G\0T", "GET/", "PRI", "DESCRIBE", "ANNOUNCE"):
        yield method, request(jpeg(), start=f"{method} /predict HTTP/1.1"), {400, 405}
    yield "CONNECT", request(start="CONNECT x:443 HTTP/1.1"), {400, 404, 405}
    yield "CONNECT to a path", request(start="CONNECT /predict HTTP/1.1"), {400, 405}
    yield "GET with a body", request(jpeg(), start="GET /predict HTTP/1.1"), 405


def expectations() -> Iterator[tuple]:
    good = jpeg()
    yield "100-continue", [request(b"", "Expect: 100-continue", length=len(good)), 0.2, good], 100, 200
    yield "100-continue, refused", request(b"", "Expect: 100-continue", length=2**40), 413
    yield "100-continue, and at once", request(good, "Expect: 100-continue"), {100, 200}
    yield "another", request(good, "Expect: 200-ok"), {200, 400}
    for told in ("websocket", "h2c", "TLS/1.0", "HTTP/2.0, x"):
        lines = ("Connection: Upgrade", f"Upgrade: {told}", "Sec-WebSocket-Key: eA==", "HTTP2-Settings: AA")
        yield f"upgrade to {told}", request(good, *lines) + request(good), 200, 200
        yield f"GET, upgrade to {told}", request(b"", *lines, start="GET /healthz HTTP/1.1") + request(good), 200, 200
