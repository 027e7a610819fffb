"""A transaction: what happens to runs, written through the run machine as rows."""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from typing import Any

import msgspec

from durably.engine.core.call_body import CallData
from durably.engine.core.errors import DatabaseCorruptError, EventInvalidError, StaleCallError
from durably.engine.core.expressions import compile_expression
from durably.engine.core.flow.queue_entries import QueuedCall, Ticket
from durably.engine.core.inputs import (
    AbortDeferred,
    AwaitEvent,
    AwaitSignal,
    CancelAsked,
    CloseWait,
    Defer,
    EndRun,
    Input,
    Invoke,
    MakeCall,
    MakeRequest,
    OfCall,
    RefuseDeferred,
    SignalConflicted,
    Sleep,
    WaitResolved,
    WriteMemo,
)
from durably.engine.core.machine import advance
from durably.engine.core.ops import REQUESTS
from durably.engine.core.run_state import (
    MACHINE_VERSION,
    Call,
    Head,
    Origin,
    RunStatus,
    origin_of_event,
    origin_of_invocation,
)
from durably.engine.core.transition import Policy, data_memo, encode_error, error_memo
from durably.engine.sqlite.tables.runs import RunRow, Store, WaitRow
from durably.protocol.errors import ErrorData
from durably.protocol.events import Event, InternalEvent
from durably.protocol.opcodes import Opcode
from durably.protocol.text import get_logger

from . import subscriptions
from .event_routing import EventRouter, narrow
from .events import Arrival, Entropy, RunEnd, announce_end, check_content, deferred_data, new_id
from .outbox import CallAt, Effects, RequestAt, RunEnded, TimerAt, call_of
from .registry import Registry
from .reruns import origin_before, refuse_runaway
from .run_cache import CachedRun, Memos, RunCache, kept_trigger, with_memo
from .run_queue import RunQueue
from .triggers import Admissions

_logger = get_logger("durably.engine")


class Ledger(msgspec.Struct, frozen=True):
    """What all entries have in common."""

    store: Store
    policy: Policy
    max_event_bytes: int
    entropy: Entropy
    cache: RunCache


class _LiveRun:
    """A run that this entry changes. ``began`` is when what is happening to it began. ``is_changing`` while what is
    happening to it has not all been carried out."""

    def __init__(self, run: CachedRun) -> None:
        self.row = run.row
        self.head = run.head
        self.ticket = run.ticket
        self.trigger = run.trigger
        self.was_moving = run.is_moving
        self.is_changing = False
        self.began = run.row.created_at
        self.wait_began: dict[str, int] = {}
        self.may_have_waits = bool(run.head.waits)
        self.memos = run.head.memos
        self.kept_memos = run.memos


