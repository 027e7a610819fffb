"""Spans of time of steps and runs, from the times that an engine has stored.

Pure. Times are microseconds since the epoch. ``None`` means an unknown or a future time.
"""

import datetime as dt
from collections.abc import Iterable, Sequence

import msgspec

from .runs import Span, SpanKind, from_microseconds

_SHORTEST = 1000
"""Shorter times in a queue are ignored, because the engine's times are milliseconds."""
_SHORTEST_QUEUED = dt.timedelta(milliseconds=2)
"""Shorter times between calls are the engine's own work."""
_NEVER = dt.datetime.max.replace(tzinfo=dt.UTC)


class AttemptTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Times of one attempt at a step, or at the function's own code.

    - ``queued_at``: When its call was due; ``None`` if no call was made for it alone.
    - ``began_at``: When the app began.
    - ``retry_at``: When the next attempt was or is due.
    """

    attempt: int
    queued_at: int | None = None
    began_at: int | None = None
    ended_at: int | None = None
    retry_at: int | None = None


class Interval(msgspec.Struct, frozen=True, order=True):
    """An interval of time. ``end`` is ``None`` if it has not ended."""

    start: int
    end: int | None


def make_span(kind: SpanKind, start: int, end: int | None, attempt: int | None = None) -> Span:
    """A span; its end is not before its start, even if a clock was set back."""
    return Span(
        kind=kind,
        start=from_microseconds(start),
        end=None if end is None else from_microseconds(max(start, end)),
        attempt=attempt,
    )


def attempt_spans(attempts: Sequence[AttemptTimes]) -> list[Span]:
    """Queued, running and backoff of each attempt, in the order of time.

    Unknown parts of an attempt have no span.
    """
    spans = []
    for times in attempts:
        began = times.began_at
        if times.queued_at is not None and (began is None or began - times.queued_at >= _SHORTEST):
            spans.append(make_span(SpanKind.QUEUED, times.queued_at, began or times.ended_at, times.attempt))
        if began is not None:
            spans.append(make_span(SpanKind.RUNNING, began, times.ended_at, times.attempt))
        if times.retry_at is not None and times.ended_at is not None and times.retry_at > times.ended_at:
            spans.append(make_span(SpanKind.RETRYING, times.ended_at, times.retry_at, times.attempt))
    return spans


def run_spans(
    created_at: int,
    first_call_at: int | None,
    ended_at: int | None,
    calls: Iterable[Interval],
    attempts: Sequence[AttemptTimes] = (),
    step_spans: Iterable[Span] = (),
    due_times: Iterable[int] = (),
) -> list[Span]:
    """The run's own spans: queued, running and backoff.

    ``attempts`` are the failed ones of the function's own code, ``step_spans`` the spans of its steps. ``due_times``
    are times at which calls were due. Any other call was due when nothing else was under way.
    """
    spans = []
    if first_call_at is None or first_call_at > created_at:
        spans.append(make_span(SpanKind.QUEUED, created_at, ended_at if first_call_at is None else first_call_at))
    running = [make_span(SpanKind.RUNNING, call.start, call.end) for call in merge(calls)]
    retrying = [span for span in attempt_spans(attempts) if span.kind is SpanKind.RETRYING]
    due = [make_span(SpanKind.QUEUED, time, time) for time in due_times]
    return sorted([*spans, *running, *retrying, *_queued(running, [*retrying, *step_spans, *due])], key=_start)


def _queued(running: Sequence[Span], others: Iterable[Span]) -> list[Span]:
    """The times in which the run only waited for a call.

    They precede each call but the first.

    A run that has not ended has a call or a wait outstanding. Therefore a call is outstanding when no step is under
    way.
    """
    known = sorted([*running, *others], key=_start)
    queued: list[Span] = []
    busy_until, place = None, 0
    for call in running:
        while place < len(known) and known[place].start < call.start:
            end = known[place].end
            busy_until = _NEVER if end is None else end if busy_until is None else max(busy_until, end)
            place += 1
        if busy_until is not None and call.start - busy_until > _SHORTEST_QUEUED:
            queued.append(Span(kind=SpanKind.QUEUED, start=busy_until, end=call.start))
    return queued


def _start(span: Span) -> dt.datetime:
    return span.start


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """Merge intervals that overlap, in the order of time.

    Those that only touch stay separate.
    """
    merged: list[Interval] = []
    for interval in sorted(intervals, key=lambda interval: interval.start):
        last = merged[-1] if merged else None
        if last is None or (last.end is not None and last.end <= interval.start):
            merged.append(interval)
        elif last.end is not None and (interval.end is None or interval.end > last.end):
            merged[-1] = Interval(last.start, interval.end)
    return merged
