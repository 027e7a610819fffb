"""The queue of calls that share limits: its id and its decisions. Pure.

A workflow drives it. All calls that share a limit wait in one queue. ``settle`` returns the calls that may be made now.
A call keeps its slots until it leaves.
"""

from collections.abc import Callable

import msgspec

from durably.engine.core.flow.admission import Start, start
from durably.engine.core.flow.config import Flow, read_flow
from durably.engine.core.flow.queue import LimitQueue, QueuedCall, QueueEntry
from durably.engine.temporal.ids import bucket_workflow_id, slots_queue
from durably.engine.temporal.messages import EventRecord, RunFlowState
from durably.protocol.options import FunctionOptions
from durably.protocol.sync import FunctionConfig

from .bucket import ActiveRun
from .limit_queue_state import JoinInput, JoinRecord, LeaveRecord, LimitQueueState, MemoryRows, QueueCounts

_OPTION = "concurrency"
_MOST_THROTTLES = 1000


def queue_workflow_id(flow: Flow, entry: QueueEntry) -> str:
    """The id of the workflow that queues the calls of a run.

    A function with one limit has a queue for each value of the key. A function with several limits has one queue. If
    functions share a limit, their calls share a queue (see ``support.py``).
    """
    shared = [limit.name for limit in flow.concurrency if limit.scope != "fn"]
    buckets = {slot.limit_name: slot.bucket_id for slot in entry.slots}
    if shared:
        return bucket_workflow_id(shared[0].partition(":")[0], _OPTION, buckets[shared[0]])
    if len(buckets) == 1 and entry.throttle is None:
        return bucket_workflow_id(flow.function_id, _OPTION, *buckets.values())
    if not buckets and entry.throttle is not None:
        return bucket_workflow_id(flow.function_id, "throttle", entry.throttle)
    return bucket_workflow_id(flow.function_id, _OPTION, "")


def has_leased_slots(flow: Flow) -> bool:
    """Whether processes lease the slots of a function's calls.

    This requires a single limit, without a key. Priorities and throttles need an order of all calls. Timeouts need the
    time of the first call. Only a queue knows these.
    """
    options = flow.options
    if options.priority is not None or flow.throttle is not None or options.timeouts is not None:
        return False
    return len(flow.concurrency) == 1 and leased_limit(flow) is not None


def leased_limit(flow: Flow) -> int | None:
    """The limit without a key, or ``None``."""
    limits = (each.limit for each in flow.concurrency if each.scope == "fn" and each.key is None)
    return next(limits, None) or None


def run_flow_of(flow: Flow, event: EventRecord, now: int, *, in_process: bool) -> RunFlowState | None:
    """The queue for the calls of a run that is admitted now.

    Returns ``None`` if its calls need not wait. Singletons are decided by buckets.
    """
    if flow.is_plain:
        return None
    if has_leased_slots(flow):
        return RunFlowState(calls_queue=slots_queue(flow.function_id, in_process=in_process))
    admitted = start(flow, msgspec.json.decode(event.body), _no_state, now).outcome
    assert isinstance(admitted, Start)
    queue_entry = msgspec.structs.replace(admitted.queue_entry, singleton=None)
    if not queue_entry.is_queued:
        return None
    run_flow = RunFlowState(queue=queue_workflow_id(flow, queue_entry), queue_entry=queue_entry)
    start_by = admitted.start_by
    if start_by is None or start_by == flow.start_by(now + 1):  # The timeout is a date.
        return msgspec.structs.replace(run_flow, start_by=start_by)
    return msgspec.structs.replace(run_flow, start_within=start_by - now)


def _no_state(bucket_id: str) -> None:
    return None


def limits_of(config: FunctionConfig) -> FunctionOptions:
    """The options that a queue applies."""
    return FunctionOptions(concurrency=config.concurrency, throttle=config.throttle)


