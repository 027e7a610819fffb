"""Two versions of one workflow."""

from temporalio import workflow


@workflow.defn(name="VersionedWorkflow")
class FirstVersion:
    def __init__(self) -> None:
        self.released = False

    @workflow.run
    async def run(self) -> str:
        await workflow.wait_condition(lambda: self.released)
        return "first"

    @workflow.signal
    def release(self) -> None:
        self.released = True


@workflow.defn(name="VersionedWorkflow")
class SecondVersion:
    def __init__(self) -> None:
        self.released = False

    @workflow.run
    async def run(self) -> str:
        await workflow.wait_condition(lambda: self.released)
        return "second"

    @workflow.signal
    def release(self) -> None:
        self.released = True
