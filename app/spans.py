"""Traces, in OpenTelemetry's words; the only file that imports it (extra ``otel``). The SDK reads ``OTEL_*`` itself:
sampler, resource, endpoint, headers, batches of the export.

    POST /predict          server span, by the HTTP semantic conventions; its parent is the caller's
      +- queue             from the queue's door to the start of the batch
      +- decode            of the image: in its lane after the queue, or in the pool before it
      `- model             the forward; linked to the batch
    batch                  a trace of its own: what a lane did at once, linked to every request that it served
"""

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode

from app.batching import Lane, Served
from app.forward import Done, Job, Outcome
from app.settings import otel
from app.trace import CLIENT_GONE, Trace

CLOSE_S = 1.0  # that the last spans have to leave; a collector that is gone must not hold the process
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})


class _Headers(Getter[Mapping[bytes, bytes]]):
    """By name in lower case, as the server has them."""

    def get(self, carrier: Mapping[bytes, bytes], key: str) -> list[str] | None:
        value = carrier.get(key.lower().encode())
        return None if value is None else [value.decode("latin-1")]

    def keys(self, carrier: Mapping[bytes, bytes]) -> list[str]:
        return [name.decode("latin-1") for name in carrier]


_HEADERS = _Headers()


class Spans:
    """Of requests, or, in the process of the queue, of ``batches``: each is recorded that serves a request which is.
    Raises ValueError for an exporter or a protocol that is not there."""

    def __init__(self, exporters: Sequence[str], *, batches: bool = False) -> None:
        processors = [BatchSpanProcessor(_exporter(name)) for name in exporters]
        said = OTELResourceDetector().detect().attributes
        resource = Resource.create({"service.name": "nam-serve", "service.version": version("nam-serve")} | dict(said))
        self._provider = TracerProvider(ALWAYS_ON if batches else None, resource, shutdown_on_exit=False)
        for processor in processors:
            self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("nam")

    def begin(self, method: str, path: str, route: str | None, headers: Mapping[bytes, bytes]) -> "RequestTrace":
        known = method if method in _METHODS else "_OTHER"
        attributes = {"http.request.method": known, "url.path": path, "url.scheme": "http"}
        if route is not None:
            attributes["http.route"] = route
        if (agent := headers.get(b"user-agent")) is not None:
            attributes["user_agent.original"] = agent.decode("latin-1")
        name = " ".join(filter(None, ("HTTP" if known == "_OTHER" else known, route)))
        context = propagate.extract(headers, Context(), _HEADERS)
        span = self._tracer.start_span(name, context, SpanKind.SERVER, attributes)
        return RequestTrace(self._tracer, span)

    def traced(self, lane: Lane[Job, Outcome]) -> Lane[Job, Outcome]:
        """The same, each call of it a span."""

        async def run(jobs: list[Job]) -> Sequence[Outcome]:
            if not (requests := list(dict.fromkeys(job.trace for job in jobs if job.trace))):
                return await lane(jobs)
            attributes = {"nam.batch.size": len(jobs)}
            span = self._tracer.start_span("batch", Context(), attributes=attributes, links=_links(requests))
            try:
                outcomes = await lane(jobs)
            except BaseException as error:
                _blame(span, type(error).__name__)
                raise
            finally:
                span.end()
            batch = _traceparent(span)
            return [replace(outcome, batch=batch) if isinstance(outcome, Done) else outcome for outcome in outcomes]

        return run

    def close(self) -> None:
        """Sends what is left, within :data:`CLOSE_S`."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_S)


class RequestTrace(Trace):
    """One request's span, and those of its images."""

    def __init__(self, tracer: trace.Tracer, span: Span) -> None:
        context = span.get_span_context()
        super().__init__(trace.format_trace_id(context.trace_id), _traceparent(span) if span.is_recording() else "")
        self._tracer, self._span = tracer, span
        self._served: list[Served[Outcome]] = []

    def add(self, served: Served[Outcome]) -> None:
        if self.parent:
            self._served.append(served)

    def end(self, status: int, received: int, sent: int) -> None:
        span = self._span
        if not span.is_recording():
            return
        context, epoch_ns = trace.set_span_in_context(span, Context()), time.time_ns() - time.monotonic_ns()
        for place, served in enumerate(self._served):
            self._tell(place, served, context, epoch_ns)
        span.set_attributes({"http.request.body.size": received, "http.response.body.size": sent})
        if status == CLIENT_GONE:
            span.set_attribute("error.type", "client_gone")
        else:
            span.set_attribute("http.response.status_code", status)
        if status >= 500:
            _blame(span, str(status))
        span.end()

    def _tell(self, place: int, served: Served[Outcome], context: Context, epoch_ns: int) -> None:
        done = served.result
        assert isinstance(done, Done)  # noqa: S101 - an image that is an error in itself has no answer
        times = [("queue", served.queued_at, served.queue_s), ("model", done.model_at, done.model_s)]
        if done.decode_at:
            times.append(("decode", done.decode_at, done.decode_s))
        for name, at, seconds in times:
            attributes: dict[str, int] = {"nam.image": place}
            links: list[Link] = []
            if name == "model":
                attributes["nam.batch.size"], links = served.batch_size, _links([done.batch])
            began = epoch_ns + int(1e9 * at)
            span = self._tracer.start_span(name, context, attributes=attributes, links=links, start_time=began)
            span.end(began + int(1e9 * seconds))


def _exporter(name: str) -> SpanExporter:
    protocol = otel("EXPORTER_OTLP_TRACES_PROTOCOL") or otel("EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    if name == "console":
        return ConsoleSpanExporter(out=sys.stderr)
    if name != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER is otlp, console or none, not {name}")
    if protocol != "http/protobuf":
        raise ValueError(f"OTLP is sent as http/protobuf, not as {protocol}")
    return OTLPSpanExporter()


def _blame(span: Span, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))


def _traceparent(span: Span) -> str:
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _links(traceparents: Sequence[str]) -> list[Link]:
    """Of our own words only."""
    told = [one.split("-") for one in traceparents if one]
    return [
        Link(
            trace.SpanContext(int(ids, 16), int(span, 16), is_remote=True, trace_flags=trace.TraceFlags(int(flags, 16)))
        )
        for _, ids, span, flags in told
    ]
