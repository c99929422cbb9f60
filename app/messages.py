"""Messages between the processes of a service: a head in JSON, images and arrays as raw bytes. No pickle.

message = length of the head (4 bytes, big endian), length of the payload (8), head, payload
payload = the parts that the head tells of, one after the other
"""

import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

LENGTHS = struct.Struct(">IQ")
Part = bytes | memoryview

_MOST_PIECES = 512  # that one call of sendmsg takes; the kernel allows 1024


def message(head: dict[str, Any], parts: Sequence[Part] = ()) -> list[Part]:
    """The pieces of one message, to be sent in their order."""
    text = orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY)
    return [LENGTHS.pack(len(text), sum(map(len, parts))), text, *parts]


class Messages:
    """The messages of a stream whose bytes come in any pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[dict[str, Any], memoryview]]:
        """Every message that is now whole: its head and its payload, which is the caller's to keep."""
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= LENGTHS.size:
            head, payload = LENGTHS.unpack_from(self._buffer, start)
            middle = start + LENGTHS.size + head
            if len(self._buffer) < middle + payload:
                break
            with memoryview(self._buffer) as view:
                told = orjson.loads(view[start + LENGTHS.size : middle])
                kept = memoryview(bytes(view[middle : middle + payload]))
            start = middle + payload
            yield told, kept
        del self._buffer[:start]


class Stream:
    """Messages over a blocking socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def send(self, head: dict[str, Any], parts: Sequence[Part] = ()) -> None:
        """In one call of the kernel where it takes all at once, and without a copy of ours."""
        pieces = message(head, parts)
        for start in range(0, len(pieces), _MOST_PIECES):
            _send_all(self._socket, pieces[start : start + _MOST_PIECES])

    def take(self) -> tuple[dict[str, Any], memoryview]:
        """The next message. Raises EOFError where the other end is gone."""
        head, payload = LENGTHS.unpack(self._exactly(LENGTHS.size))
        told: dict[str, Any] = orjson.loads(self._exactly(head))
        return told, self._exactly(payload)

    def close(self) -> None:
        self._socket.close()

    def _exactly(self, count: int) -> memoryview:
        buffer = memoryview(bytearray(count))
        filled = 0
        while filled < count:
            if not (more := self._socket.recv_into(buffer[filled:])):
                raise EOFError
            filled += more
        return buffer


def _send_all(connection: socket.socket, pieces: list[Part]) -> None:
    sent = connection.sendmsg(pieces)
    for piece in pieces:
        if sent < len(piece):
            connection.sendall(memoryview(piece)[sent:])
        sent = max(0, sent - len(piece))
