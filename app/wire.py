"""Jobs and outcomes as what messages between processes carry (:mod:`app.messages`): the head tells of a list of them,
the payload has their images and arrays."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.engine import Answer, AttentionAsk, Block, BlockAttention, Card, Label
from app.errors import ServiceError, of_code
from app.forward import Decoded, Done, Job, Outcome
from app.images import Picture
from app.messages import Part

Array = NDArray[Any]


def put_jobs(jobs: Sequence[Job]) -> tuple[list[Any], list[Part]]:
    """What a head says of jobs, and their images."""
    parts: list[Part] = []
    return [_put_job(job, parts) for job in jobs], parts


def take_jobs(told: list[Any], payload: memoryview) -> list[Job]:
    """The inverse of :func:`put_jobs`."""
    source = _Payload(payload)
    return [_take_job(one, source) for one in told]


def put_outcomes(outcomes: Sequence[Outcome]) -> tuple[list[Any], list[Part]]:
    """What a head says of outcomes, and the arrays of their attentions. Of pictures only their facts."""
    parts: list[Part] = []
    return [_put_outcome(outcome, parts) for outcome in outcomes], parts


def take_outcomes(told: list[Any], payload: memoryview) -> list[Outcome]:
    """The inverse of :func:`put_outcomes`; the pictures are empty."""
    source = _Payload(payload)
    return [_take_outcome(one, source) for one in told]


def put_card(card: Card) -> dict[str, Any]:
    """A card as JSON."""
    told = {field.name: getattr(card, field.name) for field in fields(card)}
    told["labels"] = [[label.id, label.en, label.zh] for label in card.labels]
    told["blocks"] = [[block.name, block.height, block.width, block.weights] for block in card.blocks]
    return told


def take_card(told: dict[str, Any]) -> Card:
    labels = tuple(Label(*label) for label in told["labels"])
    blocks = tuple(Block(name, h, w, np.array(weights, np.float32)) for name, h, w, weights in told["blocks"])
    return Card(
        **told | {"labels": labels, "blocks": blocks} | {name: tuple(told[name]) for name in ("methods", "notes")}
    )


class _Payload:
    """Parts, taken in their order."""

    def __init__(self, payload: memoryview) -> None:
        self._payload, self._start = payload, 0

    def take(self, length: int) -> memoryview:
        part = self._payload[self._start : self._start + length]
        self._start += length
        return part

    def array(self, kind: str, shape: list[int]) -> Array:
        count = int(np.prod(shape))
        return np.frombuffer(self.take(count * np.dtype(kind).itemsize), kind).reshape(shape)


_SETS = ("blocks", "methods")  # of an ask for the attention


def _put_job(job: Job, parts: list[Part]) -> list[Any]:
    ask = job.attention
    asked = ask and _values(ask) | {name: sorted(getattr(ask, name)) for name in _SETS}
    if isinstance(job.image, bytes):
        parts.append(job.image)
        return [job.top_k, asked, job.trace, len(job.image)]
    picture = job.image.picture
    facts = [picture.format, picture.width, picture.height, job.image.decode_s, job.image.decode_at]
    return [job.top_k, asked, job.trace, [*facts, _put_array(picture.pixels, parts)]]


def _take_job(told: list[Any], source: _Payload) -> Job:
    top_k, asked, trace, image = told
    ask = asked and AttentionAsk(**asked | {name: frozenset(asked[name]) for name in _SETS})
    if isinstance(image, int):
        return Job(bytes(source.take(image)), top_k, ask, trace)
    *facts, decode_s, decode_at, pixels = image
    return Job(Decoded(Picture(source.array(*pixels), *facts), decode_s, decode_at), top_k, ask, trace)


def _put_outcome(outcome: Outcome, parts: list[Part]) -> list[Any]:
    if isinstance(outcome, ServiceError):
        return [outcome.code, outcome.detail, outcome.headers]
    picture, answer = outcome.picture, outcome.answer
    facts = [picture.format, picture.width, picture.height]
    blocks = [_put_block(block, parts) for block in answer.blocks]
    times = [outcome.decode_s, outcome.model_s, outcome.decode_at, outcome.model_at, outcome.batch]
    return [facts, times, answer.indices, answer.probabilities, blocks]


def _take_outcome(told: list[Any], source: _Payload) -> Outcome:
    if isinstance(told[0], str):
        code, detail, headers = told
        return of_code(code)(detail, headers=headers)
    facts, times, indices, probabilities, blocks = told
    looks = tuple(_take_block(block, source) for block in blocks)
    answer = Answer(np.array(indices, np.int64), np.array(probabilities, np.float32), looks)
    return Done(Picture(_NO_PIXELS, *facts), answer, *times)


_NO_PIXELS = np.empty((3, 0, 0), np.uint8)


def _put_block(block: BlockAttention, parts: list[Part]) -> list[Any]:
    values = _values(block)
    methods = values.pop("methods")
    arrays = {name: values.pop(name) for name, value in list(values.items()) if isinstance(value, np.ndarray)}
    return [values, *({name: _put_array(array, parts) for name, array in some.items()} for some in (arrays, methods))]


def _take_block(told: list[Any], source: _Payload) -> BlockAttention:
    values, *several = told
    arrays, methods = ({name: source.array(*array) for name, array in some.items()} for some in several)
    return BlockAttention(**(values | arrays), methods=methods)


def _values(one: BlockAttention | AttentionAsk) -> dict[str, Any]:
    return {field.name: getattr(one, field.name) for field in fields(one)}


def _put_array(array: Array, parts: list[Part]) -> list[Any]:
    """What it is; its numbers, as they lie in memory, become a part."""
    parts.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return [array.dtype.str, array.shape]
