"""The log of ``durably start`` and ``durably dev``, as JSON or as text."""

import datetime as dt
import logging
from enum import StrEnum
from textwrap import indent
from typing import Any

import msgspec

from durably.engine.model.runs import RunUpdate
from durably.engine.model.subscriptions import RUN_LOGGER, fields_of, level_of
from durably.protocol.text import get_logger, printable, printable_json, printable_lines

from .text import Console


class LogFormat(StrEnum):
    JSON = "json"
    TEXT = "text"


class JsonFormatter(logging.Formatter):
    """Formats log records as JSON objects.

    An object is ``{"ts", "level", "logger", "message", …}``, and the values given to ``log_fields``.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": dt.datetime.fromtimestamp(record.created, dt.UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = record.exc_text or self.formatException(record.exc_info)
        return printable_json(msgspec.json.encode(line).decode())


class TextFormatter(logging.Formatter):
    """Formats log records as lines for people.

    A line has time, level, logger, message, and ``name=value`` for each value. Values with spaces or quotes are JSON.
    The lines of a traceback follow, indented: a message in it cannot look like another line of the log.
    """

    def format(self, record: logging.LogRecord) -> str:
        time = dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds")
        fields = [f"{name}={_text_of(value)}" for name, value in getattr(record, "fields", {}).items()]
        line = printable(" ".join([time, record.levelname, record.name, record.getMessage(), *fields]))
        if record.exc_info:
            line += f"\n{indent(printable_lines(record.exc_text or self.formatException(record.exc_info)), '  ')}"
        return line


def _text_of(value: object) -> str:
    encoded = msgspec.json.encode(value).decode()
    bare = encoded[1:-1] if isinstance(value, str | dt.datetime) else encoded
    return bare if bare and not any(character in bare for character in ' "\\=') else encoded


def write_log(log_format: LogFormat, level: int = logging.INFO) -> None:
    """Write the log to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format is LogFormat.JSON else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Its lines about a stop speak of cancelled activities. Calls are given back before, and the engine says so.
    get_logger("temporalio.worker").setLevel(max(level, logging.WARNING))


def leave_to_own_handlers() -> None:
    """Leave the lines of Durably to the app's own handlers, if it has any.

    Django's LOGGING makes such handlers. The lines would appear twice.
    """
    own = get_logger("durably")
    if own.handlers:
        own.propagate = False


def log_update(update: RunUpdate) -> None:
    """Log an update of a run."""
    log_fields(RUN_LOGGER, update.kind.value, level=level_of(update.kind), **fields_of(update))


def log_fields(logger: logging.Logger, message: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Log a message with values beside it."""
    logger.log(level, message, extra={"fields": fields})


_logger = get_logger("durably.dev")


class LogConsole(Console):
    """The output of a command, as lines of its log."""

    def say(self, line: str) -> None:
        _logger.info("%s", line)

    def note(self, line: str) -> None:
        _logger.info("%s", line)

    def warn(self, line: str) -> None:
        _logger.warning("%s", line)
