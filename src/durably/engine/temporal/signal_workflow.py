"""The wait of one run for a signal."""

import msgspec
from temporalio import workflow

from durably.engine.core.inputs import WaitResolved

from .ids import run_workflow_id
from .messages import SignalRecord


@workflow.defn(name="durably.Signal", sandboxed=False)
class SignalWorkflow:
    def __init__(self) -> None:
        self._wait: SignalRecord | None = None
        self._is_over = False

    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: self._wait is not None)
        while not self._is_over:
            assert self._wait is not None
            seconds = max(self._wait.until / 1000 - workflow.now().timestamp(), 0.001)
            try:
                await workflow.wait_condition(lambda: self._is_over, timeout=seconds)
            except TimeoutError:
                if self._wait.until <= workflow.now().timestamp() * 1000:
                    break
        await workflow.wait_condition(workflow.all_handlers_finished)

    @workflow.update(name="wait")
    def wait(self, wait: SignalRecord) -> bool:
        """False if another step waits for the signal already."""
        before = self._wait
        is_other = before is not None and (before.run_id, before.step_id) != (wait.run_id, wait.step_id)
        if is_other and not wait.replaces:
            return False
        self._wait = wait
        return True

    @workflow.update(name="send")
    async def send(self, memo: msgspec.Raw) -> str | None:
        """The id of the run that waited; the signal ends its wait."""
        wait = self._wait
        if wait is None or self._is_over:
            return None
        self._is_over = True
        handle = workflow.get_external_workflow_handle(run_workflow_id(wait.run_id))
        await handle.signal("resolve", WaitResolved(wait.step_id, bytes(memo)))
        return wait.run_id
