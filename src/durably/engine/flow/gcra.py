"""The generic cell rate algorithm: a rate with a burst, kept in one number.

The number is the *theoretical arrival time* of the next unit if all came evenly spaced. A unit may come earlier than
that by the tolerance, and each one that does come moves it on by the interval. Counted in nanoseconds, so that a rate
that does not divide a millisecond stays exact; whole numbers, so that nothing drifts.
"""

import msgspec

from .buckets import BucketState

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
    arrival = (now - 1) * _NANOSECONDS + 1
    full_at = arrival if level is None else max(arrival, _believed(pace, level, now))
    return Level(full_at + pace.interval)


def _believed(pace: Pace, level: Level, now: int) -> int:
    """No level is ever further ahead than a full bucket's. One that is was left by a clock that has been set back
    since, or by a slower pace, and must not keep the bucket closed for longer than a full one."""
    return min(level.full_at, now * _NANOSECONDS + pace.tolerance + pace.interval)
