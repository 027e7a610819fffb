"""Spans of time of steps and runs, from the times that an engine has stored.

Pure. Times are microseconds since the epoch. ``None`` is a time that is unknown, or has not come.
"""

from collections.abc import Iterable, Sequence

import msgspec

from .reports import Span, SpanKind
from .views import from_microseconds


class AttemptTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Times of one attempt at a step, or at the function's own code.

    ``queued_at``: from when its call was due; ``None`` if no call was made for it alone. ``began_at``: when the app
    began. ``retry_at``: when the next attempt was or is due.
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

    What is not known of an attempt has no span.
    """
    spans = []
    for times in attempts:
        began = times.began_at
        if times.queued_at is not None and (began is None or began > times.queued_at):
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
) -> list[Span]:
    """The run's own spans.

    They are queued before its first call, its calls, and the backoff of its own failed attempts.

    ``attempts`` are the failed ones of the function's own code.
    """
    spans = []
    if first_call_at is None or first_call_at > created_at:
        spans.append(make_span(SpanKind.QUEUED, created_at, ended_at if first_call_at is None else first_call_at))
    spans += [make_span(SpanKind.RUNNING, call.start, call.end) for call in merge(calls)]
    spans += [span for span in attempt_spans(attempts) if span.kind is SpanKind.RETRYING]
    return sorted(spans, key=lambda span: span.start)


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """Intervals that overlap as one, in the order of time.

    Those that only touch stay apart.
    """
    merged: list[Interval] = []
    for interval in sorted(intervals, key=lambda interval: interval.start):
        last = merged[-1] if merged else None
        if last is None or (last.end is not None and last.end <= interval.start):
            merged.append(interval)
        elif last.end is not None and (interval.end is None or interval.end > last.end):
            merged[-1] = Interval(last.start, interval.end)
    return merged
