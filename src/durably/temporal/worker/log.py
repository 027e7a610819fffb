"""The log of a worker.

It has the start and the end of each workflow run, and failed attempts of activities.

The message is readable text. The same facts are fields of the record (``extra``) for structlog and JSON formatters.
Replays log nothing.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from temporalio import activity, workflow
from temporalio.exceptions import ApplicationError, is_cancelled_exception
from temporalio.worker import (
    ActivityInboundInterceptor,
    ExecuteActivityInput,
    ExecuteWorkflowInput,
    Interceptor,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowOutboundInterceptor,
)

from durably.protocol.text import get_logger
from durably.temporal.errors import scrub
from durably.temporal.request_log import read_request_id, web_request, with_request_id

workflow_logger = get_logger("durably.temporal.workflows")
activity_logger = get_logger("durably.temporal.activities")

MAXIMUM_MESSAGE = 500
"""Maximum characters of an error's text in a line of the log."""


class LogInterceptor(Interceptor):
    """The first interceptor of every worker of ``Workers``."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _LoggedActivity(next)

    def workflow_interceptor_class(self, input: WorkflowInterceptorClassInput) -> type[WorkflowInboundInterceptor]:
        return _LoggedWorkflow


class _LoggedWorkflow(WorkflowInboundInterceptor):
    def init(self, outbound: WorkflowOutboundInterceptor) -> None:
        super().init(_Outbound(outbound))

    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:
        _log_workflow(logging.INFO, "started")
        try:
            result = await super().execute_workflow(input)
        except workflow.ContinueAsNewError:
            _log_workflow(logging.INFO, "continued_as_new")
            raise
        except (Exception, asyncio.CancelledError) as error:
            if is_cancelled_exception(error) and workflow.cancellation_reason() is not None:
                _log_workflow(logging.INFO, "cancelled")
            elif isinstance(error, Exception) and workflow.is_failure_exception(error):
                _log_workflow(logging.ERROR, "failed", error)
            # Any other error fails the workflow task. It is repeated, and the SDK logs it.
            raise
        _log_workflow(logging.INFO, "completed")
        return result


def _log_workflow(level: int, outcome: str, error: BaseException | None = None) -> None:
    # A run that leaves the worker's cache is cancelled, and counts as replaying.
    if workflow.unsafe.is_replaying() or not workflow_logger.isEnabledFor(level):
        return
    info = workflow.info()
    fields: dict[str, Any] = {
        "workflow_type": info.workflow_type,
        "workflow_id": info.workflow_id,
        "run_id": info.run_id,
        "task_queue": info.task_queue,
        "attempt": info.attempt,
        "request_id": read_request_id(info.headers),
        "outcome": outcome,
    }
    text = outcome.replace("_", " ")
    if outcome != "started":
        duration = (workflow.now() - info.start_time).total_seconds()
        fields["duration_seconds"] = round(duration, 3)
        text += f" after {duration:.3f} s"
    about = f"workflow {info.workflow_type} {text}: id {info.workflow_id}, run {info.run_id}"
    with workflow.unsafe.sandbox_unrestricted(), workflow.unsafe.imports_passed_through():
        _log(workflow_logger, level, about, fields, error)


def _log(logger: logging.Logger, level: int, text: str, fields: dict[str, Any], error: BaseException | None) -> None:
    if fields["request_id"] is not None:
        text += f", request {fields['request_id']}"
    if error is not None:
        cause = error
        while cause.__cause__ is not None:  # The error of an activity only reports that it failed.
            cause = cause.__cause__
        fields["error_type"] = _type(cause)
        fields["error"] = scrub(str(getattr(cause, "message", "") or cause))[:MAXIMUM_MESSAGE]
        text += f": {fields['error_type']}: {fields['error']}"
    logger.log(level, "%s", text, extra={"fields": fields, **fields})


def _type(error: BaseException) -> str:
    return (isinstance(error, ApplicationError) and error.type) or type(error).__name__


class _Outbound(WorkflowOutboundInterceptor):
    """Passes the request's id on to the activities and workflows that the workflow starts."""


def _passing_on(name: str) -> Callable[[_Outbound, Any], Any]:
    def call(self: _Outbound, input: Any) -> Any:
        input.headers = with_request_id(input.headers, read_request_id(workflow.info().headers))
        return getattr(self.next, name)(input)

    return call


for _name in ("start_activity", "start_local_activity", "start_child_workflow", "continue_as_new"):
    setattr(_Outbound, _name, _passing_on(_name))


class _LoggedActivity(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        start, id = time.monotonic(), read_request_id(input.headers)
        with web_request(id):
            try:
                return await super().execute_activity(input)
            except asyncio.CancelledError:
                _log_activity(logging.INFO, "cancelled", id, start)
                raise
            except Exception as error:
                if is_cancelled_exception(error):
                    _log_activity(logging.INFO, "cancelled", id, start)
                else:
                    _log_activity(logging.ERROR if _is_last(error) else logging.WARNING, "failed", id, start, error)
                raise


def _is_last(error: Exception) -> bool:
    """Whether the activity's retry policy allows no further attempt.

    The answer is as far as the worker knows.
    """
    policy = activity.info().retry_policy
    if isinstance(error, ApplicationError) and error.non_retryable:
        return True
    if policy is None:
        return False
    if 0 < policy.maximum_attempts <= activity.info().attempt:
        return True
    return _type(error) in (policy.non_retryable_error_types or ())


def _log_activity(level: int, outcome: str, id: str | None, start: float, error: BaseException | None = None) -> None:
    info = activity.info()
    duration = time.monotonic() - start
    fields: dict[str, Any] = {
        "activity_type": info.activity_type,
        "activity_id": info.activity_id,
        "workflow_type": info.workflow_type,
        "workflow_id": info.workflow_id,
        "run_id": info.workflow_run_id,
        "task_queue": info.task_queue,
        "attempt": info.attempt,
        "request_id": id,
        "outcome": outcome,
        "duration_seconds": round(duration, 3),
    }
    text = f"activity {info.activity_type} {outcome} after {duration:.3f} s in attempt {info.attempt}: "
    text += f"workflow {info.workflow_type}, id {info.workflow_id}, run {info.workflow_run_id}"
    _log(activity_logger, level, text, fields, error)
