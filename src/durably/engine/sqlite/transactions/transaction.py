"""A transaction: the rows, actions after the commit and time of one input.

It is passed to the functions that act on runs.
"""

import contextlib
import functools
import sqlite3
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from durably.engine.core.flow.config import Flow
from durably.engine.core.flow.queue import LimitQueue, QueuedCall, QueueEntry
from durably.engine.core.inputs import Input, WaitResolved
from durably.engine.core.run_state import Call, Origin, Policy, RunState, RunStatus, origin_of
from durably.engine.model.events import Entropy, ReceivedEvent, make_id, make_internal_event
from durably.engine.model.functions import Registry
from durably.engine.model.records import CallTimes, RunRow, WaitTimes
from durably.engine.model.settings import EndedRun, EngineTracing, trace_of_run
from durably.engine.sqlite.after_commit import AfterCommit, ThrottleTimer, schedule_call
from durably.engine.sqlite.tables.flow import FlowStore, SqliteQueueRows
from durably.engine.sqlite.tables.runs import RunStore
from durably.protocol.errors import ErrorData
from durably.protocol.events import InternalEvent
from durably.protocol.opcodes import Opcode

_CAPACITY = 2048
MOST_TRIGGER_BYTES = 2048
"""The maximum size of an event that is kept with the run that it triggered."""
_MOST_NAMES = 1000
"""The maximum number of event names whose paths are kept."""
_MOST_MEMOS = 32
_MOST_MEMO_BYTES = 2048
"""The limits for the memos of one run that are kept."""

Memos = tuple[tuple[str, bytes], ...]


class CachedRun(msgspec.Struct, frozen=True, gc=False):
    """A run in the cache.

    - ``is_runnable``: As stored.
    - ``trigger``: The event that triggered the run, unless it is large, or one of several.
    - ``memos``: All memos of the run in their order, by hashed step id; ``None`` if they are unknown or large.
    """

    row: RunRow
    state: RunState
    queue_entry: QueueEntry | None
    is_runnable: bool
    trigger: ReceivedEvent | None = None
    memos: Memos | None = None


def with_memo(memos: Memos | None, step_id: str, memo: bytes) -> Memos | None:
    """The memos to keep after another is stored."""
    if memos is None or len(memos) == _MOST_MEMOS:
        return None
    if sum([len(kept) for _, kept in memos]) + len(memo) > _MOST_MEMO_BYTES:
        return None
    return (*memos, (step_id, memo))


class RunCache:
    """The runs that the writer changed last, and the paths of the wait index.

    They are kept so that the writer need not read them again. ``runs`` are by key, the oldest first. ``keys`` are their
    keys by id. ``wait_paths`` are the paths of the wait index by event name.
    """

    def __init__(self) -> None:
        self.runs: OrderedDict[int, CachedRun] = OrderedDict()
        self.keys: dict[str, int] = {}
        self.wait_paths: dict[str, list[str | None]] = {}

    def put(self, run: CachedRun) -> None:
        self.runs[run.row.key] = run
        self.runs.move_to_end(run.row.key)
        self.keys[run.row.id] = run.row.key
        if len(self.runs) > _CAPACITY:
            _, oldest = self.runs.popitem(last=False)
            del self.keys[oldest.row.id]

    def forget(self, run_key: int) -> None:
        """Remove a run that has ended."""
        cached = self.runs.pop(run_key, None)
        if cached is not None:
            del self.keys[cached.row.id]

    def clear(self) -> None:
        """Remove all runs after a rollback."""
        self.runs.clear()
        self.keys.clear()
        self.wait_paths.clear()


_THROTTLES_AT_ONCE = 100


