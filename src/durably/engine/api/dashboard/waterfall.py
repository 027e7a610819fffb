"""The waterfall of a run: its steps as rows of bars on a time axis.

Pure: it knows no page and no clock.

Positions and widths are percents of the axis. A part of the axis may be chosen, which is its window.
"""

import datetime as dt
import re

import msgspec

from durably.engine.model.runs import Attempt, RunReport, Span, SpanKind, Step, StepStatus
from durably.protocol.opcodes import Opcode

from .formats import format_duration

_MILLISECOND = dt.timedelta(milliseconds=1)
_MOST_TICKS = 6
_UNITS = (1, 1_000, 60_000, 3_600_000, 86_400_000)
_TICKS = sorted(
    [count * unit for unit in _UNITS[:2] for count in (1, 2, 5, 10, 20, 50, 100, 200, 500) if unit == 1 or count < 20]
    + [count * unit for unit in _UNITS[1:3] for count in (15, 30)]
    + [count * _UNITS[2] for count in (1, 2, 5, 10)]
    + [count * _UNITS[3] for count in (1, 2, 3, 6, 12)]
    + [count * _UNITS[4] for count in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 5_000)]
)
"""Distances of ticks in milliseconds."""
_OUTSIDE = 2.0
"""Percents by which a bar may reach beyond the axis, which cuts it off."""
_LEAST = 0.01
"""The least width of a bar in percents. Browsers draw no bar without a width, and others with their outline."""
_WINDOW = re.compile(r"([0-9]{1,15})-([0-9]{1,15})")

KIND_WORDS = {
    Opcode.STEP: "step",
    Opcode.STEP_RUN: "step",
    Opcode.STEP_ERROR: "step",
    Opcode.STEP_FAILED: "step",
    Opcode.STEP_PLANNED: "step",
    Opcode.SLEEP: "sleep",
    Opcode.WAIT_FOR_EVENT: "event",
    Opcode.WAIT_FOR_SIGNAL: "signal",
    Opcode.INVOKE_FUNCTION: "invoke",
    Opcode.AI_GATEWAY: "request",
    Opcode.GATEWAY: "request",
}
"""Words for kinds of steps, by op."""


_OUTCOMES = (("running", "running"), ("completed", "ran"), ("failed", "failed"))


class Window(msgspec.Struct, frozen=True):
    """A part of a time axis, in milliseconds from the run's creation."""

    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"

    @classmethod
    def parse(cls, text: str | None, whole: "Window") -> "Window":
        """The window of a text like ``"120-900"``; the whole axis for other text."""
        match = _WINDOW.fullmatch(text or "")
        if match is None:
            return whole
        start, end = int(match[1]), int(match[2])
        return cls(start, end) if start < end and start < whole.end else whole

    def zoom(self, factor: float, whole: "Window") -> "Window":
        """The window around the same middle, ``factor`` times as long.

        It is within the whole axis.
        """
        length = min(max(round((self.end - self.start) * factor), 1), whole.end - whole.start)
        start = (self.start + self.end - length) // 2
        start = min(max(start, whole.start), whole.end - length)
        return Window(start, start + length)


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """A span on the axis.

    ``outcome`` is the attempt's: ``"completed"``, ``"failed"`` or ``"running"``.
    """

    kind: SpanKind
    x: float
    width: float
    text: str
    outcome: str | None = None


