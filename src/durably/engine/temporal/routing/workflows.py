"""Workflows of routing: fan-outs of events, waits for events and signals.

The sender of an event delivers it, and reports that to the event's workflow. Without this report, for example because
the sender's process ended, the workflow delivers the event when it begins, after a delay.

A workflow of waits exists as long as a run waits. An event for which no run waits finds no workflow, and costs nothing.
"""

import asyncio
import contextlib
import datetime as dt
from collections import deque
from collections.abc import Iterable

import msgspec
from temporalio import workflow
from temporalio.exceptions import FailureError

from durably.engine.core.inputs import WaitResolved
from durably.engine.core.transition import error_memo
from durably.engine.temporal.ids import run_workflow_id
from durably.engine.temporal.messages import (
    Condition,
    Delivery,
    DeliveryRecord,
    EventRecord,
    MatchInput,
    SignalRecord,
    WaitRecord,
)
from durably.engine.temporal.workflow_code import history_is_long, now, pack, unpack
from durably.protocol.errors import ErrorData

from .wait_keys import cancel_position

DELIVER = "durably.deliver"
DELIVERED = "delivered"
"""The signal by which a sender reports that it has delivered the event."""
SENDERS_TIME = dt.timedelta(seconds=15)
"""The start delay of the workflow. A signal does not end it early."""
MAX_PARALLEL_DELIVERIES = 500
"""The server refuses more than 2,000 signals of a workflow at a time."""
MAX_DELIVERED_BYTES = 2_000_000
"""Maximum size of parallel deliveries. The server refuses messages of more than 4 MB."""
_DELIVERY_BYTES = 300
"""Approximate size of a delivery without its event."""
_MAX_STATE_BYTES = 1_400_000
"""Maximum size of a packed state, which is a third larger in a payload of up to 2 MB."""
MATCH = "durably.match"
"""The local activity that evaluates conditions. Histories store its result, because a later version may have another
result."""
_MAX_CONDITIONS = 1000
"""Maximum number of conditions for one activity. Each may be another expression, and takes milliseconds to compile."""
_MATCH_TIMEOUT = dt.timedelta(seconds=30)
_KEPT_PAUSE = 1.0
"""Seconds between two deliveries to a run that has not started."""
FULL_BYTES = 1_000_000
"""The packed size from which no further wait is accepted. Waits that arrive before the next execution need the rest."""
START_GRACE = dt.timedelta(minutes=1)
"""Time within which the run of an early wait must start."""
Key = tuple[str, str]
"""A run and its step."""


@workflow.defn(name="durably.Event", sandboxed=False)
class EventWorkflow:
    """The fan-out of an event to several workflows."""

    def __init__(self) -> None:
        self._is_delivered = False

    @workflow.run
    async def run(self, delivery: DeliveryRecord) -> None:
        if not self._is_delivered:
            await workflow.execute_local_activity(DELIVER, delivery, start_to_close_timeout=dt.timedelta(seconds=30))

    @workflow.signal(name=DELIVERED)
    def note_delivered(self) -> None:
        self._is_delivered = True


