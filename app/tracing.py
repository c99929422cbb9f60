"""Whether there are traces at all: without the extra ``otel``, or with nowhere to send them to, nothing of
OpenTelemetry is imported. Spans are written when a request has ended, from the times that its images have anyway."""

import logging
from typing import TYPE_CHECKING

from app.settings import otel

if TYPE_CHECKING:
    from app.spans import Spans

logger = logging.getLogger("nam.tracing")


def open_traces(*, batches: bool = False) -> "Spans | None":
    """As the ``OTEL_*`` variables say; None where they name no way out. What cannot be is one line in the log: a
    service that answers is worth more than its traces. ``batches``: those of batches, not of requests."""
    if not (names := _exporters()):
        return None
    try:
        from app.spans import Spans

        return Spans(names, batches=batches)
    except ImportError as error:
        logger.warning('traces are off: %s; pip install "nam-serve[otel]"', error)
    except ValueError as error:
        logger.warning("traces are off: %s", error)
    return None


def _exporters() -> list[str]:
    """The names in ``OTEL_TRACES_EXPORTER``; none, where it is not set and no endpoint is either."""
    if otel("SDK_DISABLED").lower() == "true":
        return []
    endpoint = otel("EXPORTER_OTLP_ENDPOINT") or otel("EXPORTER_OTLP_TRACES_ENDPOINT")
    told = otel("TRACES_EXPORTER") or ("otlp" if endpoint else "none")
    return [name.strip() for name in told.split(",") if name.strip() not in ("", "none")]
