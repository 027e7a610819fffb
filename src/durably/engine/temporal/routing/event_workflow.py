"""The fan-out of an event to several workflows.

The sender delivers the event, and reports that. If it does not, for example because its process ended, the workflow
delivers the event when it begins, after a delay.
"""

import datetime as dt

from temporalio import workflow

from durably.engine.temporal.messages import DeliveryRecord

DELIVER = "durably.deliver"
DELIVERED = "delivered"
"""The signal by which a sender reports that it has delivered the event."""
SENDERS_TIME = dt.timedelta(seconds=15)
"""The start delay of the workflow. A signal does not end it early."""


@workflow.defn(name="durably.Event", sandboxed=False)
class EventWorkflow:
    def __init__(self) -> None:
        self._is_delivered = False

    @workflow.run
    async def run(self, delivery: DeliveryRecord) -> None:
        if not self._is_delivered:
            await workflow.execute_local_activity(DELIVER, delivery, start_to_close_timeout=dt.timedelta(seconds=30))

    @workflow.signal(name=DELIVERED)
    def note_delivered(self) -> None:
        self._is_delivered = True
