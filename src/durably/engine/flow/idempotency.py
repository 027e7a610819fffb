"""Idempotency: of the events with one value of an expression, only the first of 24 hours starts a run.

A value of ``false`` lets the event through. Events in which the expression finds nothing share one value, null.
"""

import datetime as dt

import msgspec

from durably.engine.expressions import Expression
from durably.protocol.limits import IDEMPOTENCY_PERIOD

from .buckets import Bucket, BucketKind, BucketState, Fields, ReadState, StateChange, key_unless_false
from .reading import OptionReader

_PERIOD = IDEMPOTENCY_PERIOD // dt.timedelta(milliseconds=1)


class Idempotency(msgspec.Struct, frozen=True):
    key: Expression

    def bucket(self, function_id: str, event: Fields) -> Bucket | None:
        """``None`` where the event is let through in any case."""
        key = key_unless_false(self.key, event)
        return None if key is None else Bucket(BucketKind.IDEMPOTENCY, function_id, key)


class Seen(BucketState, frozen=True, array_like=True):
    """``until`` when the value is not to be met again."""

    until: int


def read_idempotency(text: str | None, reader: OptionReader) -> Idempotency | None:
    expression = reader.expression("idempotency", text)
    return None if expression is None else Idempotency(expression)


def see(bucket: Bucket, read: ReadState, now: int) -> StateChange | None:
    """The bucket's state with the value seen; ``None`` where it has been seen before."""
    seen = Seen.load(read, bucket)
    if seen is not None and now < seen.until:
        return None
    until = now + _PERIOD
    return StateChange(bucket, Seen(until).encode(), expires=until)
