"""Text about runs: a line for each update, and a description of a run.

The description has the run's events, steps and failed attempts.
"""

import datetime as dt
import shutil
from textwrap import indent
from typing import Any

import click
import msgspec

from durably.engine.model.runs import Run, RunMetadata, RunReport, RunUpdate, StoredEvent, UpdateKind
from durably.protocol.call import LogLine
from durably.protocol.opcodes import MAY_TIME_OUT, Opcode, unwrap_memo
from durably.protocol.text import keep_ends, printable

from .text import (
    Styled,
    coloured_status,
    describe_facts,
    describe_status,
    describe_zone,
    fit,
    fit_lines,
    format_clock,
    format_json,
    format_local,
    format_seconds,
    short_id,
    shorten,
    style,
    table,
)


def describe_memo(op: str | None, memo: Any) -> str:
    """A step's result.

    ``memo`` is as apps get it: ``{"data": …}``, ``{"error": …}``, an event, or null.
    """
    if memo is None:
        return "timed out" if op in MAY_TIME_OUT else ""
    if op == Opcode.WAIT_FOR_EVENT:
        return f"{memo.get('name')} {format_json(memo.get('data'))}"
    return format_json(unwrap_memo(memo))


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
_FILE_WIDTH = 160
_WIDEST_FAILURE = 2000
"""Characters of lines in files and pipes."""
_LEAST_DETAIL_WIDTH = 40


class Activity:
    """Formats updates as aligned lines.

    Columns grow with their content, and do not shrink.
    """

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
        is_failure = update.kind in _FAILURES
        # In a file the error of a failed run is whole: for errors of the engine, such as an invalid expression, this
        # line is the only log.
        file_width = _WIDEST_FAILURE if is_failure else _FILE_WIDTH
        room = shutil.get_terminal_size((file_width, 0)).columns - len(click.unstyle(line)) - 2
        whole = describe_update(update)
        detail = shorten(whole, max(room, _LEAST_DETAIL_WIDTH))
        shown = style(detail, fg="red") if is_failure else fit(detail)
        if update.kind is UpdateKind.RUN_FAILED and detail != whole:
            hint = f"the whole error: durably runs show {short_id(update.run_id)}"
            shown = Styled(f"{shown}\n{' ' * _HINT_INDENT}{style(hint, dim=True)}")
        return Styled(f"{line}  {shown}" if detail else line)

    def _elapsed(self, update: RunUpdate) -> str:
        """The time since the run's start; empty if its start is unknown."""
        if update.kind is UpdateKind.RUN_STARTED:
            self._started[update.run_id] = update.at
            return ""
        is_end = update.kind in _RUN_ENDS
        started = self._started.pop(update.run_id, None) if is_end else self._started.get(update.run_id)
        return f"+{format_seconds((update.at - started).total_seconds())}" if started else ""


def describe_update(update: RunUpdate) -> str:
    """The text after the kind of an update: output, error, or times."""
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
            return _error(update).partition(": ")[2]  # the mark already says what the error's name says
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


_ERROR_WIDTH = 200
_MOST_ERROR_TEXT = 16 * 1024
"""Characters of an error's message, and of its traceback. ``--json`` has all."""
_MOST_LOG_LINES = 50
_LEVEL_COLOURS = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}


def describe_run(run: Run, app_version: str | None = None) -> Styled:
    output = run.decode_output()
    facts = [
        ("Run", run.id),
        ("Function", run.function_id),
        ("Status", describe_status(run)),
        ("Event", ", ".join(run.event_ids)),
        ("Started", f"{format_local(run.created_at)} {describe_zone([run.created_at])}"),
    ]
    if app_version:
        facts.append(("Version", app_version))
    if run.rerun_of:
        facts.append(("Rerun of", run.rerun_of))
    if run.ended_at:
        facts.append(("Duration", format_seconds((run.ended_at - run.created_at).total_seconds())))
    if run.status == "Failed":
        facts.append(("Error", _describe_error(output)))
    elif run.status in ("Cancelled", "Skipped") and isinstance(output, dict):
        facts.append(("Reason", printable(output.get("message"))))
    elif run.status == "Completed":
        facts.append(("Output", format_json(output)))
    return describe_facts(facts)


