"""Text about runs: a line for each update, a description of a run, and its waterfall."""

import datetime as dt
import itertools
import shutil
from textwrap import indent
from typing import Any

import click
import msgspec

from durably.engine.api.dashboard.waterfall import Bar, Row, Tick, lay_out
from durably.engine.model.runs import (
    LogEntry,
    Progress,
    Run,
    RunMetadata,
    RunReport,
    RunUpdate,
    SpanKind,
    Step,
    StoredEvent,
    UpdateKind,
)
from durably.engine.model.subscriptions import RUN_LOGGER, fields_of, level_of
from durably.protocol.opcodes import MAY_TIME_OUT, Opcode, unwrap_memo
from durably.protocol.text import keep_ends, printable

from .service import log_fields
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


def log_update(update: RunUpdate) -> None:
    """Log an update of a run."""
    log_fields(RUN_LOGGER, update.kind.value, level=level_of(update.kind), **fields_of(update))


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


def describe_progress(progress: Progress) -> str:
    message = f": {printable(progress.message)}" if progress.message else ""
    return f"{progress.fraction:.0%}{message}"


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
    if run.progress:
        facts.append(("Progress", describe_progress(run.progress)))
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


def describe_usage(report: RunReport) -> Styled | None:
    """The tokens of models by step, and their sums."""
    rows = [
        [step, used.model, f"{used.input_tokens:,}", f"{used.output_tokens:,}"]
        for step, usage in [*((each.id, each.usage) for each in report.steps), ("(run)", report.run.usage or [])]
        for used in usage
    ]
    return table(["STEP", "MODEL", "INPUT TOKENS", "OUTPUT TOKENS"], rows) if rows else None


def describe_links(report: RunReport) -> Styled | None:
    """The run that started this one, and those that it started."""
    links = [("parent", report.parent)] if report.parent else []
    links += [("child", child) for child in report.children]
    rows = [
        [link.id, link.function_id, coloured_status(link.status), f"{place}: {link.relation}", link.step or ""]
        for place, link in links
    ]
    if not rows:
        return None
    more = f"\n… and more than {len(report.children)}" if report.has_more_children else ""
    return Styled(table(["RUN", "FUNCTION", "STATUS", "RELATION", "STEP"], rows) + more)


def describe_logs(report: RunReport) -> Styled | None:
    """The last lines of the run's logger."""
    rows = [
        [
            f"+{format_seconds((line.at - report.run.created_at).total_seconds())}",
            style(line.level, fg=_LEVEL_COLOURS.get(line.level)),
            line.step or "",
            shorten(line.message, _ERROR_WIDTH),
        ]
        for line in report.logs[-_MOST_LOG_LINES:]
    ]
    if not rows:
        return None
    earlier = len(report.logs) - len(rows)
    first = f"… {earlier} earlier lines: durably runs show {short_id(report.run.id)} --json\n" if earlier else ""
    return Styled(first + table(["AT", "LEVEL", "STEP", "LINE"], rows))


def describe_entry(entry: LogEntry) -> Styled:
    """Time, run, function, level, step and message, on one line."""
    line = entry.line
    parts = (
        style(format_clock(line.at, line.at), dim=True),
        style(short_id(entry.run_id), fg="magenta"),
        fit(entry.function_id),
        style(line.level.ljust(7), fg=_LEVEL_COLOURS.get(line.level)),
        *([style(line.step, dim=True)] if line.step else []),
        fit(line.message),
    )
    return Styled("  ".join(parts))


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


_FALLBACK_TERMINAL = (120, 24)
_WIDEST_LABEL = 28
_LEAST_AXIS, _LARGEST_AXIS = 20, 100
_WIDEST_RESULT = 48
_LEAST_RESULT = 16
_BARS = {
    SpanKind.QUEUED: ("·", "cyan"),
    SpanKind.RUNNING: ("█", "green"),
    SpanKind.RETRYING: ("╌", "yellow"),
    SpanKind.SLEEPING: ("─", "blue"),
    SpanKind.WAITING: ("░", "magenta"),
}
"""The character and the colour of each kind. A kind covers those before it in ``_ORDER`` where they share a cell."""
_ORDER = (SpanKind.QUEUED, SpanKind.SLEEPING, SpanKind.WAITING, SpanKind.RETRYING, SpanKind.RUNNING)
_FAILED = ("✗", "red")
"""The last cell of an attempt that failed."""
_WORDS = {SpanKind.RETRYING: "backoff"}
_ROW_MARKS = {
    "completed": ("✓", "green"),
    "failed": ("✗", "red"),
    "retrying": ("↻", "yellow"),
    "unfinished": ("-", "yellow"),
    "cancelled": ("-", "yellow"),
}
_OTHER_MARK = ("…", "blue")


