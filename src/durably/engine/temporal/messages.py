"""Messages and records: apps, functions, events, runs, waits, calls and their answers.

Messages are in histories, so a field may be added with a default, and none may be renamed or removed."""

import datetime as dt
from typing import Any

import msgspec

from durably.engine.core.calls import Answer, AttemptFailed, ReportedOps, Returned, Unreached
from durably.engine.core.flow.queue import QueueEntry
from durably.engine.core.run_state import Call, Deferred, Origin, RunStatus
from durably.engine.model.records import StepRow
from durably.protocol.errors import ErrorData
from durably.protocol.limits import MAX_CALL_DURATION, MAX_COUNT, MAX_DEPTH, MAX_STEPS
from durably.protocol.opcodes import Op, Opcode
from durably.protocol.sync import FunctionConfig
from durably.protocol.usage import ModelUsage

END = "end"
"""The memo of a cancelled run with its error. Temporal stores no reason for the end of a cancelled workflow."""
PROGRESS = "progress"
"""The memo of a run's workflow with its ``Progress``, and the signal with another one."""
RUN_MEMO = "run"
"""The memo of a run's workflow with its ``RunMemo``."""


class RunPolicy(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The engine's settings for a run, taken when it started.

    - ``retry_delays``: (minimum, maximum jitter) for each attempt in milliseconds; empty for the protocol's schedule.
    - ``call_timeout``: in milliseconds.
    """

    retry_delays: tuple[tuple[int, int], ...] = ()
    max_steps: int = MAX_STEPS
    max_depth: int = MAX_DEPTH
    call_timeout: int = MAX_CALL_DURATION // dt.timedelta(milliseconds=1)


class FunctionRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A function as its app synced it: the memo ``function`` of its workflow.

    - ``in_process``: calls go to the app's processes, not to its URL.
    - ``paused_at``: milliseconds since the epoch.
    """

    app_id: str
    config: FunctionConfig
    app_version: str | None = None
    in_process: bool = False
    is_active: bool = True
    is_paused: bool = False
    paused_at: int | None = None
    policy: RunPolicy = RunPolicy()


class TriggerRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A trigger of a topic. ``expression`` is its condition, if any."""

    function_id: str
    expression: str | None = None


class AppRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An app's last sync: the memo ``app`` of its workflow.

    - ``functions``: digests of the configurations by id, in the app's order.
    - ``names``: all event names that trigger its functions, or did so before.
    - ``synced_at``: milliseconds since the epoch.
    - ``error``: why a later sync was refused.
    - ``schedules``: the ids of all Schedules of its functions, or of earlier ones.
    """

    url: str
    functions: dict[str, str]
    sdk: str | None = None
    framework: str | None = None
    version: str | None = None
    in_process: bool = False
    names: tuple[str, ...] = ()
    synced_at: int = 0
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    error: str | None = None
    schedules: tuple[str, ...] = ()


class SyncInput(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A sync of an app: its functions, and the other parts of its record.

    ``restores``: apply it even if the app's record is the same.
    """

    app_id: str
    functions: tuple[FunctionRecord, ...]
    app: AppRecord
    restores: bool = False


class TopicRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """Triggers and wait paths of an event name: the memo ``topic`` of its workflow.

    ``paths`` are paths of the wait index (see ``index_key``). ``None`` is the path of waits that require no value.
    """

    triggers: tuple[TriggerRecord, ...] = ()
    paths: tuple[str | None, ...] = ()


class InvokerRecord(msgspec.Struct, frozen=True, array_like=True):
    """The step that invoked a function by an event. ``name`` is the step's name."""

    run_id: str
    step_id: str
    name: str = ""


class EventRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An event that is routed.

    - ``id``: the engine's id.
    - ``body``: the event as functions get it.
    - ``at``: the time of receipt, in milliseconds since the epoch.
    - ``sender``: the run that sent it, or whose end it reports.
    - ``chain``: the functions of the last runs that led to it, the latest first.
    - ``index``: its position in its request.
    - ``invoker``: is notified of the run's end if the run is not its child workflow.
    """

    id: str
    name: str
    body: msgspec.Raw
    origin: Origin | None = None
    traceparent: str | None = None
    at: int = 0
    sender: str | None = None
    chain: tuple[str, ...] = ()
    index: int = 0
    invoker: InvokerRecord | None = None

    @property
    def received_order(self) -> tuple[int, int]:
        """The sort key for the order of receipt."""
        return self.at, self.index


class DeliveryRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event with its targets, as they were at its receipt.

    ``waits`` are paths of the wait index, each with the event's value there.
    """

    event: EventRecord
    function_ids: tuple[str, ...] = ()
    waits: tuple[tuple[str | None, str | None], ...] = ()

    def __len__(self) -> int:
        return len(self.function_ids) + len(self.waits)


class RunOutcome(msgspec.Struct, frozen=True):
    """The end of a run that makes no call: skipped, cancelled, or failed at its start."""

    status: RunStatus
    error: ErrorData


class CancelRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event that cancels a run.

    ``until`` is milliseconds since the epoch; ``None``: until the run ends.
    """

    event: str
    expression: str | None = None
    until: int | None = None


class RunFlowState(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Flow control of a run.

    - ``singleton``: the id of its bucket.
    - ``queue``: the id of its calls' queue.
    - ``start_by``: the run is cancelled if its first call is still queued at this time.
    - ``start_within``: the same as a duration in milliseconds from the start of the workflow, because the sender's
      clock may be wrong.
    """

    singleton: str | None = None
    queue: str | None = None
    queue_entry: QueueEntry | None = None
    start_by: int | None = None
    start_within: int | None = None


class MemoRecord(msgspec.Struct, frozen=True, array_like=True):
    step_id: str
    memo: msgspec.Raw


class CopiedMemos(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The first memos of another run, which a rerun copies.

    ``size`` is their bytes. ``step_input`` is the input that a user gave a step: ``{"input": […]}``.
    """

    run_id: str
    memos: int
    size: int
    step_input: MemoRecord | None = None


class RunInput(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The start of a run.

    - ``events``: several for a batch.
    - ``parent``: the run that started this one; ``parent_step`` is its step if it invoked this one.
    - ``finish_timeout``: the function's option ``timeouts.finish``.
    """

    run_id: str
    function_id: str
    app_id: str
    max_attempts: int
    calls_queue: str
    events: tuple[EventRecord, ...]
    app_version: str | None = None
    rerun_of: str | None = None
    parent: str | None = None
    parent_step: str | None = None
    outcome: RunOutcome | None = None
    cancel_on: tuple[CancelRecord, ...] = ()
    flow: RunFlowState | None = None
    copied: CopiedMemos | None = None
    finish_timeout: int | str | None = None
    policy: RunPolicy = RunPolicy()


class RunMemo(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The memo ``run`` of a run's workflow, for lists.

    Fields are as in ``RunInput``. ``origin``, ``traceparent`` and ``chain`` are as in its event.
    """

    function_id: str
    app_id: str
    event_name: str
    event_ids: tuple[str, ...]
    max_attempts: int
    app_version: str | None = None
    rerun_of: str | None = None
    parent: str | None = None
    parent_step: str | None = None
    origin: Origin | None = None
    traceparent: str | None = None
    chain: tuple[str, ...] = ()

    @classmethod
    def of(cls, run: RunInput) -> "RunMemo":
        return cls(
            function_id=run.function_id,
            app_id=run.app_id,
            event_name=run.events[0].name,
            event_ids=tuple(event.id for event in run.events),
            max_attempts=run.max_attempts,
            app_version=run.app_version,
            rerun_of=run.rerun_of,
            parent=run.parent,
            parent_step=run.parent_step,
            origin=run.events[0].origin if run.rerun_of is None else None,
            traceparent=run.events[0].traceparent,
            chain=chain_after(run),
        )


_LONGEST_CHAIN = 8


def chain_after(run: RunInput) -> tuple[str, ...]:
    """The chain of the events that a run sends. A rerun begins a new one."""
    before = run.events[0].chain if run.rerun_of is None else ()
    return (run.function_id, *before)[:_LONGEST_CHAIN]


class Condition(msgspec.Struct, frozen=True, array_like=True):
    """The condition of a wait.

    ``trigger`` is the part of the run's event that the expression reads.
    """

    expression: str
    trigger: msgspec.Raw


class WaitRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A run's wait for an event.

    - ``is_exact``: the value at the path is the whole condition, so the first event ends the wait.
    - ``condition``: other events do not reach the run. Without a condition, the run gets each event with the value, and
      evaluates the condition itself.
    - ``until``: milliseconds since the epoch; ``None``: until the run ends.
    - ``is_early``: registered before its run starts.
    - ``ignored``: events that the run received before. One may be delivered again after a crash.
    - ``start_within``: milliseconds for which events are kept if the run has not started.
    """

    run_id: str
    step_id: str
    event: str
    until: int | None
    path: str | None = None
    value: str | None = None
    is_exact: bool = True
    is_early: bool = False
    ignored: tuple[str, ...] = ()
    condition: Condition | None = None
    start_within: int = 0


class LeaveInput(msgspec.Struct, frozen=True, omit_defaults=True):
    """Waits of a run that ended without an event or a signal."""

    waits: tuple[WaitRecord, ...] = ()
    signals: tuple["SignalRecord", ...] = ()


class MatchInput(msgspec.Struct, frozen=True):
    """An event, and the conditions of waits for it."""

    event: EventRecord
    conditions: tuple[Condition, ...]


class Delivery(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An event for the waits of a run: the argument of the signal ``deliver``."""

    step_id: str
    event: EventRecord


class InvokeInput(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The invocation of a function by a step. ``payload`` is that of the command."""

    run_id: str
    source_app_id: str
    source_function_id: str
    step_id: str
    name: str
    function_id: str
    payload: dict[str, Any]
    until: int
    at: int
    origin: Origin | None = None
    traceparent: str | None = None
    chain: tuple[str, ...] = ()


class ResolvedInvocation(msgspec.Struct, frozen=True, omit_defaults=True):
    """The run to start for an invocation, or the error of its step.

    If it has neither, the function has buckets. They start the run, which reports its end to the step.
    """

    run: RunInput | None = None
    error: ErrorData | None = None


class SignalRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A run's wait for a signal.

    ``replaces``: it replaces another step's wait.
    """

    run_id: str
    step_id: str
    signal: str
    until: int
    replaces: bool = False


class InternalEvents(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Events of the engine that a run sends: names, data and sessions."""

    run_id: str
    at: int
    events: list[tuple[str, msgspec.Raw, dict[str, str]]]
    origin: Origin | None = None
    traceparent: str | None = None
    chain: tuple[str, ...] = ()


class CallInput(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A call, without its memos.

    Memos in inputs would make histories grow with the square of the steps. ``memos`` is their number, and ``digest``
    that of ``RunContent``.
    """

    run_id: str
    function_id: str
    app_id: str
    call: Call
    max_attempts: int
    disable_immediate: bool = False
    memos: int = 0
    digest: int = 0
    defers: tuple[Deferred, ...] = ()
    traceparent: str | None = None
    parallel_steps: int = 0


class ReturnedResult(msgspec.Struct, frozen=True, tag="returned"):
    output: msgspec.Raw
    called_at: int | None = None


class OpsResult(msgspec.Struct, frozen=True, tag="ops", omit_defaults=True):
    """An answer with ops.

    ``requests_queue``: the task queue of the process that has the options of requests among the ops.
    """

    ops: list[Op]
    no_retry: bool = False
    retry_at: int | None = None
    races: bool = False
    requests_queue: str | None = None
    called_at: int | None = None


class FailedResult(msgspec.Struct, frozen=True, tag="failed", omit_defaults=True):
    error: ErrorData
    no_retry: bool = False
    retry_at: int | None = None
    written: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    called_at: int | None = None


CallResult = ReturnedResult | OpsResult | FailedResult
"""An answer as readable JSON. The activity repeats calls that do not reach the app, so they have no answer.
``called_at`` is the start time of the call, in milliseconds since the epoch."""


def result_of(answer: Answer, requests_queue: str | None = None) -> CallResult:
    match answer:
        case Returned(output):
            return ReturnedResult(msgspec.Raw(output))
        case ReportedOps(ops, no_retry, retry_at, races):
            return OpsResult(ops, no_retry, retry_at, races, requests_queue)
        case AttemptFailed(error, no_retry, retry_at, written):
            return FailedResult(error, no_retry, retry_at, msgspec.UNSET if written is None else msgspec.Raw(written))
        case Unreached(error):
            raise AssertionError(f"the activity repeats calls that do not reach the app: {error}")


def answer_of(result: CallResult) -> Answer:
    match result:
        case ReturnedResult(output):
            return Returned(bytes(output))
        case OpsResult(ops, no_retry, retry_at, races):
            return ReportedOps(ops, no_retry, retry_at, races)
        case FailedResult(error, no_retry, retry_at, written):
            return AttemptFailed(
                error, no_retry, retry_at, bytes(written) if isinstance(written, msgspec.Raw) else None
            )


class CheckpointInput(msgspec.Struct, frozen=True, omit_defaults=True):
    """Steps that a call has finished: the argument of the Update ``checkpoint``.

    ``execution`` is the ``execution_of`` the workflow that made the call, or 0 if the request identifies it in another
    way.
    """

    generation: int
    steps: list[Op]
    called_at: int | None = None
    execution: int = 0


class ContentPage(msgspec.Struct, frozen=True, omit_defaults=True):
    """A page of a run's memos, from the answer of the query ``content``.

    Only page 0 has ``events`` and ``step_input``. ``total`` is the number of memos.
    """

    total: int
    memos: list[MemoRecord] = []
    events: list[msgspec.Raw] = []
    step_input: MemoRecord | None = None
    steps: list[StepRow] = []


class ContentRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """A range of memos: the argument of the query ``content``.

    ``has_steps``: the page also has the rows of the memos.
    """

    after: int
    until: int = MAX_COUNT
    has_steps: bool = False


class MemosToCopy(msgspec.Struct, frozen=True):
    """A page of the memos of another run, which a rerun reads."""

    run_id: str
    request: ContentRequest


class RequestInput(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A request for a step, without its options, which may contain credentials."""

    run_id: str
    step_id: str
    name: str
    op: Opcode
    generation: int


class RequestResult(msgspec.Struct, frozen=True, omit_defaults=True):
    memo: msgspec.Raw
    failed: bool = False
    is_retriable: bool = False
    usage: tuple[ModelUsage, ...] = ()