class Entry:
    """``now`` is milliseconds since the epoch."""

    def __init__(self, ledger: Ledger, registry: Registry, now: int) -> None:
        self.effects: Effects = []
        self.now = now
        self.registry = registry
        self.store = ledger.store
        self._cache = ledger.cache
        self._queue: RunQueue | None = None
        self._policy = ledger.policy
        self.max_depth = ledger.policy.max_depth
        self._max_event_bytes = ledger.max_event_bytes
        self._entropy = ledger.entropy
        self._runs: dict[int, _LiveRun] = {}
        self._pending: deque[tuple[int, Input]] = deque()

    # Most units have no need of these.

    @cached_property
    def events(self) -> EventRouter:
        return EventRouter(self)

    @cached_property
    def admissions(self) -> Admissions:
        return Admissions(self)

    @property
    def queue(self) -> RunQueue:
        if self._queue is None:
            self._queue = RunQueue(self.store, self.registry, self.effects, self.now)
        return self._queue

    def new_id(self) -> str:
        """For a run or an event that there is from now on."""
        return new_id(self.now, self._entropy)

    def find_run_key(self, run_id: str) -> int | None:
        key = self._cache.find_key(run_id)
        return self.store.find_run_key(run_id) if key is None else key

    def memoised(self, run_key: int, step_ids: Collection[str]) -> frozenset[str]:
        """Those of the steps that have a memo."""
        cached = self._cache.find(run_key)
        if cached is not None and not cached.head.memos:
            return frozenset()
        return self.store.memoised(run_key, step_ids)

    def remember(self, row: RunRow, head: Head, ticket: Ticket | None, *, is_moving: bool, memos: Memos | None) -> None:
        """A run was written that is to be seen again soon."""
        trigger = None if row.is_batch else kept_trigger(self.events.trigger_of(row.event_key))
        self._cache.put(CachedRun(row, head, ticket, is_moving, trigger, memos))

    def tell_invokers(self, event_keys: Sequence[int], error: ErrorData) -> None:
        """Steps that invoked a function by these events are told that no run of it starts."""
        for trigger in map(self.events.trigger_of, event_keys):
            self._resolve_invokers(trigger, error_memo(error), failed=True)

    def cancel(self, run_key: int, reason: str) -> None:
        """Cancel a run now or, if it is just being changed, as soon as that is done with."""
        live = self._runs.get(run_key)
        if live is not None and live.is_changing:
            self.happen(run_key, CancelAsked(reason))
        else:
            self.apply(run_key, CancelAsked(reason))

    def happen(self, run_key: int, happened: Input) -> None:
        """Let something happen to a run, once what is happening now is done with."""
        self._pending.append((run_key, happened))

    def apply(self, run_key: int, happened: Input) -> bool:
        """Let something happen to a run now. False where the run has ended, perhaps because its head turned out to be
        damaged. Raises what the machine raises."""
        live = self._load(run_key)
        if live is None:
            if isinstance(happened, OfCall) and run_key not in self._runs:
                raise StaleCallError("the call is stale: its run has ended")
            return False
        live.began = self._beginning(live, happened)
        before = live.head
        live.head, commands = advance(before, happened, self.now, self._policy)
        live.is_changing = True
        self._leave_calls(live, before)
        for command in commands:
            _COMMANDS[type(command)](self, live, command)
        live.is_changing = False
        return True

    def wait_name(self, run_key: int, step_id: str) -> str:
        """The id of a waiting step, as the user wrote it."""
        live = self._load(run_key)
        waits = () if live is None else live.head.waits
        return next((wait.name for wait in waits if wait.step_id == step_id), step_id)

    def fail_run(self, run_key: int, error: ErrorData) -> None:
        """End a run that cannot be carried on, whatever its head says. Nothing where it has ended already."""
        row = self.store.run(run_key)
        if row.status.has_ended:
            return
        _logger.error("run %s cannot be carried on, and has failed: %s", row.id, error.message)
        head = Head(version=MACHINE_VERSION, status=RunStatus.FAILED, max_attempts=1)
        live = self._runs[run_key] = _LiveRun(CachedRun(row, head, self.store.ticket(run_key), is_moving=True))
        live.may_have_waits = True
        self.store.drop_delayed_calls(run_key)
        self.queue.leave_all(run_key)
        self._end_run(live, EndRun(RunStatus.FAILED, encode_error(error)))
        self._start_deferred(row, origin_of_event(row.key, None, self.now))

    def finish(self) -> Effects:
        """Carry out what is pending, let calls through that have room now, and write the heads."""
        while through := self._settle():
            for queued in through:
                self._let_through(queued)
        for key, live in self._runs.items():
            if live.head.status.has_ended:
                self._cache.forget(key)
            else:
                self._store_live(live)
        self._add_call_data()
        self._let_go()
        return self.effects

    def _add_call_data(self) -> None:
        """Give calls their content if it is in memory, which saves reading it."""
        for place, effect in enumerate(self.effects):
            if isinstance(effect, CallAt) and effect.data is None and effect.run_key in self._runs:
                data = _call_data(self._runs[effect.run_key], effect.call, self.now)
                if data is not None:
                    self.effects[place] = msgspec.structs.replace(effect, data=data)

    def _let_go(self) -> None:
        """Of what refers back to this entry: in cycles, all of it would wait for the garbage collector, which would
        then take a third of the time of everything."""
        self.__dict__.pop("events", None)
        self.__dict__.pop("admissions", None)

    def _store_live(self, live: _LiveRun) -> None:
        row, head = live.row, live.head
        self.store.put_head(row.key, head)
        is_moving = self._is_moving(live)
        if is_moving != live.was_moving:
            self.store.put_moving(row.key, is_moving)
        if head.status == RunStatus.RUNNING and row.status != RunStatus.RUNNING:
            row = self.store.begin_run(row, live.began)
        self._cache.put(CachedRun(row, head, live.ticket, is_moving, live.trigger, live.kept_memos))

    def _load(self, run_key: int) -> _LiveRun | None:
        live = self._runs.get(run_key)
        if live is None:
            try:
                run = self._cache.find(run_key) or self._read(run_key)
            except DatabaseCorruptError as error:
                # Nothing can be made of this run any more; the others are none the worse for it.
                self.fail_run(run_key, ErrorData(name=error.name, message=error.message))
                return None
            if run is None:
                return None
            live = self._runs[run_key] = _LiveRun(run)
        return None if live.head.status.has_ended else live

    def _read(self, run_key: int) -> CachedRun | None:
        head = self.store.head(run_key)
        return None if head is None else CachedRun(self.store.run(run_key), *head)

    def _beginning(self, live: _LiveRun, happened: Input) -> int:
        if isinstance(happened, OfCall) and (call := live.head.call(happened.generation)):
            is_queued = live.ticket is not None and live.ticket.is_queued
            return self.queue.let_through_at(live.row, call) if is_queued else call.due
        return self.now

    def _is_moving(self, live: _LiveRun) -> bool:
        """Whether anything of a run is under way, or will be without anything else happening first."""
        waiting = self.queue.waiting(live.row.key) if live.ticket is not None and live.ticket.is_queued else ()
        calls = any(call.generation not in waiting for call in live.head.calls)
        return calls or any(wait.op in REQUESTS for wait in live.head.waits)

    def _leave_calls(self, live: _LiveRun, before: Head) -> None:
        """Of calls that are outstanding no more, nothing is left that would make them, or make room for them."""
        after = {call.generation: call for call in live.head.calls}
        for call in before.calls:
            now = after.get(call.generation)
            if _is_repeated(call) and (now is None or not _is_repeated(now)):
                self.store.drop_delayed_call(live.row.key, call.generation)
            if live.ticket is not None and live.ticket.is_queued and now is None:
                self.queue.leave(live.row.key, call.generation)

    # the queue

    def _settle(self) -> list[QueuedCall]:
        while self._pending:
            self.apply(*self._pending.popleft())
        return [] if self._queue is None else self._queue.settle()

    def join_queue(self, run_key: int, generation: int) -> None:
        """A call that was put off is due."""
        live = self._load(run_key)
        call = None if live is None else live.head.call(generation)
        if live is None or call is None:
            return
        if live.ticket is not None and live.ticket.has_to_queue(starts_run=live.row.started_at is None):
            self.queue.join_again(live.row, call, live.ticket)
        else:
            self.effects.append(call_of(live.row, live.ticket, call))

    def _let_through(self, queued: QueuedCall) -> None:
        live = self._load(queued.run_key)
        call = None if live is None else live.head.call(queued.generation)
        if live is None or call is None:
            self.queue.leave(queued.run_key, queued.generation)
            return
        self.effects.append(call_of(live.row, live.ticket, call))
        if live.row.started_at is None:
            live.row = self.store.begin_run(live.row, self.now)
            self.admissions.begun(live.row)

    # commands

    def _make_call(self, live: _LiveRun, command: MakeCall) -> None:
        # Whatever was tried before is put off until then, should the clock be set back.
        is_later = command.call.due > self.now
        if is_later or command.call.error:
            self.store.add_delayed_call(live.row.key, command.call.generation, command.call.due)
        if live.ticket is None or not live.ticket.has_to_queue(starts_run=live.row.started_at is None):
            self.effects.append(call_of(live.row, live.ticket, command.call))
        elif is_later:
            self.effects.append(call_of(live.row, live.ticket, command.call, has_to_queue=True))
        else:
            self.queue.join(live.row, command.call, live.ticket)
        if command.call.error:
            self.store.put_failed_attempt(live.row.key, command.call, self.now)
            self.effects.append(subscriptions.call_repeated(live.row, command.call, self.now))

    def _write_memo(self, live: _LiveRun, command: WriteMemo) -> None:
        live.memos += 1
        began = live.wait_began.get(command.step_id, live.began)
        self.store.add_memo(live.row.key, live.memos, command, began, self.now)
        live.kept_memos = with_memo(live.kept_memos, command.step_id, command.memo)
        self.effects.append(subscriptions.step_ended(live.row, command, self.now))

    def _sleep(self, live: _LiveRun, command: Sleep) -> None:
        self._wait(live, command.name, WaitRow(live.row.key, command.step_id, Opcode.SLEEP, due=command.until))

    def _await_event(self, live: _LiveRun, command: AwaitEvent) -> None:
        ask = command.ask
        path = value = None
        if ask.expression:
            path, value = narrow(compile_expression(ask.expression), self._trigger_of(live).fields)
        self.store.add_wait_path(ask.event, path)
        wait = WaitRow(
            live.row.key,
            command.step_id,
            Opcode.WAIT_FOR_EVENT,
            topic=ask.event,
            path=path,
            value=value,
            expression=ask.expression,
            due=ask.until,
        )
        self._wait(live, command.name, wait)

    def _await_signal(self, live: _LiveRun, command: AwaitSignal) -> None:
        ask = command.ask
        for run_key, step_id in self.store.waits_for(Opcode.WAIT_FOR_SIGNAL, ask.signal):
            if not ask.replaces:
                self.happen(live.row.key, SignalConflicted(command.step_id, ask.signal))
                return
            self.store.mute_wait(run_key, step_id)
        wait = WaitRow(live.row.key, command.step_id, Opcode.WAIT_FOR_SIGNAL, topic=ask.signal, due=ask.until)
        self._wait(live, command.name, wait)

    def _invoke(self, live: _LiveRun, command: Invoke) -> None:
        ask = command.ask
        function = self.registry.find_active(ask.function_id)
        if function is None:
            message = (
                f"step {command.name!r} invokes the function {ask.function_id!r}, which no app has synced: its id is "
                "its app's id, a hyphen, and its own"
            )
            self._fail_wait(live, command.step_id, ErrorData(name="FunctionNotFoundError", message=message))
            return
        event = _invocation(ask.payload)
        try:
            check_content(event, self._max_event_bytes)
        except EventInvalidError as invalid:
            message = f"step {command.name!r} cannot invoke {ask.function_id!r}: {invalid.message}"
            self._fail_wait(live, command.step_id, ErrorData(name=invalid.name, message=message))
            return
        metadata = {
            "correlation_id": f"{live.row.id}.{command.step_id}",
            "expire": ask.until,
            "fn_id": ask.function_id,
            "name": command.name,
            "source_app_id": live.row.app_id,
            "source_fn_id": live.row.function_id,
        }
        origin = origin_of_invocation(live.row.key, origin_before(live.row, self._trigger_of(live)), self.now)
        runaway = refuse_runaway(self, function, origin)
        if runaway is not None:
            self._fail_wait(live, command.step_id, runaway)
            return
        event_id = self.new_id()
        wait = WaitRow(live.row.key, command.step_id, Opcode.INVOKE_FUNCTION, topic=event_id, due=ask.until)
        self._wait(live, command.name, wait)
        self.events.invoke(function, event, event_id, metadata, origin)

    def _trigger_of(self, live: _LiveRun) -> Arrival:
        """The event that triggered a run, or the first of them."""
        return live.trigger or self.events.trigger_of(live.row.event_key)

    def _fail_wait(self, live: _LiveRun, step_id: str, error: ErrorData) -> None:
        self.happen(live.row.key, WaitResolved(step_id, error_memo(error), failed=True))

    def _make_request(self, live: _LiveRun, command: MakeRequest) -> None:
        # Only that there is a request is stored: what it sends may hold credentials.
        live.may_have_waits = True
        self.store.put_wait(WaitRow(live.row.key, command.step_id, command.op), self.now)
        self.effects.append(RequestAt(live.row.key, command))

    def _close_wait(self, live: _LiveRun, command: CloseWait) -> None:
        began = self.store.take_wait(live.row.key, command.step_id)
        if began is not None:
            live.wait_began[command.step_id] = began

    def _end_run(self, live: _LiveRun, command: EndRun) -> None:
        row = live.row
        output = command.output
        self.store.end_run(row.key, command.status, live.began, self.now, output)
        if live.may_have_waits:
            self.store.drop_waits(row.key)
        self.effects.append(RunEnded(row.key))
        self.effects.append(subscriptions.run_ended(row, command, self.now))
        completed = command.status == RunStatus.COMPLETED
        # Runs keep their error as the app wrote it; others get it without the nulls, as official servers send it.
        told = output if completed else encode_error(msgspec.json.decode(output, type=ErrorData))
        memo = data_memo(told) if completed else b'{"error":' + told + b"}"
        if live.ticket is not None:
            self.admissions.ended(row, live.ticket)
        triggers = [live.trigger] if live.trigger else self._read_triggers(row)
        if row.rerun_of is None:
            for trigger in triggers:
                self._resolve_invokers(trigger, memo, failed=not completed)
        origin = origin_of_event(row.key, origin_before(row, triggers[0]), self.now)
        for name, data in announce_end(RunEnd(row.id, row.function_id, command.status, told), triggers):
            self.events.emit(name, data, origin)
        if live.head.defers:
            self._start_deferred(row, origin)

    def _start_deferred(self, row: RunRow, origin: Origin) -> None:
        for function_id, data in self.store.take_deferred(row.key):
            if self.registry.find_active(function_id) is None:
                _logger.warning("run %s: it deferred the function %r, which no app has synced", row.id, function_id)
            self.events.emit(
                InternalEvent.DEFERRED_SCHEDULE, deferred_data(data, function_id, row.id, row.function_id), origin
            )

    def _defer(self, live: _LiveRun, command: Defer) -> None:
        self.store.add_deferred(live.row.key, command.step_id, command.ask.function_id, command.ask.data)

    def _abort_deferred(self, live: _LiveRun, command: AbortDeferred) -> None:
        self.store.drop_deferred(live.row.key, command.step_id)

    def _refuse_deferred(self, live: _LiveRun, command: RefuseDeferred) -> None:
        _logger.warning("run %s cannot defer %r: %s; it continues without", live.row.id, command.name, command.reason)

    def _read_triggers(self, row: RunRow) -> list[Arrival]:
        return [self.events.trigger_of(event_key) for event_key in self.store.event_keys(row)]

    def _resolve_invokers(self, trigger: Arrival, memo: bytes, *, failed: bool) -> None:
        if trigger.name == InternalEvent.FUNCTION_INVOKED:
            for run_key, step_id in self.store.waits_for(Opcode.INVOKE_FUNCTION, trigger.id):
                self.happen(run_key, WaitResolved(step_id, memo, failed=failed))

    def _wait(self, live: _LiveRun, name: str, wait: WaitRow) -> None:
        live.may_have_waits = True
        self.store.put_wait(wait, self.now)
        if wait.due is not None:
            self.effects.append(TimerAt(wait.run_key, wait.step_id, wait.due))
            self.effects.append(subscriptions.step_waits(live.row, name, wait.op, wait.due, self.now))


