"""The waterfall of a run in the terminal."""

import datetime as dt
import re

import click
import msgspec
import pytest

from durably.cli.run_text import draw
from durably.engine.core.run_state import RunStatus
from durably.engine.model.runs import Attempt, Run, RunReport, Span, SpanKind, Step, StepStatus
from durably.protocol.errors import ErrorData
from durably.protocol.opcodes import Opcode

START = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)


def at(seconds: float) -> dt.datetime:
    return START + dt.timedelta(seconds=seconds)


def span(kind: SpanKind, start: float, end: float | None, attempt: int | None = None) -> Span:
    return Span(kind=kind, start=at(start), end=None if end is None else at(end), attempt=attempt)


def step(name: str, op: Opcode, *spans: Span, failed: int = 0, output: object = None) -> Step:
    ended = spans[-1].end
    error = ErrorData(name="ValueError", message="not yet")
    return Step(
        id=name,
        hashed_id=name,
        op=op,
        status=StepStatus.RUNNING if ended is None else StepStatus.COMPLETED,
        attempts=failed + 1,
        created_at=spans[0].start,
        ended_at=ended,
        due_at=None,
        spans=list(spans),
        failed_attempts=[Attempt(attempt=n, ended_at=at(n), error=error) for n in range(failed)],
        output=None if output is None else msgspec.Raw(msgspec.json.encode(output)),
    )


def report_of(*steps: Step, ended: float | None = 10) -> RunReport:
    run = Run(
        id="RUN",
        function_id="shop-pay",
        app_id="shop",
        status=RunStatus.RUNNING if ended is None else RunStatus.COMPLETED,
        event_ids=[],
        created_at=START,
        started_at=START,
        ended_at=None if ended is None else at(ended),
        output=None,
        attempt=0,
        max_attempts=5,
        rerun_of=None,
    )
    return RunReport(
        run=run,
        function_name="pay",
        app_version=None,
        spans=[span(SpanKind.QUEUED, 0, 1), span(SpanKind.RUNNING, 1, 2)],
        steps=list(steps),
        failed_attempts=[],
        events=[],
        parent=None,
        children=[],
        has_more_children=False,
        logs=[],
    )


def lines(report: RunReport, monkeypatch: pytest.MonkeyPatch, columns: int = 100) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    return click.unstyle(draw(report, at(10))).splitlines()


def test_bars_are_in_proportion_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    left = step("left", Opcode.STEP_RUN, span(SpanKind.RUNNING, 0, 5), output=1)
    right = step("right", Opcode.STEP_RUN, span(SpanKind.RUNNING, 5, 10), output=2)
    axis, run, first, second, legend = lines(report_of(left, right), monkeypatch)
    begin = axis.index("0")
    assert run[begin] == "·"
    bars = [line[begin:].count("█") for line in (first, second)]
    assert abs(bars[0] - bars[1]) <= 1
    assert second.index("█") == begin + bars[0]
    assert first.startswith("✓ left")
    assert (first.split()[-1], second.split()[-1]) == ("1", "2")
    assert legend == "· queued   █ running"


def test_kinds_differ_without_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [
        step("nap", Opcode.SLEEP, span(SpanKind.SLEEPING, 2, 4)),
        step("wait", Opcode.WAIT_FOR_EVENT, span(SpanKind.WAITING, 4, 6)),
        step(
            "flaky",
            Opcode.STEP_RUN,
            span(SpanKind.RUNNING, 6, 7, 0),
            span(SpanKind.RETRYING, 7, 8),
            span(SpanKind.RUNNING, 8, 9, 1),
            failed=1,
            output="done",
        ),
    ]
    _, _, nap, wait, flaky, legend = lines(report_of(*steps), monkeypatch)
    assert re.search(r"^✓ nap +sleep +─+ +", nap)
    assert re.search(r"^✓ wait +event +░+ +.*timed out", wait)
    assert re.search(r"^✓ flaky +step +█+✗╌+█+ +3\.0 s +\"done\"", flaky)
    assert legend == "· queued   █ running   ╌ backoff   ─ sleeping   ░ waiting   ✗ failed attempt"


def test_a_step_under_way_reaches_to_now(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, line, _ = lines(
        report_of(step("a", Opcode.STEP_RUN, span(SpanKind.RUNNING, 5, None)), ended=None), monkeypatch
    )
    assert re.search(r"^… a +step +█+ +5\.0 s … +running$", line)


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_lines_fit_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    steps = [step(f"step {n}", Opcode.STEP_RUN, span(SpanKind.RUNNING, 0, 5), output="x" * 500) for n in range(3)]
    drawn = lines(report_of(*steps), monkeypatch, columns)
    assert all(len(line) <= max(columns, 72) for line in drawn[:-1])


def test_a_run_of_a_thousand_steps_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [step(f"s{n}", Opcode.STEP_RUN, span(SpanKind.RUNNING, n / 100, (n + 1) / 100)) for n in range(1000)]
    drawn = lines(report_of(*steps), monkeypatch)
    assert len(drawn) == 1003
    assert all("█" in line for line in drawn[2:-1])
