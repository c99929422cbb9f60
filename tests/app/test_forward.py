"""What a lane does with a batch: every image its own outcome, in its own place."""

import threading
import time

import numpy as np
import pytest

from app import forward
from app.engine import AttentionAsk
from app.errors import BadImage, InternalError, UnsupportedMediaType
from app.forward import Decoded, Done, Forward, Job, timed_decode
from tests.fakes import FakeEngine, picture, until


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


def lane(engine: FakeEngine, seen: list[float] | None = None) -> Forward:
    return Forward(engine, 10**6, ([] if seen is None else seen).append)


def decoded(level: int) -> Decoded:
    return timed_decode(picture(level), size=8, crop=1.0, max_pixels=10**6)


def test_bytes_and_pictures_share_one_forward_and_keep_their_order(engine: FakeEngine) -> None:
    outcomes = lane(engine)([Job(picture(50), 1), Job(decoded(100), 2), Job(picture(200), 3)])
    assert [outcome.answer.indices[0] for outcome in outcomes] == [2, 4, 8]
    assert [len(outcome.answer.indices) for outcome in outcomes] == [1, 2, 3]
    assert engine.batches == [3]


def test_an_image_that_is_none_is_an_error_in_its_own_place(engine: FakeEngine) -> None:
    bad, good, cut = lane(engine)([Job(b"nothing", 1), Job(picture(200), 1), Job(picture()[:40], 1)])
    assert isinstance(bad, UnsupportedMediaType)
    assert isinstance(cut, BadImage)
    assert isinstance(good, Done)
    assert good.answer.indices.tolist() == [8]


def test_a_batch_of_nothing_but_errors_never_reaches_the_engine(engine: FakeEngine) -> None:
    seen: list[float] = []
    assert isinstance(lane(engine, seen)([Job(b"nothing", 1)])[0], UnsupportedMediaType)
    assert (engine.batches, seen) == ([], [])


def test_a_decoder_that_fails_of_itself_is_our_error_and_its_words_the_logs(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(forward, "decode", lambda *_, **__: 1 / 0)
    (outcome,) = lane(engine)([Job(picture(), 1)])
    assert isinstance(outcome, InternalError)
    assert "division" in caplog.text
    assert "division" not in outcome.detail


def test_an_engines_error_is_raised_for_the_batch(engine: FakeEngine) -> None:
    engine.error = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        lane(engine)([Job(picture(), 1)])


def test_each_step_is_timed_on_its_own(engine: FakeEngine) -> None:
    seen: list[float] = []

    def held() -> None:
        """For as long, from when the engine has them: decoding may take its time."""
        until(lambda: engine.batches == [1])
        time.sleep(0.05)
        engine.gate.set()

    engine.gate.clear()
    threading.Thread(target=held).start()
    (outcome,) = lane(engine, seen)([Job(picture(), 1)])
    assert outcome.model_s >= 0.04
    assert seen == [outcome.model_s]
    assert outcome.decode_s > 0
    assert np.array_equal(outcome.picture.pixels, decoded(100).picture.pixels)


@pytest.mark.parametrize(
    ("asked", "forwards"),
    [
        (None, 1),
        (AttentionAsk(frozenset("ab"), 8), 1),
        (AttentionAsk(frozenset("ab"), 8, effects=True), 4),
        (AttentionAsk(frozenset("ab"), 8, channel_effects=True), 18),
        (AttentionAsk(frozenset("a"), 3, effects=True, channel_effects=True), 6),
    ],
)
def test_a_job_is_worth_its_forwards(asked: AttentionAsk | None, forwards: int) -> None:
    assert Job(b"", 5, asked).forwards == forwards
