"""Triggers and options of functions in words. Pure functions.

A sentence is a tuple of texts: plain ones and, at odd positions, code such as expressions and names.
"""

import datetime as dt
import re
from collections.abc import Iterator

from durably.protocol.durations import Duration, DurationInvalidError, parse_duration
from durably.protocol.limits import DEFAULT_RETRIES
from durably.protocol.options import (
    Batch,
    Cancel,
    Concurrency,
    Debounce,
    Priority,
    RateLimit,
    Singleton,
    Throttle,
    Timeouts,
)
from durably.protocol.sync import FunctionConfig, Trigger

Sentence = tuple[str, ...]

_UNITS = (("week", 604_800), ("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1))
_SCOPES = {"account": "in all apps", "env": "in all apps of the environment", "fn": ""}
_ZONE = re.compile(r"(?:CRON_)?TZ=(\S+)\s+(.+)")


def describe_trigger(trigger: Trigger) -> Sentence:
    """When the trigger starts a run."""
    if trigger.cron is not None:
        zone, schedule = split_zone(trigger.cron)
        spread = f", up to {_length(trigger.jitter)} late" if trigger.jitter else ""
        return "on the schedule ", schedule, f" in {zone}{spread}"
    condition = (" if ", trigger.expression) if trigger.expression else ()
    return "on the event ", trigger.event or "", *condition


def split_zone(cron: str) -> tuple[str, str]:
    """The time zone of a schedule, and its five fields."""
    found = _ZONE.fullmatch(cron)
    return (found[1], found[2]) if found else ("UTC", cron)


def describe_options(config: FunctionConfig) -> list[Sentence]:
    """The options that are used, each as a sentence.

    The number of retries is always one of them.
    """
    return list(_sentences(config))


def _sentences(config: FunctionConfig) -> Iterator[Sentence]:
    yield _retries(config)
    yield from map(_concurrency, config.concurrency or ())
    if config.throttle is not None:
        yield _throttle(config.throttle)
    if config.rate_limit is not None:
        yield _rate_limit(config.rate_limit)
    if config.debounce is not None:
        yield _debounce(config.debounce)
    if config.batch_events is not None:
        yield _batch(config.batch_events)
    if config.singleton is not None:
        yield _singleton(config.singleton)
    if config.idempotency is not None:
        yield "Starts one run in 24 hours for each value of ", config.idempotency
    if config.priority is not None:
        yield _priority(config.priority)
    yield from map(_cancel, config.cancel or ())
    if config.timeouts is not None:
        yield from _timeouts(config.timeouts)


def _retries(config: FunctionConfig) -> Sentence:
    given = [step.retries.attempts for step in config.steps.values() if step.retries is not None]
    attempts = next((each for each in given if each is not None), DEFAULT_RETRIES)
    if attempts == 0:
        return ("Does not repeat failed attempts",)
    return (f"Repeats a failed attempt of a step, or of the function, up to {_count(attempts, 'time')}",)


def _concurrency(limit: Concurrency) -> Sentence:
    scope = _SCOPES[limit.scope or "fn"]
    place = f" {scope}" if scope else ""
    return _keyed(f"Executes at most {_count(limit.limit, 'step')} at once{place}", limit.key)


def _throttle(throttle: Throttle) -> Sentence:
    burst = f", and {throttle.burst} at once" if (throttle.burst or 1) > 1 else ""
    rate = f"Starts at most {_count(throttle.limit, 'run')} in {_length(throttle.period)}{burst}; others wait"
    return _keyed(rate, throttle.key)


def _rate_limit(limit: RateLimit) -> Sentence:
    rate = f"Starts at most {_count(limit.limit, 'run')} in {_length(limit.period)}; other events are dropped"
    return _keyed(rate, limit.key)


def _debounce(debounce: Debounce) -> Sentence:
    latest = f", {_length(debounce.timeout)} after the first at the latest" if debounce.timeout else ""
    return _keyed(f"Starts when no event has come for {_length(debounce.period)}{latest}", debounce.key)


def _batch(batch: Batch) -> Sentence:
    wait = f", or after {_length(batch.timeout)}" if batch.timeout else ""
    condition = ("; only for events with ", batch.if_exp) if batch.if_exp else ()
    return _join(_keyed(f"Starts one run for {batch.max_size} events{wait}", batch.key), condition)


def _singleton(singleton: Singleton) -> Sentence:
    if singleton.mode == "cancel":
        return _keyed("Runs once at a time; a new run cancels the present one", singleton.key)
    return _keyed("Runs once at a time; further events start no run", singleton.key)


def _priority(priority: Priority) -> Sentence:
    return "Goes ahead in the queue by as many seconds as ", priority.run


def _cancel(cancel: Cancel) -> Sentence:
    limit = (f" within {_length(cancel.timeout)} of its start",) if cancel.timeout else ()
    condition = (" if ", cancel.if_exp) if cancel.if_exp else ()
    return _join(("Is cancelled by the event ", cancel.event, *condition), limit)


def _timeouts(timeouts: Timeouts) -> Iterator[Sentence]:
    if timeouts.start is not None:
        yield (f"Is cancelled unless it begins within {_length(timeouts.start)}",)
    if timeouts.finish is not None:
        yield (f"Is cancelled unless it ends within {_length(timeouts.finish)} of its beginning",)


def _keyed(text: str, key: str | None) -> Sentence:
    return (f"{text}, for each value of ", key) if key else (text,)


def _join(first: Sentence, second: Sentence) -> Sentence:
    """Two parts of a sentence. The second begins with plain text."""
    if not second or len(first) % 2 == 0:
        return first + second
    return (*first[:-1], first[-1] + second[0], *second[1:])


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number:,} {thing}s"


def _length(duration: Duration) -> str:
    """A duration of an option: ``90 seconds``, ``2 hours``. A date is left as it is."""
    try:
        length = parse_duration(duration) if isinstance(duration, str) else duration
    except DurationInvalidError:
        return str(duration)
    seconds = (length if isinstance(length, dt.timedelta) else dt.timedelta(milliseconds=length)).total_seconds()
    for unit, size in _UNITS:
        if seconds >= size and seconds % size == 0:
            return _count(int(seconds // size), unit)
    return f"{seconds:g} seconds" if seconds >= 1 else f"{seconds * 1000:g} milliseconds"
