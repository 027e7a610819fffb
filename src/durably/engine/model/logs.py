"""The log of an engine: a line for each update of a run, and rate-limited lines."""

import datetime as dt
import logging
import math
import time
from collections.abc import Callable
from typing import Any

from durably.engine.core.flow.admission import FINISHED_LATE, STARTED_LATE
from durably.protocol.text import get_logger

from .observers import Group, Observer
from .runs import RunUpdate, UpdateKind
from .subscriptions import RunChange

RUN_LOGGER = get_logger("durably.runs")
_logger = get_logger("durably.engine")

_LEVELS = {
    UpdateKind.STEP_FAILED: logging.WARNING,
    UpdateKind.RETRYING: logging.WARNING,
    UpdateKind.UNREACHED: logging.WARNING,
    UpdateKind.RUN_FAILED: logging.ERROR,
}
_OUTCOMES = {
    UpdateKind.RUN_COMPLETED: "completed",
    UpdateKind.RUN_FAILED: "failed",
    UpdateKind.RUN_CANCELLED: "cancelled",
    UpdateKind.RUN_SKIPPED: "skipped",
}
_MILLISECOND = dt.timedelta(milliseconds=1)


def level_of(kind: UpdateKind) -> int:
    return _LEVELS.get(kind, logging.INFO)


def fields_of(update: RunUpdate) -> dict[str, Any]:
    """The values of an update's line, without inputs and outputs."""
    fields: dict[str, Any] = {
        "run_id": update.run_id,
        "function_id": update.function_id,
        "app_id": update.app_id,
    }
    for name in ("event_id", "step", "attempt", "due_at", "error"):
        if (value := getattr(update, name)) is not None:
            fields[name] = value
    if (outcome := _OUTCOMES.get(update.kind)) is not None and update.created_at is not None:
        fields["outcome"] = outcome
        fields["duration_ms"] = (update.at - update.created_at) // _MILLISECOND
    return fields


class RunEndLog(Observer):
    """Logs the end of each run, for engines in the app's own processes.

    The values are attributes of the log record, and the message has the ids, the outcome and the duration.
    """

    def on_commit(self, changes: list[RunChange], group: Group) -> None:
        for change in changes:
            level = level_of(change.kind)
            if change.kind in _OUTCOMES and RUN_LOGGER.isEnabledFor(level):
                fields = fields_of(change.to_update())
                RUN_LOGGER.log(
                    level,
                    "%s: run %s of function %s after %d ms%s",
                    change.kind.value,
                    fields["run_id"],
                    fields["function_id"],
                    fields["duration_ms"],
                    f": {fields['error']}" if "error" in fields else "",
                    extra=fields,
                )


def log_engine_end(change: RunChange) -> None:
    """Log a run that the engine has failed, or that ``timeouts`` cancelled.

    No app has logged it.
    """
    update = change.to_update()
    if change.by_engine:
        _logger.error("run %s of function %r failed: %s", update.run_id, update.function_id, update.error)
        return
    reason = (update.error or "").partition(": ")[2]
    if reason in (STARTED_LATE, FINISHED_LATE):
        _logger.warning("run %s of function %r: %s", update.run_id, update.function_id, reason)


SECONDS_BETWEEN_LINES = 10.0
"""Seconds between two lines of a ``SparseLog``."""


class SparseLog:
    """Logs at most one line in ``SECONDS_BETWEEN_LINES``, for frequent events.

    The line has the number of lines dropped since the last one.
    """

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger, self._clock = logger, clock
        self._last = -math.inf
        self._left_out = 0

    def log(self, level: int, message: str, *arguments: object) -> None:
        now = self._clock()
        if now - self._last < SECONDS_BETWEEN_LINES:
            self._left_out += 1
            return
        if self._left_out:
            message, arguments = f"{message} (%d like this were not logged)", (*arguments, self._left_out)
        self._last, self._left_out = now, 0
        self._logger.log(level, message, *arguments)
