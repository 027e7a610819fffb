"""Spans of calls, and of runs at their ends.

Calls are activities, so their spans have nothing to do with replays. Workflows report the ends of runs, and have no
other access to their process than a module.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable

import msgspec
from temporalio import activity, workflow

from durably.engine.core.answers import Answer
from durably.engine.core.call_body import CallData
from durably.engine.core.inputs import EndRun
from durably.engine.core.run_state import RunStatus
from durably.engine.temporal.ids import execution_of
from durably.engine.temporal.messages import CallInput, RunInput
from durably.engine.temporal.workflow_time import now
from durably.engine.tracing import EndedRun, Tracing
from durably.protocol.errors import ErrorData

from .activities import Caller

_reports: dict[str, Callable[[EndedRun], None]] = {}
"""Functions that report ends of runs, by the task queue of the runs."""


class TracedCaller:
    """Makes the calls of activities through another caller, each in a span of its own."""

    def __init__(self, caller: Caller, tracing: Tracing) -> None:
        self._caller = caller
        self._tracing = tracing

    async def __call__(self, call: CallInput, data: CallData) -> Answer:
        info = activity.info()
        known = msgspec.structs.replace(data, call=call.call)
        execution = execution_of(info.workflow_run_id or "")
        with self._tracing.calling(known, execution=execution, repetition=info.attempt - 1) as span:
            answer = await self._caller(call, msgspec.structs.replace(data, traceparent=span.traceparent))
            span.answered(answer)
            return answer


def report_ends(queues: Iterable[str], tracing: Tracing | None) -> None:
    """Report the runs that end in workflows of these task queues.

    Reports are made on the running event loop.
    """
    if tracing is None:
        for queue in queues:
            _reports.pop(queue, None)
        return
    loop, run_ended = asyncio.get_running_loop(), tracing.run_ended

    def report(ended: EndedRun) -> None:
        with contextlib.suppress(RuntimeError):  # The event loop is closed: the process stops.
            loop.call_soon_threadsafe(run_ended, ended)

    _reports.update(dict.fromkeys(queues, report))


def note_end(run: RunInput, end: EndRun) -> None:
    """Report the end of a run, unless its workflow is replayed. Workflow code."""
    info = workflow.info()
    report = _reports.get(info.task_queue)
    if report is None or workflow.unsafe.is_replaying():
        return
    is_completed = end.status is RunStatus.COMPLETED
    report(
        EndedRun(
            run_id=run.run_id,
            function_id=run.function_id,
            app_id=run.app_id,
            status=end.status,
            created_at=int(info.start_time.timestamp() * 1000),
            ended_at=now(),
            traceparents=tuple(event.traceparent for event in run.events),
            rerun_of=run.rerun_of,
            error=None if is_completed else msgspec.json.decode(end.output, type=ErrorData).name,
        )
    )
