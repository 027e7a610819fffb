"""A run as a workflow.

It keeps the run state, and executes the commands of the run machine. Calls are in ``calls.py``, waits in ``waits.py``.

No user code runs here, so there is no sandbox. Everything in this file is workflow code: a change must replay the
histories of released versions (see CONTRIBUTING.md).
"""

import asyncio
import datetime as dt

import msgspec
from temporalio import workflow
from temporalio.exceptions import ApplicationError

from durably.engine.core.backoff import standard_backoff, unreached_backoff
from durably.engine.core.flow.admission import FINISHED_LATE
from durably.engine.core.flow.config import deadline
from durably.engine.core.inputs import (
    AbortDeferred,
    AwaitEvent,
    AwaitSignal,
    CancelRequested,
    Checkpointed,
    CloseWait,
    Command,
    Defer,
    EndRun,
    Input,
    Invoke,
    MakeCall,
    MakeRequest,
    RefuseDeferred,
    Sleep,
    WaitResolved,
    WriteMemo,
)
from durably.engine.core.machine import advance
from durably.engine.core.run_state import Policy, RunStatus, origin_of
from durably.engine.core.transition import encode_error
from durably.engine.model.events import RunResult, deferred_data, run_end_events
from durably.engine.model.runs import Progress
from durably.engine.temporal.ids import execution_of
from durably.engine.temporal.messages import (
    END,
    PROGRESS,
    CheckpointInput,
    ContentPage,
    ContentRequest,
    Delivery,
    InternalEvents,
    MemoRecord,
    MemosToCopy,
    RunInput,
    RunPolicy,
    chain_after,
)
from durably.engine.temporal.observers import RunChanges
from durably.engine.temporal.routing.router import SEND
from durably.engine.temporal.runs.activities import CANCEL, COPY_MEMOS, LOCAL_TIMEOUT, STEPS
from durably.engine.temporal.runs.calls import RunCalls
from durably.engine.temporal.runs.context import RunContext
from durably.engine.temporal.runs.record import (
    RecordPage,
    RunRecord,
    StepsPage,
    steps_page,
)
from durably.engine.temporal.runs.sizes import (
    MAX_HISTORY_BYTES,
    MAX_HISTORY_EVENTS,
    MAX_OUTPUT_BYTES,
    MAX_SIGNALS,
    fit_end_event,
)
from durably.engine.temporal.runs.waits import RUN, RunWaits
from durably.engine.temporal.workflow_code import now
from durably.protocol.engine_errors import EngineError, StaleCallError
from durably.protocol.errors import ErrorData
from durably.protocol.events import InternalEvent

_COPY_TIMEOUT = dt.timedelta(minutes=1)
_MILLISECOND = dt.timedelta(milliseconds=1)


