"""The wait of one run for a signal."""

import msgspec
from temporalio import workflow
from temporalio.exceptions import FailureError

from durably.engine.core.inputs import WaitResolved
from durably.engine.temporal.ids import run_workflow_id
from durably.engine.temporal.messages import SignalRecord
from durably.engine.temporal.workflow_time import now


@workflow.defn(name="durably.Signal", sandboxed=False)
class SignalWorkflow:
    def __init__(self) -> None:
        self._wait: SignalRecord | None = None
        self._is_new = True

    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: not self._is_new)
        while (wait := await self._next()) is not None:
            try:
                seconds = max(wait.until - now(), 1) / 1000
                await workflow.wait_condition(lambda: self._wait is not wait, timeout=seconds)
            except TimeoutError:
                self._wait = None

    async def _next(self) -> SignalRecord | None:
        """The wait; ``None`` once there is none, and no Update is under way."""
        await workflow.wait_condition(lambda: self._wait is not None or workflow.all_handlers_finished())
        return self._wait

    @workflow.update(name="wait")
    def wait(self, wait: SignalRecord) -> str | None:
        """Register a wait. The id of the run that waits for the signal already, if any."""
        self._is_new = False
        before = self._wait
        if before is not None and not wait.replaces and not _is_same(before, wait):
            return before.run_id
        self._wait = wait
        return None

    @workflow.signal(name="leave")
    def leave(self, run_id: str, step_id: str | None) -> None:
        """End the wait of a run's step, or of whichever of its steps waits."""
        wait = self._wait
        if wait is not None and wait.run_id == run_id and step_id in (None, wait.step_id):
            self._wait = None

    @workflow.update(name="send")
    async def send(self, memo: msgspec.Raw) -> str | None:
        """The id of the run that waited; the signal ends its wait."""
        wait, self._wait = self._wait, None
        if wait is None:
            return None
        handle = workflow.get_external_workflow_handle(run_workflow_id(wait.run_id))
        try:
            await handle.signal("resolve", WaitResolved(wait.step_id, bytes(memo)))
        except FailureError:  # The run has ended.
            return None
        return wait.run_id


def _is_same(one: SignalRecord, other: SignalRecord) -> bool:
    return (one.run_id, one.step_id) == (other.run_id, other.step_id)
