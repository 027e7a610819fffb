"""A run as a workflow.

It holds the run state, and executes the commands of the run machine.

No user code runs here, so there is no sandbox. Everything in this file is workflow code: a change must replay the
histories of released versions (``workflow.patched``; see CONTRIBUTING.md).
"""

import asyncio
import datetime as dt
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, ChildWorkflowError, FailureError, TimeoutError

from durably.engine.core.answers import Answer, AttemptFailed, ReportedOps, Unreached
from durably.engine.core.errors import StaleCallError
from durably.engine.core.expressions import compile_expression
from durably.engine.core.inputs import (
    Answered,
    AwaitEvent,
    AwaitSignal,
    CancelRequested,
    Checkpointed,
    CloseWait,
    EndRun,
    Input,
    Invoke,
    MakeCall,
    SignalConflicted,
    Sleep,
    TimerFired,
    WaitResolved,
    WriteMemo,
)
from durably.engine.core.machine import advance, start
from durably.engine.core.policy import Policy, standard_backoff, unreached_backoff
from durably.engine.core.run_state import Call, RunStatus, origin_of
from durably.engine.core.transition import data_memo, encode_error, error_memo
from durably.engine.scheduling.events import ReceivedEvent, RunResult, run_end_events
from durably.protocol.errors import ErrorData
from durably.protocol.limits import MAX_CALL_DURATION
from durably.protocol.opcodes import Op

from .activities import CALL, LEAVE, LOCAL_TIMEOUT, RESOLVE, SEND, WAIT_FOR_EVENT, WAIT_FOR_SIGNAL
from .contents import CONTENTS, RunContent
from .ids import run_workflow_id
from .listening import Listening
from .messages import (
    RUN_MEMO,
    CallInput,
    CallResult,
    CheckpointInput,
    ContentPage,
    Delivery,
    InternalEvents,
    InvokeInput,
    LeaveInput,
    MemoRecord,
    ResolvedInvocation,
    RunInput,
    RunMemo,
    SignalRecord,
    WaitRecord,
    answer_of,
    chain_after,
)
from .run_flow import RunFlowControl
from .search_attributes import search_attributes_of
from .wait_keys import cancel_position, wait_key

RUN = "durably.Run"
_CALL_RESULT: Any = CallResult
_MILLISECOND = dt.timedelta(milliseconds=1)
_HEARTBEAT_TIMEOUT = dt.timedelta(seconds=20)
_MAX_STEP_OUTPUT_BYTES = 1_500_000
"""Temporal takes payloads of up to 2 MB; an op has its data and some more."""


