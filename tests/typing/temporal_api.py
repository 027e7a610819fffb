"""Types that checkers infer for Temporal's synchronous client."""

from typing import assert_type

from temporalio import workflow

from durably.temporal import SyncWorkflowHandle, Temporal
from durably.temporal.django import start_on_commit

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
assert_type(temporal.sync.execute_workflow(TypedWorkflow.run, 1, id="typed", task_queue="queue"), bytes)
handle.signal(TypedWorkflow.stop, "enough")
handle.signal(TypedWorkflow.stop, 1)  # type: ignore[arg-type]
temporal.sync.start_workflow(TypedWorkflow.run, "one", id="typed", task_queue="queue")  # type: ignore[arg-type]
for_ = temporal.sync.get_workflow_handle_for(TypedWorkflow.run, "typed")
assert_type(for_, SyncWorkflowHandle[TypedWorkflow, bytes])


def starts_on_commit() -> None:
    start_on_commit(TypedWorkflow.run, 1, id="x", task_queue="q")
    start_on_commit(TypedWorkflow.run, "one", id="x", task_queue="q")  # type: ignore[arg-type]
    start_on_commit(TypedWorkflow.run, 1, id="x", task_queue="q", robots=True)  # type: ignore[call-overload]
