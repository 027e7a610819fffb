"""A workflow whose histories are replayed against changed versions of this source."""

from datetime import timedelta

from temporalio import activity, workflow


@activity.defn
async def charge(order_id: str) -> str:
    return f"charged {order_id}"


@activity.defn
async def ship(order_id: str) -> str:
    return f"shipped {order_id}"


@workflow.defn
class ReplayedWorkflow:
    def __init__(self) -> None:
        self.released = False

    @workflow.run
    async def run(self, order_id: str) -> str:
        await workflow.execute_activity(charge, order_id, start_to_close_timeout=timedelta(seconds=10))
        await workflow.wait_condition(lambda: self.released)
        await workflow.sleep(0.01)
        return await workflow.execute_activity(ship, order_id, start_to_close_timeout=timedelta(seconds=10))

    @workflow.signal
    def release(self) -> None:
        self.released = True
