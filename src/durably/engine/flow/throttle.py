"""Throttle: runs beyond a rate start later; none is dropped.

``burst`` runs may start at once, the others evenly spaced, ``limit`` in each ``period``. Counted when a run makes its
first call, not when it is admitted: runs that were held up by something else do not start all together afterwards, and
those that were cancelled while they waited leave their turn to the next.
"""

import datetime as dt

import msgspec

from durably.engine.expressions import Expression
from durably.protocol import sync
from durably.protocol.durations import format_duration
from durably.protocol.limits import MAX_WAIT

from . import gcra
from .buckets import Bucket, BucketKind, Fields, key_of
from .gcra import Pace
from .reading import OptionReader

_LONGEST_PERIOD = dt.timedelta(days=7)
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
    period = reader.duration("throttle.period", config.period, at_most=_LONGEST_PERIOD)
    # Some SDKs send 0 where no burst is asked for.
    burst = max(1, reader.count("throttle.burst", config.burst or 0, at_least=0))
    if period * burst > MAX_WAIT // _MILLISECOND * limit:
        longest = format_duration(MAX_WAIT)
        raise reader.refuse("throttle.burst", f"is {burst}; at this limit it would take more than {longest} to gather")
    return Throttle(gcra.pace_of(limit, period, burst), reader.expression("throttle.key", config.key))
