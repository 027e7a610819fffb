"""One line for each thing that happens to a run, aligned so that a terminal full of them can be read."""

import datetime as dt

import click

from durably.engine.embedded.views import RunUpdate, UpdateKind

from .text import format_clock, format_seconds, short_id, shorten

_RUN_ENDS = (UpdateKind.RUN_COMPLETED, UpdateKind.RUN_FAILED, UpdateKind.RUN_CANCELLED)
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
}
_FIRST_FUNCTION_WIDTH = 16
_FIRST_STEP_WIDTH = 12
_WIDEST = 32
_DETAIL_WIDTH = 100


class Activity:
    """Formats updates. Columns grow with what they have held, and stay: lines written before cannot be moved."""

    def __init__(self) -> None:
        self._started: dict[str, dt.datetime] = {}
        self._function_width, self._step_width = _FIRST_FUNCTION_WIDTH, _FIRST_STEP_WIDTH

    def format(self, update: RunUpdate) -> str:
        mark, colour = _MARKS[update.kind]
        is_run = update.kind in _RUN_ENDS or update.kind is UpdateKind.RUN_STARTED
        subject = update.kind.value if is_run else update.step or "(function)"
        self._function_width = _widen(self._function_width, update.function_id)
        self._step_width = _widen(self._step_width, subject)
        columns = (
            click.style(update.at.astimezone().strftime("%H:%M:%S"), dim=True),
            click.style(short_id(update.run_id), fg="magenta"),
            update.function_id.ljust(self._function_width),
            click.style(mark, fg=colour),
            click.style(subject.ljust(self._step_width), fg=colour if is_run else None, bold=is_run),
            self._detail(update),
        )
        return "  ".join(columns).rstrip()

    def _detail(self, update: RunUpdate) -> str:
        elapsed = self._elapsed(update)
        match update.kind:
            case UpdateKind.RUN_STARTED:
                return click.style(update.run_id, dim=True)
            case UpdateKind.SLEEPING:
                return f"sleeps{_until(update)}"
            case UpdateKind.WAITING:
                return f"waits{_until(update)}"
            case UpdateKind.RETRYING:
                number = f"attempt {update.attempt + 1} failed" if update.attempt is not None else "failed"
                return f"{number}: {_error(update)}; again{_in(update)}"
            case UpdateKind.UNREACHED:
                return f"the app does not answer ({_error(update)}); again{_in(update)}"
            case UpdateKind.STEP_FAILED | UpdateKind.RUN_FAILED:
                return f"{elapsed}  {click.style(_error(update), fg='red')}"
            case _:
                return f"{elapsed}  {_output(update)}"

    def _elapsed(self, update: RunUpdate) -> str:
        """Since the run started, where that was seen."""
        if update.kind is UpdateKind.RUN_STARTED:
            self._started[update.run_id] = update.at
        is_end = update.kind in _RUN_ENDS
        started = self._started.pop(update.run_id, None) if is_end else self._started.get(update.run_id)
        if started is None:
            return ""
        passed = format_seconds((update.at - started).total_seconds())
        return f"in {passed}" if is_end else click.style(f"+{passed}", dim=True)


def _widen(width: int, text: str) -> int:
    return min(max(width, len(text)), _WIDEST)


def _until(update: RunUpdate) -> str:
    return f" until {format_clock(update.due_at, update.at)}" if update.due_at else ""


def _in(update: RunUpdate) -> str:
    return f" in {format_seconds((update.due_at - update.at).total_seconds())}" if update.due_at else ""


def _error(update: RunUpdate) -> str:
    return shorten(update.error or "no reason given", _DETAIL_WIDTH)


def _output(update: RunUpdate) -> str:
    return shorten(bytes(update.output).decode(), _DETAIL_WIDTH) if update.output is not None else ""
