"""A workflow with a child and an activity that fails as its input says."""

import logging
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError

from durably.temporal.request_log import current_request_id


@activity.defn
async def charge(order_id: str) -> str:
    logging.getLogger("shop").info("charging %s", order_id)
    if order_id == "declined":
        raise ApplicationError("the card was declined, password=hunter2", type="CardDeclined", non_retryable=True)
    if order_id == "flaky" and activity.info().attempt == 1:
        raise ConnectionError("the bank is away")
    return f"{order_id} by {current_request_id()}"


@workflow.defn
class ChildWorkflow:
    @workflow.run
    async def run(self, order_id: str) -> str:
        return await workflow.execute_activity(
            charge,
            order_id,
            start_to_close_timeout=timedelta(seconds=30),
            retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=10)),
        )


@workflow.defn
class BuyWorkflow:
    @workflow.run
    async def run(self, order_id: str) -> str:
        if order_id == "again":
            workflow.continue_as_new("7")
        if order_id == "waits":
            await workflow.wait_condition(lambda: False)
        for _ in range(3):  # More workflow tasks: each replays the earlier ones.
            await workflow.sleep(timedelta(milliseconds=1))
        return await workflow.execute_child_workflow(
            ChildWorkflow.run, order_id, id=f"{workflow.info().workflow_id}-child"
        )
