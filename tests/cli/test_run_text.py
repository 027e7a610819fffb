"""The lines that ``durably dev`` prints for what happens to runs."""

import datetime as dt
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from durably.cli.run_text import Activity, describe_memo
from durably.engine.model.runs import RunUpdate, UpdateKind
from durably.protocol.opcodes import Opcode

START = dt.datetime(2026, 1, 31, 12, 0, 0, tzinfo=dt.UTC)
RUN_ID = "01M7Y33DK2T1FZ340K66Q8GX9E"


def update(kind: UpdateKind, seconds: float = 0, **fields: Any) -> RunUpdate:
    at = START + dt.timedelta(seconds=seconds)
    return RunUpdate(kind=kind, at=at, run_id=RUN_ID, function_id="shop-place", **fields)


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_a_run_from_start_to_end() -> None:
    activity, due = Activity(), START + dt.timedelta(seconds=5)
    lines = [
        activity.format(each)
        for each in (
            update(UpdateKind.RUN_STARTED),
            update(UpdateKind.RETRYING, 0.5, step="charge", attempt=0, error="IOError: down", due_at=due),
            update(UpdateKind.UNREACHED, 1, error="connection refused", due_at=due),
            update(UpdateKind.STEP_COMPLETED, 2, step="charge", op=Opcode.STEP_RUN, output=raw({"data": {"n": 1}})),
            update(UpdateKind.STEP_COMPLETED, 2, step="nap", op=Opcode.SLEEP, output=raw(None)),
            update(UpdateKind.STEP_FAILED, 2, step="pack", error="ValueError: no box"),
            update(UpdateKind.WAITING, 2, step="paid"),
            update(UpdateKind.RUN_COMPLETED, 90, output=raw("done")),
            update(UpdateKind.RUN_CANCELLED, 90, error="FunctionCancelledError: the run was cancelled: too slow"),
        )
    ]
    columns = [click.unstyle(line)[8:].split(None, 3) for line in lines]
    assert all(column[0] == RUN_ID[-6:] and column[1] == "shop-place" for column in columns)
    texts = [" ".join(click.unstyle(line)[8:].split()[2:]) for line in lines]
    assert texts == [
        f"▶ run started {RUN_ID}",
        "↻ charge +0.500 s attempt 1 failed, again in 4.5 s: IOError: down",
        "! (function) +1.0 s the app does not answer, again in 4.0 s: connection refused",
        '✓ charge +2.0 s {"n": 1}',
        "✓ nap +2.0 s",
        "✗ pack +2.0 s ValueError: no box",
        "… paid +2.0 s waits",
        '■ run completed +1 m 30 s "done"',
        "■ run cancelled the run was cancelled: too slow",
    ]
    positions = {click.unstyle(line).index(each) for line, each in zip(lines, "▶↻!✓✓✗…■■", strict=True)}
    assert len(positions) == 1, "marks stand below each other"


def test_lines_fit_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    line = Activity().format(update(UpdateKind.RUN_FAILED, error="ValueError: " + "x " * 500))
    first, hint = click.unstyle(line).splitlines()
    assert len(first) == 120
    assert hint.strip() == f"the whole error: durably runs show {RUN_ID[-6:]}"
    assert "runs show" not in Activity().format(update(UpdateKind.RUN_FAILED, error="ValueError: short"))


def test_error_of_a_failure_is_whole_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    error = "OpInvalidError: step 's' waits for an event with an expression that is not valid: the end is missing at 5"
    long_output = msgspec.Raw(msgspec.json.encode("x" * 500))
    with (tmp_path / "log").open("w") as file:
        monkeypatch.setattr("sys.__stdout__", file)
        for kind in (UpdateKind.STEP_FAILED, UpdateKind.RUN_FAILED):
            assert click.unstyle(Activity().format(update(kind, error=error))).endswith(error)
        completed = click.unstyle(Activity().format(update(UpdateKind.RUN_COMPLETED, output=long_output)))
        assert len(completed) == 160


@pytest.mark.parametrize(
    ("op", "memo", "text"),
    [
        ("StepRun", {"data": None}, "null"),
        ("StepRun", {"type": "data", "data": [1]}, "[1]"),
        ("Sleep", None, ""),
        ("WaitForEvent", None, "timed out"),
        ("WaitForEvent", {"name": "a/b", "data": {"x": 1}, "id": "1"}, 'a/b {"x": 1}'),
        ("WaitForSignal", None, "timed out"),
        ("WaitForSignal", {"data": {"signal": "s", "data": 1}}, '{"signal": "s", "data": 1}'),
    ],
)
def test_run_lines_show_memos_without_their_envelope(op: str, memo: object, text: str) -> None:
    assert describe_memo(op, memo) == text
