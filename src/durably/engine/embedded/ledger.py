"""What happens to runs, carried out in the database: inputs through the machine, its commands into rows.

Runs in the writer's thread, inside a unit of work. One ``Entry`` is one unit: everything that follows from one
answer, event or timer, such as memos, new waits, runs that it starts and other runs that it wakes, is written
together or not at all. What must happen outside the database afterwards comes back as ``Effects``.
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from durably.engine.errors import DatabaseCorruptError, EventInvalidError, StaleCallError
from durably.engine.expressions import Equality, compile_expression
from durably.engine.head import MACHINE_VERSION, Head, RunStatus
from durably.engine.inputs import (
    Answered,
    AwaitEvent,
    AwaitSignal,
    Checkpointed,
    CloseWait,
    EndRun,
    Input,
    Invoke,
    MakeCall,
    MakeRequest,
    SignalConflicted,
    Sleep,
    WaitResolved,
    WriteMemo,
)
from durably.engine.machine import advance, start
from durably.engine.ops import REQUESTS
from durably.engine.turn import Policy, data_memo, encode_error, error_memo
from durably.protocol.errors import ErrorData
from durably.protocol.events import Event, InternalEvent
from durably.protocol.opcodes import Opcode

from . import updates
from .arrivals import RunEnd, announce_end, check_content
from .effects import CallAt, Effects, RequestAt, TimerAt
from .ids import Entropy, new_id
from .registry import Function, Registry
from .router import EventRouter
from .store import NewRun, RunRow, Store, WaitRow

_logger = logging.getLogger("durably.engine")

CANCELLED = msgspec.json.encode({"name": "FunctionCancelledError", "message": "the run was cancelled"})


class Ledger(msgspec.Struct, frozen=True):
    """What all entries have in common."""

    store: Store
    policy: Policy
    to_stored: Callable[[bytes], bytes]
    """The form in which JSON is stored."""
    max_event_bytes: int
    entropy: Entropy


class _LiveRun:
    """A run that this entry changes. ``began`` is when what is happening to it began."""

    def __init__(self, row: RunRow, head: Head) -> None:
        self.row = row
        self.head = head
        self.began = row.created_at
        self.wait_began: dict[str, int] = {}
        self.memos = head.memos
        self.was_running = row.status == RunStatus.RUNNING


class Entry:
    """``now`` is milliseconds since the epoch."""

    def __init__(self, ledger: Ledger, registry: Registry, now: int) -> None:
        self.effects = Effects()
        self.now = now
        self.registry = registry
        self.store = ledger.store
        self.to_stored = ledger.to_stored
        self.events = EventRouter(self)
        self._policy = ledger.policy
        self._max_event_bytes = ledger.max_event_bytes
        self._entropy = ledger.entropy
        self._runs: dict[int, _LiveRun] = {}
        self._pending: deque[tuple[int, Input]] = deque()

    def new_id(self) -> str:
        """For a run or an event that there is from now on."""
        return new_id(self.now, self._entropy)

    def start_run(self, function: Function, event_key: int, *, rerun_of: str | None = None) -> str:
        head, commands = start(function.max_attempts, self.now)
        new = NewRun(
            id=self.new_id(),
            function_id=function.id,
            app_id=function.app_id,
            event_key=event_key,
            max_attempts=function.max_attempts,
            created_at=self.now,
            rerun_of=rerun_of,
        )
        key = self.store.add_run(new, head)
        self.effects.calls.extend(CallAt(key, command.call) for command in commands if isinstance(command, MakeCall))
        row = RunRow(key, new.id, new.function_id, new.app_id, event_key, head.status, self.now, None)
        self.effects.notes.append(updates.run_started(row, self.now))
        return new.id

    def happen(self, run_key: int, happened: Input) -> None:
        """Let something happen to a run, once what is happening now is done with."""
        self._pending.append((run_key, happened))

    def apply(self, run_key: int, happened: Input) -> bool:
        """Let something happen to a run now. False where the run has ended, perhaps because its head turned out to be
        damaged. Raises what the machine raises."""
        live = self._load(run_key)
        if live is None:
            if isinstance(happened, Answered | Checkpointed) and run_key not in self._runs:
                raise StaleCallError("the call is stale: its run has ended")
            return False
        live.began = self._beginning(live, happened)
        before = live.head
        live.head, commands = advance(before, happened, self.now, self._policy)
        self._drop_delayed_calls(run_key, before, live.head)
        for command in commands:
            _COMMANDS[type(command)](self, live, command)
        return True

    def fail_run(self, run_key: int, error: ErrorData) -> None:
        """End a run that cannot be carried on, whatever its head says. Nothing where it has ended already."""
        row = self.store.run(run_key)
        if row.status.has_ended:
            return
        _logger.error("run %s cannot be carried on, and has failed: %s", row.id, error.message)
        head = Head(version=MACHINE_VERSION, status=RunStatus.FAILED, max_attempts=1)
        live = self._runs[run_key] = _LiveRun(row, head)
        self._end_run(live, EndRun(RunStatus.FAILED, encode_error(error)))

    def finish(self) -> Effects:
        """Carry out what is pending, and write the heads."""
        while self._pending:
            self.apply(*self._pending.popleft())
        for key, live in self._runs.items():
            if live.head.status.has_ended:
                continue
            is_moving = bool(live.head.calls) or any(wait.op in REQUESTS for wait in live.head.waits)
            self.store.put_head(key, live.head, is_moving)
            if live.head.status == RunStatus.RUNNING and not live.was_running:
                self.store.set_running(key, live.began)
        return self.effects

    def _load(self, run_key: int) -> _LiveRun | None:
        live = self._runs.get(run_key)
        if live is None:
            try:
                head = self.store.head(run_key)
            except DatabaseCorruptError as error:
                # Nothing can be made of this run any more; the others are none the worse for it.
                self.fail_run(run_key, ErrorData(name=error.name, message=error.message))
                return None
            if head is None:
                return None
            live = self._runs[run_key] = _LiveRun(self.store.run(run_key), head)
        return None if live.head.status.has_ended else live

    def _beginning(self, live: _LiveRun, happened: Input) -> int:
        if isinstance(happened, Answered | Checkpointed):
            call = live.head.call(happened.generation)
            return call.due if call else self.now
        return self.now

    def _drop_delayed_calls(self, run_key: int, before: Head, after: Head) -> None:
        repeated = {call.generation for call in after.calls if call.attempt or call.unreached}
        for call in before.calls:
            if (call.attempt or call.unreached) and call.generation not in repeated:
                self.store.drop_delayed_call(run_key, call.generation)

    # commands

    def _make_call(self, live: _LiveRun, command: MakeCall) -> None:
        # Whatever was tried before is put off until then, should the clock be set back.
        if command.call.due > self.now or command.call.error:
            self.store.add_delayed_call(live.row.key, command.call.generation, command.call.due)
        self.effects.calls.append(CallAt(live.row.key, command.call))
        if command.call.error:
            self.effects.notes.append(updates.call_repeated(live.row, command.call, self.now))

    def _write_memo(self, live: _LiveRun, command: WriteMemo) -> None:
        live.memos += 1
        command = msgspec.structs.replace(command, memo=self.to_stored(command.memo))
        began = live.wait_began.get(command.step_id, live.began)
        self.store.add_memo(live.row.key, live.memos, command, began, self.now)
        self.effects.notes.append(updates.step_ended(live.row, command, self.now))

    def _sleep(self, live: _LiveRun, command: Sleep) -> None:
        self._wait(live, command.name, WaitRow(live.row.key, command.step_id, Opcode.SLEEP, due=command.until))

    def _await_event(self, live: _LiveRun, command: AwaitEvent) -> None:
        ask = command.ask
        path = value = None
        if ask.expression:
            equality = _most_selective(compile_expression(ask.expression).equalities())
            if equality is not None:
                path = msgspec.json.encode(equality.async_path).decode()
                value = equality.wanted_key(self.events.trigger_of(live.row.event_key).fields)
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
        function = self.registry.find(ask.function_id)
        if function is None or not function.is_active:
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
        run_id = self.events.invoke(function, event, metadata).run_id
        self._wait(
            live,
            command.name,
            WaitRow(live.row.key, command.step_id, Opcode.INVOKE_FUNCTION, topic=run_id, due=ask.until),
        )

    def _fail_wait(self, live: _LiveRun, step_id: str, error: ErrorData) -> None:
        self.happen(live.row.key, WaitResolved(step_id, error_memo(error), failed=True))

    def _make_request(self, live: _LiveRun, command: MakeRequest) -> None:
        # Only that there is a request is stored: what it sends may hold credentials.
        self.store.put_wait(WaitRow(live.row.key, command.step_id, command.op), self.now)
        self.effects.requests.append(RequestAt(live.row.key, command))

    def _close_wait(self, live: _LiveRun, command: CloseWait) -> None:
        began = self.store.take_wait(live.row.key, command.step_id)
        if began is not None:
            live.wait_began[command.step_id] = began

    def _end_run(self, live: _LiveRun, command: EndRun) -> None:
        row = live.row
        output = self.to_stored(CANCELLED if command.status == RunStatus.CANCELLED else command.output)
        self.store.end_run(row.key, command.status, live.began, self.now, output)
        self.effects.ended.append(row.key)
        self.effects.notes.append(updates.run_ended(row, command, self.now))
        completed = command.status == RunStatus.COMPLETED
        # Runs keep their error as the app wrote it; others get it without the nulls, as official servers send it.
        told = output if completed else encode_error(msgspec.json.decode(output, type=ErrorData))
        memo = data_memo(told) if completed else b'{"error":' + told + b"}"
        for run_key, step_id in self.store.waits_for(Opcode.INVOKE_FUNCTION, row.id):
            self.happen(run_key, WaitResolved(step_id, memo, failed=not completed))
        trigger = self.events.trigger_of(row.event_key)
        for name, data in announce_end(RunEnd(row.id, row.function_id, command.status, told), trigger):
            self.events.emit(name, data)

    def _wait(self, live: _LiveRun, name: str, wait: WaitRow) -> None:
        self.store.put_wait(wait, self.now)
        if wait.due is not None:
            self.effects.timers.append(TimerAt(wait.run_key, wait.step_id, wait.due))
            self.effects.notes.append(updates.step_waits(live.row, name, wait.op, wait.due, self.now))


_COMMANDS: dict[type[Any], Callable[[Entry, _LiveRun, Any], None]] = {
    MakeCall: Entry._make_call,
    WriteMemo: Entry._write_memo,
    Sleep: Entry._sleep,
    AwaitEvent: Entry._await_event,
    AwaitSignal: Entry._await_signal,
    Invoke: Entry._invoke,
    MakeRequest: Entry._make_request,
    CloseWait: Entry._close_wait,
    EndRun: Entry._end_run,
}


def _most_selective(equalities: list[Equality]) -> Equality | None:
    """The equality that leaves the fewest waits: with the trigger's own data rather than with a constant."""
    with_trigger = (equality for equality in equalities if equality.event_path is not None)
    return next(with_trigger, None) or next(iter(equalities), None)


def _invocation(payload: dict[str, Any]) -> Event:
    """The event that an app's invocation amounts to; anything odd about its optional parts is left out."""
    version, user = payload.get("v"), payload.get("user")
    return Event(
        name=InternalEvent.FUNCTION_INVOKED,
        data=payload.get("data") or {},
        user=user,
        v=version if isinstance(version, str) else None,
    )