class RunQueue:
    """The queue of flow control, as a transaction uses it.

    ``now`` is milliseconds since the epoch.
    """

    def __init__(self, connection: sqlite3.Connection, registry: Registry, after_commit: AfterCommit, now: int) -> None:
        self._registry = registry
        self._after_commit = after_commit
        self._now = now
        self._rows = SqliteQueueRows(connection, now)
        self._queue: LimitQueue | None = None

    @property
    def _open_queue(self) -> LimitQueue:
        if self._queue is None:
            self._queue = LimitQueue(self._rows, self._now)
        return self._queue

    def join(self, run: RunRow, call: Call, queue_entry: QueueEntry) -> None:
        """Add a due call."""
        function = self._registry.functions.get(run.function_id)
        flow = Flow(function_id=run.function_id) if function is None else function.flow
        queued = QueuedCall(queue_entry.position, run.key, call.generation)
        self._open_queue.join(queued, queue_entry, flow, starts_run=run.started_at is None)

    def join_again(self, run: RunRow, call: Call, queue_entry: QueueEntry) -> None:
        """``join`` for a call that may have joined before a restart."""
        if self._rows.slots_taken_at(run.key, call.generation) is not None:
            self._after_commit.append(schedule_call(run, queue_entry, call))
        elif call.generation not in self._rows.waiting(run.key):
            self.join(run, call, queue_entry)

    def leave(self, run_key: int, generation: int) -> None:
        """Remove a call that has ended, or is no longer outstanding."""
        self._open_queue.leave(run_key, generation)

    def leave_all(self, run_key: int) -> None:
        """Remove all calls of a run."""
        for generation in self._rows.waiting(run_key) | self._rows.holding_slots(run_key):
            self.leave(run_key, generation)

    def waiting(self, run_key: int) -> set[int]:
        """The generations of a run's calls that wait in the queue."""
        return self._rows.waiting(run_key)

    def ready_since(self, run: RunRow, call: Call) -> int:
        """The time at which a call left the queue, or was due."""
        slots_taken_at = self._rows.slots_taken_at(run.key, call.generation)
        return max(call.due, run.started_at or 0) if slots_taken_at is None else slots_taken_at

    def check_throttles(self) -> None:
        """Check the throttles that are ready."""
        if self._open_queue.check_throttles(_THROTTLES_AT_ONCE):
            self._after_commit.append(ThrottleTimer(self._now))

    def check_all_throttles(self) -> None:
        """Check all throttles, those that were not ready until later too."""
        self._rows.advance_throttle_times(self._now)
        self.check_throttles()

    def update_limits(self, flow: Flow) -> None:
        """Apply a function's new limits to its queued calls."""
        self._open_queue.update_limits(flow)

    def settle(self) -> list[QueuedCall]:
        """The calls that may be made now and have not been returned before."""
        if self._queue is None:
            return []
        through = self._queue.settle()
        self._queue = None
        self._after_commit.extend(ThrottleTimer(ready_at) for ready_at in self._rows.throttle_times)
        self._rows.throttle_times.clear()
        return through


_MOST_NOTES = 5
"""The maximum number of waits, runs and functions that are named for one event, because each costs queries."""


class EventNotes(msgspec.Struct):
    """The effects of an event other than runs.

    ``ended`` is the number of waits and runs that it ended. ``sentences`` name the first of them; ``unnamed`` are more.
    """

    ended: int = 0
    unnamed: int = 0
    sentences: list[str] = []


class TransactionContext(msgspec.Struct, frozen=True):
    """The values that all transactions of an engine share.

    ``cancel`` cancels a run with a reason: now or, if an input is being applied to it, after that input.
    """

    store: RunStore
    flow: FlowStore
    policy: Policy
    max_event_bytes: int
    entropy: Entropy
    cache: RunCache
    cancel: "Callable[[Transaction, int, str], None]"
    tracing: EngineTracing | None = None


class LiveRun(msgspec.Struct, eq=False, gc=False):
    """A run that this transaction changes.

    - ``began``: When the current change began.
    - ``is_changing``: True until all commands of that change are executed.
    - ``was_runnable``: As stored.
    - ``kept_memos``: As in ``CachedRun``.
    - ``call_place``: The position of the latest call in ``after_commit``.
    - ``before``: The state before the current change.
    - ``input``: The cause of the current change.
    - ``called_at``: The start time of the call that ended, if known.
    - ``call``: The times of a call that reports steps, read at first use.
    """

    row: RunRow
    state: RunState
    queue_entry: QueueEntry | None
    trigger: ReceivedEvent | None
    was_runnable: bool
    kept_memos: Memos | None
    began: int
    memos: int
    may_have_waits: bool
    before: RunState
    input: Input | None = None
    called_at: int | None = None
    call: CallTimes | None = None
    ended_waits: dict[str, WaitTimes] = {}
    is_changing: bool = False
    call_place: int | None = None

    @property
    def id(self) -> str:
        return self.row.id


