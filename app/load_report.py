"""What a load on a server came to: counted while it runs, told when it is over."""

import math
from array import array
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from app.http_answer import Answer


@dataclass(frozen=True)
class Report:
    """One run. ``requests`` = 2xx answers + ``refused`` (503) + ``errors``, which other statuses are among. Percentiles
    are of 2xx answers, of refusals where they say so; None where there was none.

    ``goodput_per_s``: 2xx answers within the deadline. ``mean_batch``: images a forward, n / sum(1 / X-Batch-Size):
    every batch counts once, however many answers tell of it. ``server_cpu_ms``: of the server's processes, by 2xx
    answer. ``client_cpu_ms``, ``sent_bytes``, ``received_bytes``: by answer of any status.
    """

    requests: int
    seconds: float
    throughput_per_s: float
    goodput_per_s: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    max_ms: float | None
    refused: int
    refused_p50_ms: float | None
    refused_p99_ms: float | None
    errors: dict[str, int]
    mean_batch: float | None
    sent_bytes: float
    received_bytes: float
    client_cpu_ms: float
    server_cpu_ms: float | None
    server_pss_mb: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Totals:
    """What has been so far: the difference of two is what a window saw."""

    at: float = 0.0
    asked: int = 0
    ended: int = 0
    ok: int = 0
    good: int = 0
    sent: int = 0
    received: int = 0
    client_s: float = 0.0
    server_s: float | None = None


@dataclass
class Tally:
    """What became of the requests that count: seconds of 2xx and of 503, everything else by name."""

    ok: "array[float]" = field(default_factory=lambda: array("d"))
    refused: "array[float]" = field(default_factory=lambda: array("d"))
    errors: "Counter[str]" = field(default_factory=Counter)
    told: int = 0  # answers with a batch size
    batches: float = 0.0  # that they stand for

    def add(self, answer: Answer, seconds: float) -> None:
        if 200 <= answer.status < 300:
            self.ok.append(seconds)
            if answer.batch:
                self.told += 1
                self.batches += 1 / answer.batch
        elif answer.status == 503:
            self.refused.append(seconds)
        else:
            self.errors[f"status {answer.status}"] += 1


def report_of(first: Totals, last: Totals, tally: Tally, peak_mb: float | None) -> Report:
    seconds, ended, ok = last.at - first.at, last.ended - first.ended, last.ok - first.ok
    errors = {name: count for name, count in sorted(tally.errors.items()) if count}
    server_s = None if first.server_s is None or last.server_s is None else last.server_s - first.server_s
    answered, refused = sorted(tally.ok), sorted(tally.refused)
    return Report(
        requests=len(answered) + len(refused) + sum(errors.values()),
        seconds=seconds,
        throughput_per_s=ok / seconds,
        goodput_per_s=(last.good - first.good) / seconds,
        p50_ms=_percentile_ms(answered, 0.5),
        p90_ms=_percentile_ms(answered, 0.9),
        p99_ms=_percentile_ms(answered, 0.99),
        p999_ms=_percentile_ms(answered, 0.999),
        max_ms=_percentile_ms(answered, 1.0),
        refused=len(refused),
        refused_p50_ms=_percentile_ms(refused, 0.5),
        refused_p99_ms=_percentile_ms(refused, 0.99),
        errors=errors,
        mean_batch=tally.told / tally.batches if tally.told else None,
        sent_bytes=(last.sent - first.sent) / max(1, last.asked - first.asked),
        received_bytes=(last.received - first.received) / max(1, ended),
        client_cpu_ms=1000 * (last.client_s - first.client_s) / max(1, ended),
        server_cpu_ms=1000 * server_s / ok if server_s is not None and ok else None,
        server_pss_mb=peak_mb,
    )


def _percentile_ms(ordered: list[float], share: float) -> float | None:
    """The least time that ``share`` of all do not exceed."""
    return 1000 * ordered[math.ceil(share * len(ordered)) - 1] if ordered else None
