"""Where log lines go and what they look like: stderr, one line an event, or one JSON object. No image and no key is
ever logged. A sink that fails (a full disk, a pipe that nobody reads any more) costs the lines and nothing else."""

import logging
import logging.config
from datetime import UTC, datetime
from typing import Any

import orjson

# What a line about a request has beside its message, each where it is known.
FIELDS = ("request_id", "trace_id")


def configure(level: str, form: str = "line") -> None:
    """``form``: ``line`` or ``json``."""
    logging.raiseExceptions = False  # of a handler that fails, which would else write about it to that same stderr
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"},
                "json": {"()": JsonFormatter},
            },
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": form}},
            "loggers": {"PIL": {"level": "WARNING"}},  # it tells what images say of themselves
            "root": {"level": level.upper(), "handlers": ["stderr"]},
        }
    )


class JsonFormatter(logging.Formatter):
    """``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message``, those of :data:`FIELDS` that the line has, its
    arguments where it has ``names`` for them, and of an error its traceback as ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:23] + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if isinstance(record.args, tuple):
            told |= {
                name: _plain(value) for name, value in zip(getattr(record, "names", ()), record.args, strict=False)
            }
        told |= {name: value for name in FIELDS if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(told, default=str).decode()


def _plain(value: object) -> object:
    return round(value, 3) if isinstance(value, float) else value
