"""Triggers and options in words."""

from typing import Any

import msgspec
import pytest

from durably.engine.api.dashboard.functions import describe_options, describe_trigger
from durably.engine.api.dashboard.overview import split_zone
from durably.protocol.options import OPTIONS
from durably.protocol.sync import FunctionConfig, Trigger


def config(**options: Any) -> FunctionConfig:
    return msgspec.convert({"id": "shop-f", "triggers": [], "steps": {}, **options}, FunctionConfig)


SENTENCES = [
    ({"concurrency": [{"limit": 1}]}, "Executes at most 1 step at once"),
    (
        {"concurrency": [{"limit": 2000, "key": "event.data.user", "scope": "env"}]},
        "Executes at most 2,000 steps at once in all apps of the environment, for each value of `event.data.user`",
    ),
    ({"throttle": {"limit": 5, "period": "90s"}}, "Starts at most 5 runs in 90 seconds; others wait"),
    (
        {"throttle": {"limit": 5, "period": "1h", "burst": 3, "key": "event.data.a"}},
        "Starts at most 5 runs in 1 hour, and 3 at once; others wait, for each value of `event.data.a`",
    ),
    ({"rateLimit": {"limit": 1, "period": "1d"}}, "Starts at most 1 run in 1 day; other events are dropped"),
    (
        {"debounce": {"period": "2m", "timeout": "1h"}},
        "Starts when no event has come for 2 minutes, 1 hour after the first at the latest",
    ),
    (
        {"batchEvents": {"maxSize": 50, "timeout": "5s", "if": "event.data.a > 1"}},
        "Starts one run for 50 events, or after 5 seconds; only for events with `event.data.a > 1`",
    ),
    (
        {"batchEvents": {"maxSize": 50, "key": "event.data.k", "if": "event.data.a > 1"}},
        "Starts one run for 50 events, for each value of `event.data.k`; only for events with `event.data.a > 1`",
    ),
    ({"singleton": {"mode": "cancel"}}, "Runs once at a time; a new run cancels the present one"),
    (
        {"singleton": {"mode": "skip", "key": "event.data.k"}},
        "Runs once at a time; further events start no run, for each value of `event.data.k`",
    ),
    ({"idempotency": "event.data.id"}, "Starts one run in 24 hours for each value of `event.data.id`"),
    ({"priority": {"run": "event.data.p"}}, "Goes ahead in the queue by as many seconds as `event.data.p`"),
    (
        {"cancel": [{"event": "a/b", "if": "async.data.x == event.data.x", "timeout": "1w"}]},
        "Is cancelled by the event `a/b` if `async.data.x == event.data.x` within 1 week of its start",
    ),
    (
        {"cancel": [{"event": "a/b", "timeout": "1500ms"}]},
        "Is cancelled by the event `a/b` within 1.5 seconds of its start",
    ),
    ({"timeouts": {"start": "61s"}}, "Is cancelled unless it begins within 61 seconds"),
    ({"timeouts": {"finish": "1m"}}, "Is cancelled unless it ends within 1 minute of its beginning"),
]


def text(sentence: tuple[str, ...]) -> str:
    return "".join(f"`{part}`" if index % 2 else part for index, part in enumerate(sentence))


@pytest.mark.parametrize(("options", "expected"), SENTENCES, ids=map(str, range(len(SENTENCES))))
def test_an_option_in_words(options: dict[str, Any], expected: str) -> None:
    _, sentence = describe_options(config(**options))
    assert text(sentence) == expected


def test_each_option_has_a_sentence() -> None:
    assert {name for options, _ in SENTENCES for name in options} == {option.wire_name for option in OPTIONS}


@pytest.mark.parametrize(
    ("retries", "expected"),
    [
        (0, "Does not repeat failed attempts"),
        (1, "Repeats a failed attempt of a step, or of the function, up to 1 time"),
        (None, "Repeats a failed attempt of a step, or of the function, up to 4 times"),
    ],
)
def test_retries_are_in_words(retries: int | None, expected: str) -> None:
    step = {"id": "step", "runtime": {"url": "http://a"}, "retries": {"attempts": retries}}
    assert describe_options(config(steps={"step": step})) == [(expected,)]
    assert describe_options(config())[0] == describe_options(config(steps={"step": step | {"retries": None}}))[0]


@pytest.mark.parametrize(
    ("trigger", "expected"),
    [
        (Trigger(event="shop/*"), "on the event `shop/*`"),
        (Trigger(event="a", expression="event.data.x > 1"), "on the event `a` if `event.data.x > 1`"),
        (Trigger(cron="0 8 * * 1"), "on the schedule `0 8 * * 1` in UTC"),
        (
            Trigger(cron="TZ=Europe/Paris 0 8 * * 1", jitter="30s"),
            "on the schedule `0 8 * * 1` in Europe/Paris, up to 30 seconds late",
        ),
    ],
    ids=["event", "condition", "cron", "zone"],
)
def test_triggers_are_in_words(trigger: Trigger, expected: str) -> None:
    assert text(describe_trigger(trigger)) == expected


def test_schedule_text_names_the_time_zone() -> None:
    assert split_zone("CRON_TZ=Asia/Tokyo 1 2 3 4 5") == ("Asia/Tokyo", "1 2 3 4 5")
    assert split_zone("1 2 3 4 5") == ("UTC", "1 2 3 4 5")
