"""The workflow that leases the slots of an app's functions to processes.

It ends when no process has a slot. If a user terminates it, slots count as free that processes use until their next
renewal.
"""

from temporalio import workflow
from temporalio.exceptions import ApplicationError

from durably.engine.temporal.workflow_code import EarliestTimer, history_is_long, now

from .slot_pools import LeaseAnswer, LeaseRequest, SlotPools, SlotsState, WaitingRequests

SLOTS_CONTINUE = "SlotsContinue"
MOST_WAITING = 4
"""Maximum number of requests that wait for slots. The server allows ten concurrent Updates of a workflow, and renewals
must not wait."""


@workflow.defn(name="durably.Slots", sandboxed=False)
class SlotsWorkflow:
    @workflow.init
    def __init__(self, state: SlotsState | None = None) -> None:
        self._pools = SlotPools(state or SlotsState())
        self._waiting = WaitingRequests(self._pools, MOST_WAITING)
        self._has_begun = state is not None
        self._is_due = False
        self._is_closing = False
        self._timer = EarliestTimer(self._wake)

    @workflow.run
    async def run(self, state: SlotsState | None = None) -> None:
        await workflow.wait_condition(lambda: self._has_begun)
        while True:
            self._is_due = False
            self._pools.expire(now())
            self._grant()
            if self._pools.is_empty and workflow.all_handlers_finished():
                return
            if history_is_long():
                self._is_closing = True
                await workflow.wait_condition(workflow.all_handlers_finished)
                workflow.continue_as_new(self._pools.state)
            self._timer.set(self._pools.next_end())
            await workflow.wait_condition(lambda: self._is_due or self._pools.is_empty or history_is_long())

    @workflow.update(name="lease")
    async def lease(self, request: LeaseRequest) -> LeaseAnswer:
        """The slots of a process from now on.

        Waits while the process needs slots and none is free.
        """
        self._has_begun = True
        self._pools.expire(now())
        if not self._pools.accept(request, now()):
            return LeaseAnswer(is_lost=True)
        if self._pools.number_of(request.process) in (None, request.number):
            self._waiting.remove(request.process)
            self._grant(request.process)
        if self._pools.waits(request):
            self._waiting.add(request)
            await workflow.wait_condition(lambda: self._is_closing or not self._is_waiting(request))
            if self._waiting.has(request):
                self._waiting.remove(request.process)
        return self._pools.answer(request.process, now())

    @lease.validator
    def check_open(self, request: LeaseRequest) -> None:
        """Refuse requests while this execution ends. Processes repeat them."""
        if self._is_closing:
            raise ApplicationError("the slots continue in another execution", type=SLOTS_CONTINUE)

    @workflow.query(name="state")
    def read_state(self) -> SlotsState:
        return self._pools.state

    def _grant(self, *processes: str) -> None:
        self._pools.grant({*self._waiting.processes, *processes}, now())

    def _is_waiting(self, request: LeaseRequest) -> bool:
        return self._waiting.has(request) and self._pools.waits(request)

    def _wake(self, due: int) -> None:
        self._is_due = True
