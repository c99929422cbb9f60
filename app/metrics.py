"""What the service counts, as Prometheus has it: one registry a service, so that tests and processes do not share."""

import functools
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.values import ValueClass

from app.batching import BatchRecord
from app.board import Load

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Every instrument by name; ``render`` is the text that ``/metrics`` answers.

    Where several processes answer for one service, each counts into files of a folder that all render
    (``PROMETHEUS_MULTIPROC_DIR``, prometheus_client's own way); what is there now is read off the board.
    """

    def __init__(self, load: Load) -> None:
        self.registry, self.now = CollectorRegistry(), CollectorRegistry()
        self.requests = Counter("nam_requests", "Answered requests.", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "nam_request_seconds",
            "From the first byte to the last.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.refusals = Counter("nam_refusals", "Problems answered, by code.", ["code"], registry=self.registry)
        self._gauge("nam_requests_in_flight", "Requests for answers under way.", lambda: load.all_requests)
        self._gauge("nam_body_bytes_in_flight", "Bytes of bodies held.", lambda: load.all_body_bytes)
        self._gauge("nam_queue_depth", "Images that wait for a forward, as of the last one.", lambda: load.depth)
        self.decode = Histogram("nam_decode_seconds", "Decoding one image.", buckets=_SECONDS, registry=self.registry)
        self.queue = Histogram(
            "nam_queue_seconds", "The wait of a batch's oldest image.", buckets=_SECONDS, registry=self.registry
        )
        self.model = Histogram("nam_model_seconds", "One forward.", buckets=_SECONDS, registry=self.registry)
        self.batch = Histogram("nam_batch_size", "Images in one forward.", buckets=_SIZES, registry=self.registry)
        self.failures = Counter("nam_batch_failures", "Forwards that failed.", registry=self.registry)

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
        return generate_latest(self._counted()) + generate_latest(self.now)

    def _gauge(self, name: str, help: str, read: Callable[[], float]) -> None:
        """Reads what is there at the moment it is asked, so that it cannot drift from it."""
        self.now.register(_Reading(name, help, read))

    def _counted(self) -> CollectorRegistry:
        if ValueClass.__name__ == "MutexValue":  # this process is alone
            return self.registry
        every = CollectorRegistry()
        MultiProcessCollector(every)  # type: ignore[no-untyped-call]
        return every


class _Reading(Collector):
    def __init__(self, name: str, help: str, read: Callable[[], float]) -> None:
        self._name, self._help, self._read = name, help, read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily(self._name, self._help, self._read())