def draw(report: RunReport, now: dt.datetime) -> Styled:
    """The axis, a line for the run and for each step, and a legend.

    The lines fit the terminal's width.
    """
    waterfall = lay_out(report, now)
    rows, steps = waterfall.rows, {step.hashed_id: step for step in report.steps}
    results = [_result(steps.get(row.key)) for row in rows]
    labels = [shorten(row.label, _WIDEST_LABEL) for row in rows]
    times = [format_seconds(row.seconds) + (" …" if row.since else "") for row in rows]
    label_width, kind_width, time_width = (max(map(len, texts)) for texts in (labels, _kinds(rows), times))
    columns = shutil.get_terminal_size(_FALLBACK_TERMINAL).columns
    fixed = 2 + label_width + 2 + kind_width + 2 + 2 + time_width + 2
    result_width = min(_WIDEST_RESULT, max(len(result) for result in results), max((columns - fixed) // 3, 0))
    result_width = max(result_width, min(_LEAST_RESULT, max(len(result) for result in results)))
    width = min(max(columns - fixed - result_width - 1, _LEAST_AXIS), _LARGEST_AXIS)
    lines = [" " * (2 + label_width + 2 + kind_width + 2) + _axis(waterfall.ticks, width)]
    for row, label, time, result in zip(rows, labels, times, results, strict=True):
        mark, colour = _ROW_MARKS.get(row.status, _OTHER_MARK)
        shown = shorten(result, result_width)
        cells = (
            f"{style(mark, fg=colour)} {fit(label)}{' ' * (label_width - len(label))}",
            fit(row.kind.ljust(kind_width)),
            _cells(row, width),
            style(time.rjust(time_width), dim=True),
            style(shown, fg="red") if shown and row.status == "failed" else fit(shown),
        )
        lines.append("  ".join(cells).rstrip())
    legend = [f"{_BARS[kind][0]} {_WORDS.get(kind, kind.value)}" for kind in waterfall.kinds]
    if any(bar.outcome == "failed" for row in rows for bar in row.bars):
        legend.append(f"{_FAILED[0]} failed attempt")
    lines.append(style("   ".join(legend), dim=True))
    return Styled("\n".join(lines))


def _kinds(rows: list[Row]) -> list[str]:
    return [row.kind for row in rows]


def _axis(ticks: list[Tick], width: int) -> Styled:
    """The times of the ticks, without those that have no room."""
    line = ""
    for tick in ticks:
        place = round(tick.x * width / 100)
        if place + len(tick.text) <= width and (not line or place > len(line)):
            line = line.ljust(place) + tick.text
    return style(line, dim=True)


def _cells(row: Row, width: int) -> Styled:
    """The bars of a row.

    Each cell has a part of the axis, and shows the last kind of ``_ORDER`` in it.
    """
    cells: list[tuple[str, str] | None] = [None] * width
    for bar in sorted(row.bars, key=lambda bar: _ORDER.index(bar.kind)):
        first, end = _place(bar, width)
        for place in range(first, end):
            cells[place] = _BARS[bar.kind]
        if bar.outcome == "failed":
            cells[end - 1] = _FAILED
    for mark in row.marks:
        cells[min(max(round(mark.x * width / 100), 0), width - 1)] = _FAILED
    return Styled("".join(_draw(cell, len(list(same))) for cell, same in itertools.groupby(cells)))


def _draw(cell: tuple[str, str] | None, count: int) -> str:
    return " " * count if cell is None else style(cell[0] * count, fg=cell[1])


def _place(bar: Bar, width: int) -> tuple[int, int]:
    """The first cell of a bar and the one after its last; each bar has at least one."""
    first = min(max(int(bar.x * width / 100), 0), width - 1)
    return first, min(max(round((bar.x + bar.width) * width / 100), first + 1), width)


def _result(step: Step | None) -> str:
    """The step's output or error, or what it waits for."""
    if step is None:
        return ""
    error = step.error
    if error is None and step.failed_attempts and step.ended_at is None:
        error = step.failed_attempts[-1].error
    awaited = f" for {step.awaited}" if step.awaited else ""
    due = f" until {format_local(step.due_at)}" if step.due_at and step.ended_at is None else ""
    copied = "copied: " if step.is_copied else ""
    if error is not None:
        return f"{error.name or 'Error'}: {error.message or ''}{due}"
    if step.status != "completed":
        return f"{step.status}{awaited}{due}"
    if step.output is None:
        return f"{copied}timed out{awaited}" if step.op in MAY_TIME_OUT else copied
    output = msgspec.json.decode(step.output)
    if step.op is Opcode.WAIT_FOR_EVENT and isinstance(output, dict):
        return f"{copied}{output.get('name')} {format_json(output.get('data'))}"
    return copied + format_json(output)
