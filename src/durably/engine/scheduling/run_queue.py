"""The queue's part in a transaction: calls join it, leave it, and are let through."""

from durably.engine.core.flow.config import Flow
from durably.engine.core.flow.queue import Queue
from durably.engine.core.flow.queue_entries import QueuedCall, QueueEntry
from durably.engine.core.run_state import Call
from durably.engine.sqlite.tables.queue import SqliteQueueRows
from durably.engine.sqlite.tables.runs import RunRow, Store

from .outbox import Outbox, ThrottleAt, call_of
from .registry import Registry

_THROTTLES_AT_ONCE = 100


class RunQueue:
    """``now`` is milliseconds since the epoch."""

    def __init__(self, store: Store, registry: Registry, outbox: Outbox, now: int) -> None:
        self._registry = registry
        self._outbox = outbox
        self._now = now
        self._rows = SqliteQueueRows(store.connection, now)
        self._queue: Queue | None = None

    @property
    def _open_queue(self) -> Queue:
        if self._queue is None:
            self._queue = Queue(self._rows, self._now)
        return self._queue

    def join(self, run: RunRow, call: Call, queue_entry: QueueEntry) -> None:
        """A call wants to be made now."""
        function = self._registry.find(run.function_id)
        flow = Flow(function_id=run.function_id) if function is None else function.flow
        queued = QueuedCall(queue_entry.place, run.key, call.generation)
        self._open_queue.join(queued, queue_entry, flow, starts_run=run.started_at is None)

    def join_again(self, run: RunRow, call: Call, queue_entry: QueueEntry) -> None:
        """The same for a call that may have joined before, as after a restart."""
        if self._rows.slots_taken_at(run.key, call.generation) is not None:
            self._outbox.append(call_of(run, queue_entry, call))
        elif call.generation not in self._rows.waiting(run.key):
            self.join(run, call, queue_entry)

    def leave(self, run_key: int, generation: int) -> None:
        """A call has come to its end, or is not wanted any more."""
        self._open_queue.leave(run_key, generation)

    def leave_all(self, run_key: int) -> None:
        """The same for all calls of a run that are stored."""
        for generation in self._rows.waiting(run_key) | self._rows.holding_slots(run_key):
            self.leave(run_key, generation)

    def waiting(self, run_key: int) -> set[int]:
        """The generations of a run's calls that are not let through yet."""
        return self._rows.waiting(run_key)

    def ready_since(self, run: RunRow, call: Call) -> int:
        """When a call that was let through could be made."""
        slots_taken_at = self._rows.slots_taken_at(run.key, call.generation)
        return max(call.due, run.started_at or 0) if slots_taken_at is None else slots_taken_at

    def check_throttles(self) -> None:
        """Look at throttles that are ready by now."""
        if self._open_queue.check_throttles(_THROTTLES_AT_ONCE):
            self._outbox.append(ThrottleAt(self._now))

    def update_limits(self, flow: Flow) -> None:
        """What a function has queued goes by these numbers from now on."""
        self._open_queue.update_limits(flow)

    def settle(self) -> list[QueuedCall]:
        """The calls that may be made, since this was asked last."""
        if self._queue is None:
            return []
        through = self._queue.settle()
        self._queue = None
        self._outbox.extend(ThrottleAt(ready_at) for ready_at in self._rows.throttle_times)
        self._rows.throttle_times.clear()
        return through