@workflow.defn(name=RUN, sandboxed=False)
class RunWorkflow:
    @workflow.init
    def __init__(self, run: RunInput) -> None:
        self._run = run
        self._triggers = [
            ReceivedEvent(each.id, each.name, bytes(each.body), origin=each.origin, traceparent=each.traceparent)
            for each in run.events
        ]
        self._content = RunContent([event.body for event in self._triggers])
        CONTENTS.put(run.run_id, self._content)
        self._memoised: set[str] = set()
        self._state = start(run.max_attempts, _now())
        self._policy = Policy(
            retry_delay=lambda attempt: standard_backoff(attempt, workflow.random().random()) // _MILLISECOND,
            unreached_delay=lambda failures: unreached_backoff(failures, workflow.random().random()) // _MILLISECOND,
            max_step_output_bytes=_MAX_STEP_OUTPUT_BYTES,
        )
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._waits: dict[str, asyncio.Task[None]] = {}
        self._awaited: dict[str, AwaitEvent] = {}
        self._early: dict[str, list[Delivery | WaitResolved]] = {}
        """Messages for waits that are not known yet.

        A worker registered the wait, and ended before it stored the op. So the next workflow task has the message
        first."""
        self._handling_early: set[asyncio.Task[None]] = set()
        self._registrations: set[asyncio.Task[None]] = set()
        self._listening = Listening(run)
        self._leaving: set[asyncio.Task[None]] = set()
        self._end: EndRun | None = None
        self._flow = RunFlowControl(run, self._cancel_late)

    @workflow.run
    async def run(self, run: RunInput) -> msgspec.Raw:
        """The function's return value. A failed run fails with its error."""
        if run.outcome is not None:
            self._end_run(EndRun(run.outcome.status, encode_error(run.outcome.error)))
        else:
            (call,) = self._state.calls
            self._make_call(MakeCall(call))
        try:
            await workflow.wait_condition(lambda: self._end is not None)
        except asyncio.CancelledError:
            self._apply(CancelRequested())
        await workflow.wait_condition(workflow.all_handlers_finished)
        assert self._end is not None
        await self._flow.end(self._end)
        await self._leave_all()
        await self._report_end(self._end)
        CONTENTS.forget(run.run_id)
        return self._finish(self._end)

    def _cancel_late(self, reason: str) -> None:
        self._apply(CancelRequested(reason))

    # what others send

    @workflow.update(name="checkpoint")
    def _checkpoint(self, checkpoint: CheckpointInput) -> None:
        self._apply(self._checkpointed(checkpoint))

    @_checkpoint.validator
    def _check_checkpoint(self, checkpoint: CheckpointInput) -> None:
        """Refuse a checkpoint that the machine refuses.

        Validators are not replayed, so it draws no random number.
        """
        policy = msgspec.structs.replace(self._policy, retry_delay=_no_delay, unreached_delay=_no_delay)
        advance(self._state, self._checkpointed(checkpoint), _now(), policy)

    @workflow.signal(name="deliver")
    def _deliver(self, delivery: Delivery) -> None:
        position = cancel_position(delivery.step_id)
        if position is not None:
            if self._meets(delivery, self._run.cancel_on[position].expression):
                self._apply(CancelRequested(f"the run was cancelled by the event {delivery.event.name!r}"))
            return
        wait = self._awaited.get(delivery.step_id)
        if wait is None:
            self._keep_early(delivery)
        elif self._meets(delivery, wait.expression):
            self._listening.note_delivered(delivery)
            self._apply(WaitResolved(delivery.step_id, bytes(delivery.event.body)))

    def _meets(self, delivery: Delivery, expression: str | None) -> bool:
        if expression is None:
            return True
        fields = msgspec.json.decode(delivery.event.body)
        return compile_expression(expression).matches(self._triggers[0].fields, fields, now=_now())

    @workflow.signal(name="resolve")
    def _resolve(self, resolved: WaitResolved) -> None:
        if any(wait.step_id == resolved.step_id for wait in self._state.waits):
            self._listening.forget(resolved.step_id)
            self._apply(resolved)
        else:
            self._keep_early(resolved)

    def _keep_early(self, message: Delivery | WaitResolved) -> None:
        if message.step_id not in self._memoised and self._end is None:
            self._early.setdefault(message.step_id, []).append(message)

    async def _handle_early(self, step_id: str) -> None:
        for message in self._early.pop(step_id, ()):
            if isinstance(message, Delivery):
                self._deliver(message)
            else:
                self._resolve(message)

    @workflow.signal(name="cancel")
    def _cancel(self, request: CancelRequested) -> None:
        self._apply(request)

    @workflow.signal(name="granted")
    def _granted(self, generation: int) -> None:
        self._flow.grant(generation)

    @workflow.query(name="content")
    def _read_content(self, after: int) -> ContentPage:
        end = self._content.page(after)
        memos = [MemoRecord(step_id, msgspec.Raw(memo)) for step_id, memo in self._content.memos[after:end]]
        events = [] if after else [msgspec.Raw(event) for event in self._content.events]
        return ContentPage(len(self._content.memos), memos, events)

    # the machine

    def _apply(self, run_input: Input) -> None:
        """Apply an input, and execute the commands.

        Raises ``StaleCallError`` and the errors of checkpoints.
        """
        self._state, commands = advance(self._state, run_input, _now(), self._policy)
        outstanding = {call.generation for call in self._state.calls}
        for generation in [each for each in self._calls if each not in outstanding]:
            self._stop(self._calls.pop(generation))
        for command in commands:
            _COMMANDS[type(command)](self, command)

    def _apply_answer(self, answered: Answered) -> None:
        try:
            self._apply(answered)
        except StaleCallError:
            workflow.logger.debug("run %s: the answer of a call that was given up", self._run.run_id)

    def _checkpointed(self, checkpoint: CheckpointInput) -> Checkpointed:
        memoised = self._known(checkpoint.steps)
        return Checkpointed(checkpoint.generation, checkpoint.steps, memoised, checkpoint.called_at)

    def _known(self, ops: list[Op], target: str = "") -> frozenset[str]:
        return frozenset({target, *(op.id for op in ops)} & self._memoised)

    def _stop(self, task: "asyncio.Task[None]") -> None:
        if task is not asyncio.current_task():
            task.cancel()

    # calls

    def _make_call(self, command: MakeCall) -> None:
        self._calls[command.call.generation] = asyncio.create_task(self._call(command.call))

    async def _call(self, call: Call) -> None:
        if call.due > _now():
            await workflow.sleep((call.due - _now()) / 1000, summary=f"retry of {call.name or self._run.function_id}")
        while self._registrations:  # Waits of the same answer are registered before its steps run.
            await asyncio.wait([*self._registrations])
        if call.generation not in self._calls:
            return
        try:
            await self._flow.acquire(call.generation)
            answer = await self._make(call)
        except (Exception, asyncio.CancelledError):  # No ``finally``: a workflow that leaves the cache sends nothing.
            self._flow.release(call.generation)
            raise
        self._flow.release(call.generation)
        self._calls.pop(call.generation, None)
        ops = answer.ops if isinstance(answer, ReportedOps) else []
        self._apply_answer(Answered(call.generation, answer, self._known(ops, call.step_id)))

    async def _make(self, call: Call) -> Answer:
        state = self._state
        CONTENTS.put(self._run.run_id, self._content)
        call_input = CallInput(
            run_id=self._run.run_id,
            function_id=self._run.function_id,
            app_id=self._run.app_id,
            call=call,
            max_attempts=state.max_attempts,
            disable_immediate=state.disable_immediate,
            memos=len(self._content.memos),
            digest=self._content.digest,
            defers=state.defers,
            traceparent=self._triggers[0].traceparent,
        )
        try:
            result: CallResult = await workflow.execute_activity(
                CALL,
                call_input,
                result_type=_CALL_RESULT,
                task_queue=self._run.calls_queue,
                start_to_close_timeout=MAX_CALL_DURATION,
                heartbeat_timeout=_HEARTBEAT_TIMEOUT,
                retry_policy=_CALL_RETRIES,
                summary=call.name or "find steps",
            )
        except ActivityError as error:
            return _lost_call(call, error)
        return answer_of(result)

    def _write_memo(self, command: WriteMemo) -> None:
        self._content.add(command.step_id, command.memo)
        self._memoised.add(command.step_id)

    # waits

    def _sleep(self, command: Sleep) -> None:
        self._waits[command.step_id] = asyncio.create_task(self._time_out(command.step_id, command.until, command.name))

    async def _time_out(self, step_id: str, until: int, summary: str) -> None:
        await workflow.sleep(max(until - _now(), 1) / 1000, summary=summary)
        self._listening.forget(step_id)
        self._apply(TimerFired(step_id))

    def _await_event(self, command: AwaitEvent) -> None:
        self._awaited[command.step_id] = command
        self._begin_wait(command.step_id)
        key = wait_key(command.expression, self._triggers[0].fields)
        record = WaitRecord(
            run_id=self._run.run_id,
            step_id=command.step_id,
            event=command.event,
            until=command.until,
            path=key.path,
            value=key.value,
            is_exact=key.is_exact,
            ignored=self._listening.got,
        )
        self._listening.begin(record)
        registered = self._register(
            workflow.execute_local_activity(
                WAIT_FOR_EVENT, record, start_to_close_timeout=LOCAL_TIMEOUT, summary=command.name
            )
        )
        self._waits[command.step_id] = asyncio.create_task(
            self._time_out_after(registered, command.step_id, command.until, command.name)
        )

    def _begin_wait(self, step_id: str) -> None:
        if step_id in self._early:
            self._handling_early.add(task := asyncio.create_task(self._handle_early(step_id)))
            task.add_done_callback(self._handling_early.discard)

    def _await_signal(self, command: AwaitSignal) -> None:
        self._begin_wait(command.step_id)
        record = SignalRecord(
            run_id=self._run.run_id,
            step_id=command.step_id,
            signal=command.signal,
            replaces=command.replaces,
            until=command.until,
        )
        self._listening.begin(record)
        registered = self._register(self._register_signal(record))
        self._waits[command.step_id] = asyncio.create_task(
            self._time_out_after(registered, command.step_id, command.until, command.name)
        )

    async def _register_signal(self, record: SignalRecord) -> None:
        taken = await workflow.execute_local_activity(
            WAIT_FOR_SIGNAL, record, result_type=bool, start_to_close_timeout=LOCAL_TIMEOUT
        )
        if not taken:
            self._listening.forget(record.step_id)
            self._apply(SignalConflicted(record.step_id, record.signal))

    def _register(self, registering: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.ensure_future(registering)
        self._registrations.add(task)
        task.add_done_callback(self._registrations.discard)
        return task

    async def _time_out_after(self, registered: "asyncio.Task[None]", step_id: str, until: int, name: str) -> None:
        await asyncio.wait([registered])  # It goes on if the wait ends before, so that leaving comes after it.
        await self._time_out(step_id, until, name)

    def _invoke(self, command: Invoke) -> None:
        self._waits[command.step_id] = asyncio.create_task(self._invoke_function(command))

    async def _invoke_function(self, command: Invoke) -> None:
        trigger = self._triggers[0]
        invocation = InvokeInput(
            run_id=self._run.run_id,
            source_app_id=self._run.app_id,
            source_function_id=self._run.function_id,
            step_id=command.step_id,
            name=command.name,
            function_id=command.function_id,
            payload=command.payload,
            until=command.until,
            at=_now(),
            origin=origin_of(0, trigger.origin, _now(), is_invocation=True),
            traceparent=trigger.traceparent,
            chain=chain_after(self._run),
        )
        resolved = await workflow.execute_local_activity(
            RESOLVE, invocation, result_type=ResolvedInvocation, start_to_close_timeout=LOCAL_TIMEOUT
        )
        if resolved.error is not None:
            self._apply(WaitResolved(command.step_id, error_memo(resolved.error), failed=True))
            return
        if resolved.run is None:
            await self._time_out(command.step_id, command.until, command.name)
            return
        child = asyncio.create_task(self._run_child(command, resolved.run))
        done, _ = await workflow.wait([child], timeout=max(command.until - _now(), 1) / 1000)
        if not done:
            self._apply(TimerFired(command.step_id))

    async def _run_child(self, command: Invoke, run: RunInput) -> None:
        try:
            output = await workflow.execute_child_workflow(
                RUN,
                run,
                id=run_workflow_id(run.run_id),
                result_type=msgspec.Raw,
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
                cancellation_type=workflow.ChildWorkflowCancellationType.ABANDON,
                memo={RUN_MEMO: RunMemo.of(run)},
                search_attributes=search_attributes_of(run),
                static_summary=command.name,
            )
        except ChildWorkflowError as error:
            self._apply(WaitResolved(command.step_id, error_memo(_error_of(error)), failed=True))
        else:
            self._apply(WaitResolved(command.step_id, data_memo(bytes(output))))

    def _close_wait(self, command: CloseWait) -> None:
        self._awaited.pop(command.step_id, None)
        waiting = self._waits.pop(command.step_id, None)
        if waiting is not None:
            self._stop(waiting)
        left = self._listening.close(command.step_id)
        if left is not None:
            self._leaving.add(task := asyncio.create_task(self._leave(left)))
            task.add_done_callback(self._leaving.discard)

    async def _leave(self, left: LeaveInput) -> None:
        while self._registrations:
            await asyncio.wait([*self._registrations])
        await workflow.execute_local_activity(LEAVE, left, start_to_close_timeout=LOCAL_TIMEOUT)

    async def _leave_all(self) -> None:
        left = self._listening.close_all()
        if left is not None:
            await self._leave(left)
        while self._leaving:
            await asyncio.wait([*self._leaving])

    # the end

    def _end_run(self, command: EndRun) -> None:
        self._end = command
        for task in self._waits.values():
            self._stop(task)
        self._waits.clear()
        self._awaited.clear()

    async def _report_end(self, end: EndRun) -> None:
        if end.status is RunStatus.SKIPPED:
            return
        result = RunResult(self._run.run_id, self._run.function_id, end.status, end.output)
        named = run_end_events(result, self._triggers)
        if not named:
            return
        trigger = self._triggers[0]
        events = InternalEvents(
            run_id=self._run.run_id,
            at=_now(),
            events=[(name.value, msgspec.Raw(data)) for name, data in named],
            origin=origin_of(0, trigger.origin, _now()),
            traceparent=trigger.traceparent,
            chain=chain_after(self._run),
        )
        await workflow.execute_local_activity(SEND, events, start_to_close_timeout=LOCAL_TIMEOUT)

    def _finish(self, end: EndRun) -> msgspec.Raw:
        if end.status in (RunStatus.COMPLETED, RunStatus.SKIPPED):
            return msgspec.Raw(end.output)
        error = msgspec.json.decode(end.output, type=ErrorData)
        raise ApplicationError(
            error.message or "", msgspec.Raw(end.output), type=error.name or "Error", non_retryable=True
        )


def _error_of(error: FailureError) -> ErrorData:
    cause = error.cause
    if isinstance(cause, ApplicationError) and cause.details:
        return msgspec.convert(cause.details[0], ErrorData)
    return ErrorData(name=type(cause).__name__, message=str(cause))


def _lost_call(call: Call, error: ActivityError) -> Answer:
    """The answer of a call whose worker was lost.

    The next call has another generation, so that the lost worker's checkpoints are refused if it continues. A second
    loss is a failed attempt, because the function may be what ends its workers. Raises errors that are no time-outs.
    """
    if not isinstance(error.cause, TimeoutError):
        raise error
    message = "the process that executed the call sent no heartbeat: it has ended, or does not respond"
    lost = ErrorData(name="WorkerLostError", message=message)
    return AttemptFailed(lost) if call.unreached else Unreached(lost)


def _now() -> int:
    return int(workflow.now().timestamp() * 1000)


def _no_delay(_: int) -> int:
    return 0


_CALL_RETRIES = RetryPolicy(
    initial_interval=dt.timedelta(seconds=1),
    maximum_interval=dt.timedelta(minutes=1),
    backoff_coefficient=2,
    non_retryable_error_types=["TemporalTimeout:Heartbeat", "TemporalTimeout:StartToClose"],
)
"""Time-outs of a worker are not repeated: the next call needs a generation of its own."""

_COMMANDS: dict[type[Any], Callable[[RunWorkflow, Any], None]] = {
    MakeCall: RunWorkflow._make_call,
    WriteMemo: RunWorkflow._write_memo,
    Sleep: RunWorkflow._sleep,
    AwaitEvent: RunWorkflow._await_event,
    AwaitSignal: RunWorkflow._await_signal,
    Invoke: RunWorkflow._invoke,
    CloseWait: RunWorkflow._close_wait,
    EndRun: RunWorkflow._end_run,
}
