"""Schedules: what they mean, around clock changes too, and how ticks are planned and fired."""

import datetime as dt
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durably.engine.core.flow.config import Schedule, Tick, fire, plan_tick
from durably.protocol.engine_errors import ConfigInvalidError

from .configs import flow_of

_MINUTE, _HOUR, _DAY = 60_000, 3_600_000, 86_400_000


def schedule_of(text: str, jitter: str | None = None) -> Schedule:
    return flow_of(triggers=[{"cron": text, "jitter": jitter}]).schedules[0]


def ms(text: str) -> int:
    return round(dt.datetime.fromisoformat(text).timestamp() * 1000)


def ticks(text: str, after: str, count: int, zone: str = "UTC") -> list[str]:
    found = islice(schedule_of(text).ticks_after(ms(after)), count)
    return [dt.datetime.fromtimestamp(at / 1000, ZoneInfo(zone)).isoformat() for at in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("* * * * *", ["2026-01-01T00:01:00+00:00", "2026-01-01T00:02:00+00:00"]),
        ("*/20 5 * * *", ["2026-01-01T05:00:00+00:00", "2026-01-01T05:20:00+00:00"]),
        ("0 9 * * MON-FRI", ["2026-01-01T09:00:00+00:00", "2026-01-02T09:00:00+00:00", "2026-01-05T09:00:00+00:00"]),
        ("0 0 29 feb ?", ["2028-02-29T00:00:00+00:00", "2032-02-29T00:00:00+00:00"]),
        ("0 0 13 * 5", ["2026-01-02T00:00:00+00:00", "2026-01-09T00:00:00+00:00", "2026-01-13T00:00:00+00:00"]),
        ("0 0 */10 * 0", ["2026-01-04T00:00:00+00:00", "2026-01-11T00:00:00+00:00", "2026-01-18T00:00:00+00:00"]),
        ("0 0 * * 7", ["2026-01-04T00:00:00+00:00"]),
        ("5,10-12 0 1 1 *", ["2026-01-01T00:05:00+00:00", "2026-01-01T00:10:00+00:00", "2026-01-01T00:11:00+00:00"]),
    ],
)
def test_schedules_tick_at_their_times(text: str, expected: list[str]) -> None:
    assert ticks(text, "2026-01-01T00:00:00+00:00", len(expected)) == expected


def test_schedules_tick_in_their_zones() -> None:
    for prefix in ("TZ", "CRON_TZ"):
        assert ticks(f"{prefix}=Asia/Kolkata 30 9 * * *", "2026-01-01T00:00:00+00:00", 1) == [
            "2026-01-01T04:00:00+00:00"
        ]


_NEW_YORK = "America/New_York"


@pytest.mark.parametrize(
    ("text", "after", "expected"),
    [
        # 2026-03-08, 2:00 is followed by 3:00.
        ("30 2 * * *", "2026-03-07T12:00:00-05:00", ["2026-03-08T03:00:00-04:00", "2026-03-09T02:30:00-04:00"]),
        ("0 * * * *", "2026-03-08T00:30:00-05:00", ["2026-03-08T01:00:00-05:00", "2026-03-08T03:00:00-04:00"]),
        # 2026-11-01, 2:00 is followed by 1:00.
        ("30 1 * * *", "2026-10-31T12:00:00-04:00", ["2026-11-01T01:30:00-04:00", "2026-11-02T01:30:00-05:00"]),
        ("30 1 * * *", "2026-11-01T01:10:00-05:00", ["2026-11-02T01:30:00-05:00"]),
        (
            "*/30 * * * *",
            "2026-11-01T01:20:00-04:00",
            ["2026-11-01T01:30:00-04:00", "2026-11-01T01:00:00-05:00", "2026-11-01T01:30:00-05:00"],
        ),
    ],
)
def test_schedules_follow_clock_changes(text: str, after: str, expected: list[str]) -> None:
    assert ticks(f"TZ={_NEW_YORK} {text}", after, len(expected), _NEW_YORK) == expected


_zones = st.sampled_from(["UTC", _NEW_YORK, "Europe/London", "Australia/Lord_Howe", "Africa/Casablanca", "Asia/Tehran"])
_schedules = st.sampled_from(
    ["* * * * *", "*/7 * * * *", "30 * * * *", "30 1 * * *", "15,45 0-3 * * *", "0 2 * * 0", "30 2 31 * *"]
)
_timestamps = st.integers(1_750_000_000_000, 1_800_000_000_000)


@given(_schedules, _zones, _timestamps)
def test_ticks_only_advance_and_continue_from_the_last_one(text: str, zone: str, after: int) -> None:
    schedule = schedule_of(f"TZ={zone} {text}")
    found = list(islice(schedule.ticks_after(after), 30))
    assert all(early < late for early, late in zip([after, *found], found, strict=False))
    at = after
    for expected in found:
        at = next(schedule.ticks_after(at))
        assert at == expected


@given(_zones, _timestamps, st.sampled_from(["30 1 * * *", "30 2 * * *", "0 0 * * *", "15 3 * * *"]))
@settings(max_examples=40)
def test_a_daily_schedule_ticks_once_on_every_day(zone: str, after: int, text: str) -> None:
    found = islice(schedule_of(f"TZ={zone} {text}").ticks_after(after), 400)
    days = [dt.datetime.fromtimestamp(at / 1000, ZoneInfo(zone)).date() for at in found]
    assert [day - days[0] for day in days] == [dt.timedelta(days=count) for count in range(400)]


