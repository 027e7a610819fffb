"""Records of apps, functions, events, runs and waits, as messages.

Those of calls are in ``runs/call_messages.py``.

They are in histories, so a field may be added with a default, and none may be renamed or removed.
"""

import datetime as dt
from typing import Any

import msgspec

from durably.engine.core.flow.queue_entries import QueueEntry
from durably.engine.core.run_state import Origin, RunStatus
from durably.engine.scheduling.registry import FOLLOWED_FOR
from durably.protocol.errors import ErrorData
from durably.protocol.limits import MAX_CALL_DURATION, MAX_DEPTH, MAX_STEPS
from durably.protocol.sync import FunctionConfig

END = "end"
"""The memo of a cancelled run with its error: Temporal stores no reason in the end of a cancelled workflow."""
RUN_MEMO = "run"
"""The memo of a run's workflow with its ``RunMemo``."""


class RunPolicy(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The engine's settings that decide about a run, as they were when it started.

    ``retry_delays`` are the least delay after each attempt, and what is added at random at most, in milliseconds; if
    there are none, the protocol's schedule holds. ``call_timeout`` is in milliseconds.
    """

    retry_delays: tuple[tuple[int, int], ...] = ()
    max_steps: int = MAX_STEPS
    max_depth: int = MAX_DEPTH
    call_timeout: int = MAX_CALL_DURATION // dt.timedelta(milliseconds=1)


class CancellationRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A bulk cancellation, as it applies to new runs of its function.

    Times are milliseconds since the epoch. ``created_at`` is by the clock of the server, as are the ends of runs.
    """

    id: str
    started_before: int
    created_at: int
    started_after: int | None = None
    expression: str | None = None

    def is_over(self, now: int) -> bool:
        return now >= max(self.started_before, self.created_at + FOLLOWED_FOR)


class FunctionRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A function as its app synced it: the memo ``function`` of its workflow.

    ``in_process``: calls go to the processes of its app, and not to its URL.
    ``paused_at`` is milliseconds since the epoch.
    ``cancellations`` are those in bulk that apply to its new runs; some may be over.
    """

    app_id: str
    config: FunctionConfig
    app_version: str | None = None
    in_process: bool = False
    is_active: bool = True
    is_paused: bool = False
    paused_at: int | None = None
    policy: RunPolicy = RunPolicy()
    cancellations: tuple[CancellationRecord, ...] = ()


class TriggerRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A trigger of a topic; ``expression`` is its condition, if any."""

    function_id: str
    expression: str | None = None


class AppRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An app as it synced last: the memo ``app`` of its workflow.

    ``functions`` are digests of the configurations by ids, in the app's order. ``names`` are those of all events that
    trigger its functions, or did so before. ``synced_at`` is milliseconds since the epoch. ``error`` is why a later
    sync was refused. ``leased`` and ``leased_http`` are the functions whose calls in process and over HTTP need leased
    slots, or did so before.
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
    leased: tuple[str, ...] = ()
    leased_http: tuple[str, ...] = ()


class SyncInput(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A sync of an app: its functions, and what its record has besides.

    ``restores``: it is applied even if the app's record has it already.
    """

    app_id: str
    functions: tuple[FunctionRecord, ...]
    app: AppRecord
    restores: bool = False


class TopicRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """Triggers and wait paths of an event name.

    It is the memo ``topic`` of the topic's workflow.

    ``paths`` are those of the wait index (see ``index_key``); ``None`` for waits that require no value.
    """

    triggers: tuple[TriggerRecord, ...] = ()
    paths: tuple[str | None, ...] = ()


class InvokerRecord(msgspec.Struct, frozen=True, array_like=True):
    """The step that invoked a function by an event. ``name`` is that of the step."""

    run_id: str
    step_id: str
    name: str = ""


class EventRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An event that is routed.

    ``id`` is the engine's; ``body`` is the event as functions get it. ``at`` is when it was received, in milliseconds
    since the epoch. ``sender`` is the run that sent it, or whose end it reports. ``chain`` are the functions of the
    last runs that led to it, the latest first. ``index`` is its place in its request. ``invoker`` hears of the
    end of the run, if that is not its child.
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
    def place(self) -> tuple[int, int]:
        """The order in which events were received."""
        return self.at, self.index


class DeliveryRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event with all that it leads to, as it was when the event was received.

    ``waits`` are paths of the wait index, each with the value that the event has there.
    """

    event: EventRecord
    function_ids: tuple[str, ...] = ()
    waits: tuple[tuple[str | None, str | None], ...] = ()

    def __len__(self) -> int:
        return len(self.function_ids) + len(self.waits)


class RunOutcome(msgspec.Struct, frozen=True):
    """The end of a run that makes no call: it is skipped, cancelled, or fails at once."""

    status: RunStatus
    error: ErrorData


class CancelRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event that cancels a run.

    ``until`` is milliseconds since the epoch; ``None``: until the run ends.
    """

    event: str
    expression: str | None = None
    until: int | None = None


class RunFlow(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Flow control of a run.

    ``singleton`` is the id of the gate that it holds, ``queue`` that of its calls' queue. If it waits there, its first
    call is made until ``start_by``, or it is cancelled. A timeout that is a duration is ``start_within`` instead, in
    milliseconds after the start of its workflow, because the clock of the sender may be wrong. ``calls_queue`` is the
    task queue of its calls if they need leased slots.
    """

    singleton: str | None = None
    queue: str | None = None
    queue_entry: QueueEntry | None = None
    start_by: int | None = None
    start_within: int | None = None
    calls_queue: str | None = None


class MemoRecord(msgspec.Struct, frozen=True, array_like=True):
    step_id: str
    memo: msgspec.Raw


class CopiedMemos(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The first memos of another run, which a rerun takes over.

    ``size`` is their bytes. ``step_input`` is the input that a person gave a step: ``{"input": […]}``.
    """

    run_id: str
    memos: int
    size: int
    step_input: MemoRecord | None = None


class RunInput(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The start of a run.

    ``events`` are several for a batch. ``parent`` is the run that started this one, by its step ``parent_step`` if it
    invoked it.
    ``finish_timeout`` is the function's option ``timeouts.finish``.
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
    flow: RunFlow | None = None
    copied: CopiedMemos | None = None
    finish_timeout: int | str | None = None
    policy: RunPolicy = RunPolicy()


class RunMemo(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The memo ``run`` of a run's workflow, for lists.

    The fields are as in ``RunInput``, and ``origin``, ``traceparent`` and ``chain`` as in its event.
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

    ``is_exact``: the value at the path is its whole condition, so that the first event ends it. If it is not, events
    that do not meet the ``condition`` do not reach the run. Without one, the run gets each event with the value, and
    evaluates the condition itself. ``until`` is milliseconds since the epoch; ``None``: until the run ends.
    ``is_early``: it is registered before its run starts. ``ignored`` are events that the run got before. One of them
    may be delivered again after a crash. Events for a run that has not started are kept for ``start_within``
    milliseconds.
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
    """Waits of a run that are over, though neither an event nor a signal ended them."""

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

    If it has neither, the function has gates: they start the run, which reports its end to the step. Its id is then
    ``run_id``, unless it is the run of a batch.
    """

    run: RunInput | None = None
    error: ErrorData | None = None
    run_id: str | None = None


class SignalRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A run's wait for a signal.

    ``replaces``: it takes the place of another step's wait.
    """

    run_id: str
    step_id: str
    signal: str
    until: int
    replaces: bool = False


class InternalEvents(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Events of the engine that a run sends: names and data."""

    run_id: str
    at: int
    events: list[tuple[str, msgspec.Raw]]
    origin: Origin | None = None
    traceparent: str | None = None
    chain: tuple[str, ...] = ()
