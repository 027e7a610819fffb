"""An event that leads to several workflows: it is brought to all of them, however often processes end."""

import datetime as dt

from temporalio import workflow

from .messages import EventRecord

DELIVER = "durably.deliver"


@workflow.defn(name="durably.Event", sandboxed=False)
class EventWorkflow:
    @workflow.run
    async def run(self, event: EventRecord) -> None:
        await workflow.execute_local_activity(DELIVER, event, start_to_close_timeout=dt.timedelta(seconds=30))
