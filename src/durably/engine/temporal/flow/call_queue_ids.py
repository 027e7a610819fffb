"""The queue of a run's calls: all calls that share a limit wait in one queue."""

import msgspec

from durably.engine.core.flow.admission import Start, start
from durably.engine.core.flow.config import Flow
from durably.engine.core.flow.queue_entries import QueueEntry
from durably.engine.temporal.ids import gate_workflow_id, slots_queue
from durably.engine.temporal.messages import EventRecord, RunFlow

_OPTION = "concurrency"


def queue_workflow_id(flow: Flow, entry: QueueEntry) -> str:
    """The workflow of the queue of a run's calls.

    A function with one limit has a queue for each value of its key, one with several has one queue. If functions share
    a limit, its queue is that of all their calls (see ``refusals``).
    """
    shared = [limit.name for limit in flow.concurrency if limit.scope != "fn"]
    buckets = {slot.limit_name: slot.bucket_id for slot in entry.slots}
    if shared:
        return gate_workflow_id(shared[0].partition(":")[0], _OPTION, buckets[shared[0]])
    if len(buckets) == 1 and entry.throttle is None:
        return gate_workflow_id(flow.function_id, _OPTION, *buckets.values())
    if not buckets and entry.throttle is not None:
        return gate_workflow_id(flow.function_id, "throttle", entry.throttle)
    return gate_workflow_id(flow.function_id, _OPTION, "")


def has_leased_slots(flow: Flow) -> bool:
    """Whether processes lease the slots of a function's calls.

    The only limit must be one without a key. Priorities and throttles need an order of all calls, and timeouts the time
    of the first call, which only a queue knows.
    """
    options = flow.options
    if options.priority is not None or flow.throttle is not None or options.timeouts is not None:
        return False
    return len(flow.concurrency) == 1 and leased_limit(flow) is not None


def leased_limit(flow: Flow) -> int | None:
    """The limit without a key; ``None`` if there is none."""
    limits = (each.limit for each in flow.concurrency if each.scope == "fn" and each.key is None)
    return next(limits, None) or None


def run_flow_of(flow: Flow, event: EventRecord, now: int, *, in_process: bool) -> RunFlow | None:
    """The queue of the calls of a run that is admitted now.

    ``None`` if its calls need not wait. Gates decide about singletons.
    """
    if flow.is_plain:
        return None
    if has_leased_slots(flow):
        return RunFlow(calls_queue=slots_queue(flow.function_id, in_process=in_process))
    admitted = start(flow, msgspec.json.decode(event.body), _no_state, now).outcome
    assert isinstance(admitted, Start)
    queue_entry = msgspec.structs.replace(admitted.queue_entry, singleton=None)
    if not queue_entry.is_queued:
        return None
    run_flow = RunFlow(queue=queue_workflow_id(flow, queue_entry), queue_entry=queue_entry)
    start_by = admitted.start_by
    if start_by is None or start_by == flow.start_by(now + 1):  # It is a date.
        return msgspec.structs.replace(run_flow, start_by=start_by)
    return msgspec.structs.replace(run_flow, start_within=start_by - now)


def _no_state(bucket_id: str) -> None:
    return None
