"""Workflows. Their Django imports are shared with the process."""

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

from . import activities, people

LIMITS = {
    "start_to_close_timeout": timedelta(seconds=10),
    "heartbeat_timeout": timedelta(seconds=2),
    "retry_policy": RetryPolicy(initial_interval=timedelta(milliseconds=50)),
}


@workflow.defn
class UserSignupWorkflow:
    """As in the seed."""

    @workflow.run
    async def run(self, user_id: int) -> str:
        return await workflow.execute_activity(
            activities.send_welcome_email, args=[user_id], start_to_close_timeout=timedelta(minutes=5)
        )


@workflow.defn
class AnyWorkflow:
    """Executes the given activities one after another."""

    @workflow.run
    async def run(self, calls: list[tuple[str, list[str]]]) -> list[object]:
        return [await workflow.execute_activity(name, args=arguments, **LIMITS) for name, arguments in calls]


@workflow.defn
class CancelledWorkflow:
    """Waits for an activity, also for its end when it is cancelled."""

    @workflow.run
    async def run(self, note: str) -> None:
        await workflow.execute_activity(
            activities.visit_until_cancelled,
            note,
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            **LIMITS,
        )


@workflow.defn
class SyncQueryWorkflow:
    @workflow.run
    async def run(self) -> int:
        return people.count()


@workflow.defn
class AsyncQueryWorkflow:
    @workflow.run
    async def run(self) -> int:
        return await people.count_async()


@workflow.defn
class WaitingWorkflow:
    """Waits for the signal to end. Fails before, if its input says so."""

    def __init__(self) -> None:
        self.greeting = ""

    @workflow.run
    async def run(self, failing: bool = False) -> str:
        if failing:
            workflow.start_activity("absent", schedule_to_close_timeout=timedelta(hours=1))
        await workflow.wait_condition(lambda: bool(self.greeting))
        return self.greeting

    @workflow.signal
    def greet(self, text: str) -> None:
        self.greeting = text


@workflow.defn
class CountdownWorkflow:
    """Continues in another run until nothing is left."""

    @workflow.run
    async def run(self, left: int, note: str) -> str:
        if left > 0:
            workflow.continue_as_new(args=[left - 1, note])
        return note


@workflow.defn
class ParentWorkflow:
    @workflow.run
    async def run(self) -> str:
        return await workflow.execute_child_workflow(
            WaitingWorkflow.run, False, id=f"{workflow.info().workflow_id}-child"
        )
