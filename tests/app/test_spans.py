"""What a trace tells of a request: both ways through the service, spans kept in memory."""

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind

from app import spans, tracing
from app.trace import heard
from tests.app.test_protocol import Server, listening
from tests.fakes import picture, until

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
SHORT, LONG = "/predict", "/predict?top_k=5"
BOTH = pytest.mark.parametrize("path", [SHORT, LONG], ids=["the short way", "the framework"])


class Kept(SpanExporter):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS

    def named(self, *names: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name in names]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    """Spans are here once the service has ended."""
    exporter = Kept()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setattr(spans, "_exporter", lambda name: exporter)
    return exporter


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRACES_EXPORTER", "TRACES_SAMPLER", "TRACES_SAMPLER_ARG", "EXPORTER_OTLP_ENDPOINT", "SERVICE_NAME"):
        monkeypatch.delenv(f"OTEL_{name}", raising=False)


def context(span: ReadableSpan) -> tuple[int, int]:
    return span.context.trace_id, span.context.span_id


def linked(span: ReadableSpan) -> list[tuple[int, int]]:
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


@BOTH
def test_a_request_is_a_span_with_its_images_times_below(kept: Kept, path: str) -> None:
    with listening() as server:
        answer = server.post(picture(), path, **CALLER)
    request, queue, decode, model = (kept.named(name)[0] for name in ("POST /predict", "queue", "decode", "model"))
    assert (request.kind, request.parent.span_id) == (SpanKind.SERVER, 0xB7AD6B7169203331)
    assert request.attributes["http.request.method"] == "POST"
    assert (request.attributes["http.route"], request.attributes["url.path"]) == ("/predict", "/predict")
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["http.request.body.size"] == len(picture())
    assert request.attributes["http.response.body.size"] == len(answer.content)
    assert {span.context.trace_id for span in (request, queue, decode, model)} == {int(TRACE, 16)}
    for span in (queue, decode, model):
        assert span.parent.span_id == request.context.span_id
        assert request.start_time <= span.start_time <= span.end_time <= request.end_time
    assert model.attributes["nam.batch.size"] == 1


@BOTH
def test_the_spans_last_as_long_as_server_timing_says(kept: Kept, path: str) -> None:
    with listening() as server:
        told = server.post(picture(), path).headers["server-timing"]
    durations = {name: float(value) for name, _, value in (part.partition(";dur=") for part in told.split(", "))}
    for name, ms in durations.items():
        (span,) = kept.named(name)
        assert (span.end_time - span.start_time) / 1e6 == pytest.approx(ms, abs=0.01)


def shared(server: Server) -> None:
    """A request that holds the only lane, and two that wait for it together."""
    server.engine.gate.clear()
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(server.post, picture())]
        until(lambda: server.engine.batches == [1])
        calls += [pool.submit(server.post, picture(), path) for path in (SHORT, LONG)]
        until(lambda: server.count("nam_queue_depth") == 2)
        server.engine.gate.set()
        assert [call.result().status_code for call in calls] == [200] * 3


def test_a_batch_is_linked_with_each_request_that_shared_it(kept: Kept) -> None:
    with listening() as server:
        shared(server)
    (batch,) = [span for span in kept.named("batch") if span.attributes["nam.batch.size"] == 2]
    models = [span for span in kept.named("model") if span.attributes["nam.batch.size"] == 2]
    requests = {context(span) for span in kept.named("POST /predict")}
    assert batch.parent is None
    assert {(span.context.trace_id, span.parent.span_id) for span in models} == set(linked(batch)) < requests
    assert len(models) == 2
    assert [linked(span) for span in models] == [[context(batch)]] * 2


def test_each_image_of_a_request_has_its_spans(kept: Kept) -> None:
    with listening() as server:
        files = [("file", picture(level)) for level in (25, 75)] + [("file", b"none")]
        httpx2.post(server.url + "/predict/batch", files=files, timeout=60)
    (request,) = kept.named("POST /predict/batch")
    below = sorted((span.name, span.attributes["nam.image"]) for span in kept.named("decode", "queue", "model"))
    assert below == [(name, place) for name in ("decode", "model", "queue") for place in (0, 1)]
    assert request.attributes["http.response.status_code"] == 200


