"""The fan-out of an event to several workflows.

The event reaches all of them, even if processes end in between.
"""

import datetime as dt

from temporalio import workflow

from .messages import EventRecord

DELIVER = "durably.deliver"


@workflow.defn(name="durably.Event", sandboxed=False)
class EventWorkflow:
    @workflow.run
    async def run(self, event: EventRecord) -> None:
        await workflow.execute_local_activity(DELIVER, event, start_to_close_timeout=dt.timedelta(seconds=30))
