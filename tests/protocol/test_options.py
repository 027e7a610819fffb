"""Options: one declaration serves users, the sync payload and the engine."""

import inspect
from typing import Any

import msgspec
import pytest

import durably
from durably.protocol.limits import MAX_COUNT
from durably.protocol.options import OPTIONS, FunctionOptions, Option, OptionInvalidError, expressions_of
from durably.protocol.sync import decode_function, decode_sync

EXAMPLES: dict[str, Any] = {
    "batch_events": durably.Batch(max_size=2, timeout=1000, key="event.data.a", if_exp="event.data.b"),
    "cancel": [durably.Cancel(event="stop", if_exp="async.data.a == event.data.a", timeout="1h")],
    "concurrency": [durably.Concurrency(limit=1), durably.Concurrency(limit=2, scope="env", key="event.data.a")],
    "debounce": durably.Debounce(period=90_000, timeout="3m", key="event.data.a"),
    "idempotency": "event.data.a",
    "priority": durably.Priority(run="event.data.a"),
    "rate_limit": durably.RateLimit(limit=1, period="1m", key="event.data.a"),
    "singleton": durably.Singleton(mode="skip", key="event.data.a"),
    "throttle": durably.Throttle(limit=1, period="1m", key="event.data.a"),
    "timeouts": durably.Timeouts(start="1m", finish="2026-01-01T00:00:00Z"),
}


def entry(**options: Any) -> dict[str, Any]:
    return {"id": "shop-fn", "triggers": [{"event": "e"}], "steps": {}} | options


def test_every_option_is_an_argument_and_its_class_is_exported() -> None:
    arguments = inspect.signature(durably.Client.create_function).parameters
    assert [option.name for option in OPTIONS if option.name not in arguments] == []
    classes = [option.type for option in OPTIONS if issubclass(option.type, Option)]
    assert [each.__name__ for each in classes if getattr(durably, each.__name__, None) is not each] == []


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_an_option_is_the_same_after_the_wire(option: Any) -> None:
    options = FunctionOptions(**{option.name: EXAMPLES[option.name]})
    assert options.find_problem() is None
    read = decode_function(msgspec.json.encode(entry(**options.options_to_wire())))
    assert getattr(read, option.name) == EXAMPLES[option.name]
    assert decode_function(msgspec.json.encode(read)) == read


def test_all_expressions_are_found() -> None:
    assert {place for place, _, _ in expressions_of(FunctionOptions(**EXAMPLES))} == {
        "batch_events.key",
        "batch_events.if_exp",
        "cancel[0].if_exp",
        "concurrency[1].key",
        "debounce.key",
        "idempotency",
        "priority.run",
        "rate_limit.key",
        "singleton.key",
        "throttle.key",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"debounce": {"period": "500ms"}}, "debounce.period is '500ms'; it must be between 1s and 1w"),
        ({"debounce": {"period": 5000}}, "debounce.period: Expected `str`, got `int`"),
        ({"debounce": {}}, "debounce: Object missing required field `period`"),
        ({"debounce": {"period": "1s", "periode": "1s"}}, "debounce has no field 'periode'"),
        ({"cancel": [{"event": "a"}, {"event": ""}]}, "cancel[1].event is empty"),
    ],
)
def test_a_sync_with_a_wrong_option_names_function_and_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(msgspec.ValidationError) as raised:
        decode_sync(msgspec.json.encode({"url": "http://127.0.0.1:1", "functions": [entry(**options)]}))
    assert str(raised.value).startswith(f"function 'shop-fn': {message}")


@pytest.mark.parametrize(
    ("sync", "message"),
    [
        ({"url": "", "functions": [1]}, "Expected `object`, got `int` - at `$.functions[0]`"),
        ({"url": 5, "functions": []}, "Expected `str`, got `int` - at `$.url`"),
        ({"url": 5, "functions": [entry()]}, "Expected `str`, got `int` - at `$.url`"),
    ],
)
def test_a_malformed_sync_is_refused_with_the_place(sync: dict[str, Any], message: str) -> None:
    with pytest.raises(msgspec.ValidationError) as raised:
        decode_sync(msgspec.json.encode(sync))
    assert str(raised.value) == message


@pytest.mark.parametrize(
    "options",
    [
        {"priority": {"run": ""}, "timeouts": {}, "idempotency": " ", "cancel": [], "concurrency": 0},
        {"concurrency": [{"limit": 0, "key": "event.data.a"}], "debounce": None},
        {"priority": {"run": "  "}},
    ],
)
def test_empty_values_stand_for_unused_options(options: dict[str, Any]) -> None:
    assert decode_function(msgspec.json.encode(entry(**options))) == decode_function(msgspec.json.encode(entry()))


def test_an_empty_scope_is_the_default() -> None:
    read = decode_function(msgspec.json.encode(entry(concurrency=[{"limit": 1, "scope": ""}])))
    assert read.concurrency == [durably.Concurrency(limit=1)]


def test_a_throttle_takes_every_count() -> None:
    option = durably.Throttle(limit=MAX_COUNT, period="7d", burst=MAX_COUNT)
    assert (option.limit, option.burst) == (MAX_COUNT, MAX_COUNT)
    with pytest.raises(OptionInvalidError, match="burst is 1000000000; at this limit it would take more than"):
        durably.Throttle(limit=1, period="7d", burst=MAX_COUNT)