class Mark(msgspec.Struct, frozen=True):
    """The end of a failed attempt that has no bar, because its beginning is not known."""

    x: float
    text: str


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A step, or the run itself, whose ``key`` is empty.

    ``key`` is the step's hashed id. A row that ``is_copied`` has the result of another run, and no bars.
    ``seconds`` is its duration until now, or until its end; ``since`` is its start if it has not ended.
    """

    key: str
    label: str
    kind: str
    status: str
    bars: list[Bar]
    marks: list[Mark]
    seconds: float
    since: dt.datetime | None
    failures: int
    window: Window
    is_copied: bool = False


class Tick(msgspec.Struct, frozen=True):
    x: float
    text: str


class Waterfall(msgspec.Struct, frozen=True, kw_only=True):
    """Rows in the order of their starts, the run's own first.

    ``kinds`` are those that have a bar. ``outcomes`` are those of attempts that have a bar, each with a word for it.
    """

    rows: list[Row]
    ticks: list[Tick]
    window: Window
    whole: Window
    kinds: list[SpanKind]
    outcomes: list[tuple[str, str]]
    has_calls: bool
    has_marks: bool

    @property
    def is_zoomed(self) -> bool:
        return self.window != self.whole


def lay_out(report: RunReport, now: dt.datetime, zoom: str | None = None) -> Waterfall:
    """The waterfall of a run. ``zoom`` is the text of a window."""
    axis = _Axis.of(report, now, zoom)
    steps = sorted(report.steps, key=lambda step: step.spans[0].start if step.spans else step.created_at)
    rows = [_run_row(report, axis), *(_step_row(step, axis) for step in steps)]
    found = {bar.kind for row in rows for bar in row.bars}
    outcomes = {bar.outcome for row in rows[1:] for bar in row.bars}
    return Waterfall(
        rows=rows,
        ticks=_ticks(axis.window),
        window=axis.window,
        whole=axis.whole,
        kinds=[kind for kind in SpanKind if kind in found],
        outcomes=[each for each in _OUTCOMES if each[0] in outcomes],
        has_calls=any(bar.outcome == "call" for bar in rows[0].bars),
        has_marks=any(row.marks for row in rows),
    )


class _Axis(msgspec.Struct, frozen=True):
    """``origin`` is the run's creation, ``end`` the end of what has not ended."""

    origin: dt.datetime
    end: dt.datetime
    whole: Window
    window: Window

    @classmethod
    def of(cls, report: RunReport, now: dt.datetime, zoom: str | None) -> "_Axis":
        origin = report.run.created_at
        end = max(report.run.ended_at or now, origin)
        whole = Window(0, max(-(-(end - origin) // _MILLISECOND), 1))
        return cls(origin, end, whole, Window.parse(zoom, whole))

    def offset(self, time: dt.datetime) -> float:
        """Milliseconds since the run's creation."""
        return (time - self.origin) / _MILLISECOND

    def x(self, milliseconds: float) -> float:
        share = 100 * (milliseconds - self.window.start) / (self.window.end - self.window.start)
        return round(min(max(share, -_OUTSIDE), 100 + _OUTSIDE), 3)

    def bar(self, span: Span, outcome: str | None) -> Bar:
        start, end = self.offset(span.start), self.offset(span.end or self.end)
        x = self.x(start)
        attempt = f", attempt {span.attempt + 1}" if span.attempt else ""
        ending = "so far" if span.end is None else "long"
        text = f"{span.kind}{attempt}: {format_duration((end - start) / 1000)} {ending}, from {_at(start)}"
        return Bar(kind=span.kind, x=x, width=round(max(self.x(end) - x, _LEAST), 3), text=text, outcome=outcome)


def _at(milliseconds: float) -> str:
    return f"+{format_duration(milliseconds / 1000)}"


def _run_row(report: RunReport, axis: _Axis) -> Row:
    run = report.run
    bars = [axis.bar(span, "running" if span.end is None else "call") for span in report.spans]
    marks = _marks(report.failed_attempts, report.spans, axis)
    return Row(
        key="",
        label="Run",
        kind="run",
        status=run.status.lower(),
        bars=bars,
        marks=marks,
        seconds=(axis.end - run.created_at).total_seconds(),
        since=run.created_at if run.ended_at is None else None,
        failures=_count_failures(report.failed_attempts),
        window=axis.whole,
    )


def _step_row(step: Step, axis: _Axis) -> Row:
    failed = {each.attempt for each in step.failed_attempts if not each.is_unreached}
    last = step.attempts - 1
    bars = [axis.bar(span, _outcome(span, failed, step, last)) for span in step.spans]
    marks = _marks(step.failed_attempts, step.spans, axis)
    start = min([step.created_at, *(span.start for span in step.spans)])
    end = step.ended_at or axis.end
    first = max(int(axis.offset(start)), 0)
    return Row(
        key=step.hashed_id,
        label=step.id,
        kind=KIND_WORDS.get(step.op, "step"),
        status=step.status,
        bars=bars,
        marks=marks,
        seconds=max((end - start).total_seconds(), 0.0),
        since=start if step.ended_at is None else None,
        failures=_count_failures(step.failed_attempts) + (step.status is StepStatus.FAILED),
        window=Window(first, max(-(-int(axis.offset(end) * 1000) // 1000), first + 1)),
        is_copied=step.is_copied,
    )


def _count_failures(attempts: list[Attempt]) -> int:
    return sum(not each.is_unreached for each in attempts)


def _marks(attempts: list[Attempt], spans: list[Span], axis: _Axis) -> list[Mark]:
    drawn = {span.attempt for span in spans if span.kind is SpanKind.RUNNING}
    return [
        Mark(axis.x(axis.offset(each.ended_at)), f"attempt {each.attempt + 1} failed: {each.error.name}")
        for each in attempts
        if each.attempt not in drawn and not each.is_unreached
    ]


def _outcome(span: Span, failed: set[int], step: Step, last: int) -> str | None:
    if span.kind is not SpanKind.RUNNING:
        return None
    if span.end is None:
        return "running"
    if span.attempt in (None, last) and step.status in (StepStatus.COMPLETED, StepStatus.FAILED):
        return "failed" if step.status is StepStatus.FAILED else "completed"
    return "failed" if span.attempt in failed else "completed"


def _ticks(window: Window) -> list[Tick]:
    length = window.end - window.start
    distance = next((each for each in _TICKS if length / each <= _MOST_TICKS), _TICKS[-1])
    first = -(-window.start // distance) * distance
    return [
        Tick(round(100 * (at - window.start) / length, 3), _tick_text(at))
        for at in range(first, window.end + 1, distance)
    ]


def _tick_text(milliseconds: int) -> str:
    """A time since the run's creation in the largest units that show it exactly."""
    if milliseconds == 0:
        return "0"
    if milliseconds < 1000:
        return f"{milliseconds} ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:g} s"
    parts, rest = list[str](), milliseconds
    for name, unit in zip("dhm", reversed(_UNITS[2:]), strict=True):
        count, rest = divmod(rest, unit)
        if count:
            parts.append(f"{count}{name}")
    return " ".join([*parts, *([f"{rest / 1000:g}s"] if rest else [])])
