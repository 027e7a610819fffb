"""The workflow of a gate. It ends when the gate holds nothing."""

import asyncio
import datetime as dt

from temporalio import workflow
from temporalio.exceptions import ApplicationError

from .gate import Gate
from .gate_messages import GateAnswer, GateOutcome, GateRequest, GateState, pack, unpack

ASK_RATE_LIMIT = "durably.ask_rate_limit"
GATE_CONTINUES = "GateContinues"
START_HELD = "durably.start_held"
FIND_ENDED = "durably.find_ended"
_LOCAL_TIMEOUT = dt.timedelta(seconds=30)
_LATE = 5_000
"""Milliseconds by which a timer is late if no worker ran."""
_REPEATS_AFTER_OUTAGE = 60_000
"""Milliseconds in which requests are repeated that an outage has interrupted."""


@workflow.defn(name="durably.Gate", sandboxed=False)
class GateWorkflow:
    @workflow.init
    def __init__(self, state: GateState) -> None:
        self._gate = Gate(unpack(state))
        self._turn = asyncio.Lock()
        self._is_changed = True
        self._is_closing = False
        self._timer: asyncio.Task[None] | None = None
        self._timer_due = 0

    @workflow.run
    async def run(self, state: GateState) -> None:
        await workflow.wait_condition(lambda: self._gate.state.option is not None)
        while True:
            self._is_changed = False
            self._gate.fire(_now())
            await self._start_held()
            if self._is_idle and self._gate.is_empty:
                return
            if history_is_long():
                self._is_closing = True
                await workflow.wait_condition(workflow.all_handlers_finished)
                workflow.continue_as_new(pack(self._gate.state))
            self._set_timer()
            await workflow.wait_condition(lambda: self._is_changed)

    @workflow.update(name="admit")
    async def admit(self, request: GateRequest) -> GateAnswer:
        """The answer to an event. The same event always gets the same one."""
        async with self._turn:
            self._gate.state.option = request.option
            answer = self._gate.find_answer(request.event_id)
            if answer is None:
                answer = await self._decide(request)
        self._is_changed = True
        return answer

    @admit.validator
    def check_open(self, request: GateRequest) -> None:
        """Refuse events while the workflow ends this execution. Senders ask again."""
        if self._is_closing:
            raise ApplicationError("the gate continues in another execution", type=GATE_CONTINUES)

    @workflow.signal(name="release")
    def release(self, run_id: str) -> None:
        """A run has ended."""
        self._gate.release_run(run_id)
        self._is_changed = True

    @property
    def _is_idle(self) -> bool:
        return not self._is_changed and workflow.all_handlers_finished()

    async def _decide(self, request: GateRequest) -> GateAnswer:
        gate = self._gate
        gate.fire(_now())
        if request.rate_limit is not None and gate.check(request, _now()).outcome is GateOutcome.ADMITTED:
            answer: GateAnswer = await workflow.execute_local_activity(
                ASK_RATE_LIMIT, request, result_type=GateAnswer, start_to_close_timeout=_LOCAL_TIMEOUT
            )
            if answer.outcome is GateOutcome.SKIPPED:
                return answer
        singleton, holder = request.option.options.singleton, gate.holder
        if singleton is not None and singleton.mode == "skip" and holder is not None:
            for ended in await workflow.execute_local_activity(
                FIND_ENDED, [holder], result_type=list[str], start_to_close_timeout=_LOCAL_TIMEOUT
            ):
                gate.release_run(ended)
        return gate.admit(request, _now())

    async def _start_held(self) -> None:
        while self._gate.state.releases:
            held = self._gate.state.releases[0]
            await workflow.execute_local_activity(START_HELD, held, start_to_close_timeout=_LOCAL_TIMEOUT)
            self._gate.state.releases.pop(0)

    def _set_timer(self) -> None:
        """Keep one timer. One that is too early costs less than to replace it."""
        due = self._gate.due()
        if due is None or (self._timer is not None and self._timer_due <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        self._timer = asyncio.create_task(self._sleep(due))

    async def _sleep(self, due: int) -> None:
        await workflow.sleep(max(due - _now(), 1) / 1000)
        if _now() > due + _LATE:
            self._gate.keep_answers(_now() + _REPEATS_AFTER_OUTAGE)
        self._timer = None
        self._is_changed = True


def history_is_long() -> bool:
    return workflow.info().is_continue_as_new_suggested()


def _now() -> int:
    return int(workflow.now().timestamp() * 1000)
