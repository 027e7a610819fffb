"""Options that let one run start: singleton while it lasts, idempotency within 24 hours."""

import datetime as dt
from enum import StrEnum

import msgspec

from durably.engine.core.expressions import Expression
from durably.protocol import sync
from durably.protocol.limits import IDEMPOTENCY_PERIOD

from .buckets import Bucket, BucketKind, BucketState, Fields, ReadState, StateChange, key_unless_false
from .option_values import OptionReader


class SingletonMode(StrEnum):
    SKIP = "skip"
    CANCEL = "cancel"


class Singleton(msgspec.Struct, frozen=True):
    mode: SingletonMode
    key: Expression | None = None

    def bucket(self, function_id: str, event: Fields) -> Bucket | None:
        """``None`` where the event's run is an ordinary one."""
        key = key_unless_false(self.key, event)
        return None if key is None else Bucket(BucketKind.SINGLETON, function_id, key)


class Holder(BucketState, frozen=True, array_like=True):
    """The run that there is."""

    run_key: int


def read_singleton(config: sync.Singleton | None, reader: OptionReader) -> Singleton | None:
    if config is None:
        return None
    mode = reader.choice("singleton.mode", config.mode, SingletonMode)
    return Singleton(mode, reader.expression("singleton.key", config.key))


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
