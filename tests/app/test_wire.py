"""Messages between processes: what goes in comes out, in whatever pieces it travels."""

from dataclasses import fields

import numpy as np
import orjson
import pytest

from app import wire
from app.engine import Answer, AttentionAsk
from app.errors import BadImage, Overloaded, ServiceError
from app.forward import Decoded, Done, Job
from app.images import Picture
from app.messages import LENGTHS, Messages, message
from tests.fakes import CARD, FakeEngine

BOTH = frozenset({"layer1.0", "layer2.0"})
LOOK = AttentionAsk(BOTH, 2, "all", effects=True, channel_effects=True, methods=frozenset({"class", "activation"}))
PIXELS = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(3, 8, 8)


def same(one: object, other: object) -> bool:
    """Equal field by field, arrays with their dtypes."""
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if hasattr(one, "__dataclass_fields__"):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def travel(head: dict, parts: list, step: int) -> list[tuple[dict, memoryview]]:
    stream, messages = b"".join(bytes(piece) for piece in message(head, parts)), Messages()
    return [found for i in range(0, len(stream), step) for found in messages.feed(stream[i : i + step])]


@pytest.mark.parametrize("step", [1, 7, 10**6], ids=["byte by byte", "in pieces", "at once"])
def test_jobs_arrive_as_they_were_sent(step: int) -> None:
    picture = Decoded(Picture(PIXELS, "PNG", 12, 8), 0.25, 17.5)
    jobs = [Job(b"\xff\xd8", 3, trace="00-a-b-01"), Job(b"", 1, LOOK), Job(picture, 5, AttentionAsk(frozenset()))]
    told, parts = wire.put_jobs(jobs)
    ((head, payload),) = travel({"jobs": told}, parts, step)
    assert same(wire.take_jobs(head["jobs"], payload), jobs)


@pytest.mark.parametrize("ask", [None, LOOK, AttentionAsk(frozenset({"layer1.0"}), 0, "none")])
def test_answers_arrive_bit_by_bit(ask: AttentionAsk | None) -> None:
    from app.engine import Ask

    (answer,) = FakeEngine()([Ask(PIXELS, 4, ask)])
    done = Done(Picture(PIXELS, "JPEG", 500, 375), answer, 0.001, 0.02, 7.25, 7.5, "00-c-d-01")
    told, parts = wire.put_outcomes([done, BadImage("no")])
    ((head, payload),) = travel({"outcomes": told}, parts, 11)
    one, other = wire.take_outcomes(head["outcomes"], payload)
    assert same(one.answer, answer)
    assert (one.picture.format, one.picture.width, one.picture.height) == ("JPEG", 500, 375)
    assert (one.decode_s, one.model_s, one.decode_at, one.model_at, one.batch) == (0.001, 0.02, 7.25, 7.5, "00-c-d-01")
    assert isinstance(other, BadImage)


def test_probabilities_survive_to_the_last_bit() -> None:
    values = np.float32(np.random.default_rng(0).random(1000)) ** 9
    done = Done(Picture(PIXELS, "JPEG", 8, 8), Answer(np.arange(1000), values), 0.0, 0.0)
    told, parts = wire.put_outcomes([done])
    ((head, payload),) = travel({"o": told}, parts, 10**6)
    assert same(wire.take_outcomes(head["o"], payload)[0].answer.probabilities, values)


def all_errors() -> list[type[ServiceError]]:
    return ServiceError.__subclasses__()


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.code)
def test_every_error_arrives_as_itself(kind: type[ServiceError]) -> None:
    error = kind("in our words", headers={"Retry-After": "7"})
    ((head, payload),) = travel({"o": wire.put_outcomes([error])[0]}, [], 10**6)
    (found,) = wire.take_outcomes(head["o"], payload)
    assert (type(found), found.detail, found.headers) == (kind, error.detail, error.headers)


def test_a_card_arrives_whole() -> None:
    ((head, _),) = travel({"card": wire.put_card(CARD)}, [], 10**6)
    assert same(wire.take_card(head["card"]), CARD)


def test_messages_keep_apart() -> None:
    pieces = [b"".join(map(bytes, message({"n": n}, [bytes(n)]))) for n in range(4)]
    found = list(Messages().feed(b"".join(pieces)))
    assert [(head["n"], len(payload)) for head, payload in found] == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_nothing_that_is_read_can_run() -> None:
    with pytest.raises(orjson.JSONDecodeError):
        list(Messages().feed(LENGTHS.pack(4, 0) + b"\x80\x04N."))  # a pickle


def test_an_unknown_code_is_no_error_of_ours() -> None:
    with pytest.raises(StopIteration):
        wire.take_outcomes([["no_such_code", "", {}]], memoryview(b""))
    assert isinstance(wire.take_outcomes([["overloaded", "full", {}]], memoryview(b""))[0], Overloaded)
