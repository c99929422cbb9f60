"""Caps come before cost: what a refused request makes a real process hold, whatever it would have sent."""

import base64
import json
import select
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from app.errors import BadRequest
from app.oip_tensors import read
from app.uploads import MOST_VALUES, parsed
from tests.hostile.bombs import zeros
from tests.hostile.conftest import Target
from tests.hostile.messages import MEGABYTE, MODEL, chunked, jpeg, request
from tests.hostile.writers import png_of

GIGABYTE = 2**30
CAP_KB = 20 * 1024  # of a body
FORM = "Content-Type: multipart/form-data; boundary=x"
PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


def endless(first: bytes = b"") -> Iterator[bytes]:
    """A gigabyte in chunks, behind the first of them."""
    yield chunked(first, last=b"") if first else b""
    piece = chunked(b"A" * MEGABYTE, last=b"")
    for _ in range(GIGABYTE // MEGABYTE):
        yield piece


def plain() -> Iterator[bytes]:
    piece = bytes(MEGABYTE)
    for _ in range(GIGABYTE // MEGABYTE):
        yield piece


def status_of(port: int, head: bytes, body: Iterator[bytes]) -> int:
    """Sends until nobody takes it any more; the answer's status."""
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        connection.sendall(head)
        with suppress(ConnectionError):
            for piece in body:
                connection.sendall(piece)
                if _has_answer(connection):
                    break
        return int(connection.recv(2**16)[9:12])


def _has_answer(connection: socket.socket) -> bool:
    return bool(select.select([connection], [], [], 0)[0])


def head(*lines: str, path: str = "/predict", length: int = -1) -> bytes:
    coding = [] if length >= 0 else ["Transfer-Encoding: chunked"]
    return request(b"", *lines, *coding, start=f"POST {path} HTTP/1.1", length=length)


CASES = {
    "a gigabyte, declared": (head(length=GIGABYTE), plain, 2048),
    "a gigabyte, declared, not the short way": (head(path="/attention", length=GIGABYTE), plain, 2048),
    "a gigabyte in chunks": (head(), endless, 3 * CAP_KB),
    "a gigabyte of a form": (head(FORM), lambda: endless(PART), 3 * CAP_KB),
    "a gigabyte of JSON": (head("Content-Type: application/json"), lambda: endless(b'{"image": "'), 3 * CAP_KB),
    "a gigabyte of tensors": (head(path=f"/v2/models/{MODEL}/infer"), lambda: endless(b'{"inputs": ['), 3 * CAP_KB),
}


@pytest.mark.parametrize("name", CASES)
def test_a_refused_upload_of_a_gigabyte_costs_no_more_than_the_cap(target: Target, name: str) -> None:
    """Nothing where its length was declared; without one what a body may have is held until there is too much of it."""
    sent, body, most_kb = CASES[name]
    status_of(target.port, sent, body())  # what is loaded once is loaded
    before = target.resident_kb()
    target.forget_peaks()
    assert status_of(target.port, sent, body()) == 413
    cost = target.peak_kb() - before
    print(f"{name}: {cost} kB")
    assert cost < most_kb


def test_a_picture_of_too_many_pixels_costs_no_pixels(target: Target) -> None:
    bomb = png_of(65_535, 65_535, 8, 6, zeros(1))
    assert {status_of(target.port, request(bomb), iter(())) for _ in range(4)} == {413}  # who decodes is there
    before = target.resident_kb()
    target.forget_peaks()
    for _ in range(20):
        assert status_of(target.port, request(bomb), iter(())) == 413
    assert target.peak_kb() - before < 10_000


LISTS = b'{"images": [' + b"[]," * MOST_VALUES + b"[]]}"


def test_json_of_millions_of_values_is_not_parsed() -> None:
    assert parsed(b"[" + b"1," * (MOST_VALUES - 9) + b"1]")
    with pytest.raises(BadRequest, match="commas"):
        parsed(LISTS)


def test_tensors_in_json_may_have_as_many_values_as_their_pixels() -> None:
    numbers = [[[[7] * 3] * 64] * 64] * 32
    told = {"name": "pixels", "datatype": "UINT8", "shape": [32, 64, 64, 3]}
    _, images = read(json.dumps({"inputs": [told | {"data": numbers}]}).encode(), None, 64, 32)
    assert len(images) == 32
    with pytest.raises(BadRequest, match="commas"):
        read(b'{"inputs": [' + b"[]," * 1_000_000 + b"1]}", None, 64, 32)


def test_a_full_request_of_images_in_base64_is_far_below_the_cap() -> None:
    body = json.dumps({"images": [base64.b64encode(jpeg()).decode()] * 32}).encode()
    assert len(parsed(body)["images"]) == 32
