"""Jobs and outcomes as bytes between the HTTP processes and the engine's: a length, a JSON head, raw arrays. No pickle.

frame   = length of what follows (4 bytes, big endian), length of the head (4), head, payload
payload = the arrays and the image one after the other, as the head lists them
"""

import struct
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from app.engine import Answer, AttentionAsk, Block, BlockAttention, Card, Label
from app.errors import ServiceError, of_code
from app.forward import Decoded, Done, Job
from app.images import Picture

_LENGTHS = struct.Struct(">II")
Array = NDArray[Any]


def pack(head: dict[str, Any], *payload: bytes | Array) -> bytes:
    """One frame. Arrays are written as they lie in memory; ``head`` must say what they are (:func:`shapes`)."""
    text = orjson.dumps(head)
    parts = [part if isinstance(part, bytes) else part.tobytes() for part in payload]
    return b"".join([_LENGTHS.pack(4 + len(text) + sum(map(len, parts)), len(text)), text, *parts])


class Frames:
    """The frames of a stream whose bytes come in any pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[dict[str, Any], memoryview]]:
        """Every frame that is now whole: its head and its payload, which is the caller's to keep."""
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= _LENGTHS.size:
            total, head = _LENGTHS.unpack_from(self._buffer, start)
            end = start + 4 + total
            if len(self._buffer) < end:
                break
            middle = start + _LENGTHS.size + head
            payload = memoryview(bytes(memoryview(self._buffer)[middle:end]))
            yield orjson.loads(memoryview(self._buffer)[start + _LENGTHS.size : middle]), payload
            start = end
        del self._buffer[:start]


def job_frame(number: int, job: Job, deadline: float) -> bytes:
    """``deadline``: of the machine's monotonic clock, which its processes share."""
    ask = job.attention
    head = {
        "job": number,
        "deadline": deadline,
        "top_k": job.top_k,
        "ask": ask and [sorted(ask.blocks), ask.top_channels, ask.maps, ask.effects],
    }
    if isinstance(job.image, bytes):
        return pack(head, job.image)
    picture = job.image.picture
    told = [picture.format, picture.width, picture.height, job.image.decode_s]
    return pack(head | {"picture": told, "arrays": _shapes([picture.pixels])}, picture.pixels)


def job_of(head: dict[str, Any], payload: memoryview) -> Job:
    ask = head["ask"] and AttentionAsk(frozenset(head["ask"][0]), *head["ask"][1:])
    if "picture" not in head:
        return Job(bytes(payload), head["top_k"], ask)
    *told, decode_s = head["picture"]
    (pixels,) = _arrays(head["arrays"], payload)
    return Job(Decoded(Picture(pixels, *told), decode_s), head["top_k"], ask)


def done_frame(number: int, done: Done, queue_s: float, run_s: float, batch_size: int) -> bytes:
    picture, blocks = done.picture, []
    arrays: list[Array] = [done.answer.indices, done.answer.probabilities]
    for block in done.answer.blocks:
        values = {field.name: getattr(block, field.name) for field in fields(block)}
        held = [name for name, value in values.items() if isinstance(value, np.ndarray)]
        arrays += [np.ascontiguousarray(values.pop(name)) for name in held]
        blocks.append([values, held])
    head = {
        "number": number,
        "kind": "done",
        "picture": [picture.format, picture.width, picture.height],
        "times": [done.decode_s, done.model_s, queue_s, run_s],
        "batch_size": batch_size,
        "blocks": blocks,
        "arrays": _shapes(arrays),
    }
    return pack(head, *arrays)


def done_of(head: dict[str, Any], payload: memoryview) -> tuple[Done, float, float, int]:
    """The outcome, the seconds in the queue and of the batch, and its size. The picture's pixels stay behind."""
    arrays = iter(_arrays(head["arrays"], payload))
    indices, probabilities = next(arrays), next(arrays)
    blocks = [BlockAttention(**(values | {name: next(arrays) for name in held})) for values, held in head["blocks"]]
    decode_s, model_s, queue_s, run_s = head["times"]
    picture = Picture(np.empty((3, 0, 0), np.uint8), *head["picture"])
    done = Done(picture, Answer(indices, probabilities, tuple(blocks)), decode_s, model_s)
    return done, queue_s, run_s, head["batch_size"]


def error_frame(number: int, error: ServiceError) -> bytes:
    return pack(
        {"number": number, "kind": "error", "code": error.code, "detail": error.detail, "headers": error.headers}
    )


def error_of(head: dict[str, Any]) -> ServiceError:
    return of_code(head["code"])(head["detail"], headers=head["headers"])


def card_head(card: Card) -> dict[str, Any]:
    """A card as JSON."""
    told = {field.name: getattr(card, field.name) for field in fields(card)}
    told["labels"] = [[label.id, label.en, label.zh] for label in card.labels]
    told["blocks"] = [[block.name, block.height, block.width, block.weights.tolist()] for block in card.blocks]
    return told


def card_of(told: dict[str, Any]) -> Card:
    labels = tuple(Label(*label) for label in told["labels"])
    blocks = tuple(Block(name, h, w, np.array(weights, np.float32)) for name, h, w, weights in told["blocks"])
    return Card(**told | {"labels": labels, "blocks": blocks, "notes": tuple(told["notes"])})


def _shapes(arrays: list[Array]) -> list[tuple[str, tuple[int, ...]]]:
    return [(array.dtype.str, array.shape) for array in arrays]


def _arrays(shapes: list[tuple[str, list[int]]], payload: memoryview) -> Iterator[Array]:
    start = 0
    for kind, shape in shapes:
        count = int(np.prod(shape))
        yield np.frombuffer(payload, kind, count, start).reshape(shape)
        start += count * np.dtype(kind).itemsize
