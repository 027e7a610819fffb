"""Durations, tables and short lines."""

import datetime as dt
import sys
import time

import click
import pytest

from durably.cli.text import bar, describe_zone, format_seconds, progress_line, shorten, style, table


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.000 s"),
        (-0.001, "0.000 s"),
        (0.0421, "0.042 s"),
        (1, "1.0 s"),
        (59.94, "59.9 s"),
        (60, "1 m"),
        (200, "3 m 20 s"),
        (7500, "2 h 5 m"),
        (3600, "1 h"),
        (86400 * 4 + 3600, "4 d 1 h"),
    ],
)
def test_seconds_are_formatted_in_suitable_units(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_columns_are_aligned_whatever_their_colours() -> None:
    lines = table(["A", "B"], [[style("x", fg="red"), "1"], ["long", "2"]]).splitlines()
    assert [click.unstyle(line) for line in lines] == ["A     B", "x     1", "long  2"]


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the zone of the process can be set on Unix alone")
@pytest.mark.parametrize(
    ("zone", "months", "text"),
    [
        ("UTC", (1, 7), "UTC"),
        ("Asia/Kolkata", (1, 7), "UTC+05:30"),
        ("America/New_York", (1,), "UTC-05:00"),
        ("America/New_York", (1, 7), "local time"),
    ],
)
def test_zone_of_local_times_is_described(
    zone: str, months: tuple[int, ...], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert describe_zone(dt.datetime(2026, month, 1, tzinfo=dt.UTC) for month in months) == text
    finally:
        monkeypatch.undo()
        time.tzset()


def test_long_and_broken_lines_are_shortened() -> None:
    assert shorten("a\n  b", 10) == "a b"
    assert shorten("abcdef", 4) == "abc…"


def test_progress_is_one_line_on_a_terminal_and_nothing_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_line() as show:
        show("12 runs so far")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_line() as show:
        show("12 runs\nso far")
    shown = capsys.readouterr().err
    assert shown.startswith("\r\x1b[K12 runs")
    assert shown.endswith("\r\x1b[K")
    assert "\n" not in shown


@pytest.mark.parametrize(
    ("done", "total", "drawn"),
    [
        (0, 8, "░" * 20 + " 0 %"),
        (5, 8, "█" * 12 + "░" * 8 + " 62 %"),
        (8, 8, "█" * 20 + " 100 %"),
        (9, 8, "█" * 20 + " 100 %"),
        (0, 0, "█" * 20 + " 100 %"),
    ],
)
def test_a_bar_has_the_share_that_is_done(done: int, total: int, drawn: str) -> None:
    assert bar(done, total) == drawn
