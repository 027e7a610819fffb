"""Waits of runs for events of one name with one value, and for signals.

A workflow exists as long as a run waits. An event for which no run waits finds no workflow, and costs nothing.
"""

import asyncio

import msgspec
from temporalio import workflow

from .ids import run_workflow_id
from .messages import Delivery, EventRecord, WaitRecord


class WaitState(msgspec.Struct, frozen=True, omit_defaults=True):
    waits: tuple[WaitRecord, ...] = ()


@workflow.defn(name="durably.Wait", sandboxed=False)
class WaitWorkflow:
    @workflow.init
    def __init__(self, state: WaitState) -> None:
        self._waits = {(wait.run_id, wait.step_id): wait for wait in state.waits}
        self._deliveries: set[asyncio.Task[None]] = set()

    @workflow.run
    async def run(self, state: WaitState) -> None:
        while self._waits or self._deliveries:
            until = max((wait.until for wait in self._waits.values()), default=0)
            seconds = max(until / 1000 - workflow.now().timestamp(), 0.001)
            try:
                await workflow.wait_condition(lambda: not (self._waits or self._deliveries), timeout=seconds)
            except TimeoutError:
                self._drop_late()
        # A signal that arrives now makes the server refuse the end, so no wait is lost.

    @workflow.signal(name="wait")
    def add(self, wait: WaitRecord) -> None:
        self._waits[wait.run_id, wait.step_id] = wait

    @workflow.signal(name="leave")
    def leave(self, run_id: str, step_id: str) -> None:
        self._waits.pop((run_id, step_id), None)

    @workflow.signal(name="event")
    async def deliver(self, event: EventRecord) -> None:
        waiting = list(self._waits.values())
        for wait in waiting:
            if wait.is_exact:
                self._waits.pop((wait.run_id, wait.step_id), None)
        tasks = [asyncio.create_task(self._deliver_to(wait, event)) for wait in waiting]
        self._deliveries.update(tasks)
        for task in tasks:
            task.add_done_callback(self._deliveries.discard)
        await asyncio.gather(*tasks)

    async def _deliver_to(self, wait: WaitRecord, event: EventRecord) -> None:
        handle = workflow.get_external_workflow_handle(run_workflow_id(wait.run_id))
        try:
            await handle.signal("deliver", Delivery(step_id=wait.step_id, event=event))
        except Exception:
            # The run has ended.
            self._waits.pop((wait.run_id, wait.step_id), None)

    def _drop_late(self) -> None:
        now = workflow.now().timestamp() * 1000
        self._waits = {key: wait for key, wait in self._waits.items() if wait.until > now}
