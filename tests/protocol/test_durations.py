"""Durations and timestamps, in the forms that users and the wire write them."""

import datetime as dt
import email.utils
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durably.protocol.durations import (
    DurationInvalidError,
    format_duration,
    format_timestamp,
    parse_duration,
    parse_retry_after,
    parse_rfc3339,
    parse_timestamp,
    to_timedelta,
)

NOW = dt.datetime(2030, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
MILLISECOND = dt.timedelta(milliseconds=1)
DURATIONS = st.timedeltas(min_value=dt.timedelta(0), max_value=dt.timedelta(days=5000))
OFFSETS = st.integers(-14 * 60, 14 * 60).map(lambda minutes: dt.timezone(dt.timedelta(minutes=minutes)))
TIMESTAMPS = st.builds(
    lambda seconds, offset: dt.datetime.fromtimestamp(seconds, offset), st.floats(200_000, 2e11), OFFSETS
)


@given(DURATIONS)
def test_written_durations_are_read_again_and_not_shortened(delta: dt.timedelta) -> None:
    assert delta <= parse_duration(format_duration(delta)) < delta + MILLISECOND


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0s"),
        (1, "1ms"),
        (1500, "1500ms"),
        (90_000, "90s"),
        (dt.timedelta(minutes=90), "90m"),
        (dt.timedelta(hours=48), "2d"),
        (dt.timedelta(days=14), "2w"),
        (dt.timedelta(microseconds=1), "1ms"),
    ],
)
def test_the_largest_unit_that_fits(value: Any, text: str) -> None:
    assert format_duration(value) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("1h30m", 5400),
        ("500ms", 0.5),
        ("1.5s", 1.5),
        (".5m", 30),
        ("2w", 1_209_600),
        ("1d12h", 129_600),
        ("250us", 0.00025),
        ("250µs", 0.00025),
        (" 7d ", 604_800),
    ],
)
def test_durations_that_engines_and_sdks_write(text: str, seconds: float) -> None:
    assert parse_duration(text).total_seconds() == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", " ", "h", "5", "-5s", "5 s", "1h-30m", "5x", "1h30", "٣s", "infs", "1e5s", "9" * 40 + "w"]
)
def test_malformed_duration_is_refused(text: str) -> None:
    with pytest.raises(DurationInvalidError):
        parse_duration(text)


@given(st.text())
def test_any_text_is_a_duration_or_a_clear_error(text: str) -> None:
    try:
        delta = parse_duration(text)
    except DurationInvalidError as error:
        message = str(error)
    else:
        assert delta >= dt.timedelta(0)
        return
    assert repr(text) in message


@pytest.mark.parametrize("value", [True, "soon", 1.5, None, -1, dt.timedelta(seconds=-1), 10**40])
def test_values_of_other_types_are_refused(value: Any) -> None:
    with pytest.raises(DurationInvalidError):
        to_timedelta(value)


@given(TIMESTAMPS)
def test_written_timestamps_are_read_again(timestamp: dt.datetime) -> None:
    text = format_timestamp(timestamp)
    assert text.endswith("Z")
    read = parse_rfc3339(text)
    assert read is not None
    assert timestamp - MILLISECOND < read <= timestamp
    assert parse_timestamp(text, NOW) == read


@given(DURATIONS)
def test_a_timestamp_may_be_a_duration_from_now(delta: dt.timedelta) -> None:
    assert NOW + delta <= parse_timestamp(format_duration(delta), NOW) < NOW + delta + MILLISECOND


def test_timestamp_out_of_range_is_refused() -> None:
    with pytest.raises(DurationInvalidError, match="too long"):
        parse_timestamp("500000w", NOW)


@pytest.mark.parametrize(
    ("text", "timestamp"),
    [
        ("2030-01-02T03:04:05Z", NOW),
        ("2030-01-02T03:04:05", NOW),
        ("2030-01-02T05:04:05+02:00", NOW),
        ("2030-01-02T03:04:05.000000Z", NOW),
    ],
)
def test_dates_in_the_forms_that_sdks_write(text: str, timestamp: dt.datetime) -> None:
    assert parse_rfc3339(text) == parse_timestamp(text, NOW) == timestamp


@given(st.integers(0, 10**8))
def test_retry_after_in_seconds(seconds: int) -> None:
    assert parse_retry_after(str(seconds), NOW) == NOW + dt.timedelta(seconds=seconds)


@given(TIMESTAMPS)
def test_retry_after_as_a_date_of_either_form(timestamp: dt.datetime) -> None:
    timestamp = timestamp.astimezone(dt.UTC).replace(microsecond=0)
    assert parse_retry_after(timestamp.isoformat(), NOW) == timestamp
    assert parse_retry_after(email.utils.format_datetime(timestamp, usegmt=True), NOW) == timestamp
