"""What a transaction makes happen after its commit, outside the database."""

from collections.abc import Sequence

import msgspec

from durably.engine.core.calls import CallData
from durably.engine.core.flow.queue import QueueEntry
from durably.engine.core.inputs import MakeRequest
from durably.engine.core.run_state import Call
from durably.engine.model.functions import FunctionControls, SyncedFunction
from durably.engine.model.records import RunRow
from durably.engine.model.settings import EndedRun
from durably.engine.model.subscriptions import RunChange


class ScheduledCall(msgspec.Struct, frozen=True, gc=False):
    """A call to make when it is due.

    If it ``has_to_queue``, it then joins the queue. ``data`` is the call's content, if it is known without a read.
    ``priority`` moves it ahead of its function's other calls, in milliseconds.
    """

    run_key: int
    call: Call
    function_id: str
    priority: int = 0
    has_to_queue: bool = False
    data: CallData | None = None


def schedule_call(
    run: RunRow, queue_entry: QueueEntry | None, call: Call, *, has_to_queue: bool = False, data: CallData | None = None
) -> ScheduledCall:
    priority = 0 if queue_entry is None else run.created_at - queue_entry.position
    return ScheduledCall(run.key, call, run.function_id, priority, has_to_queue, data)


class StepTimer(msgspec.Struct, frozen=True, gc=False):
    """A sleep or wait to end when it is due."""

    run_key: int
    step_id: str
    due: int


class ScheduledRequest(msgspec.Struct, frozen=True):
    """A request to make when it is due, for a step that fetches or infers."""

    run_key: int
    run_id: str
    request: MakeRequest


class DeadlineTimer(msgspec.Struct, frozen=True, gc=False):
    """A run to cancel if it has not started, or not ended, by then."""

    run_key: int
    due: int


class BucketTimer(msgspec.Struct, frozen=True, gc=False):
    """A debounce or a batch to end, unless it has been postponed by then."""

    bucket_id: str
    due: int


class CronTimer(msgspec.Struct, frozen=True, gc=False):
    """A cron schedule to fire."""

    function_id: str
    schedule: str
    due: int


class ThrottleTimer(msgspec.Struct, frozen=True, gc=False):
    """Throttles to check."""

    due: int


StoredTimer = StepTimer | DeadlineTimer | BucketTimer | CronTimer | ThrottleTimer
"""Timers that are stored, and are read from the database if they are not in memory."""


class ControlsChanged(msgspec.Struct, frozen=True):
    """The new controls of a function."""

    function_id: str
    controls: FunctionControls


class Synced(msgspec.Struct, frozen=True):
    """The new functions of an app."""

    app_id: str
    functions: Sequence[SyncedFunction]


class RunEnded(msgspec.Struct, frozen=True, gc=False):
    run_key: int


class EventsStored(msgspec.Struct, frozen=True, gc=False):
    """The names of events that a sender's request has stored.

    ``unmatched`` are the names for which no function has a trigger, and no run waits.
    """

    names: list[str]
    unmatched: list[str]


class ContinueBulkOperation(msgspec.Struct, frozen=True, gc=False):
    """A bulk operation that has more runs to process."""

    operation_id: str


AfterCommitAction = (
    ScheduledCall
    | StoredTimer
    | ScheduledRequest
    | RunEnded
    | EventsStored
    | ControlsChanged
    | Synced
    | ContinueBulkOperation
    | RunChange
    | EndedRun
)
AfterCommit = list[AfterCommitAction]
"""Actions in the order in which the transaction added them."""
