"""Requests that are not what they say, as bytes for a socket: good ones oddly clothed, bad ones, and no HTTP at all."""

import base64
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from tests.hostile.kinds import photo
from tests.hostile.writers import encode

GONE = 0  # the connection ends without an answer
MEGABYTE = 2**20
MODEL = "resnet18-nam-tiny-imagenet"

Piece = bytes | float  # to send, or seconds to wait


@dataclass(frozen=True, slots=True)
class Attempt:
    """``answers``: for each that is waited for, the statuses it may have. ``ends``: the caller then sends no more."""

    name: str
    pieces: list[Piece]
    answers: list[set[int]]
    ends: bool = False


@cache
def jpeg() -> bytes:
    return encode(photo(), "JPEG", quality=92)


def request(
    body: bytes = b"", *lines: str | bytes, start: str | bytes = "POST /predict HTTP/1.1", length: int | None = None
) -> bytes:
    """``lines``: of the head, beside Host and Content-Length; ``length``: not the body's, negative for none."""
    told = len(body) if length is None else length
    every = [start, "Host: x", *lines, *([f"Content-Length: {told}"] if told >= 0 else [])]
    return b"\r\n".join(line if isinstance(line, bytes) else line.encode() for line in every) + b"\r\n\r\n" + body


def chunked(*pieces: bytes, last: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + last


def attempts() -> Iterator[Attempt]:
    """Against a service whose bodies may pause a second, and be of 20 MiB."""
    for of in (
        lengths,
        chunks,
        slowness,
        heads,
        targets,
        versions,
        methods,
        expectations,
        encodings,
        forms,
        texts,
        tensors,
    ):
        for name, pieces, *answers in of():
            sent = [pieces] if isinstance(pieces, bytes) else pieces
            yield Attempt(f"{of.__name__}: {name}", sent, [a if isinstance(a, set) else {a} for a in answers])
    for name, sent in {
        "all": request(jpeg()),
        "a part": request(jpeg(), length=len(jpeg()) + 9),
        "nothing": b"",
    }.items():
        yield Attempt(f"half closed after {name}", [sent], [{200, GONE}], ends=True)


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
        yield f"upgrade to {told}", request(good, *lines), {200, 400, 408}
        yield f"GET, upgrade to {told}", request(b"", *lines, start="GET /healthz HTTP/1.1"), {200, 400}


def encodings() -> Iterator[tuple]:
    for coding in ("gzip", "br", "deflate", "zstd", "gzip, gzip", "x", "identity, gzip", "\xff"):
        for path in ("/predict", "/predict/batch", f"/v2/models/{MODEL}/infer"):
            start = f"POST {path} HTTP/1.1"
            yield f"{coding} {path}", request(b"\x1f\x8b" + bytes(99), f"Content-Encoding: {coding}", start=start), 415
    yield "identity", request(jpeg(), "Content-Encoding: identity"), 200


def forms() -> Iterator[tuple]:
    def sent(body: bytes, boundary: str = "; boundary=x", path: str = "/predict") -> bytes:
        return request(body, f"Content-Type: multipart/form-data{boundary}", start=f"POST {path} HTTP/1.1")

    def part(body: bytes, head: str = 'Content-Disposition: form-data; name="file"; filename="a"') -> bytes:
        return b"--x\r\n" + head.encode() + b"\r\n\r\n" + body + b"\r\n"

    good, end = part(jpeg()), b"--x--\r\n"
    field = part(b"1", 'Content-Disposition: form-data; name="a"')
    yield "good", sent(good + end), 200
    yield "no end", sent(good), {200, 400}
    yield "twice", sent(good * 2 + end), 413
    yield "twice, in a batch", sent(good * 2 + end, path="/predict/batch"), 200
    yield "33 images", sent(good * 33 + end, path="/predict/batch"), 413
    yield "ten thousand files", sent(part(b"a") * 10_000 + end, path="/predict/batch"), 413
    yield "ten thousand fields", sent(field * 10_000 + end), 400
    yield "a hundred thousand empty parts", sent(b"--x\r\n\r\n\r\n" * 100_000 + end), 400
    yield "a large field", sent(part(b"a" * 5 * MEGABYTE, 'Content-Disposition: form-data; name="a"') + end), 400
    yield "a part's head of a megabyte", sent(part(b"a", "X-A: " + "b" * MEGABYTE) + end), 400
    yield "a part with 10,000 heads", sent(part(b"a", "\r\n".join(["X-A: b"] * 10_000)) + end), 400
    yield (
        "a name of a megabyte",
        sent(part(b"a", f'Content-Disposition: form-data; name="{"a" * MEGABYTE}"') + end),
        400,
    )
    yield (
        "a filename of 60 kB",
        sent(part(jpeg(), f'Content-Disposition: form-data; name="file"; filename="{"a" * 3000}"') + end),
        {200, 400},
    )
    yield (
        "a filename that climbs",
        sent(part(jpeg(), 'Content-Disposition: form-data; name="file"; filename="../../etc/passwd"') + end),
        200,
    )
    yield "no name", sent(part(b"a", "Content-Disposition: form-data") + end), 400
    yield "no heads", sent(b"--x\r\n\r\na\r\n" + end), 400
    yield "NUL in a name", sent(part(b"a", 'Content-Disposition: form-data; name="\0"') + end), 400
    yield (
        "base64 in a part",
        sent(
            part(
                base64.b64encode(jpeg()),
                'Content-Disposition: form-data; name="file"; filename="a"\r\nContent-Transfer-Encoding: base64',
            )
            + end
        ),
        415,
    )
    yield (
        "a form in a form",
        sent(part(good + end, 'Content-Disposition: form-data; name="file"; filename="a"') + end),
        {400, 413, 415},
    )
    yield "an empty file", sent(part(b"") + end), 400
    yield "empty", sent(b""), 400
    yield "an end alone", sent(end), 400
    yield "junk", sent(b"junk" * 999), 400
    for boundary in (
        "",
        "; boundary=",
        "; boundary=y",
        '; boundary="',
        "; boundary=" + "b" * 10_000,
        "; charset=none; boundary=x",
        "; boundary=x; boundary=y",
        "; Boundary=x",
    ):
        yield f"boundary {boundary[:30]!r}", sent(good + end, boundary), {200, 400}


def texts() -> Iterator[tuple]:
    def sent(body: bytes | str, path: str = "/predict") -> bytes:
        data = body if isinstance(body, bytes) else body.encode()
        return request(data, "Content-Type: application/json", start=f"POST {path} HTTP/1.1")

    image = base64.b64encode(jpeg()).decode()
    yield "good", sent(json.dumps({"image": image})), 200
    yield "good, and more", sent(json.dumps({"a": [{}] * 999, "image": image, "b": None})), 200
    for name, text in {
        **{"empty": "", "null": "null", "a number": "1", "a list": "[]", "no member": "{}", "cut off": '{"image": "'},
        **{
            "NaN": '{"image": NaN}',
            "two": "{}{}",
            "a mark": '\ufeff{"image": "aa=="}',
            "single quotes": "{'image': 'a'}",
        },
        **{
            "null image": '{"image": null}',
            "a number's image": '{"image": 1}',
            "image of images": '{"image": {"image": "a"}}',
        },
        **{"wrong base64": '{"image": "%%%"}', "half base64": '{"image": "abc"}', "blanks": f'{{"image": " {image}"}}'},
        **{
            "for URLs": '{"image": "-_-_"}',
            "data URL": f'{{"image": "data:image/jpeg;base64,{image}"}}',
            "accents": '{"image": "ééé"}',
        },
        **{
            "a URL": '{"image": "http://127.0.0.1/"}',
            "a surrogate": '{"image": "\\ud800"}',
            "empty image": '{"image": ""}',
        },
        **{
            "deep": "[" * 1_000_000,
            "deep and closed": "[" * 100_000 + "]" * 100_000,
            "deep inside": '{"image": ' + "[" * 900 + "]" * 900 + "}",
        },
        **{
            "deep objects": '{"a":' * 200_000,
            "wide": '{"image": [' + "1," * 5_000_000 + "1]}",
            "a huge number": '{"image": ' + "9" * 5_000_000 + "}",
        },
        **{
            "millions of members": "{" + ",".join(f'"{n}":1' for n in range(500_000)) + "}",
            "15 MB of nothing": '{"image": "' + "%" * 15_000_000 + '"}',
        },
        **{"15 MB of blanks": " " * 15_000_000, "15 MB escaped": '{"image": "' + "\\u0041" * 2_500_000 + '"'},
    }.items():
        yield name, sent(text), 400
    yield "not UTF-8", sent(b'{"image": "\xff\xfe"}'), 400
    yield "UTF-16", sent(json.dumps({"image": image}).encode("utf-16")), 400
    yield "15 MB of zeros in base64", sent(json.dumps({"image": "A" * 15_000_000})), 415
    for name, images, status in (("none", [], 400), ("33", [image] * 33, 413), ("a million", ["a"] * 1_000_000, 413)):
        yield f"{name} images", sent(json.dumps({"images": images}), "/predict/batch"), status
    yield "images that are none", sent(json.dumps({"images": [1, None, [], {}, "", "%", image]}), "/predict/batch"), 200


def tensors() -> Iterator[tuple]:
    def sent(asked: object, *lines: str, behind: bytes = b"", way: str = "infer") -> bytes:
        text = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
        return request(text + behind, *lines, start=f"POST /v2/models/{MODEL}/{way} HTTP/1.1")

    def one(name: str = "image", datatype: str = "BYTES", shape: object = (1,), **more: object) -> dict:
        return {"inputs": [{"name": name, "datatype": datatype, "shape": shape, **more}]}

    image = base64.b64encode(jpeg()).decode()
    yield "good", sent(one(data=[image])), 200
    for shape in ([], [0], [-1], [2**63], [10**30], [1, 1], [1.5], "1", None, [[1]], [1] * 100_000, [True]):
        yield f"shape {str(shape)[:20]}", sent(one(shape=shape, data=[image])), {400, 413, 422}
    for shape in ([2**40, 64, 64, 3], [1, 2**40, 64, 3], [33, 64, 64, 3], [1, 64, 64, 4], [0, 64, 64, 3]):
        yield f"pixels {shape}", sent(one("pixels", "UINT8", shape, data=[0])), {413, 422}
    for name, data in {
        "deep": [[[[[[0]]]]]],
        "300": [300] * 12_288,
        "-1": [-1] * 12_288,
        "text": ["a"] * 12_288,
        "mixed": [[0], 0] * 999,
        "none": None,
        "few": [0],
        "wide": [0] * 2_000_000,
        "object": {},
        "floats": [0.5] * 12_288,
    }.items():
        yield f"pixels of {name}", sent(one("pixels", "UINT8", [1, 64, 64, 3], data=data)), {400, 422}
    yield "deep", sent(b'{"inputs": ' + b"[" * 900 + b"]" * 900 + b"}"), 400
    yield "deeper", sent(b'{"inputs": ' + b"[" * 500_000), 400
    yield "a million inputs", sent(b'{"inputs": [' + b"{}," * 1_000_000 + b"{}]}"), 400
    yield "a million outputs", sent(b'{"inputs": [{}], "outputs": [' + b"{}," * 1_000_000 + b"{}]}"), 400
    yield "an output twice", sent(one(data=[image]) | {"outputs": [{"name": "probabilities"}] * 2}), 422
    binary = one(parameters={"binary_data_size": len(jpeg()) + 4})
    text, good = json.dumps(binary).encode(), struct.pack("<I", len(jpeg())) + jpeg()
    told = f"Inference-Header-Content-Length: {len(text)}"
    yield "binary", sent(text, told, behind=good), 200
    for length in ("-1", "0", "1", "9" * 30, "x", str(len(text) + 10**6), "", "٣"):
        yield (
            f"a header's length {length[:9]}",
            sent(text, f"Inference-Header-Content-Length: {length}", behind=good),
            {400, 422},
        )
    for size in (0, 5, 2**62, 2**64, -1, "5", 1.5, None):
        yield f"binary size {size}", sent(one(parameters={"binary_data_size": size}), behind=good), {400, 422}
    for size in (0, 2**32 - 1, len(jpeg()) + 1, len(jpeg()) - 1):
        yield f"an element of {size}", sent(text, told, behind=struct.pack("<I", size) + jpeg()), {400, 415, 422}
    for way in ("", "infer/infer", "../infer", "explainx"):
        yield f"way {way}", sent(one(data=[image]), way=way), {404, 405}
