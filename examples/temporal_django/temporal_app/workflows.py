"""The life of a new user, and of an order. Workflows use ids; activities use models."""

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import ActivityError, WorkflowAlreadyStartedError

from durably.temporal.django import temporal

from . import activities

FIVE_MINUTES = timedelta(minutes=5)


@workflow.defn
class UserSignupWorkflow:
    @workflow.run
    async def run(self, user_id: int) -> str:
        return await workflow.execute_activity(
            activities.send_welcome_email, user_id, start_to_close_timeout=FIVE_MINUTES
        )


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
                activities.process_order,
                order_id,
                start_to_close_timeout=FIVE_MINUTES,
                retry_policy=RetryPolicy(maximum_attempts=3),
            )
            self._status = "processed"
            await workflow.wait_condition(lambda: self._is_shipped)
        except (asyncio.CancelledError, ActivityError):  # A cancelled activity raises the latter.
            await workflow.execute_activity(activities.restock, order_id, start_to_close_timeout=FIVE_MINUTES)
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


@workflow.defn
class ForgottenOrdersWorkflow:
    """Starts what a view could not start: the server was away as the order was written down."""

    @workflow.run
    async def run(self) -> list[str]:
        started = []
        for order_id in await workflow.execute_activity(
            activities.find_forgotten_orders, start_to_close_timeout=FIVE_MINUTES
        ):
            try:
                await workflow.start_child_workflow(
                    OrderWorkflow.run,
                    order_id,
                    id=f"order-{order_id}",
                    id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                    parent_close_policy=workflow.ParentClosePolicy.ABANDON,
                )
            except WorkflowAlreadyStartedError:
                continue
            started.append(order_id)
        return started


temporal.add_schedule("forgotten-orders", ForgottenOrdersWorkflow.run, every=timedelta(minutes=5))
