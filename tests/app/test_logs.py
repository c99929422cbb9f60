"""Log lines: what they say, and that a sink that fails costs nobody an answer."""

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest
from PIL import Image

from app import logs
from tests.fakes import Service, picture, service

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-00", "x-request-id": "mine"}


class Sink:
    """What has been written to stderr."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def getvalue(self) -> str:
        return self._capsys.readouterr().err


@pytest.fixture
def sink(capsys: pytest.CaptureFixture[str]) -> Iterator[Sink]:
    """Logging is as it was, afterwards."""
    root, raises = logging.getLogger(), logging.raiseExceptions
    handlers, level = root.handlers[:], root.level
    yield Sink(capsys)
    root.handlers, logging.raiseExceptions = handlers, raises
    root.setLevel(level)


def lines(sink: Sink, logger: str) -> list[dict[str, object]]:
    told = [json.loads(line) for line in sink.getvalue().splitlines()]
    return [line for line in told if line["logger"] == logger]


def post(serving: Service, image: bytes = b"", **headers: str) -> int:
    headers = {"content-type": "image/png"} | CALLER | headers
    return serving.client.post("/predict", content=image or picture(), headers=headers).status_code


def test_a_request_is_one_object_with_its_id_and_its_trace(sink: Sink) -> None:
    logs.configure("info", "json")
    with service() as serving:
        post(serving)
    (line,) = lines(sink, "nam.access")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(line.pop("time")))
    assert 0 < float(str(line.pop("ms"))) < 10_000
    assert str(line.pop("message")).startswith("POST /predict 200 ")
    own = {"level": "info", "logger": "nam.access", "request_id": "mine", "trace_id": TRACE}
    assert line == own | {"method": "POST", "route": "/predict", "status": 200}


def test_an_error_has_its_traceback_and_its_request(sink: Sink) -> None:
    logs.configure("info", "json")
    with service() as serving:
        serving.engine.error = RuntimeError("the driver's words\non two lines")
        assert post(serving) == 500
    (line,) = [line for line in lines(sink, "nam.access") if line["level"] == "error"]
    assert (line["request_id"], line["trace_id"]) == ("mine", TRACE)
    assert "RuntimeError: the driver's words\non two lines" in str(line["exception"])


def located() -> bytes:
    """A TIFF that says where it was taken, in a tag that Pillow tells of as it reads."""
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "TIFF", tiffinfo={270: "secret place", 34853: 8})
    return out.getvalue()


@pytest.mark.parametrize("form", ["line", "json"])
def test_no_image_and_no_key_is_logged(sink: Sink, form: str) -> None:
    logs.configure("debug", form)
    with service(api_keys="sesame") as serving:
        for image in (picture(), b"\x89PNG\r\n\x1a\nsecret pixels", located()):
            for key in ("sesame", "wrong"):
                post(serving, image, authorization=f"Bearer {key}")
    told = sink.getvalue()
    assert told.count("POST /predict ") == 6
    assert not [word for word in ("sesame", "wrong", "Bearer", "secret", "IHDR", "GPS") if word in told]


def test_lines_are_lines_unless_objects_are_asked_for(sink: Sink) -> None:
    logs.configure("info")
    with service() as serving:
        post(serving)
    assert re.search(r"INFO nam\.access: POST /predict 200 \d+\.\d ms mine\n", sink.getvalue())


class Full(io.StringIO):
    """A disk that is full."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise ValueError("I/O operation on closed file")


@pytest.mark.parametrize("form", ["line", "json"])
@pytest.mark.parametrize("broken", [Full(), Closed()], ids=["full", "closed"])
def test_a_sink_that_fails_costs_no_answer(
    sink: Sink, monkeypatch: pytest.MonkeyPatch, broken: io.StringIO, form: str
) -> None:
    monkeypatch.setattr("sys.stderr", broken)
    logs.configure("debug", form)
    with service() as serving:
        assert [post(serving), post(serving, b"none")] == [200, 415]
        serving.engine.error = RuntimeError("none of it can be written")
        assert [post(serving), post(serving)] == [500, 200]


def test_what_is_no_json_is_told_in_words(sink: Sink) -> None:
    logs.configure("info", "json")
    logging.getLogger("nam.test").info("%s", {1, 2}, extra={"request_id": object})
    assert lines(sink, "nam.test")[0]["request_id"] == "<class 'object'>"
