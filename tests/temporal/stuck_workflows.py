"""Stuck workflows, each for another reason."""

from datetime import timedelta

from temporalio import activity, workflow
from temporalio.common import RetryPolicy


@activity.defn
async def call_bank() -> None:
    raise ConnectionError("the bank is away, password=hunter2")


@workflow.defn
class BrokenWorkflow:
    @workflow.run
    async def run(self) -> None:
        raise KeyError("token=abcdef0123456789")


@workflow.defn
class LargeWorkflow:
    @workflow.run
    async def run(self) -> str:
        return "x" * (3 << 20)


@workflow.defn
class RetryingWorkflow:
    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity(
            call_bank,
            start_to_close_timeout=timedelta(seconds=10),
            retry_policy=RetryPolicy(
                initial_interval=timedelta(milliseconds=1), maximum_interval=timedelta(milliseconds=500)
            ),
        )


@workflow.defn
class PatientWorkflow:
    """Not stuck: it waits for a signal."""

    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False)


@workflow.defn
class AbandonedWorkflow:
    """Started on a task queue that no worker polls."""

    @workflow.run
    async def run(self) -> None:
        """Do nothing."""


WORKFLOWS = [BrokenWorkflow, LargeWorkflow, RetryingWorkflow, PatientWorkflow]
ACTIVITIES = [call_bank]
