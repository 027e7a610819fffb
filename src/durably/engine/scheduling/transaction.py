"""A transaction: the rows, outbox and time of one input, passed to the functions that act on runs."""

from collections import deque
from collections.abc import Collection
from typing import Protocol

import msgspec

from durably.engine.core.flow.queue_entries import QueueEntry
from durably.engine.core.inputs import Input, WaitResolved
from durably.engine.core.run_state import Origin, RunState
from durably.engine.core.transition import Policy
from durably.engine.sqlite.tables.runs import RunRow, Store
from durably.protocol.events import InternalEvent
from durably.protocol.opcodes import Opcode

from .event_outcomes import EventOutcome
from .events import Entropy, ReceivedEvent, make_internal_event, new_id
from .outbox import Outbox
from .registry import Registry
from .run_cache import CachedRun, Memos, RunCache, kept_trigger
from .run_queue import RunQueue


class CancelRun(Protocol):
    """Cancels a run now or, if the run is just being changed, as soon as that change is complete."""

    def __call__(self, transaction: "Transaction", run_key: int, reason: str) -> None: ...


class TransactionContext(msgspec.Struct, frozen=True):
    """What all transactions of an engine share."""

    store: Store
    policy: Policy
    max_event_bytes: int
    entropy: Entropy
    cache: RunCache
    cancel_run: CancelRun


class LiveRun:
    """A run that this transaction changes. ``began`` is the time at which the present change began. ``is_changing`` is
    true until all commands of that change are carried out."""

    __slots__ = (
        "began",
        "is_changing",
        "kept_memos",
        "may_have_waits",
        "memos",
        "queue_entry",
        "row",
        "state",
        "trigger",
        "wait_began",
        "was_moving",
    )

    def __init__(self, run: CachedRun) -> None:
        self.row = run.row
        self.state = run.state
        self.queue_entry = run.queue_entry
        self.trigger = run.trigger
        self.was_moving = run.is_moving
        self.is_changing = False
        self.began = run.row.created_at
        self.wait_began: dict[str, int] = {}
        self.may_have_waits = bool(run.state.waits)
        self.memos = run.state.memos
        self.kept_memos = run.memos


class Transaction:
    """``now`` is milliseconds since the epoch. ``runs`` are the runs that have changed, ``inputs`` what the run machine
    gets next. ``internal_events`` are the engine's own events that are routed next. ``outcomes`` are what events did
    besides starting runs, by event id."""

    __slots__ = (
        "_cancel_run",
        "_events",
        "_queue",
        "cache",
        "entropy",
        "inputs",
        "internal_events",
        "is_routing",
        "max_event_bytes",
        "now",
        "outbox",
        "outcomes",
        "policy",
        "registry",
        "runs",
        "store",
    )

    def __init__(self, context: TransactionContext, registry: Registry, now: int) -> None:
        self.now = now
        self.registry = registry
        self.store = context.store
        self.cache = context.cache
        self.policy = context.policy
        self.max_event_bytes = context.max_event_bytes
        self.entropy = context.entropy
        self.outbox: Outbox = []
        self.runs: dict[int, LiveRun] = {}
        self.inputs: deque[tuple[int, Input]] = deque()
        self.internal_events: deque[ReceivedEvent] = deque()
        self.is_routing = False
        self.outcomes: dict[str, EventOutcome] = {}
        self._events: dict[int, ReceivedEvent] = {}
        self._queue: RunQueue | None = None
        self._cancel_run = context.cancel_run

    @property
    def queue(self) -> RunQueue:
        if self._queue is None:
            self._queue = RunQueue(self.store, self.registry, self.outbox, self.now)
        return self._queue

    @property
    def used_queue(self) -> RunQueue | None:
        """The queue, if this transaction has used it."""
        return self._queue

    def new_id(self) -> str:
        """The id of a new run or event."""
        return new_id(self.now, self.entropy)

    # events

    def event(self, event_key: int) -> ReceivedEvent:
        event = self._events.get(event_key)
        if event is None:
            event_id, name, body, origin = self.store.event(event_key)
            event = self._events[event_key] = ReceivedEvent(event_id, name, body, origin=origin)
        return event

    def keep_event(self, event_key: int, event: ReceivedEvent) -> None:
        """Keep an event that this transaction has stored, so that it is not read back."""
        self._events[event_key] = event

    def make_internal_event(self, name: InternalEvent, data: bytes, origin: Origin | None) -> None:
        """Add one of the engine's own events to those that are routed next; ``data`` is JSON."""
        self.internal_events.append(make_internal_event(name, data, self.new_id(), self.now, origin))

    # runs

    def find_run_key(self, run_id: str) -> int | None:
        key = self.cache.find_key(run_id)
        return self.store.find_run_key(run_id) if key is None else key

    def live_run(self, run_key: int) -> LiveRun | None:
        """``None`` if the run has ended before this transaction. Raises ``DatabaseCorruptError``."""
        live = self.runs.get(run_key)
        if live is None:
            run = self.cache.find(run_key) or self._read_run(run_key)
            if run is not None:
                live = self.runs[run_key] = LiveRun(run)
        return live

    def _read_run(self, run_key: int) -> CachedRun | None:
        state = self.store.state(run_key)
        return None if state is None else CachedRun(self.store.run(run_key), *state)

    def memoised(self, run_key: int, step_ids: Collection[str]) -> frozenset[str]:
        """The ids of those steps that have a memo."""
        cached = self.cache.find(run_key)
        if cached is not None and not cached.state.memos:
            return frozenset()
        return self.store.memoised(run_key, step_ids)

    def remember(
        self, row: RunRow, state: RunState, queue_entry: QueueEntry | None, *, is_moving: bool, memos: Memos | None
    ) -> None:
        """Cache a new run, which is read again soon."""
        trigger = None if row.is_batch else kept_trigger(self.event(row.event_key))
        self.cache.put(CachedRun(row, state, queue_entry, is_moving, trigger, memos))

    def cancel(self, run_key: int, reason: str) -> None:
        """See ``CancelRun``."""
        self._cancel_run(self, run_key, reason)

    def resolve_invokers(self, trigger: ReceivedEvent, memo: bytes, *, failed: bool) -> None:
        """Resolve the steps that invoked a function by this event."""
        if trigger.name == InternalEvent.FUNCTION_INVOKED:
            for run_key, step_id in self.store.waits_for(Opcode.INVOKE_FUNCTION, trigger.id):
                self.inputs.append((run_key, WaitResolved(step_id, memo, failed=failed)))