def test_pixels_that_need_no_decoding_have_no_span_of_it(kept: Kept) -> None:
    pixels = {"name": "pixels", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": [7] * 192}
    with listening() as server:
        answer = httpx2.post(server.url + "/v2/models/fake/infer", json={"inputs": [pixels]}, timeout=60)
    assert answer.status_code == 200
    assert {span.name for span in kept.spans} == {"POST /v2/models/{name}/infer", "queue", "model", "batch"}


def test_a_failed_forward_is_an_error_of_request_and_batch(kept: Kept) -> None:
    with listening() as server:
        server.engine.error = RuntimeError("the driver's words")
        assert server.post(picture()).status_code == 500
    (request,), (batch,) = kept.named("POST /predict"), kept.named("batch")
    assert [request.attributes["error.type"], batch.attributes["error.type"]] == ["500", "RuntimeError"]
    assert {span.status.status_code.name for span in (request, batch)} == {"ERROR"}
    assert request.status.description is batch.status.description is None


@BOTH
def test_what_the_caller_did_wrong_is_no_error_of_ours(kept: Kept, path: str) -> None:
    with listening() as server:
        assert server.post(b"none", path).status_code == 415
    (request,) = kept.named("POST /predict")
    assert request.attributes["http.response.status_code"] == 415
    assert request.status.status_code.name == "UNSET"


def test_no_query_no_key_and_no_body_is_told(kept: Kept) -> None:
    with listening(api_keys="sesame") as server:
        server.post(picture(), "/predict?lang=zh", authorization="Bearer sesame")
    told = [str(value) for span in kept.spans for value in span.attributes.values()]
    assert told
    assert not [value for value in told if "sesame" in value or "lang" in value]


def test_probes_and_unknown_paths_are_few_names(kept: Kept) -> None:
    with listening() as server:
        for path in ("/healthz", "/readyz", "/metrics", "/nowhere", "/model"):
            httpx2.get(server.url + path, timeout=60)
        httpx2.request("PROPFIND", server.url + "/model", timeout=60)
    assert sorted(span.name for span in kept.spans) == ["GET", "GET /model", "HTTP /model"]


@pytest.mark.parametrize(("argument", "count"), [("0", 0), ("1", 1)])
def test_the_sampler_is_the_one_that_is_asked_for(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, argument: str, count: int
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    with listening() as server:
        server.post(picture())
    assert [len(kept.named(name)) for name in ("POST /predict", "model", "batch")] == [count] * 3


def test_what_the_caller_does_not_record_is_not_recorded(kept: Kept) -> None:
    with listening() as server:
        server.post(picture(), traceparent=f"00-{TRACE}-b7ad6b7169203331-00")
    assert kept.spans == []


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"TRACES_EXPORTER": "none", "EXPORTER_OTLP_ENDPOINT": "http://localhost:1"},
        {"SDK_DISABLED": "true", "EXPORTER_OTLP_ENDPOINT": "http://localhost:1"},
        {"TRACES_EXPORTER": "zipkin"},
        {"TRACES_EXPORTER": "otlp", "EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)
def test_traces_are_off_unless_there_is_a_way_out(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"OTEL_{name}", value)
    assert tracing.open_traces() is None


def test_nothing_of_it_is_imported_where_there_is_no_way_out() -> None:
    told = "[name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'app.spans'))]"
    asks = "serving.client.post('/predict', content=picture(), headers={'content-type': 'image/png'})"
    code = f"import sys\nfrom tests.fakes import picture, service\nwith service() as serving: print({asks}, {told})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "<Response [200 OK]> []\n"


def test_without_the_extra_traces_are_off_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:1")
    monkeypatch.setitem(sys.modules, "app.spans", None)
    assert tracing.open_traces() is None
    assert "nam-serve[otel]" in caplog.text


def test_the_service_has_a_name_unless_it_is_given_one(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (None, "vision"):
        if name:
            monkeypatch.setenv("OTEL_SERVICE_NAME", name)
        with listening() as server:
            server.post(picture())
    assert {span.resource.attributes["service.name"] for span in kept.spans} == {"nam-serve", "vision"}


@pytest.mark.parametrize(
    ("sent", "id_"),
    [
        (CALLER["traceparent"], TRACE),
        (f"01-{TRACE}-b7ad6b7169203331-01-more", TRACE),
        (f"ff-{TRACE}-b7ad6b7169203331-01", None),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        ("nonsense", None),
    ],
)
def test_the_callers_trace_is_known_where_none_is_recorded(sent: str, id_: str | None) -> None:
    trace: Any = heard({b"traceparent": sent.encode()}) or SimpleNamespace(id=None)
    assert trace.id == id_