def test_each_tick_is_fired_once_and_the_next_is_planned() -> None:
    schedule = schedule_of("*/5 * * * *")
    planned = plan_tick(schedule, "fn", ms("2026-01-01T00:00:00+00:00"))
    assert planned is not None
    for count in range(1, 100):
        fired = fire(schedule, "fn", planned, planned.due + 20)
        assert fired.tick == planned
        assert fired.tick.at == ms("2026-01-01T00:00:00+00:00") + count * 5 * _MINUTE
        assert fired.upcoming is not None
        planned = fired.upcoming


@given(
    st.sampled_from(["* * * * *", "*/5 * * * *", "0 9 * * 1-5", "0 0 1 * *", "0 0 1 1 *"]),
    _timestamps,
    st.integers(0, 3 * 365 * _DAY),
)
def test_of_missed_ticks_the_latest_is_fired(text: str, synced: int, downtime: int) -> None:
    schedule = schedule_of(text)
    planned = plan_tick(schedule, "fn", synced)
    assert planned is not None
    now = planned.due + downtime
    fired = fire(schedule, "fn", planned, now)
    assert planned.at <= fired.tick.at <= now
    assert fired.upcoming is not None
    assert fired.upcoming.at == next(schedule.ticks_after(fired.tick.at))
    assert fired.upcoming.at >= now - _MINUTE  # nothing that was missed is left


def test_an_hourly_schedule_after_a_weekend_makes_up_for_one_tick() -> None:
    schedule = schedule_of("0 * * * *")
    friday, monday = ms("2026-01-02T18:00:00+00:00"), ms("2026-01-05T08:10:00+00:00")
    fired = fire(schedule, "fn", Tick(friday, friday), monday)
    assert fired.tick.at == ms("2026-01-05T08:00:00+00:00")
    assert fired.upcoming == Tick(ms("2026-01-05T09:00:00+00:00"), ms("2026-01-05T09:00:00+00:00"))


@given(_timestamps)
def test_jitter_is_within_its_bounds_and_stays_the_same(after: int) -> None:
    schedule = schedule_of("* * * * *", jitter="30s")
    planned = plan_tick(schedule, "fn", after)
    assert planned is not None
    assert 0 <= planned.due - planned.at <= 30_000
    assert planned == plan_tick(schedule, "fn", after)


def test_jitter_spreads_functions_and_ticks() -> None:
    schedule = schedule_of("0 * * * *", jitter="5m")
    now = ms("2026-01-01T00:00:00+00:00")
    spread = {plan_tick(schedule, f"fn-{number}", now).due for number in range(200)}  # type: ignore[union-attr]
    assert len(spread) > 190
    assert max(spread) - min(spread) > 4 * _MINUTE


def test_no_tick_is_missed_for_its_jitter() -> None:
    schedule = schedule_of("* * * * *", jitter="5m")
    planned, now, fired = plan_tick(schedule, "fn", 0), 0, []
    while planned is not None and planned.at <= 2 * _HOUR:
        now = max(now, planned.due)
        result = fire(schedule, "fn", planned, now)
        fired.append(result.tick.at)
        planned = result.upcoming
    assert fired == [minute * _MINUTE for minute in range(1, 121)]


@pytest.mark.parametrize(
    ("text", "jitter", "says"),
    [
        ("* * * *", None, "has 4 fields"),
        ("0 * * * * *", None, "has 6 fields"),
        ("@hourly", None, "does not have: write '0 * * * *'"),
        ("@often", None, "has 1 field; it must have five"),
        ("60 * * * *", None, "Bad minute"),
        ("* * * * 5-1", None, "Bad day-of-week"),
        ("*/0 * * * *", None, "Bad minute"),
        ("0 0 L * *", None, "numbers, names"),
        ("0 0 * * 5#2", None, "numbers, names"),
        ("0 0 30 2 *", None, "Bad day-of-month"),
        ("٣ * * * *", None, "numbers, names"),
        ("TZ=Mars/Phobos 0 0 * * *", None, "time zone 'Mars/Phobos'"),
        ("TZ=../../etc/passwd 0 0 * * *", None, "time zone"),
        ("TZ=America 0 0 * * *", None, "time zone"),
        ("TZ=UTC", None, "has 1 field;"),
        ("1," * 200 + "1 * * * *", None, "longer than 255"),
        ("* * * * *", "6m", "between 1s and 5m"),
        ("* * * * *", "500ms", "between 1s and 5m"),
        ("* * * * *", "soon", "triggers.jitter is not valid"),
    ],
)
def test_schedules_that_are_refused(text: str, jitter: str | None, says: str) -> None:
    with pytest.raises(ConfigInvalidError, match="function 'shop-fn': triggers") as raised:
        schedule_of(text, jitter)
    assert says in str(raised.value)


def test_the_same_schedule_twice_is_refused() -> None:
    with pytest.raises(ConfigInvalidError, match="twice"):
        flow_of(triggers=[{"cron": "* * * * *"}, {"cron": "* * * * *", "jitter": "10s"}])
