"""One line for each thing that happens to a run, aligned so that a terminal full of them can be read."""

import datetime as dt
import shutil

import click
import msgspec

from durably.engine.views import RunUpdate, UpdateKind

from .memos import describe_memo
from .text import Styled, fit, format_clock, format_json, format_seconds, short_id, shorten, style

_FAILURES = (UpdateKind.STEP_FAILED, UpdateKind.RUN_FAILED)
_RUN_ENDS = (
    UpdateKind.RUN_COMPLETED,
    UpdateKind.RUN_FAILED,
    UpdateKind.RUN_CANCELLED,
    UpdateKind.RUN_SKIPPED,
)
_MARKS = {
    UpdateKind.RUN_STARTED: ("▶", "cyan"),
    UpdateKind.STEP_COMPLETED: ("✓", "green"),
    UpdateKind.STEP_FAILED: ("✗", "red"),
    UpdateKind.RETRYING: ("↻", "yellow"),
    UpdateKind.UNREACHED: ("!", "yellow"),
    UpdateKind.SLEEPING: ("…", "blue"),
    UpdateKind.WAITING: ("…", "blue"),
    UpdateKind.RUN_COMPLETED: ("■", "green"),
    UpdateKind.RUN_FAILED: ("■", "red"),
    UpdateKind.RUN_CANCELLED: ("■", "yellow"),
    UpdateKind.RUN_SKIPPED: ("□", "yellow"),
}
_FIRST_FUNCTION_WIDTH = 16
_FIRST_STEP_WIDTH = 20
_ELAPSED_WIDTH = 9
_HINT_INDENT = 10
_WIDEST = 32
_FALLBACK_TERMINAL = (160, 24)
_LEAST_DETAIL_WIDTH = 40


class Activity:
    """Formats updates. Columns grow with what they have held, and stay: lines written before cannot be moved."""

    def __init__(self) -> None:
        self._started: dict[str, dt.datetime] = {}
        self._function_width, self._step_width = _FIRST_FUNCTION_WIDTH, _FIRST_STEP_WIDTH

    def format(self, update: RunUpdate) -> Styled:
        mark, colour = _MARKS[update.kind]
        is_run = update.kind in _RUN_ENDS or update.kind is UpdateKind.RUN_STARTED
        subject = fit(update.kind.value if is_run else update.step or "(function)")
        function_id = fit(update.function_id)
        self._function_width = _widen(self._function_width, function_id)
        self._step_width = _widen(self._step_width, subject)
        columns = (
            style(update.at.astimezone().strftime("%H:%M:%S"), dim=True),
            style(short_id(update.run_id), fg="magenta"),
            function_id.ljust(self._function_width),
            style(mark, fg=colour),
            style(subject.ljust(self._step_width), fg=colour if is_run else None, bold=is_run),
            style(self._elapsed(update).rjust(_ELAPSED_WIDTH), dim=True),
        )
        line = "  ".join(columns)
        room = shutil.get_terminal_size(_FALLBACK_TERMINAL).columns - len(click.unstyle(line)) - 2
        whole = _detail(update)
        detail = shorten(whole, max(room, _LEAST_DETAIL_WIDTH))
        shown = style(detail, fg="red") if update.kind in _FAILURES else fit(detail)
        if update.kind is UpdateKind.RUN_FAILED and detail != whole:
            hint = f"the whole error: durably runs show {short_id(update.run_id)}"
            shown = Styled(f"{shown}\n{' ' * _HINT_INDENT}{style(hint, dim=True)}")
        return Styled(f"{line}  {shown}" if detail else line)

    def _elapsed(self, update: RunUpdate) -> str:
        """Since the run started, where that was seen."""
        if update.kind is UpdateKind.RUN_STARTED:
            self._started[update.run_id] = update.at
            return ""
        is_end = update.kind in _RUN_ENDS
        started = self._started.pop(update.run_id, None) if is_end else self._started.get(update.run_id)
        return f"+{format_seconds((update.at - started).total_seconds())}" if started else ""


def _detail(update: RunUpdate) -> str:
    match update.kind:
        case UpdateKind.RUN_STARTED:
            return update.run_id
        case UpdateKind.SLEEPING:
            return f"sleeps{_until(update)}"
        case UpdateKind.WAITING:
            return f"waits{_until(update)}"
        case UpdateKind.RETRYING:
            number = f"attempt {update.attempt + 1} failed" if update.attempt is not None else "failed"
            return f"{number}{_due(update)}: {_error(update)}"
        case UpdateKind.UNREACHED:
            return f"the app does not answer{_due(update)}: {_error(update)}"
        case UpdateKind.STEP_FAILED | UpdateKind.RUN_FAILED:
            return _error(update)
        case UpdateKind.RUN_CANCELLED | UpdateKind.RUN_SKIPPED:
            return _error(update).partition(": ")[2]  # the error's name says no more than the mark
        case UpdateKind.STEP_COMPLETED:
            return describe_memo(update.op, _output(update))
        case _:
            return format_json(_output(update)) if update.output is not None else ""


def _widen(width: int, text: str) -> int:
    return min(max(width, len(text)), _WIDEST)


def _until(update: RunUpdate) -> str:
    return f" until {format_clock(update.due_at, update.at)}" if update.due_at else ""


def _due(update: RunUpdate) -> str:
    return f", again in {format_seconds((update.due_at - update.at).total_seconds())}" if update.due_at else ""


def _error(update: RunUpdate) -> str:
    return update.error or "no reason given"


def _output(update: RunUpdate) -> object:
    return None if update.output is None else msgspec.json.decode(update.output)
