"""Workflows of routing: fan-outs of events, waits for events and signals, and the keys of waits.

The sender of an event delivers it, and reports that to the event's workflow. Without this report, for example because
the sender's process ended, the workflow delivers the event when it begins, after a delay.

A workflow of waits exists as long as a run waits. An event for which no run waits finds no workflow, and costs nothing.
"""

import asyncio
import contextlib
import datetime as dt
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from temporalio import workflow
from temporalio.exceptions import FailureError

from durably.engine.core.expressions import compile_expression
from durably.engine.core.inputs import WaitResolved
from durably.engine.core.transition import error_memo
from durably.engine.model.events import index_key
from durably.engine.temporal.ids import run_workflow_id
from durably.engine.temporal.messages import (
    CancelRecord,
    Condition,
    Delivery,
    DeliveryRecord,
    EventRecord,
    MatchInput,
    RunInput,
    SignalRecord,
    WaitRecord,
)
from durably.engine.temporal.workflow_code import history_is_long, now, pack, unpack
from durably.protocol.errors import ErrorData

_EXACT_KEYS = ("text:", "hash:", "true", "false")
"""Prefixes of keys that only equal values share. Null and missing fields have the same key."""
_NUMBER = "number:"
_LARGEST_EXACT = 2**53
"""Larger numbers are rounded in keys."""

MAX_CONDITION_BYTES = 4096
"""Maximum size of a condition, with the part of the trigger that it reads. A wait workflow stores the conditions of all
its waits."""


class WaitKey(msgspec.Struct, frozen=True):
    """The path of the wait index, and the value that an event must have there.

    Both are ``None`` if no value is required. ``is_exact``: each event with this value meets the whole condition.
    """

    path: str | None = None
    value: str | None = None
    is_exact: bool = True


def wait_key(expression: str | None, trigger: Mapping[str, Any]) -> WaitKey:
    """The key of a wait with a condition. ``trigger`` is the event of the waiting run."""
    if expression is None:
        return WaitKey()
    condition = compile_expression(expression)
    path, value = index_key(condition, trigger)
    return WaitKey(path, value, condition.is_equality and value is not None and _has_own_key(value))


def condition_of(expression: str | None, trigger: Mapping[str, Any]) -> Condition | None:
    """The condition of a wait, or ``None`` if it reads too much of the trigger."""
    if expression is None:
        return None
    part = msgspec.json.encode(compile_expression(expression).part_of(trigger))
    if len(expression.encode()) + len(part) > MAX_CONDITION_BYTES:
        return None
    return Condition(expression, msgspec.Raw(part))


_MATCH_SECONDS = 5.0
"""Seconds for all conditions of one event. Conditions may be slow and many."""


def matching(wanted: MatchInput, now: int, seconds: float = _MATCH_SECONDS) -> list[int]:
    """The indexes of the conditions that an event may meet.

    After ``seconds`` all remaining conditions count as met: their runs evaluate them again.
    """
    fields = msgspec.json.decode(wanted.event.body)
    end = time.monotonic() + seconds
    return [
        index
        for index, condition in enumerate(wanted.conditions)
        if time.monotonic() >= end
        or compile_expression(condition.expression).matches(msgspec.json.decode(condition.trigger), fields, now=now)
    ]


def _has_own_key(value: str) -> bool:
    if value.startswith(_NUMBER):
        number = value.removeprefix(_NUMBER)
        return number != "large" and abs(float(number)) < _LARGEST_EXACT
    return value.startswith(_EXACT_KEYS)


_CANCEL_PREFIX = "cancel:"


def cancel_step_id(position: int) -> str:
    """The id, in place of a step id, for an event that cancels a run.

    ``position`` is the position in ``cancel_on``.
    """
    return f"{_CANCEL_PREFIX}{position}"


def cancel_position(step_id: str) -> int | None:
    """The position of a ``cancel_step_id``, or ``None`` for a step id."""
    position = step_id.removeprefix(_CANCEL_PREFIX)
    return int(position) if position != step_id and position.isdecimal() else None


def cancel_waits(run: RunInput) -> tuple[WaitRecord, ...]:
    """The waits for the events that cancel a run."""
    if not run.cancel_on:
        return ()
    trigger = msgspec.json.decode(run.events[0].body)
    return tuple(_cancel_wait(run, position, cancel, trigger) for position, cancel in enumerate(run.cancel_on))


def _cancel_wait(run: RunInput, position: int, cancel: CancelRecord, trigger: Mapping[str, Any]) -> WaitRecord:
    key = wait_key(cancel.expression, trigger)
    return WaitRecord(
        run_id=run.run_id,
        step_id=cancel_step_id(position),
        event=cancel.event,
        until=cancel.until,
        path=key.path,
        value=key.value,
        is_exact=key.is_exact,
        is_early=True,
        ignored=tuple(event.id for event in run.events),
        condition=condition_of(cancel.expression, trigger),
    )


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
                some, self._refused = self._refused[:MAX_PARALLEL_DELIVERIES], self._refused[MAX_PARALLEL_DELIVERIES:]
                await asyncio.gather(*map(self._refuse, some))
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
        while True:
            await workflow.wait_condition(lambda: self._wait is not None or workflow.all_handlers_finished())
            if (wait := self._wait) is None:
                return
            try:
                seconds = max(wait.until - now(), 1) / 1000
                await workflow.wait_condition(lambda: self._wait is not wait, timeout=seconds)
            except TimeoutError:
                self._wait = None

    @workflow.update(name="wait")
    def wait(self, wait: SignalRecord) -> str | None:
        """Register a wait. Returns the id of a run that already waits for the signal."""
        self._is_new = False
        before = self._wait
        if before is not None and not wait.replaces and (before.run_id, before.step_id) != (wait.run_id, wait.step_id):
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
    async def send(self, memo: msgspec.Raw, only: str | None = None) -> str | None:
        """Deliver the signal, which ends the wait. Returns the id of the run that waited.

        ``only``: the id of the run to which it is sent.
        """
        wait = self._wait
        return None if wait is None or only not in (None, wait.run_id) else await self._deliver(wait, memo)

    @workflow.update(name="send_to_step")
    async def send_to_step(self, memo: msgspec.Raw, step_id: str) -> str | None:
        """``send``, if this step waits."""
        wait = self._wait
        return None if wait is None or wait.step_id != step_id else await self._deliver(wait, memo)

    async def _deliver(self, wait: SignalRecord, memo: msgspec.Raw) -> str | None:
        self._wait = None
        handle = workflow.get_external_workflow_handle(run_workflow_id(wait.run_id))
        try:
            await handle.signal("resolve", WaitResolved(wait.step_id, bytes(memo)))
        except FailureError:  # The run has ended.
            return None
        return wait.run_id
