"""Debounce: a run starts only when no event has come for a period, and gets the last event.

Each event puts the start off by the whole period again, but never past ``timeout`` after the first. An event whose own
timestamp is older than that of the event already held is late news: it neither replaces it nor puts anything off.
"""

import datetime as dt

import msgspec

from durably.engine.expressions import Expression
from durably.protocol import sync

from .buckets import Bucket, BucketKind, BucketState, Fields, key_of
from .reading import OptionReader

_LONGEST_PERIOD = dt.timedelta(days=7)


class Debounce(msgspec.Struct, frozen=True):
    """``period`` and ``timeout`` are milliseconds."""

    period: int
    timeout: int | None = None
    key: Expression | None = None

    def bucket(self, function_id: str, event: Fields) -> Bucket:
        return Bucket(BucketKind.DEBOUNCE, function_id, key_of(self.key, event))


class PendingDebounce(BucketState, frozen=True, array_like=True):
    """The event that the run is to get, when it is to start, and when at the latest."""

    event_key: int
    event_ts: int
    due: int
    deadline: int | None = None


def read_debounce(config: sync.Debounce | None, reader: OptionReader) -> Debounce | None:
    if config is None:
        return None
    period = reader.duration("debounce.period", config.period, at_most=_LONGEST_PERIOD)
    timeout = reader.duration("debounce.timeout", config.timeout) if config.timeout else None
    if timeout is not None and timeout < period:
        raise reader.refuse(
            "debounce.timeout",
            f"is {config.timeout!r}, less than the period of {config.period!r}: no run would ever wait for the period",
        )
    return Debounce(period, timeout, reader.expression("debounce.key", config.key))


def debounce(rule: Debounce, pending: PendingDebounce | None, event_key: int, ts: int, now: int) -> PendingDebounce:
    """What is pending after an event; ``ts`` is the event's own timestamp."""
    if pending is None:
        deadline = None if rule.timeout is None else now + rule.timeout
    elif ts < pending.event_ts:
        return pending
    else:
        deadline = pending.deadline
    due = now + rule.period
    return PendingDebounce(event_key, ts, due if deadline is None else min(due, deadline), deadline)
