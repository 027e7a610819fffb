"""The life of an order: in any process, for any time."""

import asyncio
from datetime import timedelta

from activities import process_order, restock
from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError


@workflow.defn
class OrderWorkflow:
    """Processes an order, and waits until it is shipped."""

    def __init__(self) -> None:
        self._status = "placed"
        self._is_shipped = False

    @workflow.run
    async def run(self, order_id: str) -> str:
        try:
            result = await workflow.execute_activity(
                process_order,
                order_id,
                start_to_close_timeout=timedelta(minutes=5),
                retry_policy=RetryPolicy(maximum_attempts=3),
            )
            self._status = "processed"
            await workflow.wait_condition(lambda: self._is_shipped)
        except (asyncio.CancelledError, ActivityError):  # A cancelled activity raises the latter.
            await workflow.execute_activity(restock, order_id, start_to_close_timeout=timedelta(minutes=5))
            raise
        self._status = "shipped"
        return result

    @workflow.signal
    def ship(self) -> None:
        """The parcel has left."""
        self._is_shipped = True

    @workflow.signal
    def hold(self, reason: str) -> None:
        """Something is to be settled first."""
        self._status = f"on hold: {reason}"

    @workflow.query
    def status(self) -> str:
        """The progress of the order."""
        return self._status
