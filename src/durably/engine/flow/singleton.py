"""Singleton: one run at a time, whether it executes, sleeps or waits.

What happens to an event while there is a run is the mode: it starts none, or the run is cancelled for its sake. A key
of ``false`` makes the event's run an ordinary one.
"""

from enum import StrEnum

import msgspec

from durably.engine.expressions import Expression
from durably.protocol import sync

from .buckets import Bucket, BucketKind, BucketState, Fields, key_unless_false
from .reading import OptionReader


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
