"""What is known of a request's trace while it is under way. Nothing of OpenTelemetry: ``spans.py`` records."""

import re
from collections.abc import Mapping
from contextvars import ContextVar

from app.batching import Served
from app.forward import Outcome

# https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
# nginx's word for a caller that left before its answer; for log, metrics and traces, nobody receives it.
CLIENT_GONE = 499


class Trace:
    """One request's: here only its id, the caller's, for the log. ``parent``: the request's span as a ``traceparent``,
    where it is recorded."""

    def __init__(self, id: str, parent: str = "") -> None:
        self.id, self.parent = id, parent

    def add(self, served: Served[Outcome]) -> None:
        """An image of the request has its answer."""

    def end(self, status: int, received: int, sent: int) -> None:
        """The request is over."""


# Of the request that the framework is at; the short way, which has no task, passes it on by hand.
of_request: ContextVar[Trace | None] = ContextVar("trace", default=None)


def heard(headers: Mapping[bytes, bytes]) -> Trace | None:
    """The caller's trace, where nobody here records it."""
    if (sent := headers.get(b"traceparent")) is None or (match := _TRACEPARENT.fullmatch(sent)) is None:
        return None
    return Trace(match[1].decode())