class CallLimitQueue:
    def __init__(self, state: LimitQueueState) -> None:
        self._state = state
        self._rows = MemoryRows(state)
        self._keys = {holder.run_id: key for key, holder in state.runs.items()}
        self._joined = {(record.call.run_id, record.call.generation): record for record in state.joined}
        self._left = list(state.left)
        self._changed: dict[str, FunctionOptions] = {}
        self._flows: dict[str, Flow] = {}

    @property
    def state(self) -> LimitQueueState:
        """The state for the next execution of the workflow."""
        self._rows.write_to(self._state)
        self._state.joined, self._state.left = list(self._joined.values()), self._left
        return self._state

    @property
    def is_empty(self) -> bool:
        """Whether the queue is empty. Throttle levels count until they expire."""
        return not (self._joined or self._left or self._changed or self._state.runs or self._rows.last_level())

    @property
    def counts(self) -> QueueCounts:
        return self._rows.counts

    @property
    def holders(self) -> list[ActiveRun]:
        """The runs with calls that wait or have slots."""
        return list(self._state.runs.values())

    def join(self, record: JoinRecord) -> None:
        """Queue a call that needs slots. Repeating it changes nothing."""
        self._joined.setdefault((record.call.run_id, record.call.generation), record)

    def leave(self, record: LeaveRecord) -> None:
        """Remove a call that has ended or is not made. Unknown calls are ignored."""
        self._left.append(record)

    def drop_run(self, run_id: str) -> None:
        """Remove the calls of a run that has ended."""
        key = self._keys.get(run_id)
        for generation in [] if key is None else self._rows.calls_of(key):
            self._left.append(LeaveRecord(run_id, generation))

    def next_time(self) -> int | None:
        """The time when a throttle opens or the last level expires."""
        opening = self._rows.next_throttle()
        return opening if opening is not None or self._state.runs else self._rows.last_level()

    def update_options(self, function_id: str, options: FunctionOptions) -> None:
        """Apply the current limits of a function at the next ``settle``."""
        if self._state.options.get(function_id, options) != options:
            self._changed[function_id] = options

    @property
    def function_ids(self) -> list[str]:
        return list(self._state.options)

    def settle(self, now: int, stores_clipped: Callable[[], bool] = lambda: True) -> list[LeaveRecord]:
        """The calls that may be made now, in order.

        ``stores_clipped`` is that of ``LimitQueue``.
        """
        queue = LimitQueue(self._rows, now, stores_clipped)
        for record in self._joined.values():
            self._put_options(queue, record.call.function_id, record.options)
            self._join(queue, record.call, now)
        for function_id, options in self._changed.items():
            self._put_options(queue, function_id, options)
        touched = {record.call.run_id for record in self._joined.values()} | {record.run_id for record in self._left}
        for left in self._left:
            if (key := self._keys.get(left.run_id)) is not None:
                queue.leave(key, left.generation)
        self._joined, self._left, self._changed = {}, [], {}
        queue.check_throttles(_MOST_THROTTLES)
        made = [LeaveRecord(self._state.runs[call.run_key].run_id, call.generation) for call in queue.settle()]
        self._forget_runs(touched | {call.run_id for call in made})
        self._rows.forget_levels(now)
        return made

    def _join(self, queue: LimitQueue, call: JoinInput, now: int) -> None:
        key = self._keys.get(call.run_id)
        if key is None:
            key, self._state.next_key = self._state.next_key, self._state.next_key + 1
            self._keys[call.run_id] = key
            self._state.runs[key] = ActiveRun(call.run_id, now)
        elif self._rows.is_known(key, call.generation):
            return
        queued = QueuedCall(call.queue_entry.position, key, call.generation)
        queue.join(queued, call.queue_entry, self._flow(call.function_id), starts_run=call.starts_run)

    def _put_options(self, queue: LimitQueue, function_id: str, options: FunctionOptions) -> None:
        before = self._state.options.get(function_id)
        self._state.options[function_id] = options
        if before is not None and before != options:
            self._flows.pop(function_id, None)
            queue.update_limits(self._flow(function_id))

    def _flow(self, function_id: str) -> Flow:
        if function_id not in self._flows:
            options = msgspec.structs.asdict(self._state.options[function_id])
            self._flows[function_id] = read_flow(FunctionConfig(id=function_id, triggers=[], steps={}, **options))
        return self._flows[function_id]

    def _forget_runs(self, run_ids: set[str]) -> None:
        for run_id in sorted(run_ids):
            key = self._keys.get(run_id)
            if key is not None and not self._rows.has_run(key):
                del self._keys[run_id], self._state.runs[key]
