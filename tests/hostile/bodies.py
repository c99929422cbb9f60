"""Requests whose bodies are not what they should be: encodings, forms, JSON, tensors."""

import base64
import json
import struct
from collections.abc import Iterator

from tests.hostile.messages import MEGABYTE, MODEL, jpeg, request


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
    for name, images, status in (("none", [], 400), ("33", [image] * 33, 413), ("a million", ["a"] * 1_000_000, 400)):
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
