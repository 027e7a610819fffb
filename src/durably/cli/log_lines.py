"""The log of ``durably start``: one JSON object a line, for machines to read."""

import datetime as dt
import logging
from typing import Any

import msgspec

from durably.engine.views import RunUpdate, UpdateKind
from durably.protocol.text import get_logger, printable_json

_LEVELS = {
    UpdateKind.STEP_FAILED: logging.WARNING,
    UpdateKind.RETRYING: logging.WARNING,
    UpdateKind.UNREACHED: logging.WARNING,
    UpdateKind.RUN_FAILED: logging.ERROR,
}
_logger = get_logger("durably.runs")


class JsonFormatter(logging.Formatter):
    """``{"ts", "level", "logger", "message", …}``, and the values given to ``log_fields``."""

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


def log_json_lines(level: int = logging.INFO) -> None:
    """Have everything that Durably logs written to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def log_update(update: RunUpdate) -> None:
    """Inputs and outputs are users' data, and stay out of the log."""
    fields: dict[str, Any] = {"run_id": update.run_id, "function_id": update.function_id}
    for name in ("step", "attempt", "due_at", "error"):
        if (value := getattr(update, name)) is not None:
            fields[name] = value
    log_fields(_logger, update.kind.value, level=_LEVELS.get(update.kind, logging.INFO), **fields)


def log_fields(logger: logging.Logger, message: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Log a message with values beside it."""
    logger.log(level, message, extra={"fields": fields})
