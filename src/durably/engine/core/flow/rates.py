"""Generic cell rate algorithm (GCRA) for rate limits and throttles.

Rate limits drop events, throttles delay starts.
"""

import msgspec

from durably.protocol.durations import Duration
from durably.protocol.options import milliseconds

from .buckets import BucketState

_NANOSECONDS = 1_000_000
"""Nanoseconds in a millisecond."""


class Level(BucketState, frozen=True, array_like=True):
    """The state of a rate.

    ``full_at`` is the theoretical arrival time, in nanoseconds since the epoch.
    """

    full_at: int

    @property
    def expires(self) -> int:
        """The time, in milliseconds, from which the level has no effect."""
        return -(-self.full_at // _NANOSECONDS) + 1


class Pace(msgspec.Struct, frozen=True, array_like=True):
    """The spacing of units, in nanoseconds.

    ``interval`` is the time between units, ``tolerance`` how much earlier than evenly spaced a unit may be.
    """

    interval: int
    tolerance: int


def pace_of(limit: int, period: Duration, burst: int) -> Pace:
    """The pace of ``limit`` units in each ``period`` (a duration).

    Up to ``burst`` of them (at least one) may be used at once. In any interval of length ``stretch``, plus or minus a
    millisecond, at most ``stretch / period * limit + burst`` units are used.
    """
    interval = -(-milliseconds(period) * _NANOSECONDS // limit)
    return Pace(interval, (burst - 1) * interval)


def ready_at(pace: Pace, level: Level | None, now: int) -> int:
    """The time at which the next unit may be used, not before ``now``.

    Both are in milliseconds.
    """
    if level is None:
        return now
    return max(now, -(-(clip(pace, level, now).full_at - pace.tolerance) // _NANOSECONDS))


def take(pace: Pace, level: Level | None, now: int) -> Level:
    """The level after one unit is used ``now``."""
    # Ready times are rounded up to whole milliseconds. As arrival times they would cost up to a millisecond of the rate
    # per wait.
    received = (now - 1) * _NANOSECONDS + 1
    full_at = received if level is None else max(received, clip(pace, level, now).full_at)
    return Level(full_at + pace.interval)


def clip(pace: Pace, level: Level, now: int) -> Level:
    """The level, at most that of a full bucket ``now``.

    A clock that was set back, or a slower pace before, may have left a later one. It must not close the bucket for
    longer than a full one does, so a unit that has to wait stores the clipped level: it is relative to ``now``.
    """
    full_at = now * _NANOSECONDS + pace.tolerance + pace.interval
    return level if level.full_at <= full_at else Level(full_at)