class Transaction:
    """The state of one transaction: its time, runs, inputs, events and actions after the commit.

    - ``now``: Milliseconds since the epoch.
    - ``new_id``: Makes the id of a new run or event.
    - ``runs``: The runs that have changed.
    - ``inputs``: The next inputs of the run machine.
    - ``internal_events``: The engine's own events that are routed next.
    - ``events``: Events that this transaction has stored or read, by key.
    - ``notes``: The effects of events other than runs, by event id.
    """

    __slots__ = (
        "_cancel",
        "after_commit",
        "cache",
        "connection",
        "events",
        "flow",
        "inputs",
        "internal_events",
        "max_event_bytes",
        "new_id",
        "notes",
        "now",
        "policy",
        "registry",
        "runs",
        "store",
        "tracing",
        "used_queue",
    )

    def __init__(self, context: TransactionContext, registry: Registry, now: int) -> None:
        self.now = now
        self.registry = registry
        self.store = context.store
        self.flow = context.flow
        self.connection = context.store.connection
        self.cache = context.cache
        self.policy = context.policy
        self.max_event_bytes = context.max_event_bytes
        self.tracing = context.tracing
        self.new_id = functools.partial(make_id, now, context.entropy)
        self.after_commit: AfterCommit = []
        self.runs: dict[int, LiveRun] = {}
        self.inputs: deque[tuple[int, Input]] = deque()
        self.internal_events: deque[ReceivedEvent] = deque()
        self.notes: dict[str, EventNotes] = {}
        self.events: dict[int, ReceivedEvent] = {}
        self.used_queue: RunQueue | None = None
        self._cancel = context.cancel

    @property
    def queue(self) -> RunQueue:
        """The queue, which this transaction uses from now on."""
        if self.used_queue is None:
            self.used_queue = RunQueue(self.connection, self.registry, self.after_commit, self.now)
        return self.used_queue

    # events

    def event(self, event_key: int) -> ReceivedEvent:
        event = self.events.get(event_key)
        if event is None:
            event_id, name, body, origin, traceparent = self.store.event(event_key)
            event = self.events[event_key] = ReceivedEvent(event_id, name, body, origin=origin, traceparent=traceparent)
        return event

    def note(self, event_id: str, describe: Callable[[], str], *, ended: int = 0) -> None:
        """Record an effect of an event, or the reason why a function starts no run for it."""
        notes = self.notes.setdefault(event_id, EventNotes())
        notes.ended += ended
        if len(notes.sentences) < _MOST_NOTES:
            notes.sentences.append(describe())
        else:
            notes.unnamed += ended

    def emit(
        self,
        name: InternalEvent,
        data: bytes,
        origin: Origin | None,
        traceparent: str | None,
        sessions: Mapping[str, str] | None = None,
    ) -> None:
        """Send one of the engine's own events. ``data`` is JSON.

        The event is routed after the current input.
        """
        event = make_internal_event(name, data, self.new_id(), self.now, origin, traceparent, sessions)
        self.internal_events.append(event)

    def trace_of(self, run: RunRow, trigger: ReceivedEvent) -> str | None:
        """The trace context that the run's events and invocations continue."""
        return trace_of_run(self.tracing, run.id, trigger.traceparent)

    def note_end(self, run: RunRow, status: RunStatus, output: bytes, triggers: Sequence[ReceivedEvent]) -> None:
        """Report the end of a run to ``tracing``, after the commit."""
        if self.tracing is None:
            return
        error = None
        if status is not RunStatus.COMPLETED:
            error = "Error"
            with contextlib.suppress(msgspec.MsgspecError):  # the app may have written any JSON
                error = msgspec.json.decode(output, type=ErrorData).name or error
        ended = EndedRun(
            run_id=run.id,
            function_id=run.function_id,
            app_id=run.app_id,
            status=status,
            created_at=run.created_at,
            ended_at=self.now,
            traceparents=tuple(trigger.traceparent for trigger in triggers),
            rerun_of=run.rerun_of,
            error=error,
        )
        self.after_commit.append(ended)

    def origin_of(self, run: RunRow, trigger: ReceivedEvent, *, is_invocation: bool = False) -> Origin:
        """The origin of an event of a run that ``trigger`` started.

        A rerun begins a new chain.
        """
        before = trigger.origin if run.rerun_of is None else None
        return origin_of(run.key, before, self.now, is_invocation=is_invocation)

    def wait_paths(self, event: str) -> list[str | None]:
        """The paths of the wait index for events of a name."""
        known = self.cache.wait_paths
        paths = known.get(event)
        if paths is None:
            if len(known) == _MOST_NAMES:
                known.clear()
            paths = known[event] = self.store.wait_paths(event)
        return paths

    def add_wait_path(self, event: str, path: str | None) -> None:
        self.store.add_wait_path(event, path)
        self.cache.wait_paths.pop(event, None)

    # runs

    def find_run_key(self, run_id: str) -> int | None:
        key = self.cache.keys.get(run_id)
        return self.store.find_run_key(run_id) if key is None else key

    def find_run(self, run_key: int) -> CachedRun | None:
        """A run in its state before this transaction; ``None`` if it had ended.

        Raises ``DatabaseCorruptError``.
        """
        run = self.cache.runs.get(run_key)
        if run is not None:
            return run
        state = self.store.state(run_key)
        return None if state is None else CachedRun(self.store.run(run_key), *state)

    def memoised(self, run_key: int, step_ids: Collection[str]) -> frozenset[str]:
        """The ids of those steps that have a memo."""
        cached = self.cache.runs.get(run_key)
        if cached is None or cached.memos is None or run_key in self.runs:
            return self.store.memoised(run_key, step_ids)
        return frozenset([step_id for step_id, _ in cached.memos if step_id in step_ids])

    def cancel(self, run_key: int, reason: str) -> None:
        """Cancel a run; see ``TransactionContext``."""
        self._cancel(self, run_key, reason)

    def resolve_invokers(self, trigger: ReceivedEvent, memo: bytes, *, failed: bool) -> None:
        """Resolve the steps that invoked a function by this event."""
        if trigger.name == InternalEvent.FUNCTION_INVOKED:
            for run_key, step_id in self.store.waits_for(Opcode.INVOKE_FUNCTION, trigger.id):
                self.inputs.append((run_key, WaitResolved(step_id, memo, failed=failed)))
