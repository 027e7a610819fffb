"""Rate limit: events beyond a rate start no run.

As on the public server the limit is spread over its period: 10 an hour lets one event through every six minutes, and
a tenth of the limit more at once. A key of ``false`` lets the event through uncounted.
"""

import datetime as dt

import msgspec

from durably.engine.expressions import Expression
from durably.protocol import sync

from . import gcra
from .buckets import Bucket, BucketKind, Fields, ReadState, StateChange, key_unless_false
from .gcra import Level, Pace
from .reading import OptionReader

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
    return RateLimit(gcra.pace_of(limit, period, burst), reader.expression("rate_limit.key", config.key))


def count_event(rule: RateLimit, bucket: Bucket, read: ReadState, now: int) -> StateChange | None:
    """The bucket's state with the event counted; ``None`` where the event is one too many."""
    level = Level.load(read, bucket)
    if gcra.ready_at(rule.pace, level, now) > now:
        return None
    counted = gcra.take(rule.pace, level, now)
    return StateChange(bucket, counted.encode(), expires=counted.expires)
