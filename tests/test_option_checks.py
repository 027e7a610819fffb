"""Mistakes in schedules and conditions show when a function is created."""

import subprocess
import sys
from typing import Any

import pytest

import durably
from durably import (
    Batch,
    Cancel,
    Concurrency,
    Debounce,
    Priority,
    RateLimit,
    Singleton,
    Throttle,
    TriggerCron,
)
from durably import TriggerEvent as On
from durably.errors import FunctionConfigInvalidError

from .ids import stable_id

client = durably.Client(app_id="app", is_production=False)
ON = On(event="e")


def create(**options: Any) -> durably.Function[Any]:
    options = {"trigger": ON, **options}

    @client.create_function(fn_id="fn", **options)
    async def function(ctx: durably.Context) -> None: ...

    return function


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"trigger": TriggerCron(cron="* * * *")}, "triggers.cron '* * * *' has 4 fields"),
    ({"trigger": TriggerCron(cron="61 * * * *")}, "triggers.cron '61 * * * *' is not valid"),
    ({"trigger": TriggerCron(cron="TZ=Mars/Base 0 0 * * *")}, "names the time zone 'Mars/Base'"),
    ({"trigger": TriggerCron(cron="0 0 30 2 *")}, "triggers.cron '0 0 30 2 *'"),
    ({"trigger": On(event="e", if_exp="event.data.amount >")}, "triggers.if_exp"),
    ({"trigger": On(event="e", expression="'text'")}, "triggers.if_exp"),
    ({"trigger": On(event="e", if_exp="event.total > 1")}, "write event.data.total"),
    ({"trigger": On(event="e", if_exp="async.data.a == 1")}, "triggers.if_exp"),
    ({"cancel": [Cancel(event="c", if_exp="event.data.a = 1")]}, "cancel[0].if_exp"),
    ({"batch_events": Batch(max_size=2, timeout=1000, if_exp="(")}, "batch"),
    ({"batch_events": Batch(max_size=2, timeout=1000, key="a b")}, "batch"),
    ({"concurrency": [Concurrency(limit=1, key="event.")]}, "concurrency"),
    ({"debounce": Debounce(period=1000, key="event.")}, "debounce"),
    ({"idempotency": "event."}, "idempotency"),
    ({"priority": Priority(run="'high'")}, "priority.run"),
    ({"rate_limit": RateLimit(limit=1, period=1000, key="event.")}, "rate_limit"),
    ({"singleton": Singleton(mode="skip", key="event.")}, "singleton"),
    ({"throttle": Throttle(limit=1, period=1000, key="event.")}, "throttle"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES, ids=stable_id)
def test_a_mistake_is_refused_at_creation_and_names_function_and_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FunctionConfigInvalidError) as raised:
        create(**options)
    assert "function 'app-fn': " in str(raised.value)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("options", "field", "synced"),
    [
        (
            {
                "trigger": [
                    TriggerCron(cron="TZ=Europe/Paris 0 9 * * MON-FRI", jitter="30s"),
                    On(event="e", if_exp="true"),
                ]
            },
            "triggers",
            [{"cron": "TZ=Europe/Paris 0 9 * * MON-FRI", "jitter": "30s"}, {"event": "e", "expression": "true"}],
        ),
        (
            {"cancel": [Cancel(event="c", if_exp="async.data.id == event.data.id")]},
            "cancel",
            [{"event": "c", "if": "async.data.id == event.data.id"}],
        ),
        ({"priority": Priority(run="event.data.p")}, "priority", {"run": "event.data.p"}),
        # Our engine refuses it at the sync. Others may know it.
        ({"trigger": TriggerCron(cron="@daily")}, "triggers", [{"cron": "@daily"}]),
    ],
)
def test_valid_options_are_synced(options: dict[str, Any], field: str, synced: Any) -> None:
    (config,) = create(**options).configs("http://app/x")
    assert config[field] == synced


def test_expression_is_another_name_of_if_exp() -> None:
    for trigger in (On(event="e", if_exp="true"), On(event="e", expression="true")):
        assert (trigger.if_exp, trigger.expression) == ("true", "true")
        assert trigger.to_wire() == {"event": "e", "expression": "true"}
    assert On(event="e", if_exp="true") == On(event="e", expression="true")
    assert On(event="e").to_wire() == {"event": "e"}
    with pytest.raises(FunctionConfigInvalidError, match="two names of one condition"):
        On(event="e", if_exp="true", expression="false")


def test_a_plain_function_does_not_import_the_engine() -> None:
    code = "import durably, sys; durably.Client(app_id='a', is_production=False).create_function(fn_id='f', trigger="
    code += "durably.TriggerEvent(event='e'))(lambda ctx: None); print('durably.engine' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "False", done.stderr