@workflow.defn(name=RUN, sandboxed=False)
class RunWorkflow:
    @workflow.init
    def __init__(self, run: RunInput) -> None:
        self._run = run
        self._context = RunContext(run, self._apply)
        self._calls = RunCalls(self._context)
        self._waits = RunWaits(self._context)
        self._policy = _make_policy(run.policy)
        self._deferred: dict[str, Defer] = {}
        """Functions to start at the end, and their data, by step."""
        self._end: EndRun | None = None
        self._is_cancelled = False
        self._signals = 0
        self._record = RunRecord(run.run_id)
        self._changes = RunChanges(run, self._record)

    @workflow.run
    async def run(self, run: RunInput) -> msgspec.Raw:
        """The function's return value. A failed run fails with its error."""
        try:
            if run.outcome is not None:
                self._end_at_once(run.outcome.status, run.outcome.error)
            else:
                await self._begin()
            await workflow.wait_condition(lambda: self._end is not None or self._context.error is not None)
        except asyncio.CancelledError:
            self._is_cancelled = True
            self._cancel(CancelRequested(workflow.cancellation_reason() or CancelRequested().reason))
        if self._end is None:
            assert self._context.error is not None
            raise self._context.error
        await self._conclude(self._end)
        return self._result_of(self._end)

    async def _begin(self) -> None:
        self._changes.note_start()
        if self._run.copied is not None:
            await self._copy_memos(self._run.copied.run_id, self._run.copied.memos)
        if self._run.finish_timeout is not None:
            self._context.spawn(self._end_late)
        for call in self._context.state.calls:
            self._calls.make(MakeCall(call))

    async def _copy_memos(self, run_id: str, count: int) -> None:
        content = self._context.content
        while len(content.memos) < count:
            request = MemosToCopy(run_id, ContentRequest(len(content.memos), count, has_steps=True))
            page: ContentPage = await workflow.execute_activity(
                COPY_MEMOS,
                request,
                result_type=ContentPage,
                start_to_close_timeout=_COPY_TIMEOUT,
                summary=f"steps of {run_id}",
            )
            self._record.copy(page.steps)
            for memo in page.memos:
                self._context.add_memo(memo.step_id, bytes(memo.memo))

    async def _end_late(self) -> None:
        """Cancel the run at its finish timeout.

        The timeout begins with the first call if that has to queue.
        """
        await workflow.wait_condition(lambda: self._context.flow.has_started)
        finish_by = deadline(self._run.finish_timeout, now())
        if finish_by is None:
            return
        await workflow.sleep(max(finish_by - now(), 1) / 1000, summary="timeouts.finish")
        self._apply(CancelRequested(FINISHED_LATE))

    # messages

    @workflow.update(name="checkpoint")
    def _checkpoint(self, checkpoint: CheckpointInput) -> None:
        self._apply(self._checkpointed(checkpoint))

    @_checkpoint.validator
    def _check_checkpoint(self, checkpoint: CheckpointInput) -> None:
        """Refuse a checkpoint that the machine refuses.

        Validators are not replayed, so this draws no random number, and may use the id of the execution.
        """
        if checkpoint.execution not in (0, execution_of(workflow.info().run_id)):
            raise StaleCallError("the call is stale: its run was reset in Temporal")
        policy = msgspec.structs.replace(self._policy, retry_delay=lambda _: 0, unreached_delay=lambda _: 0)
        advance(self._context.state, self._checkpointed(checkpoint), now(), policy)

    def _checkpointed(self, checkpoint: CheckpointInput) -> Checkpointed:
        known = self._context.known(checkpoint.steps)
        return Checkpointed(checkpoint.generation, checkpoint.steps, known, checkpoint.called_at)

    @workflow.signal(name=STEPS)
    def _take_steps(self, checkpoint: CheckpointInput) -> None:
        """Apply steps of a large answer.

        The answer has the same generation, so it is stale if they are.
        """
        try:
            self._apply(self._checkpointed(checkpoint))
        except StaleCallError:
            workflow.logger.debug("steps of a call that was given up")
        except EngineError as error:
            self._end_at_once(RunStatus.FAILED, ErrorData(name=type(error).__name__, message=error.message))
        self._check_signals()

    @workflow.signal(name="deliver")
    def _deliver(self, delivery: Delivery) -> None:
        self._waits.deliver(delivery)
        self._check_signals()

    @workflow.signal(name="resolve")
    def _resolve(self, resolved: WaitResolved) -> None:
        self._waits.resolve(resolved)
        self._check_signals()

    @workflow.signal(name="cancel")
    def _cancel(self, request: CancelRequested) -> None:
        self._apply(request)

    @workflow.signal(name="granted")
    def _granted(self, generation: int) -> None:
        self._context.flow.grant(generation)
        self._check_signals()

    @workflow.signal(name=PROGRESS)
    def _note_progress(self, progress: Progress) -> None:
        if self._end is None:
            workflow.upsert_memo({PROGRESS: progress})
            self._check_signals()

    @workflow.query(name="content")
    def _read_content(self, request: ContentRequest) -> ContentPage:
        content, after = self._context.content, request.after
        end = content.page(after, request.until)
        memos = [MemoRecord(step_id, msgspec.Raw(memo)) for step_id, memo in content.memos[after:end]]
        steps = self._record.steps[after:end] if request.has_steps else ()
        shown = [msgspec.structs.replace(step, arguments=None) for step in steps]
        page = ContentPage(len(content.memos), memos, steps=shown)
        if after:
            return page
        given = (
            None
            if content.step_input is None
            else MemoRecord(content.step_input[0], msgspec.Raw(content.step_input[1]))
        )
        return msgspec.structs.replace(page, events=[msgspec.Raw(event) for event in content.events], step_input=given)

    # reports

    @workflow.query(name="record")
    def _read_record(self, after: int) -> RecordPage:
        return self._record.page(self._context.state, after)

    @workflow.query(name="steps")
    def _read_steps(self, after: int) -> StepsPage:
        return steps_page(self._record.steps, self._context.content.memos, after)

    # the machine

    def _apply(self, run_input: Input) -> None:
        """Apply an input, and execute the commands.

        Raises ``StaleCallError`` and the errors of checkpoints.
        """
        context, before = self._context, self._context.state
        context.state, commands = advance(before, run_input, now(), self._policy)
        self._record.note(before, run_input, commands, now())
        self._changes.note(commands)
        self._calls.stop_given_up()
        for command in commands:
            self._execute(command)
        self._check_history()

    def _check_history(self) -> None:
        """Fail a run whose history is near the limits of the server.

        At the limits the server terminates it.
        """
        info = workflow.info()
        events, size = info.get_current_history_length(), info.get_current_history_size()
        if self._end is not None or (events < MAX_HISTORY_EVENTS and size < MAX_HISTORY_BYTES):
            return
        message = (
            f"the run's history in Temporal has {events} events and {size} bytes; at most {MAX_HISTORY_EVENTS} and "
            f"{MAX_HISTORY_BYTES} are allowed: do more in each step, buffer steps, or spread the work over several "
            "runs"
        )
        self._end_at_once(RunStatus.FAILED, ErrorData(name="HistoryTooLargeError", message=message))

    def _check_signals(self) -> None:
        """Fail a run that is near the limit of signals.

        Otherwise it would silently lose events.
        """
        self._signals += 1
        self._check_history()
        if self._end is not None or self._signals < MAX_SIGNALS:
            return
        message = (
            f"the run got {self._signals} events, signals and slots, and Temporal allows few more: spread the work "
            "over several runs"
        )
        self._end_at_once(RunStatus.FAILED, ErrorData(name="TooManySignalsError", message=message))

    def _end_at_once(self, status: RunStatus, error: ErrorData) -> None:
        """End the run for a reason that the machine does not know."""
        self._context.state = msgspec.structs.replace(self._context.state, status=status, calls=(), waits=())
        self._calls.stop_given_up()
        self._end_run(EndRun(status, encode_error(error), by_engine=status is RunStatus.FAILED))

    def _execute(self, command: Command) -> None:
        match command:
            case MakeCall():
                self._calls.make(command)
            case WriteMemo(step_id=step_id, memo=memo):
                self._context.add_memo(step_id, memo)
            case Sleep():
                self._waits.sleep(command)
            case AwaitEvent():
                self._waits.await_event(command)
            case AwaitSignal():
                self._waits.await_signal(command)
            case Invoke():
                self._waits.invoke(command)
            case MakeRequest():
                self._waits.add(command.step_id, self._calls.make_request(command))
            case CloseWait(step_id=step_id):
                self._waits.close(step_id)
            case Defer(step_id=step_id):
                self._deferred[step_id] = command
            case AbortDeferred(step_id=step_id):
                self._deferred.pop(step_id, None)
            case RefuseDeferred(name=name, reason=reason):
                message = "run %s cannot defer %r: %s; it continues without"
                workflow.logger.warning(message, self._run.run_id, name, reason)
            case EndRun():
                self._end_run(command)

    def _end_run(self, command: EndRun) -> None:
        self._end = command
        self._waits.stop_all()

    # the end

    async def _conclude(self, end: EndRun) -> None:
        """Report the end, even if the workflow is cancelled during the report."""
        concluding = asyncio.create_task(self._report_end(end))
        while not concluding.done():
            try:
                await asyncio.shield(concluding)
            except asyncio.CancelledError:
                self._is_cancelled = True
        await concluding
        self._context.forget_content()
        self._changes.note_end(end)
        if end.status is RunStatus.CANCELLED and not self._is_cancelled:
            # Otherwise the workflow would not end as a cancelled one.
            await workflow.execute_local_activity(
                CANCEL, workflow.info().workflow_id, start_to_close_timeout=LOCAL_TIMEOUT
            )
            await workflow.wait_condition(lambda: False)

    async def _report_end(self, end: EndRun) -> None:
        await workflow.wait_condition(workflow.all_handlers_finished)
        await self._context.flow.end(end)
        await self._waits.leave_all()
        if end.status is RunStatus.CANCELLED:
            workflow.upsert_memo({END: msgspec.Raw(end.output)})
        events = self._end_events(end)
        if events:
            trigger = self._context.triggers[0]
            sent = InternalEvents(
                run_id=self._run.run_id,
                at=now(),
                events=events,
                origin=origin_of(0, trigger.origin, now()),
                traceparent=trigger.traceparent,
                chain=chain_after(self._run),
            )
            await workflow.execute_local_activity(SEND, sent, start_to_close_timeout=LOCAL_TIMEOUT)

    def _end_events(self, end: EndRun) -> list[tuple[str, msgspec.Raw, dict[str, str]]]:
        """The events about the run's end, and those that start deferred functions."""
        run, output = self._run, end.output
        if end.status is RunStatus.SKIPPED:
            return []
        if end.status is not RunStatus.COMPLETED:
            # A run keeps its error as the app wrote it. In events, nulls are omitted as by official servers.
            output = encode_error(msgspec.json.decode(output, type=ErrorData))
        result = RunResult(run.run_id, run.function_id, end.status, output)
        events: list[tuple[str, msgspec.Raw, dict[str, str]]] = []
        for name, data in run_end_events(result, self._context.triggers):
            fitted, omitted = fit_end_event(data)
            if omitted:
                message = "run %s: the event %r is too large with %s, which it omits"
                workflow.logger.warning(message, run.run_id, name.value, ", ".join(omitted))
            events.append((name.value, msgspec.Raw(fitted), {}))
        for deferred in self._deferred.values():
            data = deferred_data(deferred.data, deferred.function_id, run.run_id, run.function_id)
            events.append((InternalEvent.DEFERRED_SCHEDULE.value, msgspec.Raw(data), deferred.sessions))
        return events

    def _result_of(self, end: EndRun) -> msgspec.Raw:
        if end.status in (RunStatus.COMPLETED, RunStatus.SKIPPED):
            return msgspec.Raw(end.output)
        error = msgspec.json.decode(end.output, type=ErrorData)
        if end.status is RunStatus.CANCELLED:
            raise asyncio.CancelledError(error.message)
        raise ApplicationError(
            error.message or "", msgspec.Raw(end.output), type=error.name or "Error", non_retryable=True
        )


def _make_policy(run_policy: RunPolicy) -> Policy:
    def retry_delay(attempt: int) -> int:
        jitter = workflow.random().random()
        if not run_policy.retry_delays:
            return standard_backoff(attempt, jitter) // _MILLISECOND
        least, spread = run_policy.retry_delays[min(attempt, len(run_policy.retry_delays) - 1)]
        return least + round(spread * jitter)

    def unreached_delay(failures: int) -> int:
        """Delay of the next call. It is 0 after a lost worker, or one that stops."""
        return unreached_backoff(failures, workflow.random().random()) // _MILLISECOND if failures else 0

    return Policy(
        retry_delay=retry_delay,
        unreached_delay=unreached_delay,
        max_steps=run_policy.max_steps,
        max_depth=run_policy.max_depth,
        max_step_output_bytes=MAX_OUTPUT_BYTES,
    )
