"""A request as bytes for a socket, whatever it says of itself."""

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
