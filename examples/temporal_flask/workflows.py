"""The life of an order."""

from datetime import timedelta

from activities import process_order
from temporalio import workflow
from temporalio.common import RetryPolicy


@workflow.defn
class OrderWorkflow:
    @workflow.run
    async def run(self, order_id: str) -> str:
        return await workflow.execute_activity(
            process_order,
            order_id,
            start_to_close_timeout=timedelta(minutes=5),
            retry_policy=RetryPolicy(maximum_attempts=3),
        )