class Waiting(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """A wait as in ``WaitRecord``. ``since`` is the time of its registration."""

    run_id: str
    step_id: str
    since: int
    until: int | None
    is_exact: bool = True
    is_early: bool = False
    ignored: tuple[str, ...] = ()
    condition: Condition | None = None
    start_within: int = 0

    @property
    def key(self) -> Key:
        return self.run_id, self.step_id


class PendingDelivery(msgspec.Struct, frozen=True):
    """An event, and the waits to which it has not been delivered.

    It reaches the waits ``unmatched`` only if it meets their conditions.
    """

    event: EventRecord
    targets: tuple[Waiting, ...]
    unmatched: tuple[Waiting, ...] = ()


class WaitState(msgspec.Struct, frozen=True, omit_defaults=True):
    """The state of a wait workflow when it continues as new.

    ``capacity`` is the maximum number of waits, if it nearly had too many.
    """

    waits: tuple[Waiting, ...] = ()
    deliveries: tuple[PendingDelivery, ...] = ()
    packed: bytes = b""
    capacity: int | None = None


@workflow.defn(name="durably.Wait", sandboxed=False)
class WaitWorkflow:
    """The waits of runs for events of one name with one value."""

    @workflow.init
    def __init__(self, state: WaitState) -> None:
        state = unpack(state)
        self._waits = {wait.key: wait for wait in state.waits}
        self._deliveries = deque(state.deliveries)
        self._capacity = state.capacity
        self._refused: list[WaitRecord] = []
        self._kept: list[PendingDelivery] = []
        """Deliveries to runs that have not started."""
        self._is_too_large = False

    @workflow.run
    async def run(self, state: WaitState) -> None:
        while self._waits or self._deliveries or self._kept or self._refused:
            if history_is_long() and not self._refused:
                self._continue_as_new()
            if self._refused:
                await self._refuse_some()
            elif self._deliveries:
                await self._deliver_some()
            elif self._kept:
                await self._repeat_kept()
            else:
                await self._sleep()
        # If a signal arrives now, the server refuses the end, so no wait is lost.

    def _continue_as_new(self) -> None:
        """Continue in another execution, unless its input would be too large.

        If it would be, events are delivered first.
        """
        waits, deliveries = tuple(self._waits.values()), (*self._deliveries, *self._kept)
        if sum(len(each.event.body) for each in deliveries) <= _MAX_STATE_BYTES:
            state = pack(WaitState(waits, deliveries))
            if len(state.packed) > FULL_BYTES:
                state = pack(WaitState(waits, deliveries, capacity=len(waits)))
            if len(state.packed) <= _MAX_STATE_BYTES:
                workflow.continue_as_new(state)
        self._is_too_large = True

    @workflow.signal(name="wait")
    def add(self, wait: WaitRecord) -> None:
        condition = None if wait.is_exact else wait.condition
        waiting = Waiting(
            wait.run_id,
            wait.step_id,
            now(),
            wait.until,
            wait.is_exact,
            wait.is_early,
            wait.ignored,
            condition,
            wait.start_within,
        )
        if self._capacity is not None and len(self._waits) >= self._capacity and waiting.key not in self._waits:
            self._refused.append(wait)
        else:
            self._waits[waiting.key] = waiting

    @workflow.signal(name="leave")
    def leave(self, run_id: str, step_id: str) -> None:
        self._waits.pop((run_id, step_id), None)

    @workflow.signal(name="event")
    def deliver(self, event: EventRecord) -> None:
        targets = tuple(wait for wait in self._waits.values() if not _is_over(wait) and event.id not in wait.ignored)
        self._drop(wait for wait in targets if wait.is_exact)
        sure = tuple(wait for wait in targets if wait.condition is None)
        unmatched = tuple(wait for wait in targets if wait.condition is not None)
        if sure:
            self._deliveries.append(PendingDelivery(event, sure))
        if unmatched:
            self._deliveries.append(PendingDelivery(event, (), unmatched))  # Conditions may be slow.

    async def _sleep(self) -> None:
        """Wait for a signal, or for the timeout of a wait."""
        waits, deliveries = len(self._waits), len(self._deliveries)
        until = min((wait.until for wait in self._waits.values() if wait.until is not None), default=None)
        seconds = None if until is None else max((until - now()) / 1000, 0.001)
        try:
            await workflow.wait_condition(
                lambda: (
                    (len(self._waits), len(self._deliveries)) != (waits, deliveries)
                    or bool(self._refused)
                    or (history_is_long() and not self._is_too_large)
                ),
                timeout=seconds,
            )
        except TimeoutError:
            self._drop([wait for wait in self._waits.values() if _is_over(wait)])

    async def _deliver_some(self) -> None:
        pending = self._deliveries[0]
        if pending.unmatched:
            self._deliveries[0] = await self._match_some(pending)
            return
        size = len(msgspec.json.encode(pending.event)) + _DELIVERY_BYTES
        count = max(1, min(MAX_PARALLEL_DELIVERIES, MAX_DELIVERED_BYTES // size))
        targets = pending.targets[:count]
        await asyncio.gather(*(self._deliver_to(wait, pending.event) for wait in targets))
        rest = pending.targets[count:]
        if rest:
            self._deliveries[0] = PendingDelivery(pending.event, rest)
        else:
            self._deliveries.popleft()

    async def _refuse_some(self) -> None:
        some, self._refused = self._refused[:MAX_PARALLEL_DELIVERIES], self._refused[MAX_PARALLEL_DELIVERIES:]
        await asyncio.gather(*map(self._refuse, some))

    async def _refuse(self, wait: WaitRecord) -> None:
        problem = (
            f"{self._capacity} waits for the event {wait.event!r} have the same value, or none, which is the maximum "
            "on Temporal: give the wait a condition with an equality, such as event.data.id == async.data.id"
        )
        if cancel_position(wait.step_id) is not None:
            workflow.logger.warning("the run %s cannot be cancelled by an event: %s", wait.run_id, problem)
            return
        error = error_memo(ErrorData(name="TooManyWaitsError", message=problem))
        with contextlib.suppress(FailureError):  # The run has ended.
            handle = workflow.get_external_workflow_handle(run_workflow_id(wait.run_id))
            await handle.signal("resolve", WaitResolved(wait.step_id, error, failed=True))

    async def _match_some(self, pending: PendingDelivery) -> PendingDelivery:
        some, rest = pending.unmatched[:_MAX_CONDITIONS], pending.unmatched[_MAX_CONDITIONS:]
        conditions = tuple(wait.condition for wait in some if wait.condition is not None)
        found: list[int] = await workflow.execute_local_activity(
            MATCH, MatchInput(pending.event, conditions), result_type=list[int], start_to_close_timeout=_MATCH_TIMEOUT
        )
        return PendingDelivery(pending.event, (*pending.targets, *(some[index] for index in found)), rest)

    async def _deliver_to(self, wait: Waiting, event: EventRecord) -> None:
        handle = workflow.get_external_workflow_handle(run_workflow_id(wait.run_id))
        try:
            await handle.signal("deliver", Delivery(step_id=wait.step_id, event=event))
        except FailureError:
            since = now() - wait.since
            if since < wait.start_within:
                self._kept.append(PendingDelivery(event, (wait,)))
            if wait.is_early and since < max(wait.start_within, START_GRACE // dt.timedelta(milliseconds=1)):
                self._waits.setdefault(wait.key, wait)
            else:  # The run has ended.
                self._drop([wait])

    async def _repeat_kept(self) -> None:
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(lambda: bool(self._deliveries), timeout=_KEPT_PAUSE)
        self._deliveries.extend(self._kept)
        self._kept.clear()

    def _drop(self, waits: Iterable[Waiting]) -> None:
        for wait in waits:
            self._waits.pop(wait.key, None)


def _is_over(wait: Waiting) -> bool:
    return wait.until is not None and wait.until <= now()


@workflow.defn(name="durably.Signal", sandboxed=False)
class SignalWorkflow:
    """The wait of one run for a signal."""

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
        """The wait, or ``None`` if there is none and no Update is running."""
        await workflow.wait_condition(lambda: self._wait is not None or workflow.all_handlers_finished())
        return self._wait

    @workflow.update(name="wait")
    def wait(self, wait: SignalRecord) -> str | None:
        """Register a wait. Returns the id of a run that already waits for the signal."""
        self._is_new = False
        before = self._wait
        if before is not None and not wait.replaces and not _is_same(before, wait):
            return before.run_id
        self._wait = wait
        return None

    @workflow.signal(name="leave")
    def leave(self, run_id: str, step_id: str | None) -> None:
        """End the wait of a run's step, or of the run's waiting step if none is given."""
        wait = self._wait
        if wait is not None and wait.run_id == run_id and step_id in (None, wait.step_id):
            self._wait = None

    @workflow.update(name="send")
    async def send(self, memo: msgspec.Raw) -> str | None:
        """Deliver the signal, which ends the wait. Returns the id of the run that waited."""
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
