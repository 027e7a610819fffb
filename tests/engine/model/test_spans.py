"""Spans of time, from stored times."""

import datetime as dt

import pytest

from durably.engine.model.run_report import AttemptTimes, Interval, attempt_spans, make_span, merge, run_spans
from durably.engine.model.runs import Span, SpanKind

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def shown(spans: list[Span]) -> list[tuple[str, int, int | None]]:
    """Kind, start and end of each, in microseconds."""
    micro = dt.timedelta(microseconds=1)
    return [
        (span.kind.value, (span.start - EPOCH) // micro, None if span.end is None else (span.end - EPOCH) // micro)
        for span in spans
    ]


@pytest.mark.parametrize(
    ("attempts", "spans"),
    [
        ([{"queued_at": 1000, "began_at": 3000, "ended_at": 7000}], [("queued", 1000, 3000), ("running", 3000, 7000)]),
        (
            [
                {"queued_at": 0, "began_at": 0, "ended_at": 10, "retry_at": 50},
                {"attempt": 1, "queued_at": 50, "began_at": 5050},
            ],
            [("running", 0, 10), ("retrying", 10, 50), ("queued", 50, 5050), ("running", 5050, None)],
        ),
        ([{"ended_at": 10}], []),
        ([{"queued_at": 10}], [("queued", 10, None)]),
        ([{"began_at": 30, "ended_at": 20}], [("running", 30, 30)]),
    ],
    ids=["queued, then runs", "backoff between attempts", "unknown", "not begun", "a clock that was set back"],
)
def test_spans_of_attempts(attempts: list[dict[str, int]], spans: list[tuple[str, int, int | None]]) -> None:
    assert shown(attempt_spans([AttemptTimes(**({"attempt": 0} | each)) for each in attempts])) == spans


def test_overlapping_calls_are_one_and_touching_ones_are_two() -> None:
    calls = [Interval(20, 30), Interval(0, 10), Interval(5, 8), Interval(10, 20), Interval(25, None), Interval(40, 50)]
    assert merge(calls) == [Interval(0, 10), Interval(10, 20), Interval(20, None)]


def test_a_run_is_queued_until_its_first_call() -> None:
    assert shown(run_spans(0, None, None, [])) == [("queued", 0, None)]
    assert shown(run_spans(0, None, 9, [])) == [("queued", 0, 9)]
    assert shown(run_spans(0, 5, 20, [Interval(5, 20)])) == [("queued", 0, 5), ("running", 5, 20)]
    assert shown(run_spans(0, 0, 20, [])) == []


def test_backoff_of_the_function_is_a_span_of_the_run() -> None:
    attempts = [AttemptTimes(attempt=0, began_at=0, ended_at=10, retry_at=30)]
    assert shown(run_spans(0, 0, 40, [Interval(0, 10), Interval(30, 40)], attempts)) == [
        ("running", 0, 10),
        ("retrying", 10, 30),
        ("running", 30, 40),
    ]


MS = 1000


def test_a_run_is_queued_for_a_call_if_nothing_else_is_under_way() -> None:
    calls = [Interval(0, 10 * MS), Interval(50 * MS, 60 * MS)]
    assert ("queued", 10 * MS, 50 * MS) in shown(run_spans(0, 0, 60 * MS, calls))
    sleep = make_span(SpanKind.SLEEPING, 10 * MS, 40 * MS)
    assert ("queued", 40 * MS, 50 * MS) in shown(run_spans(0, 0, 60 * MS, calls, (), [sleep]))
    still_waiting = make_span(SpanKind.WAITING, 10 * MS, None)
    assert all(kind != "queued" for kind, _, _ in shown(run_spans(0, 0, 60 * MS, calls, (), [still_waiting])))


def test_a_call_is_queued_since_it_was_due() -> None:
    """Between its last call and then, the run was called to plan steps, at a time that is not known."""
    calls = [Interval(0, 10 * MS), Interval(50 * MS, 60 * MS)]
    spans = shown(run_spans(0, 0, 60 * MS, calls, (), (), [30 * MS]))
    assert [span for span in spans if span[0] == "queued"] == [("queued", 30 * MS, 50 * MS)]
