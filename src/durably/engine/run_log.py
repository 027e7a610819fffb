"""The log of runs: a line for each update, with its ids as values."""

import datetime as dt
import logging
from typing import Any

from durably.engine.scheduling.observers import Observer
from durably.engine.scheduling.subscriptions import RunChange
from durably.engine.sqlite.writer import Group
from durably.engine.views import RunUpdate, UpdateKind
from durably.protocol.text import get_logger

RUN_LOGGER = get_logger("durably.runs")

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
