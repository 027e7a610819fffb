"""Calls and requests of a run, as activities.

Everything here is workflow code.
"""

import asyncio
import datetime as dt
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, TimeoutError, TimeoutType

from durably.engine.core.calls import Answer, AttemptFailed, Unreached, parallel_steps_of
from durably.engine.core.inputs import Answered, MakeCall, MakeRequest, RequestFinished, RequestLost
from durably.engine.core.ops import REQUESTS
from durably.engine.core.run_state import Call
from durably.engine.temporal.ids import CALL_ID_PREFIX
from durably.engine.temporal.messages import CallInput, CallResult, OpsResult, RequestInput, RequestResult, answer_of
from durably.engine.temporal.runs.activities import CALL, CALL_RETURNED, REQUEST
from durably.engine.temporal.runs.context import RunContext, stop
from durably.engine.temporal.workflow_code import now
from durably.protocol.engine_errors import StaleCallError
from durably.protocol.errors import ErrorData

_CALL_RESULT: Any = CallResult
_HEARTBEAT_TIMEOUT = dt.timedelta(seconds=20)
_REQUEST_TIMEOUT = dt.timedelta(minutes=11)
"""Longer than the timeout of a request."""
_PICK_UP_TIMEOUT = dt.timedelta(seconds=30)
"""Time within which the process that has the options of a request begins it. After it, the process counts as ended."""

_CALL_RETRIES = RetryPolicy(
    initial_interval=dt.timedelta(seconds=1),
    maximum_interval=dt.timedelta(minutes=1),
    backoff_coefficient=2,
    non_retryable_error_types=["TemporalTimeout:Heartbeat", "TemporalTimeout:StartToClose"],
)
"""Temporal does not repeat calls after a worker's timeout: the next call needs its own generation."""
_ONCE = RetryPolicy(maximum_attempts=1)


class RunCalls:
    """The current and pending calls of a run, and its requests."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._lost_before: set[str] = set()
        """Targets of calls whose worker was lost, until one is answered."""
        self._request_queues: dict[str, str] = {}

    def make(self, command: MakeCall) -> None:
        self._tasks[command.call.generation] = self._context.spawn(self._call, command.call)

    def stop_given_up(self) -> None:
        """Stop calls that the run no longer waits for."""
        outstanding = {call.generation for call in self._context.state.calls}
        for generation in [each for each in self._tasks if each not in outstanding]:
            stop(self._tasks.pop(generation))

    def make_request(self, command: MakeRequest) -> asyncio.Task[None]:
        return self._context.spawn(self._request, command)

    async def _call(self, call: Call) -> None:
        if call.due > now():
            function_id = self._context.run.function_id
            await workflow.sleep((call.due - now()) / 1000, summary=f"retry of {call.name or function_id}")
        while self._context.registrations:
            await workflow.wait([*self._context.registrations])
        if call.generation not in self._tasks:
            return
        flow = self._context.flow
        try:
            await flow.acquire(call.generation)
            answer, called_at = await self._execute(call)
            if self._tasks.pop(call.generation, None) is not None:
                known = self._context.known(getattr(answer, "ops", ()), call.step_id)
                self._context.apply(Answered(call.generation, answer, known, called_at))
        except StaleCallError:
            workflow.logger.debug("the answer of a call that was given up")
        except (Exception, asyncio.CancelledError):  # No ``finally``: a workflow that leaves the cache sends nothing.
            flow.release(call.generation)
            raise
        flow.release(call.generation)  # After the next call has joined the queue, so that one change has both.

    async def _execute(self, call: Call) -> tuple[Answer, int | None]:
        """The answer, and the start time of the call if it is known."""
        run, state = self._context.run, self._context.state
        self._context.share_content()
        call_input = CallInput(
            run_id=run.run_id,
            function_id=run.function_id,
            app_id=run.app_id,
            call=call,
            max_attempts=state.max_attempts,
            disable_immediate=state.disable_immediate,
            memos=len(self._context.content.memos),
            digest=self._context.content.digest,
            defers=state.defers,
            traceparent=self._context.triggers[0].traceparent,
            parallel_steps=parallel_steps_of(
                call,
                disable_immediate=state.disable_immediate,
                has_limits=self._context.flow.has_limits,
                room=run.policy.max_steps - state.memos,
            ),
        )
        try:
            result: CallResult = await workflow.execute_activity(
                CALL,
                call_input,
                result_type=_CALL_RESULT,
                task_queue=run.calls_queue,
                start_to_close_timeout=dt.timedelta(milliseconds=run.policy.call_timeout),
                heartbeat_timeout=_HEARTBEAT_TIMEOUT,
                retry_policy=_CALL_RETRIES,
                summary=_summary(call),
                activity_id=f"{CALL_ID_PREFIX}{call.generation}",
            )
        except ActivityError as error:
            return self._answer_of_failure(call, error), None
        self._lost_before.discard(call.step_id)
        if isinstance(result, OpsResult) and result.requests_queue is not None:
            self._request_queues.update({op.id: result.requests_queue for op in result.ops if op.op in REQUESTS})
        return answer_of(result), result.called_at

    def _answer_of_failure(self, call: Call, error: ActivityError) -> Answer:
        """The answer of a call whose activity has failed.

        The next call has another generation, so that the worker's checkpoints are refused if it continues. A second
        lost worker counts as a failed attempt: the function may be crashing its workers.
        """
        cause = error.cause
        if isinstance(cause, ApplicationError) and cause.type == CALL_RETURNED:
            return Unreached(ErrorData(name=CALL_RETURNED, message=cause.message))
        if not isinstance(cause, TimeoutError):
            raise error
        if cause.type is TimeoutType.START_TO_CLOSE:
            message = f"the function {self._context.run.function_id!r} did not answer in time"
            return AttemptFailed(ErrorData(name="CallTimeoutError", message=message))
        message = "the process that executed the call sent no heartbeat: it has ended, or does not respond"
        lost = ErrorData(name="WorkerLostError", message=message)
        if call.step_id not in self._lost_before:
            self._lost_before.add(call.step_id)
            return Unreached(lost)
        return AttemptFailed(lost, retry_at=now())

    async def _request(self, command: MakeRequest) -> None:
        if command.scheduled_at > now():
            await workflow.sleep((command.scheduled_at - now()) / 1000, summary=f"retry of {command.name}")
        request = RequestInput(
            run_id=self._context.run.run_id,
            step_id=command.step_id,
            name=command.name,
            op=command.op,
            generation=command.generation,
        )
        try:
            result: RequestResult = await workflow.execute_activity(
                REQUEST,
                request,
                result_type=RequestResult,
                task_queue=self._request_queues[command.step_id],
                schedule_to_start_timeout=_PICK_UP_TIMEOUT,
                start_to_close_timeout=_REQUEST_TIMEOUT,
                heartbeat_timeout=_HEARTBEAT_TIMEOUT,
                retry_policy=_ONCE,
                summary=command.name,
            )
        except ActivityError:
            # The process that had the options has ended.
            self._context.apply(RequestLost(command.step_id, command.generation))
            return
        self._context.apply(
            RequestFinished(
                command.step_id,
                command.generation,
                bytes(result.memo),
                result.failed,
                result.is_retriable,
                result.usage,
            )
        )


def _summary(call: Call) -> str:
    """The text of Temporal's UI for a call, which has at most 200 bytes."""
    text = call.name or "find steps"
    if call.attempt:
        text += f", attempt {call.attempt + 1}"
    return text
