"""What the service counts, as Prometheus has it: one registry a service, so that tests and processes do not share.

Names and units are Prometheus's conventions. Labels are few: routes as the router has them, codes of ours, blocks of
the network; nothing that a caller can make up.
"""

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.values import ValueClass

from app.batching import BatchRecord
from app.board import Load
from app.processes import usage

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
# Gates are in (0, 1): 0.5 is the most. As published they vary by thousandths, the default weights' by a tenth or two.
_SPREADS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.3, 0.4)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for every other; several processes have none


class Metrics:
    """Every instrument by name; ``render`` is the text that ``/metrics`` answers.

    Where several processes answer for one service, each counts into files of a folder that all render
    (``PROMETHEUS_MULTIPROC_DIR``, prometheus_client's own way); what is there now is read off the board.
    """

    def __init__(self, load: Load) -> None:
        self.registry, self.now = CollectorRegistry(), CollectorRegistry()
        self._several = ValueClass.__name__ != "MutexValue"
        self.requests = self._counter("nam_requests", "Answered requests.", "route", "status")
        self.seconds = self._histogram("nam_request_seconds", "From the first byte to the last.", _SECONDS, "route")
        self.received = self._counter("nam_received_bytes", "Bytes of requests' bodies.", "route")
        self.sent = self._counter("nam_sent_bytes", "Bytes of answers' bodies.", "route")
        self.refusals = self._counter("nam_refusals", "Problems answered, by code.", "code")
        self._gauge("nam_requests_in_flight", "Requests for answers under way.", lambda: load.all_requests)
        self._gauge("nam_body_bytes_in_flight", "Bytes of bodies held.", lambda: load.all_body_bytes)
        self._gauge("nam_queue_depth", "Images that wait for a forward, as of the last one.", lambda: load.depth)
        self.decode = self._histogram("nam_decode_seconds", "Decoding one image.", _SECONDS)
        self.image_queue = self._histogram("nam_image_queue_seconds", "One image's wait for its forward.", _SECONDS)
        self.queue = self._histogram("nam_queue_seconds", "The wait of a batch's oldest image.", _SECONDS)
        self.model = self._histogram("nam_model_seconds", "One forward.", _SECONDS)
        self.batch = self._histogram("nam_batch_size", "Images in one forward.", _SIZES)
        self.failures = self._counter("nam_batch_failures", "Forwards that failed.")
        self.lane_restarts = self._counter("nam_lane_restarts", "Lanes that ended or were stuck.")
        self.decoder_restarts = self._counter("nam_decoder_restarts", "Decoders that an image ended or held up.")
        self.spread = self._histogram(
            "nam_gate_spread", "Standard deviation of a block's gates over one image.", _SPREADS, "block"
        )
        self.memory = Gauge(
            "nam_device_memory_bytes",
            "Memory of the CUDA device: allocated and reserved by this service, free for anybody.",
            ["kind"],
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.now.register(_Processes(os.getppid() if self._several else os.getpid()))

    def describe(self, facts: Mapping[str, str], limits: Mapping[str, int], ready: Callable[[], bool]) -> None:
        """What is known once the engine is there: what is served, how much may wait or be under way, whether it is."""
        self.now.register(_Always(InfoMetricFamily("nam_build", "What is served.", value=dict(facts))))
        for name, limit in limits.items():
            self._gauge(f"nam_{name}_limit", "The most that there may be.", functools.partial(float, limit))
        self._gauge("nam_ready", "1 where new work is taken.", ready)

    def on_request(self, route: str, status: int, seconds: float, received: int, sent: int) -> None:
        count, duration, bytes_in, bytes_out = self._of_request(route, status)
        count.inc()
        duration.observe(seconds)
        bytes_in.inc(received)
        bytes_out.inc(sent)

    @functools.cache  # noqa: B019 - as long as the service lives, and as few as its routes and statuses
    def _of_request(self, route: str, status: int) -> tuple[Counter, Histogram, Counter, Counter]:
        of_route = (self.seconds.labels(route), self.received.labels(route), self.sent.labels(route))
        return (self.requests.labels(route, str(status)), *of_route)

    def on_batch(self, record: BatchRecord) -> None:
        self.queue.observe(record.queue_s)
        self.batch.observe(record.size)
        if record.error is not None:
            self.failures.inc()

    def on_image(self, decode_s: float, queue_s: float, spreads: Iterable[tuple[str, float]]) -> None:
        """An image has its answer; ``spreads``: of the blocks that were looked at, by name."""
        self.decode.observe(decode_s)
        self.image_queue.observe(queue_s)
        for block, spread in spreads:
            self.spread.labels(block).observe(spread)

    def on_memory(self, told: Mapping[str, int]) -> None:
        """Bytes of the device by kind; nothing where there is none."""
        for kind, count in told.items():
            self.memory.labels(kind).set(count)

    def render(self) -> bytes:
        return generate_latest(self._counted()) + generate_latest(self.now)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(name, help, labels, registry=self.registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, help, labels, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, help: str, read: Callable[[], float]) -> None:
        """Reads what is there at the moment it is asked, so that it cannot drift from it."""
        self.now.register(_Reading(name, help, read))

    def _counted(self) -> CollectorRegistry:
        if not self._several:
            return self.registry
        every = CollectorRegistry()
        MultiProcessCollector(every)  # type: ignore[no-untyped-call]
        return every


class _Reading(Collector):
    def __init__(self, name: str, help: str, read: Callable[[], float]) -> None:
        self._name, self._help, self._read = name, help, read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily(self._name, self._help, self._read())


class _Always(Collector):
    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family


class _Processes(Collector):
    """The conventional names, of all processes of the service together; nothing where ``/proc`` does not tell."""

    def __init__(self, root: int) -> None:
        self._root = root

    def collect(self) -> Iterator[Metric]:
        if (used := usage(self._root)) is None:
            return
        yield GaugeMetricFamily("nam_processes", "Processes of the service.", used.processes)
        yield CounterMetricFamily("process_cpu_seconds", "CPU time of all of them.", used.cpu_s)
        yield GaugeMetricFamily("process_resident_memory_bytes", "Memory of all of them.", used.resident_bytes)
        yield GaugeMetricFamily("process_open_fds", "Open files of all of them.", used.open_fds)
        yield GaugeMetricFamily("process_start_time_seconds", "When the first began.", used.started_at)