def describe_events(events: list[StoredEvent], count: int) -> Styled:
    """The data of each event. ``count`` is the number of the run's events."""
    rows = [[event.id, event.name, format_json(event.data)] for event in events]
    more = f"\n… and {count - len(events)} more" if count > len(events) else ""
    return Styled(table(["EVENT", "NAME", "DATA"], rows) + more)


def describe_attempts(report: RunReport) -> Styled | None:
    """A line for each failed attempt that was repeated.

    Times are since the run's start.
    """
    found = [("(function)", attempt) for attempt in report.failed_attempts]
    found += [(step.id, attempt) for step in report.steps for attempt in step.failed_attempts]
    rows = [
        [
            f"+{format_seconds((attempt.ended_at - report.run.created_at).total_seconds())}",
            step,
            "not reached" if attempt.is_unreached else str(attempt.attempt + 1),
            shorten(f"{attempt.error.name or 'Error'}: {attempt.error.message or ''}", _ERROR_WIDTH),
        ]
        for step, attempt in sorted(found, key=lambda each: each[1].ended_at)
    ]
    return table(["AT", "FAILED STEP", "ATTEMPT", "ERROR"], rows) if rows else None


def describe_links(report: RunReport) -> Styled | None:
    """The run that started this one, and those that it started."""
    links = [("parent", report.parent)] if report.parent else []
    links += [("child", child) for child in report.children]
    rows = [
        [link.run_id, link.function_id, coloured_status(link.status), f"{place}: {link.relation}", link.step or ""]
        for place, link in links
    ]
    if not rows:
        return None
    more = f"\n… and more than {len(report.children)}" if report.has_more_children else ""
    return Styled(table(["RUN", "FUNCTION", "STATUS", "RELATION", "STEP"], rows) + more)


def describe_logs(report: RunReport) -> Styled | None:
    """The last lines of the run's logger."""
    rows = [log_row(report.run.created_at, line) for line in report.logs[-_MOST_LOG_LINES:]]
    if not rows:
        return None
    earlier = len(report.logs) - len(rows)
    first = f"… {earlier} earlier lines: durably runs show {short_id(report.run.id)} --json\n" if earlier else ""
    return Styled(first + table(["AT", "LEVEL", "STEP", "LINE"], rows))


def log_row(origin: dt.datetime, line: LogLine) -> list[str]:
    """A line of a logger, with the time since ``origin``."""
    colour = _LEVEL_COLOURS.get(line.level)
    at = f"+{format_seconds((line.at - origin).total_seconds())}"
    return [at, style(line.level, fg=colour), line.step or "", shorten(line.message, _ERROR_WIDTH)]


def describe_metadata(metadata: list[RunMetadata]) -> Styled | None:
    """A line for each time that the app's SDK sent metadata about the run."""
    rows = [
        [format_local(one.received_at), shorten(format_json(msgspec.json.decode(one.body)), _ERROR_WIDTH)]
        for one in metadata
    ]
    return table(["RECEIVED", "METADATA"], rows) if rows else None


def _describe_error(output: object) -> str:
    """The error on one line, then its stack.

    The stack is indented, so that its lines differ from the facts.
    """
    if not isinstance(output, dict):
        return format_json(output)
    described = fit(keep_ends(f"{output.get('name') or 'Error'}: {output.get('message') or ''}", _MOST_ERROR_TEXT))
    stack = output.get("stack")
    if not isinstance(stack, str) or not stack.strip():
        return described
    return Styled(f"{described}\n\n{indent(fit_lines(keep_ends(stack.rstrip(), _MOST_ERROR_TEXT)), '  ')}")
