"""Rates: the generic cell rate algorithm, rate limits that drop events, throttles."""

import datetime as dt

import msgspec

from durably.engine.core.expressions import Expression
from durably.protocol import sync
from durably.protocol.durations import format_duration
from durably.protocol.limits import MAX_WAIT

from . import rates
from .buckets import Bucket, BucketKind, BucketState, Fields, ReadState, StateChange, key_of, key_unless_false
from .option_values import OptionReader

_NANOSECONDS = 1_000_000
"""In a millisecond."""


class Level(BucketState, frozen=True, array_like=True):
    """``full_at`` is the theoretical arrival time."""

    full_at: int

    @property
    def expires(self) -> int:
        """From when on, in milliseconds, the level means the same as none."""
        return -(-self.full_at // _NANOSECONDS) + 1


class Pace(msgspec.Struct, frozen=True, array_like=True):
    """``interval`` between units, and how much earlier than evenly spaced a unit may be, in nanoseconds."""

    interval: int
    tolerance: int


def pace_of(limit: int, period: int, burst: int) -> Pace:
    """``limit`` units in each ``period`` of milliseconds, of which up to ``burst`` (at least one) may come at once.

    Over any stretch of time, a millisecond more or less, no more than ``stretch / period * limit + burst`` units come.
    """
    interval = -(-period * _NANOSECONDS // limit)
    return Pace(interval, (burst - 1) * interval)


def ready_at(pace: Pace, level: Level | None, now: int) -> int:
    """When, in milliseconds and from ``now`` on, the next unit may come."""
    if level is None:
        return now
    return max(now, -(-(_believed(pace, level, now) - pace.tolerance) // _NANOSECONDS))


def take(pace: Pace, level: Level | None, now: int) -> Level:
    """The level after a unit that has come ``now``."""
    # Who waits is told whole milliseconds, rounded up. Were that counted as the arrival, each wait would cost up to a
    # millisecond of the rate.
    received = (now - 1) * _NANOSECONDS + 1
    full_at = received if level is None else max(received, _believed(pace, level, now))
    return Level(full_at + pace.interval)


def _believed(pace: Pace, level: Level, now: int) -> int:
    """No level is ever further ahead than a full bucket's. One that is was left by a clock that has been set back
    since, or by a slower pace, and must not keep the bucket closed for longer than a full one."""
    return min(level.full_at, now * _NANOSECONDS + pace.tolerance + pace.interval)


_LONGEST_PERIOD = dt.timedelta(hours=24)
_BURST_SHARE = 10
"""The part of the limit that may come at once, beyond the first."""


class RateLimit(msgspec.Struct, frozen=True):
    pace: Pace
    key: Expression | None = None

    def bucket(self, function_id: str, event: Fields) -> Bucket | None:
        """``None`` where the limit does not apply to the event."""
        key = key_unless_false(self.key, event)
        return None if key is None else Bucket(BucketKind.RATE_LIMIT, function_id, key)


def read_rate_limit(config: sync.RateLimit | None, reader: OptionReader) -> RateLimit | None:
    if config is None:
        return None
    limit = reader.count("rate_limit.limit", config.limit)
    period = reader.duration("rate_limit.period", config.period, at_most=_LONGEST_PERIOD)
    burst = 1 + limit // _BURST_SHARE
    return RateLimit(rates.pace_of(limit, period, burst), reader.expression("rate_limit.key", config.key))


def count_event(rule: RateLimit, bucket: Bucket, read: ReadState, now: int) -> StateChange | None:
    """The bucket's state with the event counted; ``None`` where the event is one too many."""
    level = Level.load(read, bucket)
    if rates.ready_at(rule.pace, level, now) > now:
        return None
    counted = rates.take(rule.pace, level, now)
    return StateChange(bucket, counted.encode(), expires=counted.expires)


_LONGEST_THROTTLE_PERIOD = dt.timedelta(days=7)
_MILLISECOND = dt.timedelta(milliseconds=1)


class Throttle(msgspec.Struct, frozen=True):
    pace: Pace
    key: Expression | None = None

    def bucket(self, function_id: str, event: Fields) -> Bucket:
        return Bucket(BucketKind.THROTTLE, function_id, key_of(self.key, event))


def read_throttle(config: sync.Throttle | None, reader: OptionReader) -> Throttle | None:
    if config is None:
        return None
    limit = reader.count("throttle.limit", config.limit)
    period = reader.duration("throttle.period", config.period, at_most=_LONGEST_THROTTLE_PERIOD)
    # Some SDKs send 0 where no burst is asked for.
    burst = max(1, reader.count("throttle.burst", config.burst or 0, at_least=0))
    if period * burst > MAX_WAIT // _MILLISECOND * limit:
        longest = format_duration(MAX_WAIT)
        raise reader.refuse("throttle.burst", f"is {burst}; at this limit it would take more than {longest} to gather")
    return Throttle(rates.pace_of(limit, period, burst), reader.expression("throttle.key", config.key))
