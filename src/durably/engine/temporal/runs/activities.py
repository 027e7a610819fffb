"""Activities of runs: calls to apps, requests of steps, and local activities.

The requests are those of ``fetch`` and ``ai.infer``. The process that received the options of a request from the app
makes the request. Options may contain credentials, so they are in no history. They stay in the memory of the process,
and its own task queue gets the requests. If they are lost with the process, the run calls the app for them again.
"""

import asyncio
import datetime as dt
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import msgspec
from temporalio import activity
from temporalio.client import Client, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory, FailureError
from temporalio.service import RPCError, RPCStatusCode

from durably.engine.core.calls import Answer, CallData, ReportedOps, Unreached, failed
from durably.engine.core.inputs import CancelRequested, MakeRequest
from durably.engine.core.ops import REQUESTS
from durably.engine.model.requests import OutboundClient, perform
from durably.engine.temporal.apps import AppSync
from durably.engine.temporal.ids import app_generation, execution_of, run_workflow_id
from durably.engine.temporal.messages import (
    END,
    CallInput,
    CallResult,
    CheckpointInput,
    ContentPage,
    ContentRequest,
    MatchInput,
    MemosToCopy,
    RequestInput,
    RequestResult,
    result_of,
)
from durably.engine.temporal.routing.router import Router
from durably.engine.temporal.routing.workflows import MATCH, matching
from durably.engine.temporal.runs.call_slots import CallSlots
from durably.engine.temporal.runs.contents import CONTENTS, RunContent
from durably.engine.temporal.runs.sizes import MAX_OUTPUT_BYTES, FittedAnswer, fit_answer, size_of
from durably.engine.temporal.workflow_code import wall_clock
from durably.protocol.errors import ErrorData, error_message
from durably.protocol.opcodes import PARALLEL_MODE_OPT
from durably.protocol.text import get_logger

REQUEST = "durably.request"
_MAX_KEPT_BYTES = 128 * 1024 * 1024
CALL = "durably.call"
STEPS = "steps"
"""The signal with those steps of an answer that are sent ahead of it."""
CALL_RETURNED = "CallReturnedError"
"""The failure type of a call whose process stops."""
_MAX_UNREACHED_SECONDS = 66.0
"""Maximum pause between attempts to reach an app that is down. The first hour has at most 60 attempts, including the
quick first ones."""
_RETURN_DELAY = dt.timedelta(milliseconds=50)

_logger = get_logger("durably.engine")


@asynccontextmanager
async def heartbeats() -> AsyncIterator[None]:
    """Send a heartbeat after each half of the activity's timeout.

    Heartbeats are billed, and most calls are shorter.
    """
    timeout = activity.info().heartbeat_timeout
    assert timeout is not None
    task = asyncio.create_task(_send(timeout.total_seconds() / 2))
    try:
        yield
    finally:
        task.cancel()


