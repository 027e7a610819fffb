"""Timelines of runs for users, and short strings of times and values.

Times are relative to a run's start.
"""

import datetime as dt
from collections import deque
from typing import Any

import msgspec

from durably.engine.model.runs import Run, RunUpdate, UpdateKind
from durably.protocol.events import Event
from durably.protocol.opcodes import MAY_TIME_OUT, Opcode, unwrap_memo
from durably.protocol.text import printable

_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1))
_WIDTH = 100


def format_span(span: dt.timedelta) -> str:
    """A span of time: ``0s``, ``15s``, ``3d 4h 15s``, ``1s 500ms``.

    It is not rounded, because times on a virtual clock are exact.
    """
    rest = round(span / dt.timedelta(milliseconds=1))
    parts = []
    for unit, length in _UNITS:
        count, rest = divmod(rest, length)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts) or "0s"


def format_value(value: Any) -> str:
    return shorten(msgspec.json.encode(value).decode())


def shorten(text: str, width: int = _WIDTH) -> str:
    """One line of at most ``width`` characters."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= width else f"{line[: width - 1]}…"


_MOST_REMEMBERED = 10_000
_MOST_OUTPUT_BYTES = 1000
_FIRST = {UpdateKind.RUN_STARTED, UpdateKind.RUN_SKIPPED}


class Recorder:
    """Keeps the latest updates of all runs, up to a limit."""

    def __init__(self) -> None:
        self._updates: deque[RunUpdate] = deque(maxlen=_MOST_REMEMBERED)

    def note(self, update: RunUpdate) -> None:
        if update.output is not None and len(update.output) > _MOST_OUTPUT_BYTES:
            update = msgspec.structs.replace(update, output=msgspec.Raw(bytes(update.output)[:_MOST_OUTPUT_BYTES]))
        self._updates.append(update)

    def of_run(self, run_id: str) -> list[RunUpdate]:
        return [update for update in self._updates.copy() if update.run_id == run_id]


def describe_run(run: Run, events: list[Event], updates: list[RunUpdate], now: dt.datetime) -> str:
    """A heading, and a line for each update of the run."""
    span = format_span((run.ended_at or now) - run.created_at)
    heading = (
        f"run {run.id} of {printable(run.function_id)}: {run.status.value} {'after' if run.ended_at else 'for'} {span}"
    )
    rows = [tuple(map(printable, _row(run, events, update))) for update in updates]
    if not updates or updates[0].kind not in _FIRST:
        rows.insert(0, ("…", "(run)", "the first updates are no longer kept"))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"  {row[0].ljust(widths[0])}  {row[1].ljust(widths[1])}  {row[2]}".rstrip() for row in rows]
    return "\n".join([heading, *lines])


def _row(run: Run, events: list[Event], update: RunUpdate) -> tuple[str, str, str]:
    at = f"+{format_span(update.at - run.created_at)}"
    if update.kind is UpdateKind.RUN_STARTED:
        return at, "(run)", "began: " + ", ".join(f"{event.name} {format_value(event.data)}" for event in events)
    return at, update.step or "(run)", _describe(run, update)


def _describe(run: Run, update: RunUpdate) -> str:
    due = "" if update.due_at is None else f"+{format_span(update.due_at - run.created_at)}"
    match update.kind:
        case UpdateKind.RETRYING:
            return f"attempt {(update.attempt or 0) + 1} failed, again at {due}: {update.error}"
        case UpdateKind.UNREACHED:
            return f"the app was not reached, again at {due}: {update.error}"
        case UpdateKind.SLEEPING:
            return f"sleeps until {due}"
        case UpdateKind.WAITING:
            return f"waits until {due}"
        case UpdateKind.STEP_FAILED | UpdateKind.RUN_FAILED:
            return f"failed: {update.error}"
        case UpdateKind.RUN_CANCELLED:
            return f"cancelled: {update.error}"
        case UpdateKind.RUN_SKIPPED:
            return f"skipped: {update.error}"
        case UpdateKind.STEP_COMPLETED:
            return _describe_memo(update)
        case UpdateKind.RUN_COMPLETED:
            return f"completed → {_text(update)}"
        case _:
            return update.kind.value


def _describe_memo(update: RunUpdate) -> str:
    text = _text(update)
    if update.op == Opcode.SLEEP:
        return "woke"
    if text == "null" and update.op in MAY_TIME_OUT:
        return "timed out"
    tries = f" (attempt {update.attempt + 1})" if update.attempt else ""
    return f"→ {_inside(update)}{tries}"


def _text(update: RunUpdate) -> str:
    return shorten(bytes(update.output or b"null").decode(errors="replace"))


def _inside(update: RunUpdate) -> str:
    """A step's result, or the event's name and data of a wait, taken from its memo."""
    try:
        memo = msgspec.json.decode(update.output or b"null")
    except msgspec.DecodeError:  # only its beginning was kept
        return _text(update)
    if update.op == Opcode.WAIT_FOR_EVENT:
        return f"{memo.get('name')} {format_value(memo.get('data'))}"
    return format_value(unwrap_memo(memo))
