"""Traces of real processes, sent over OTLP/HTTP to a collector that takes them apart again."""

import gzip
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.e2e.conftest import Process, start

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"content-type": "image/jpeg", "traceparent": f"00-{TRACE}-{CALLER}-01"}
TREE = ["POST /predict", "decode", "model", "queue"]


class Collector(ThreadingHTTPServer):
    """What it has received, by the name of the span, and the services that sent it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Span] = []
        self.services: set[str] = set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def variables(self) -> dict[str, str]:
        """What a service is told, so that its spans come here, soon."""
        endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}

    def take(self, body: bytes) -> None:
        for of_service in ExportTraceServiceRequest.FromString(body).resource_spans:
            told = {one.key: one.value.string_value for one in of_service.resource.attributes}
            self.services.add(told["service.name"])
            self.spans += [span for scope in of_service.scope_spans for span in scope.spans]

    def named(self, *names: str) -> list[Span]:
        return [span for span in self.spans if span.name in names]

    def until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, sorted(span.name for span in self.spans)
            time.sleep(0.02)


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/traces":
            self.server.take(gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running
        running.shutdown()


def ended(running: Process) -> float:
    """The seconds that it took after SIGTERM."""
    began = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0, running.log.read_text()
    return time.monotonic() - began


def linked(span: Span) -> set[tuple[bytes, bytes]]:
    return {(link.trace_id, link.span_id) for link in span.links}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_requests_and_the_batch_that_they_share_reach_the_collector(
    tmp_path: Path, photos: dict[str, Path], collector: Collector, workers: str
) -> None:
    running = start(tmp_path, NAM_WORKERS=workers, OTEL_SERVICE_NAME="vision", **collector.variables)
    image = photos["espresso"].read_bytes()
    assert httpx2.post(running.url + "/predict", content=image, headers=HEADERS, timeout=60).status_code == 200
    collector.until(lambda: len(collector.spans) == 5)
    tree = [span for span in collector.spans if span.trace_id.hex() == TRACE]
    (request,), (batch,) = collector.named("POST /predict"), collector.named("batch")
    assert sorted(span.name for span in tree) == TREE
    assert request.parent_span_id.hex() == CALLER
    assert {span.parent_span_id for span in tree if span is not request} == {request.span_id}
    for span in (*tree, batch):
        assert request.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= request.end_time_unix_nano
    assert linked(batch) == {(request.trace_id, request.span_id)}
    assert linked(collector.named("model")[0]) == {(batch.trace_id, batch.span_id)}
    several(running, image, collector)
    told = httpx2.get(running.url + "/metrics", timeout=60).text
    assert "\nnam_image_queue_seconds_count 28.0\n" in told  # of all processes together, as all that follows
    assert float(re.search(r"\nnam_processes (\S+)", told)[1]) > 2 * int(workers)
    assert len(re.findall(r"\nnam_build_info\{.*\} 1.0\n", told)) == told.count("\nnam_ready 1.0\n") == 1
    assert collector.services == {"vision"}
    nobody_waits_for(collector, running, image)


def several(running: Process, image: bytes, collector: Collector) -> None:
    """Callers side by side, and one with three images: every model span leads to a batch that leads back."""
    collector.spans.clear()
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(httpx2.post, running.url + "/predict", content=image, headers=HEADERS) for _ in range(24)]
        files = [("file", image)] * 3
        calls.append(pool.submit(httpx2.post, running.url + "/predict/batch", files=files))
    assert {call.result().status_code for call in calls} == {200}
    collector.until(lambda: len(collector.named("model")) == 27 and len(collector.named(*TREE[:1])) == 24)
    collector.until(lambda: sum(size(batch) for batch in collector.named("batch")) == 27)
    batches = {(batch.trace_id, batch.span_id): batch for batch in collector.named("batch")}
    for model in collector.named("model"):
        ((batch,), parent) = linked(model), (model.trace_id, model.parent_span_id)
        assert parent in linked(batches[batch])
        assert size(model) == size(batches[batch])
    (many,) = collector.named("POST /predict/batch")
    assert len([span for span in collector.named("model") if span.parent_span_id == many.span_id]) == 3


def nobody_waits_for(collector: Collector, running: Process, image: bytes) -> None:
    """It is gone, and nobody but the log hears of it."""
    collector.shutdown()
    collector.server_close()
    answers = [httpx2.post(running.url + "/predict", content=image, headers=HEADERS, timeout=60) for _ in range(10)]
    assert {answer.status_code for answer in answers} == {200}
    assert ended(running) < 15  # OpenTelemetry's own patience is 30


def size(span: Span) -> int:
    return next(one.value.int_value for one in span.attributes if one.key == "nam.batch.size")


def test_what_is_not_sampled_is_not_sent_and_what_is_left_is_sent_at_the_end(
    tmp_path: Path, photos: dict[str, Path], collector: Collector
) -> None:
    slowly = collector.variables | {"OTEL_BSP_SCHEDULE_DELAY": "60000"}
    running, image = start(tmp_path, NAM_LOG_FORMAT="json", **slowly), photos["cat"].read_bytes()
    for flags in ("00", "01", "00"):
        traceparent = f"00-{TRACE}-{CALLER}-{flags}"
        httpx2.post(running.url + "/predict", content=image, headers=HEADERS | {"traceparent": traceparent}, timeout=60)
    assert collector.spans == []
    ended(running)
    assert sorted(span.name for span in collector.spans) == sorted([*TREE, "batch"])
    assert collector.services == {"nam-serve"}
    assert running.log.read_text().count(f'"trace_id":"{TRACE}"') == 3
