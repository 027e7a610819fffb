"""Types that checkers infer for Temporal's synchronous client."""

from typing import assert_type

from temporalio import workflow

from durably.temporal import SyncWorkflowHandle, Temporal
from durably.temporal.django import astart_on_commit, start_on_commit

temporal = Temporal()


@workflow.defn
class TypedWorkflow:
    @workflow.run
    async def run(self, number: int) -> bytes:
        return bytes(number)

    @workflow.signal
    def stop(self, reason: str) -> None: ...

    @workflow.query
    def progress(self) -> float:
        return 1.0

    @workflow.update
    async def change(self, number: int) -> str:
        return str(number)


handle = temporal.sync.start_workflow(TypedWorkflow.run, 1, id="typed", task_queue="queue")
assert_type(handle, SyncWorkflowHandle[TypedWorkflow, bytes])
assert_type(handle.result(), bytes)
assert_type(handle.query(TypedWorkflow.progress), float)
assert_type(handle.execute_update(TypedWorkflow.change, 1), str)
assert_type(temporal.sync.execute_workflow(TypedWorkflow.run, 1, id="typed"), bytes)
handle.signal(TypedWorkflow.stop, "enough")


def starts_on_commit() -> None:
    start_on_commit(TypedWorkflow.run, 1, id="x", using="other", task_queue="q")
    start_on_commit(TypedWorkflow.run, "one", id="x")  # type: ignore[misc]
    start_on_commit(TypedWorkflow.run, 1, id="x", robots=True)  # type: ignore[call-overload]


async def starts_on_commit_in_async_code() -> None:
    await astart_on_commit(TypedWorkflow.run, 1, id="x", using="other", task_queue="q")
    await astart_on_commit(TypedWorkflow.run, "one", id="x")  # type: ignore[misc]
