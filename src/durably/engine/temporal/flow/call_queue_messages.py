"""Messages between runs and the queues of their calls.

They are in histories: fields are only ever added.
"""

import msgspec

from durably.engine.core.flow.queue_entries import ConcurrencyKey, QueuedCall, QueueEntry
from durably.engine.core.flow.rates import Level
from durably.protocol.options import FunctionOptions

from .gate_messages import Holder


class JoinInput(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call that needs slots, or a start that is throttled."""

    queue: str
    function_id: str
    run_id: str
    generation: int
    queue_entry: QueueEntry
    starts_run: bool = False


class JoinRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """The argument of the signal ``join``, with the function's present limits."""

    call: JoinInput
    options: FunctionOptions


class LeaveRecord(msgspec.Struct, frozen=True, array_like=True):
    """The argument of the signal ``leave``: a call has ended, or is not made any more."""

    run_id: str
    generation: int


class HeldSlots(msgspec.Struct, frozen=True, array_like=True):
    run_key: int
    generation: int
    buckets: tuple[str, ...]


class ThrottleLevel(msgspec.Struct, frozen=True, array_like=True):
    """``ready_at`` is set while calls wait for the throttle."""

    level: Level | None = None
    ready_at: int | None = None


class CallQueueState(msgspec.Struct, omit_defaults=True):
    """The state of a queue.

    ``runs`` are by their keys, ``calls`` by the ids of their concurrency keys. ``joined`` and ``left`` are not settled.
    """

    options: dict[str, FunctionOptions] = {}
    runs: dict[int, Holder] = {}
    next_key: int = 1
    keys: list[ConcurrencyKey] = []
    calls: dict[str, list[QueuedCall]] = {}
    made: list[HeldSlots] = []
    throttles: dict[str, ThrottleLevel] = {}
    joined: list[JoinRecord] = []
    left: list[LeaveRecord] = []
    packed: bytes = b""


class FunctionLimits(msgspec.Struct, frozen=True, omit_defaults=True):
    function_id: str
    options: FunctionOptions


class QueueCounts(msgspec.Struct, frozen=True):
    """The calls in a queue: the answer of the query ``counts``."""

    waiting: int
    under_way: int