async def _send(seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        activity.heartbeat()


class StepRequests:
    """The options of requests by run and step, and the activity that makes them.

    ``queue`` is the task queue of this process. The oldest options are dropped if all are too large. Dropped options
    are requested from the app again.
    """

    def __init__(self, queue: str, outbound: OutboundClient) -> None:
        self.queue = queue
        self._outbound = outbound
        self._opts: OrderedDict[tuple[str, str], tuple[dict[str, Any], int]] = OrderedDict()
        self._bytes = 0

    @property
    def activities(self) -> Sequence[Callable[..., Any]]:
        return [self.request]

    def keep(self, run_id: str, answer: Answer) -> tuple[Answer, bool]:
        """The answer without the options of its requests, and whether it has any."""
        if not isinstance(answer, ReportedOps) or all(op.op not in REQUESTS for op in answer.ops):
            return answer, False
        ops = []
        for op in answer.ops:
            if op.op in REQUESTS:
                self._put((run_id, op.id), op.opts or {})
                mode = op.parallel_mode
                op = msgspec.structs.replace(op, opts={PARALLEL_MODE_OPT: mode} if mode else None)
            ops.append(op)
        return msgspec.structs.replace(answer, ops=ops), True

    @activity.defn(name=REQUEST)
    async def request(self, request: RequestInput) -> RequestResult:
        key = request.run_id, request.step_id
        kept = self._opts.get(key)
        if kept is None:
            raise ApplicationError("the options of the request are lost", type="RequestLostError", non_retryable=True)
        command = MakeRequest(request.step_id, request.name, request.op, request.generation, 0, 0, None)
        async with heartbeats():
            finished = await perform(self._outbound, command, kept[0], MAX_OUTPUT_BYTES)
        if not finished.is_retriable and self._opts.get(key) is kept:
            self._drop(key)
        return RequestResult(msgspec.Raw(finished.memo), finished.failed, finished.is_retriable, finished.usage)

    def _put(self, key: tuple[str, str], opts: dict[str, Any]) -> None:
        self._drop(key)
        size = size_of(opts)
        self._opts[key] = opts, size
        self._bytes += size
        while self._bytes > _MAX_KEPT_BYTES and len(self._opts) > 1:
            self._drop(next(iter(self._opts)))

    def _drop(self, key: tuple[str, str]) -> None:
        dropped = self._opts.pop(key, None)
        if dropped is not None:
            self._bytes -= dropped[1]


class ActivityCaller(Protocol):
    """Makes calls to an app, in this process or over HTTP."""

    async def __call__(self, call: CallInput, data: CallData) -> Answer: ...


class CallActivities:
    """The activity that calls apps.

    It is separate from the others, because its task queue is that of the app. ``at_once`` limits the calls of the
    process.
    """

    def __init__(
        self, client: Client, call: ActivityCaller, requests: StepRequests, slots: CallSlots, at_once: asyncio.Semaphore
    ) -> None:
        self._client = client
        self._call = call
        self._requests = requests
        self._slots = slots
        self._at_once = at_once
        self._unreached: set[str] = set()

    @property
    def activities(self) -> Sequence[Callable[..., Any]]:
        return [self.call]

    @activity.defn(name=CALL)
    async def call(self, call: CallInput) -> CallResult:
        if self._slots.is_closed:
            # The function was not started, so the server gives the call to another worker with its generation.
            raise ApplicationError(
                "the process stops",
                type=CALL_RETURNED,
                next_retry_delay=_RETURN_DELAY,
                category=ApplicationErrorCategory.BENIGN,
            )
        try:
            async with heartbeats(), self._at_once:
                called_at = wall_clock()
                answer = await self._answer_of(call, await self._data_of(call))
                self._note_reached(call.app_id, answer)
                if isinstance(answer, Unreached):
                    raise _unreached(answer)
                answer, has_requests = self._requests.keep(call.run_id, answer)
                answer = await self._commit_steps(call, fit_answer(answer))
        except asyncio.CancelledError:
            if activity.is_worker_shutdown():
                # Another process makes the call, with a new generation: this process's function may still run.
                raise returned_call("the process stops") from None
            details = activity.cancellation_details()
            if details is not None and not details.cancel_requested:
                # No run waits for the call. It was cancelled, for example. Without this error the worker would log a
                # traceback.
                raise returned_call("the call's run has ended, or has given it up") from None
            raise
        result = result_of(answer, self._requests.queue if has_requests else None)
        return msgspec.structs.replace(result, called_at=called_at)

    async def _answer_of(self, call: CallInput, data: CallData) -> Answer:
        """The app's answer.

        An error of the caller is a failed attempt. Otherwise Temporal would repeat the activity, and with it the
        function, without an end.
        """
        try:
            return await self._call(call, data)
        except FailureError:
            raise
        except Exception as error:
            if self._slots.is_closed:
                raise
            _logger.exception("a call of run %s could not be made", call.run_id)
            reason = f"{type(error).__name__}: {error_message(error)}"
            return failed("CallFailedError", f"the call could not be made: {reason}")

    async def _commit_steps(self, call: CallInput, fitted: FittedAnswer) -> Answer:
        """Commit the steps of an answer that is too large for one payload.

        Returns the rest of the answer, or a failure if the run refuses the steps. If the server accepts no further
        Update, they are sent as signals: unlike an app, the run can see from the rest of the answer that they were
        refused.
        """
        run = self._run_of_activity(call)
        for steps in fitted.checkpoints:
            checkpoint = CheckpointInput(call.call.generation, steps)
            try:
                await run.execute_update("checkpoint", checkpoint)
            except RPCError as error:
                if error.status is not RPCStatusCode.FAILED_PRECONDITION:
                    raise
                await run.signal(STEPS, checkpoint)
            except WorkflowUpdateFailedError as error:
                cause = error.cause
                return failed(getattr(cause, "type", None) or "Error", getattr(cause, "message", ""), no_retry=True)
        return fitted.answer

    def _note_reached(self, app_id: str, answer: Answer) -> None:
        """Log once that an app does not answer, and once that it answers again."""
        if isinstance(answer, Unreached) and app_id not in self._unreached:
            self._unreached.add(app_id)
            _logger.warning("calls do not reach the app %r, and are repeated: %s", app_id, answer.error.message)
        elif not isinstance(answer, Unreached) and app_id in self._unreached:
            self._unreached.discard(app_id)
            _logger.warning("calls reach the app %r again", app_id)

    async def _data_of(self, call: CallInput) -> CallData:
        content = await self._content_of(call)
        memos = content.memos[: call.memos]
        given = content.step_input
        execution = execution_of(activity.info().workflow_run_id or "")
        return CallData(
            run_id=call.run_id,
            function_id=call.function_id,
            call=msgspec.structs.replace(call.call, generation=app_generation(call.call.generation, execution)),
            max_attempts=call.max_attempts,
            disable_immediate=call.disable_immediate,
            events=content.events,
            memos=memos,
            step_input=given if given is not None and all(step_id != given[0] for step_id, _ in memos) else None,
            defers=call.defers,
            traceparent=call.traceparent,
            parallel_steps=call.parallel_steps,
        )

    async def _content_of(self, call: CallInput) -> RunContent:
        key = activity.info().workflow_run_id
        assert key is not None, "calls are activities of runs"
        content = CONTENTS.find(key)
        if content is None or not content.begins_with(call.memos, call.digest):
            content = await self._fetch_content(call, content)
            CONTENTS.put(key, content)
        return content

    async def _fetch_content(self, call: CallInput, known: RunContent | None) -> RunContent:
        """The content of a call, based on this process's content if that fits."""
        if known is not None:
            # Copy it: the workflow's thread adds to its own content.
            content = await self._extend(call, known.copy())
            if content.begins_with(call.memos, call.digest):
                return content
        page = await self._query_content(call, 0)
        given = page.step_input
        step_input = None if given is None else (given.step_id, bytes(given.memo))
        content = RunContent([bytes(event) for event in page.events], step_input)
        content.add_all(page.memos)
        return await self._extend(call, content)

    async def _extend(self, call: CallInput, content: RunContent) -> RunContent:
        while len(content.memos) < call.memos:
            page = await self._query_content(call, len(content.memos))
            if not page.memos:
                raise ApplicationError(f"run {call.run_id} has fewer memos than its call", type="ContentMissingError")
            content.add_all(page.memos)
        return content

    async def _query_content(self, call: CallInput, after: int) -> ContentPage:
        try:
            return await read_content(self._run_of_activity(call), ContentRequest(after))
        except RPCError as error:
            # The process that executed the run has just stopped, for example. The server repeats the call.
            message = f"run {call.run_id}: its steps cannot be read now, and its call is repeated: {error}"
            _logger.warning("%s", message)
            raise ApplicationError(
                message, type="ContentUnreadableError", category=ApplicationErrorCategory.BENIGN
            ) from None

    def _run_of_activity(self, call: CallInput) -> WorkflowHandle[Any, Any]:
        run_id = activity.info().workflow_run_id
        return self._client.get_workflow_handle(run_workflow_id(call.run_id), run_id=run_id)


async def read_content(run: WorkflowHandle[Any, Any], request: ContentRequest) -> ContentPage:
    """A page of a run's memos. The run may have ended."""
    page: ContentPage = await run.query("content", request, result_type=ContentPage)
    return page


def returned_call(reason: str) -> ApplicationError:
    """The error after which a run repeats a call immediately. Workers do not log it."""
    return ApplicationError(reason, type=CALL_RETURNED, non_retryable=True, category=ApplicationErrorCategory.BENIGN)


def _unreached(answer: Unreached) -> ApplicationError:
    """The error after which the server repeats the call later.

    A repetition adds no events to the run's history.
    """
    return ApplicationError(
        answer.error.message or "",
        type=answer.error.name or "Unreached",
        next_retry_delay=dt.timedelta(seconds=unreached_seconds(activity.info().attempt)),
        category=ApplicationErrorCategory.BENIGN,  # The worker would log each repetition with a traceback.
    )


def unreached_seconds(attempt: int) -> float:
    """Seconds between an attempt to reach an app and the next one.

    The first attempt has the number 1.
    """
    return min(2.0 ** min(attempt - 1, 10), _MAX_UNREACHED_SECONDS)


CANCEL = "durably.cancel"
COPY_MEMOS = "durably.copy_memos"
READ_END = "durably.read_end"
LOCAL_TIMEOUT = dt.timedelta(seconds=10)
CANCELLED_BY_TEMPORAL = ErrorData(name="FunctionCancelledError", message=CancelRequested().reason)


class LocalActivities:
    """Activities by which workflows use the router, and reach other runs.

    Each costs one event of history.
    """

    def __init__(self, client: Client, router: Router, apps: AppSync) -> None:
        self._client = client
        self._router = router
        self._apps = apps

    @property
    def activities(self) -> Sequence[Callable[..., Any]]:
        router, waits = self._router, self._router.waits
        return [
            router.finish_delivery,
            router.send_internal,
            router.resolve_invocation,
            waits.register,
            waits.register_signal,
            waits.leave,
            self._apps.apply,
            self.match,
            self.cancel,
            self.read_end,
            self.copy_memos,
        ]

    @activity.defn(name=MATCH)
    async def match(self, wanted: MatchInput) -> list[int]:
        return await asyncio.to_thread(matching, wanted, wall_clock())

    @activity.defn(name=CANCEL)
    async def cancel(self, workflow_id: str) -> None:
        """Cancel a run that has cancelled itself, so that Temporal shows it as cancelled."""
        await self._client.get_workflow_handle(workflow_id).cancel()

    @activity.defn(name=READ_END)
    async def read_end(self, run_id: str) -> ErrorData:
        """The error of a cancelled run."""
        described = await self._client.get_workflow_handle(run_workflow_id(run_id)).describe()
        error: ErrorData = await described.memo_value(END, CANCELLED_BY_TEMPORAL, type_hint=ErrorData)
        return error

    @activity.defn(name=COPY_MEMOS)
    async def copy_memos(self, wanted: MemosToCopy) -> ContentPage:
        page = await read_content(self._client.get_workflow_handle(run_workflow_id(wanted.run_id)), wanted.request)
        return msgspec.structs.replace(page, events=[], step_input=None)
