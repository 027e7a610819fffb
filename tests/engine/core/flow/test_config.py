"""Options of functions, as they are compiled, and the ticks of their schedules."""

import datetime as dt
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine.core.flow.configs import config_of, event, flow_of

from durably.engine.core.flow.config import Schedule, fire, plan_tick, read_flow
from durably.engine.core.flow.queue import EntrySlot
from durably.protocol.engine_errors import ConfigInvalidError

_BATCH = {"batchEvents": {"maxSize": 10, "timeout": "5s"}}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"rateLimit": {"limit": 0, "period": "1m"}},
            "rate_limit.limit is 0; it must be a whole number from 1 to 1000000000",
        ),
        ({"rateLimit": {"limit": 1, "period": "25h"}}, "rate_limit.period is '25h'; it must be between 1s and 1d"),
        ({"rateLimit": {"limit": 1, "period": "often"}}, "rate_limit.period is not valid: invalid duration 'often'"),
        ({"rateLimit": {"limit": 1, "period": "1m", "key": "event.data."}}, "rate_limit.key is not valid"),
        ({"throttle": {"limit": 1, "period": "8d"}}, "throttle.period is '8d'; it must be between 1s and 1w"),
        ({"throttle": {"limit": -1, "period": "1m"}}, "throttle.limit is -1"),
        (
            {"throttle": {"limit": 10**30, "period": "1m"}},
            f"throttle.limit is {10**30}; it must be a whole number from 1 to 1000000000",
        ),
        ({"throttle": {"limit": 10**300, "period": "1m"}}, f"throttle.limit is {10**79}…; it must be a whole number"),
        ({"throttle": {"limit": 1, "period": "7d", "burst": 53}}, "throttle.burst is 53; at this limit it would take"),
        ({"throttle": {"limit": 1, "period": "1m", "burst": -1}}, "throttle.burst is -1"),
        ({"debounce": {"period": "500ms"}}, "debounce.period is '500ms'; it must be between 1s and 1w"),
        ({"debounce": {"period": "8d"}}, "debounce.period is '8d'"),
        ({"debounce": {"period": "1s", "timeout": "soon"}}, "debounce.timeout is not valid"),
        ({"debounce": {"period": "5s", "timeout": "3s"}}, "debounce.timeout is '3s', less than the period of '5s'"),
        (
            {"batchEvents": {"maxSize": 1, "timeout": "5s"}},
            "batch_events.max_size is 1; it must be a whole number from 2 to 10000",
        ),
        (
            {"batchEvents": {"maxSize": 10_001, "timeout": "5s"}},
            "batch_events.max_size is 10001; it must be a whole number from 2 to 10000",
        ),
        ({"batchEvents": {"maxSize": 10}}, "batch_events.timeout is missing"),
        ({"batchEvents": {"maxSize": 10, "timeout": "10ms"}}, "batch_events.timeout is '10ms'"),
        ({"batchEvents": {"maxSize": 10, "timeout": "5s", "if": "1 +"}}, "batch_events.if_exp is not valid"),
        ({"singleton": {"mode": "queue"}}, "singleton.mode is 'queue'; it must be one of 'skip', 'cancel'"),
        ({"idempotency": "event.data.("}, "idempotency is not valid"),
        ({"idempotency": "async.data.id"}, "`async` is not known here; this expression is over `event` alone"),
        ({"throttle": {"limit": 1, "period": "1m", "key": "async.data.id"}}, "throttle.key is not valid"),
        ({"priority": {"run": "event.data.plan =="}}, "priority.run is not valid"),
        ({"priority": {"run": "'high'"}}, "priority.run is `'high'`, which can never give a number, as it must"),
        ({"cancel": [{"event": "a", "if": "null"}]}, "cancel[0].if_exp is `null`, which can never give true or false"),
        ({"concurrency": -1}, "concurrency[0].limit is -1"),
        ({"concurrency": [{"limit": 1}] * 3}, "concurrency has 3 entries; at most 2"),
        ({"concurrency": [{"limit": 1}, {"limit": 2}]}, "concurrency has two limits of the same scope and key"),
        (
            {"concurrency": {"limit": 1, "scope": "world"}},
            "concurrency[0].scope is 'world'; it must be one of 'account', 'env', 'fn'",
        ),
        ({"concurrency": {"limit": 1, "scope": "account"}}, "concurrency[0].key is missing"),
        ({"cancel": [{"event": "a"}] * 6}, "cancel has 6 entries; at most 5"),
        ({"cancel": [{"event": ""}]}, "cancel[0].event is empty"),
        ({"cancel": [{"event": "a", "timeout": "later"}]}, "cancel[0].timeout is not valid"),
        ({"cancel": [{"event": "a", "if": "&&"}]}, "cancel[0].if_exp is not valid"),
        (
            {"priority": {"run": "event.total"}},
            "priority.run is `event.total`, which reads event.total, which no event",
        ),
        ({"concurrency": [{"limit": 1, "key": 'event["shop"]'}]}, "write event.data.shop"),
        ({"throttle": {"limit": 1, "period": "1m", "key": "event.shop"}}, "throttle.key is `event.shop`, which reads"),
        ({"idempotency": "event.order"}, "idempotency is `event.order`, which reads"),
        ({"cancel": [{"event": "a", "if": "event.data.id == async.order"}]}, "write async.data.order"),
        ({"timeouts": {"start": "1x"}}, "timeouts.start is not valid"),
        ({"timeouts": {"finish": "400d"}}, "timeouts.finish is '400d'"),
        (_BATCH | {"debounce": {"period": "1s"}}, "batch_events and debounce cannot be used together"),
        (_BATCH | {"singleton": {"mode": "skip"}}, "batch_events and singleton cannot be used together"),
        (_BATCH | {"cancel": [{"event": "a"}]}, "batch_events and cancel cannot be used together"),
        (_BATCH | {"priority": {"run": "1"}}, "batch_events and priority cannot be used together"),
        (_BATCH | {"rateLimit": {"limit": 1, "period": "1m"}}, "batch_events and rate_limit cannot be used together"),
        (_BATCH | {"idempotency": "event.id"}, "batch_events and idempotency cannot be used together"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises((ConfigInvalidError, msgspec.ValidationError)) as raised:
        flow_of(**options)
    assert str(raised.value).startswith("function 'shop-fn': ")
    assert says in str(raised.value)


def test_options_that_may_be_combined_are_accepted() -> None:
    flow = flow_of(
        triggers=[{"event": "order/placed"}, {"cron": "TZ=Europe/Paris 0 9 * * 1-5", "jitter": "30s"}],
        rateLimit={"limit": 100, "period": "1h", "key": "event.data.user"},
        idempotency="event.data.order",
        debounce={"period": "5s", "timeout": "1m", "key": "event.data.user"},
        singleton={"mode": "cancel", "key": "event.data.user"},
        priority={"run": "event.data.plan == 'pro' ? 120 : 0"},
        throttle={"limit": 10, "period": "1m", "burst": 2, "key": "event.data.user"},
        concurrency=[{"limit": 5}, {"limit": 2, "scope": "env", "key": "event.data.user"}],
        cancel=[{"event": "order/cancelled", "if": "async.data.order == event.data.order", "timeout": "1d"}],
        timeouts={"start": "1h", "finish": "2h"},
    )
    assert len(flow.concurrency) == 2
    assert len(flow.schedules) == 1
    batched = flow_of(
        batchEvents={"maxSize": 10, "timeout": "5s", "key": "event.data.user"},
        throttle={"limit": 10, "period": "1m"},
        concurrency=5,
        timeouts={"finish": "2h"},
    )
    assert batched.options.batch_events is not None


@pytest.mark.parametrize(
    "options",
    [
        {
            "rateLimit": None,
            "idempotency": None,
            "debounce": None,
            "singleton": None,
            "priority": None,
            "throttle": None,
            "concurrency": None,
            "cancel": None,
            "timeouts": None,
            "batchEvents": None,
        },
        {"idempotency": "", "priority": {"run": ""}, "concurrency": 0, "cancel": [], "timeouts": {}},
        {"concurrency": [{"limit": 0, "key": "event.data.user"}]},
    ],
)
def test_nulls_and_empty_values_mean_nothing(options: dict[str, Any]) -> None:
    assert read_flow(config_of(**options)) == read_flow(config_of())


def test_empty_key_counts_as_absent() -> None:
    flow = flow_of(debounce={"period": "1s", "key": ""}, throttle={"limit": 1, "period": "1s", "key": " ", "burst": 0})
    assert flow.expressions == {}
    assert flow.throttle is not None
    assert flow.throttle.tolerance == 0


def test_limits_of_wider_scopes_are_shared_by_key_value() -> None:
    shared = {"limit": 1, "scope": "account", "key": '"payments"'}
    other = {"limit": 9, "scope": "account", "key": "event.data.queue"}
    env = {"limit": 1, "scope": "env", "key": '"payments"'}
    (a,), (b,), (c,) = (
        flow_of(id=name, concurrency=limit).concurrency for name, limit in zip("abc", (shared, other, env), strict=True)
    )
    fields = event(queue="payments")
    assert a.bucket_id("a", fields, 0) == b.bucket_id("b", fields, 0)
    assert a.bucket_id("a", fields, 0) != b.bucket_id("b", event(queue="mail"), 0)
    assert a.bucket_id("a", fields, 0) != c.bucket_id("c", fields, 0)
    (own,) = flow_of(concurrency={"limit": 1, "key": '"payments"'}).concurrency
    assert own.bucket_id("a", fields, 0) != own.bucket_id("b", fields, 0)


def test_a_limit_keeps_its_name_while_only_its_number_changes() -> None:
    before, after = (flow_of(concurrency={"limit": limit, "key": "event.data.user"}) for limit in (1, 5))
    (limit,) = before.concurrency
    slot = EntrySlot(limit.name, limit.bucket_id("shop-fn", event(user=1), 0))
    assert (before.limit(slot.limit_name), after.limit(slot.limit_name)) == (1, 5)
    assert flow_of().limit(slot.limit_name) is None


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


@given(_timestamps)
def test_jitter_is_within_its_bounds_and_stays_the_same(after: int) -> None:
    schedule = schedule_of("* * * * *", jitter="30s")
    planned = plan_tick(schedule, "fn", after)
    assert planned is not None
    assert 0 <= planned.due - planned.at <= 30_000
    assert planned == plan_tick(schedule, "fn", after)


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
