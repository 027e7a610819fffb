"""Spans of calls, and of runs at their ends.

Calls are activities, so their spans have nothing to do with replays. Workflows report the ends of runs.
"""

import msgspec
from temporalio import activity, workflow

from durably.engine.core.answers import Answer
from durably.engine.core.call_body import CallData
from durably.engine.core.inputs import EndRun
from durably.engine.core.run_state import RunStatus
from durably.engine.temporal.ids import execution_of
from durably.engine.temporal.messages import CallInput, RunInput
from durably.engine.temporal.runs.activities import Caller
from durably.engine.temporal.workflow_time import now
from durably.engine.tracing import EndedRun, Tracing
from durably.protocol.errors import ErrorData

from .process_reports import ProcessReports

ENDS = ProcessReports[EndedRun]()


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


def note_end(run: RunInput, end: EndRun) -> None:
    """Report the end of a run, unless its workflow is replayed. Workflow code."""
    report = ENDS.listener
    if report is None:
        return
    is_completed = end.status is RunStatus.COMPLETED
    report(
        EndedRun(
            run_id=run.run_id,
            function_id=run.function_id,
            app_id=run.app_id,
            status=end.status,
            created_at=int(workflow.info().start_time.timestamp() * 1000),
            ended_at=now(),
            traceparents=tuple(event.traceparent for event in run.events),
            rerun_of=run.rerun_of,
            error=None if is_completed else msgspec.json.decode(end.output, type=ErrorData).name,
        )
    )
