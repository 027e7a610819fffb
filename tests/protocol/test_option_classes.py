"""Options and functions: checks when they are made, and their form on the wire."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import durably
from durably import Client, ContextSync
from durably.errors import FunctionConfigInvalidError
from durably.protocol.durations import parse_duration

MINUTE = dt.timedelta(minutes=1)


@pytest.mark.parametrize(
    ("option", "wire"),
    [
        (durably.Batch(max_size=10, timeout=MINUTE), {"maxSize": 10, "timeout": "1m"}),
        (
            durably.Batch(max_size=10, timeout=90_000, key="event.data.k", if_exp="event.data.b"),
            {"maxSize": 10, "timeout": "90s", "key": "event.data.k", "if": "event.data.b"},
        ),
        (durably.Cancel(event="stop"), {"event": "stop"}),
        (
            durably.Cancel(event="stop", if_exp="async.data.id == event.data.id", timeout=MINUTE),
            {"event": "stop", "if": "async.data.id == event.data.id", "timeout": "1m"},
        ),
        (durably.Concurrency(limit=2), {"limit": 2}),
        (
            durably.Concurrency(limit=2, key="event.data.k", scope="env"),
            {"limit": 2, "key": "event.data.k", "scope": "env"},
        ),
        (durably.Debounce(period=MINUTE), {"period": "1m"}),
        (
            durably.Debounce(period=MINUTE, key="event.data.k", timeout=dt.timedelta(hours=1)),
            {"period": "1m", "key": "event.data.k", "timeout": "1h"},
        ),
        (durably.Priority(run="event.data.urgent ? 100 : 0"), {"run": "event.data.urgent ? 100 : 0"}),
        (durably.RateLimit(limit=3, period=MINUTE), {"limit": 3, "period": "1m"}),
        (durably.Singleton(mode="skip"), {"mode": "skip"}),
        (durably.Singleton(mode="cancel", key="event.data.k"), {"mode": "cancel", "key": "event.data.k"}),
        (durably.Throttle(limit=3, period=MINUTE), {"limit": 3, "period": "1m", "burst": 1}),
        (durably.Timeouts(start=MINUTE, finish=dt.timedelta(days=2)), {"start": "1m", "finish": "2d"}),
        (durably.Timeouts(), {}),
        (durably.TriggerCron(cron="*/5 * * * *"), {"cron": "*/5 * * * *"}),
        (durably.TriggerEvent(event="a", expression="event.data.b"), {"event": "a", "expression": "event.data.b"}),
    ],
)
def test_options_on_the_wire(option: Any, wire: dict[str, Any]) -> None:
    assert option.to_wire() == wire


@given(st.timedeltas(min_value=dt.timedelta(seconds=1), max_value=dt.timedelta(days=366)))
def test_a_period_is_never_shortened_and_hardly_lengthened(period: dt.timedelta) -> None:
    written = parse_duration(durably.Cancel(event="e", timeout=period).to_wire()["timeout"])
    assert period <= written < period + dt.timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: durably.Batch(max_size=0, timeout=MINUTE),
            "Batch.max_size is 0; it must be a whole number from 2 to 10000",
        ),
        (
            lambda: durably.Batch(max_size="5", timeout=MINUTE),
            "Batch.max_size is '5'; it must be a whole number from 2 to 10000",
        ),
        (
            lambda: durably.Concurrency(limit=True),
            "Concurrency.limit is True; it must be a whole number from 1 to 1000000000",
        ),
        (lambda: durably.Concurrency(limit=1, scope="planet"), "Concurrency.scope is 'planet'; it must be one of"),
        (lambda: durably.Debounce(period=-5), "Debounce.period is not valid: a duration cannot be negative"),
        (lambda: durably.Debounce(period=10), "Debounce.period is 10 ms; it must be between 1s and 1w"),
        (lambda: durably.Debounce(period="soon"), "Debounce.period is not valid: invalid duration 'soon'"),
        (lambda: durably.Debounce(period=1.5), "Debounce.period is not valid: a duration is"),
        (lambda: durably.Debounce(period=10**30), "Debounce.period is not valid: the duration of"),
        (lambda: durably.Debounce(period=None), "Debounce.period is required"),
        (lambda: durably.Priority(run=5), "Priority.run is 5; it must be a string"),
        (lambda: durably.RateLimit(limit=1, period=None), "RateLimit.period is required"),
        (lambda: durably.Singleton(mode="queue"), "Singleton.mode is 'queue'; it must be one of"),
        (lambda: durably.Throttle(limit=1, period=MINUTE, burst=-1), "Throttle.burst is -1; it must be a whole number"),
        (lambda: durably.Timeouts(start=-1), "Timeouts.start"),
        (lambda: durably.TriggerEvent(event=None), "TriggerEvent.event is required"),
        (lambda: durably.Cancel(event=7), "Cancel.event is 7; it must be a string"),
    ],
)
def test_an_invalid_option_is_refused_when_it_is_made(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(FunctionConfigInvalidError) as raised:
        make()
    assert message in str(raised.value)


def test_a_whole_function_on_the_wire() -> None:
    client = Client(app_id="app", is_production=False)

    def on_failure(ctx: ContextSync) -> None: ...

    @client.create_function(
        fn_id="all",
        name="Everything",
        trigger=[durably.TriggerEvent(event="e"), durably.TriggerCron(cron="0 0 * * *")],
        retries=0,
        on_failure=on_failure,
        cancel=[durably.Cancel(event="stop")],
        concurrency=[durably.Concurrency(limit=1)],
        idempotency="event.data.id",
        priority=durably.Priority(run="1"),
        timeouts=durably.Timeouts(finish=MINUTE),
    )
    def function(ctx: ContextSync) -> None: ...

    own, failure = function.configs("https://app.example.com/api/inngest")
    url = "https://app.example.com/api/inngest?fnId=app-all&stepId=step"
    assert own == {
        "id": "app-all",
        "name": "Everything",
        "triggers": [{"event": "e"}, {"cron": "0 0 * * *"}],
        "steps": {
            "step": {
                "id": "step",
                "name": "step",
                "runtime": {"type": "http", "url": url},
                "retries": {"attempts": 0},
            }
        },
        "cancel": [{"event": "stop"}],
        "concurrency": [{"limit": 1}],
        "idempotency": "event.data.id",
        "priority": {"run": "1"},
        "timeouts": {"finish": "1m"},
    }
    assert failure["id"] == "app-all-failure"
    [trigger] = failure["triggers"]
    assert trigger == {"event": "inngest/function.failed", "expression": "event.data.function_id == 'app-all'"}
