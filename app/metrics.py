"""What the service counts, as Prometheus has it: one registry a service, so that tests and processes do not share."""

import functools

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from app.batching import BatchRecord

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Every instrument by name; ``render`` is the text that ``/metrics`` answers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("nam_requests", "Answered requests.", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "nam_request_seconds",
            "From the first byte to the last.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.refusals = Counter("nam_refusals", "Problems answered, by code.", ["code"], registry=self.registry)
        self.in_flight = Gauge("nam_requests_in_flight", "Requests for answers under way.", registry=self.registry)
        self.body_bytes = Gauge("nam_body_bytes_in_flight", "Bytes of bodies held.", registry=self.registry)
        self.decode = Histogram("nam_decode_seconds", "Decoding one image.", buckets=_SECONDS, registry=self.registry)
        self.queue = Histogram(
            "nam_queue_seconds", "The wait of a batch's oldest image.", buckets=_SECONDS, registry=self.registry
        )
        self.model = Histogram("nam_model_seconds", "One forward.", buckets=_SECONDS, registry=self.registry)
        self.batch = Histogram("nam_batch_size", "Images in one forward.", buckets=_SIZES, registry=self.registry)
        self.failures = Counter("nam_batch_failures", "Forwards that failed.", registry=self.registry)
        self.depth = Gauge("nam_queue_depth", "Images that wait for a forward.", registry=self.registry)

    def on_request(self, route: str, status: int, seconds: float) -> None:
        count, duration = self._of_request(route, status)
        count.inc()
        duration.observe(seconds)

    @functools.cache  # noqa: B019 - as long as the service lives, and as few as its routes and statuses
    def _of_request(self, route: str, status: int) -> tuple[Counter, Histogram]:
        return self.requests.labels(route, str(status)), self.seconds.labels(route)

    def on_batch(self, record: BatchRecord) -> None:
        self.queue.observe(record.queue_s)
        self.batch.observe(record.size)
        if record.error is not None:
            self.failures.inc()

    def render(self) -> bytes:
        return generate_latest(self.registry)
