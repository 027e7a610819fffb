"""Buckets: an option counts separately in each.

An example is the events of one user for one function. The option, the function and the value of the option's key
expression identify a bucket. Its state is a small struct, stored as bytes under the bucket's id. A bucket without a
state has not counted any event. Rate limits, which drop events, and throttles, which delay starts, count with the
generic cell rate algorithm (GCRA).
"""

import hashlib
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Self

import msgspec

from durably.engine.core.expressions.functions import to_index_key
from durably.protocol.durations import Duration
from durably.protocol.options import milliseconds

_LONGEST_ID = 200

Fields = Mapping[str, Any]
"""An event as decoded JSON."""

ReadState = Callable[[str], bytes | None]
"""Returns a bucket's stored state for its id."""


class BucketKind(StrEnum):
    RATE_LIMIT = "rate_limit"
    IDEMPOTENCY = "idempotency"
    DEBOUNCE = "debounce"
    BATCH = "batch"
    SINGLETON = "singleton"
    THROTTLE = "throttle"


class Bucket(msgspec.Struct, frozen=True):
    """``key`` is empty if the option has no key expression."""

    kind: BucketKind
    function_id: str
    key: str = ""

    @property
    def id(self) -> str:
        return bucket_id(self.kind, self.function_id, self.key)


class BucketState(msgspec.Struct, frozen=True, array_like=True):
    """Base of the states."""

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, stored: bytes) -> Self:
        """Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError``."""
        return msgspec.msgpack.decode(stored, type=cls)

    @classmethod
    def load(cls, read: ReadState, bucket: Bucket) -> Self | None:
        stored = read(bucket.id)
        return None if stored is None else cls.decode(stored)


class StateChange(msgspec.Struct, frozen=True):
    """The state to store for a bucket; ``None`` removes it.

    ``fires_at`` is the time of its timer, if it has one. After ``expires`` the state has no effect and may be deleted.
    """

    bucket: Bucket
    state: bytes | None
    fires_at: int | None = None
    expires: int | None = None


def bucket_id(*parts: str) -> str:
    """A string that differs if the parts differ: readable if short, a hash if long."""
    text = "/".join(part.replace("~", "~0").replace("/", "~1") for part in parts)
    return text if len(text) <= _LONGEST_ID else f"{parts[0]}/#{_hash(text.encode())}"


def key_text(value: object) -> str:
    """The value of a key expression as a string.

    It is the same for values that are equal in expressions, such as 1 and 1.0.
    """
    if isinstance(value, list | dict):
        return f"composite:{_hash(msgspec.json.encode(_normalise(value)))}"
    return _scalar_text(value)


def _normalise(value: object) -> object:
    if isinstance(value, list):
        return [_normalise(item) for item in value]
    if isinstance(value, dict):
        return {"map": sorted((_scalar_text(name), _normalise(member)) for name, member in value.items())}
    return _scalar_text(value)


def _scalar_text(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        # Ids may have more digits than a double. Ids that differ in the last digit must not share a bucket.
        return f"number:{value}"
    return to_index_key(value)


def _hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


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

    def ready_at(self, level: Level | None, now: int) -> int:
        """The time at which the next unit may be used, not before ``now``.

        Both are in milliseconds.
        """
        if level is None:
            return now
        return max(now, -(-(self.clip(level, now).full_at - self.tolerance) // _NANOSECONDS))

    def take(self, level: Level | None, now: int) -> Level:
        """The level after one unit is used ``now``."""
        # Ready times are rounded up to whole milliseconds. As arrival times they would cost up to a millisecond of the
        # rate per wait.
        received = (now - 1) * _NANOSECONDS + 1
        full_at = received if level is None else max(received, self.clip(level, now).full_at)
        return Level(full_at + self.interval)

    def clip(self, level: Level, now: int) -> Level:
        """The level, at most that of a full bucket ``now``.

        A clock that was set back, or a slower pace before, may have left a later one. It must not close the bucket for
        longer than a full one does, so a unit that has to wait stores the clipped level: it is relative to ``now``.
        """
        full_at = now * _NANOSECONDS + self.tolerance + self.interval
        return level if level.full_at <= full_at else Level(full_at)


def pace_of(limit: int, period: Duration, burst: int) -> Pace:
    """The pace of ``limit`` units in each ``period`` (a duration).

    Up to ``burst`` of them (at least one) may be used at once. In any interval of length ``stretch``, plus or minus a
    millisecond, at most ``stretch / period * limit + burst`` units are used.
    """
    interval = -(-milliseconds(period) * _NANOSECONDS // limit)
    return Pace(interval, (burst - 1) * interval)
