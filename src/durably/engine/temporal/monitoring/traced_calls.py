"""Spans of calls.

Calls are activities, so their spans have nothing to do with replays.
"""

import msgspec
from temporalio import activity

from durably.engine.core.answers import Answer
from durably.engine.core.call_body import CallData
from durably.engine.temporal.ids import execution_of
from durably.engine.temporal.runs.activities import Caller
from durably.engine.temporal.runs.call_messages import CallInput
from durably.engine.tracing import Tracing


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
