"""The waterfall of a run in the terminal: a line of bars for each step.

All bars are on one time axis. Kinds differ by their characters, so that colours are not needed.
"""

import datetime as dt
import itertools
import shutil

import msgspec

from durably.engine.api.dashboard.rendering.waterfall import Bar, Row, Tick, lay_out
from durably.engine.model.runs import RunReport, SpanKind, Step
from durably.protocol.opcodes import MAY_TIME_OUT, Opcode

from .text import Styled, fit, format_json, format_local, format_seconds, shorten, style

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
_MARKS = {
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
        mark, colour = _MARKS.get(row.status, _OTHER_MARK)
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
