"""Waits of a run: sleeps, events, signals and invoked functions.

Everything here is workflow code.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec
from temporalio import workflow
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError, CancelledError, ChildWorkflowError, FailureError, TerminatedError

from durably.engine.core.expressions import compile_expression
from durably.engine.core.inputs import (
    AwaitEvent,
    AwaitSignal,
    CancelRequested,
    Invoke,
    SignalConflicted,
    Sleep,
    TimerFired,
    WaitResolved,
)
from durably.engine.core.run_state import origin_of
from durably.engine.core.transition import data_memo, error_memo
from durably.engine.temporal.ids import run_workflow_id
from durably.engine.temporal.index import search_attributes_of
from durably.engine.temporal.messages import (
    RUN_MEMO,
    Delivery,
    InvokeInput,
    LeaveInput,
    ResolvedInvocation,
    RunInput,
    RunMemo,
    SignalRecord,
    WaitRecord,
    chain_after,
)
from durably.engine.temporal.routing.router import RESOLVE
from durably.engine.temporal.routing.waits import LEAVE, WAIT_FOR_EVENT, WAIT_FOR_SIGNAL
from durably.engine.temporal.routing.workflows import cancel_position, cancel_waits, condition_of, wait_key
from durably.engine.temporal.runs.activities import LOCAL_TIMEOUT, READ_END
from durably.engine.temporal.runs.context import RunContext, stop
from durably.engine.temporal.workflow_code import now
from durably.protocol.errors import ErrorData

MAX_IGNORED = 100
"""Maximum number of remembered event ids. An event is delivered again soon, if at all."""
RUN = "durably.Run"


class RunWaits:
    """The waits of a run, by their steps' hashed ids."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._awaited: dict[str, AwaitEvent] = {}
        self._early: dict[str, list[Delivery | WaitResolved]] = {}
        """Messages for waits that are not known yet.

        A worker may register the wait and end before it stores the op. The next workflow task then has the message
        first.
        """
        self._handling_early: set[asyncio.Task[None]] = set()
        self._registered: dict[str, WaitRecord | SignalRecord] = {
            wait.step_id: wait for wait in cancel_waits(context.run)
        }
        """The waits that are registered outside of the run."""
        self._received_ids = [event.id for event in context.run.events]
        """The run's last events. One may be delivered again after a crash, and ends no wait that began later."""
        self._leaving: set[asyncio.Task[None]] = set()

    def add(self, step_id: str, task: asyncio.Task[None]) -> None:
        self._tasks[step_id] = task

    def close(self, step_id: str) -> None:
        self._awaited.pop(step_id, None)
        task = self._tasks.pop(step_id, None)
        if task is not None:
            stop(task)
        if (registered := self._registered.pop(step_id, None)) is not None:
            self._leaving.add(leaving := self._context.spawn(self._leave, [registered]))
            leaving.add_done_callback(self._leaving.discard)

    def stop_all(self) -> None:
        for task in self._tasks.values():
            stop(task)
        self._tasks.clear()
        self._awaited.clear()
        self._early.clear()

    async def leave_all(self) -> None:
        """Deregister all waits of a run that has ended."""
        registered = [*self._registered.values()]
        self._registered.clear()
        if registered:
            await self._leave(registered)
        while self._leaving:
            await workflow.wait([*self._leaving])

    async def _leave(self, registered: Sequence[WaitRecord | SignalRecord]) -> None:
        left = LeaveInput(
            tuple(each for each in registered if isinstance(each, WaitRecord)),
            tuple(each for each in registered if isinstance(each, SignalRecord)),
        )
        while self._context.registrations:
            await workflow.wait([*self._context.registrations])
        await workflow.execute_local_activity(LEAVE, left, start_to_close_timeout=LOCAL_TIMEOUT)

    # messages

    def deliver(self, delivery: Delivery) -> None:
        position = cancel_position(delivery.step_id)
        if position is not None:
            cancel_on = self._context.run.cancel_on
            if position < len(cancel_on) and self._meets(delivery, cancel_on[position].expression):
                self._context.apply(CancelRequested(f"the run was cancelled by the event {delivery.event.name!r}"))
            return
        wait = self._awaited.get(delivery.step_id)
        if wait is None:
            self._keep_early(delivery)
        elif self._meets(delivery, wait.expression):
            self._received_ids.append(delivery.event.id)
            registered = self._registered.get(delivery.step_id)
            if isinstance(registered, WaitRecord) and registered.is_exact:  # The event has removed it.
                del self._registered[delivery.step_id]
            self._context.apply(WaitResolved(delivery.step_id, bytes(delivery.event.body)))

    def _meets(self, delivery: Delivery, expression: str | None) -> bool:
        if expression is None:
            return True
        fields = msgspec.json.decode(delivery.event.body)
        return compile_expression(expression).matches(self._context.triggers[0].fields, fields, now=now())

    def resolve(self, resolved: WaitResolved) -> None:
        if any(wait.step_id == resolved.step_id for wait in self._context.state.waits):
            self._registered.pop(resolved.step_id, None)
            self._context.apply(resolved)
        else:
            self._keep_early(resolved)

    def _keep_early(self, message: Delivery | WaitResolved) -> None:
        if message.step_id not in self._context.memoised and not self._context.state.status.has_ended:
            self._early.setdefault(message.step_id, []).append(message)

    def _begin(self, step_id: str) -> None:
        if step_id in self._early:
            self._handling_early.add(task := self._context.spawn(self._handle_early, step_id))
            task.add_done_callback(self._handling_early.discard)

    async def _handle_early(self, step_id: str) -> None:
        for message in self._early.pop(step_id, ()):
            if isinstance(message, Delivery):
                self.deliver(message)
            else:
                self.resolve(message)

    # sleeps, events and signals

    def sleep(self, command: Sleep) -> None:
        self.add(
            command.step_id, self._context.spawn(self._end_at_timeout, command.step_id, command.until, command.name)
        )

    async def _end_at_timeout(self, step_id: str, until: int, summary: str) -> None:
        await workflow.sleep(max(until - now(), 1) / 1000, summary=summary)
        self._registered.pop(step_id, None)
        self._context.apply(TimerFired(step_id))

    def await_event(self, command: AwaitEvent) -> None:
        self._awaited[command.step_id] = command
        self._begin(command.step_id)
        key = wait_key(command.expression, self._context.triggers[0].fields)
        record = WaitRecord(
            run_id=self._context.run.run_id,
            step_id=command.step_id,
            event=command.event,
            until=command.until,
            path=key.path,
            value=key.value,
            is_exact=key.is_exact,
            ignored=tuple(self._received_ids[-MAX_IGNORED:]),
            condition=condition_of(command.expression, self._context.triggers[0].fields),
        )
        self._registered[record.step_id] = record
        registered = self._register(self._register_event, record, command.name)
        self.add(command.step_id, self._context.spawn(self._time_out_after, registered, command))

    async def _register_event(self, record: WaitRecord, name: str) -> None:
        await workflow.execute_local_activity(
            WAIT_FOR_EVENT, record, start_to_close_timeout=LOCAL_TIMEOUT, summary=name
        )

    def await_signal(self, command: AwaitSignal) -> None:
        self._begin(command.step_id)
        record = SignalRecord(
            run_id=self._context.run.run_id,
            step_id=command.step_id,
            signal=command.signal,
            replaces=command.replaces,
            until=command.until,
        )
        self._registered[record.step_id] = record
        registered = self._register(self._register_signal, record, command.name)
        self.add(command.step_id, self._context.spawn(self._time_out_after, registered, command))

    async def _register_signal(self, record: SignalRecord, name: str) -> None:
        taken = await workflow.execute_local_activity(
            WAIT_FOR_SIGNAL, record, result_type=bool, start_to_close_timeout=LOCAL_TIMEOUT, summary=name
        )
        if not taken:
            self._registered.pop(record.step_id, None)
            self._context.apply(SignalConflicted(record.step_id, record.signal))

    def _register(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> asyncio.Task[None]:
        registrations = self._context.registrations
        registrations.add(task := self._context.spawn(work, *arguments))
        task.add_done_callback(registrations.discard)
        return task

    async def _time_out_after(self, registered: asyncio.Task[None], command: AwaitEvent | AwaitSignal) -> None:
        await workflow.wait(
            [registered]
            # Registration completes even if the wait ends first, so that deregistration follows it.
        )
        await self._end_at_timeout(command.step_id, command.until, f"{command.name} times out")

    # invocations

    def invoke(self, command: Invoke) -> None:
        if command.step_id in self._early:
            self._begin(command.step_id)
        self.add(command.step_id, self._context.spawn(self._invoke, command))

    async def _invoke(self, command: Invoke) -> None:
        run, trigger = self._context.run, self._context.triggers[0]
        invocation = InvokeInput(
            run_id=run.run_id,
            source_app_id=run.app_id,
            source_function_id=run.function_id,
            step_id=command.step_id,
            name=command.name,
            function_id=command.function_id,
            payload=command.payload,
            until=command.until,
            at=now(),
            origin=origin_of(0, trigger.origin, now(), is_invocation=True),
            traceparent=trigger.traceparent,
            chain=chain_after(run),
        )
        resolved = await workflow.execute_local_activity(
            RESOLVE,
            invocation,
            result_type=ResolvedInvocation,
            start_to_close_timeout=LOCAL_TIMEOUT,
            summary=command.name,
        )
        if resolved.error is not None:
            self._context.apply(WaitResolved(command.step_id, error_memo(resolved.error), failed=True))
            return
        if resolved.run is None:
            await self._end_at_timeout(command.step_id, command.until, f"{command.name} times out")
            return
        child = self._context.spawn(self._run_child, command, resolved.run)
        done, _ = await workflow.wait([child], timeout=max(command.until - now(), 1) / 1000)
        if not done:
            self._context.apply(TimerFired(command.step_id))

    async def _run_child(self, command: Invoke, run: RunInput) -> None:
        try:
            output = await workflow.execute_child_workflow(
                RUN,
                run,
                id=run_workflow_id(run.run_id),
                task_queue=run.calls_queue,
                result_type=msgspec.Raw,
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
                cancellation_type=workflow.ChildWorkflowCancellationType.ABANDON,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                memo={RUN_MEMO: RunMemo.of(run)},
                search_attributes=search_attributes_of(run),
                static_summary=run.function_id,
                static_details=f"invoked by the step {command.name!r} of the run {self._context.run.run_id}",
            )
        except ChildWorkflowError as error:
            memo = error_memo(await self._error_of(run, error))
            self._context.apply(WaitResolved(command.step_id, memo, failed=True))
        else:
            self._context.apply(WaitResolved(command.step_id, data_memo(bytes(output))))

    async def _error_of(self, run: RunInput, error: FailureError) -> ErrorData:
        cause = error.cause
        if isinstance(cause, ApplicationError) and cause.details:
            return msgspec.convert(cause.details[0], ErrorData)
        if isinstance(cause, CancelledError):
            # Temporal does not pass on the reason of a cancellation.
            reported: ErrorData = await workflow.execute_local_activity(
                READ_END, run.run_id, result_type=ErrorData, start_to_close_timeout=LOCAL_TIMEOUT
            )
            return reported
        if isinstance(cause, TerminatedError):
            message = f"the run {run.run_id} was terminated on Temporal"
            return ErrorData(name="FunctionCancelledError", message=message)
        return ErrorData(name=type(cause).__name__, message=str(cause))