_COMMANDS: dict[type[Any], Callable[[Entry, _LiveRun, Any], None]] = {
    MakeCall: Entry._make_call,
    WriteMemo: Entry._write_memo,
    Sleep: Entry._sleep,
    AwaitEvent: Entry._await_event,
    AwaitSignal: Entry._await_signal,
    Invoke: Entry._invoke,
    MakeRequest: Entry._make_request,
    CloseWait: Entry._close_wait,
    Defer: Entry._defer,
    AbortDeferred: Entry._abort_deferred,
    RefuseDeferred: Entry._refuse_deferred,
    EndRun: Entry._end_run,
}


def _call_data(live: _LiveRun, call: Call, now: int) -> CallData | None:
    """The content of a call that is made now, and before which nothing else can happen to its run but its end."""
    head = live.head
    if live.trigger is None or live.kept_memos is None or call.due > now or head.waits or len(head.calls) != 1:
        return None
    return CallData(
        live.row.id,
        live.row.function_id,
        call,
        head.max_attempts,
        head.disable_immediate,
        [live.trigger.body],
        live.kept_memos,
        defers=head.defers,
    )


def _is_repeated(call: Call) -> bool:
    return bool(call.attempt or call.unreached)


def _invocation(payload: dict[str, Any]) -> Event:
    """The event that an app's invocation amounts to; anything odd about its optional parts is left out."""
    version, user = payload.get("v"), payload.get("user")
    return Event(
        name=InternalEvent.FUNCTION_INVOKED,
        data=payload.get("data") or {},
        user=user,
        v=version if isinstance(version, str) else None,
    )
