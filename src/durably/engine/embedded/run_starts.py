"""Starting runs that were admitted, and noting those that were skipped: rows, first calls, and what there is to see.

Part of an entry in the ledger; whether a run starts is decided elsewhere.
"""

from typing import TYPE_CHECKING

from durably.engine.flow.ticket import Ticket
from durably.engine.head import Call, Head, RunStatus
from durably.engine.inputs import MakeCall
from durably.engine.machine import start
from durably.engine.origins import origin_of_event
from durably.engine.turn import encode_error
from durably.protocol.errors import ErrorData

from . import updates
from .arrivals import RunEnd, announce_end
from .bodies import CallData
from .effects import call_of
from .registry import Function
from .reruns import Rerun
from .store import NewRun, RunRow

if TYPE_CHECKING:
    from .ledger import Entry

_MOST_CARRIED_BYTES = 16 * 1024
"""Of an event, to be kept in memory until the call is made that tells it."""


class RunStarts:
    def __init__(self, entry: "Entry") -> None:
        self._entry = entry

    def start(
        self,
        function: Function,
        event_keys: tuple[int, ...],
        *,
        ticket: Ticket | None = None,
        rerun: Rerun | None = None,
    ) -> RunRow:
        """Start a run that was admitted. A rerun takes over memos of the run that it repeats."""
        entry = self._entry
        taken_over = (0, 0) if rerun is None else (rerun.memos, rerun.size)
        head, commands = start(function.max_attempts, entry.now, *taken_over)
        has_to_queue = ticket is not None and ticket.is_queued
        new = self._new_run(function, event_keys, rerun=rerun, ticket=ticket)
        run = entry.store.add_run(new, head, is_moving=not has_to_queue)
        entry.remember(run, head, ticket, is_moving=not has_to_queue, memos=() if rerun is None else None)
        if rerun is not None and rerun.memos:
            entry.store.copy_memos(rerun.run_key, run.key, rerun.until)
        for call in (command.call for command in commands if isinstance(command, MakeCall)):
            if ticket is not None and has_to_queue:
                entry.queue.join(run, call, ticket)
            else:
                data = self._first_data(run, head, call) if rerun is None and len(event_keys) == 1 else None
                entry.effects.append(call_of(run, ticket, call, data=data))
        entry.effects.append(updates.run_started(run, entry.now))
        return run

    def skip(
        self, function: Function, event_keys: tuple[int, ...], error: ErrorData, *, rerun_of: str | None = None
    ) -> RunRow:
        """Note that no run was started for events, so that people see it."""
        return self._end_at_once(function, event_keys, RunStatus.SKIPPED, error, rerun_of)

    def fail(self, function: Function, event_keys: tuple[int, ...], error: ErrorData) -> RunRow:
        """Store a run that failed before it began, and report its end."""
        entry = self._entry
        run = self._end_at_once(function, event_keys, RunStatus.FAILED, error, None)
        triggers = [entry.events.trigger_of(event_key) for event_key in event_keys]
        origin = origin_of_event(run.key, triggers[0].origin, entry.now)
        for name, data in announce_end(RunEnd(run.id, function.id, run.status, encode_error(error)), triggers):
            entry.events.emit(name, data, origin)
        return run

    def _end_at_once(
        self,
        function: Function,
        event_keys: tuple[int, ...],
        status: RunStatus,
        error: ErrorData,
        rerun_of: str | None,
    ) -> RunRow:
        output = encode_error(error)
        new = self._new_run(function, event_keys, rerun_of=rerun_of)
        run = self._entry.store.add_ended_run(new, status, output)
        self._entry.effects.append(updates.run_not_started(run, output, self._entry.now))
        return run

    def _first_data(self, run: RunRow, head: Head, call: Call) -> CallData | None:
        """What the first call of a run tells, which saves reading it: there is nothing but the event."""
        event = self._entry.events.trigger_of(run.event_key).body
        if len(event) > _MOST_CARRIED_BYTES:
            return None
        return CallData(run.id, run.function_id, call, head.max_attempts, head.disable_immediate, [event], [])

    def _new_run(
        self,
        function: Function,
        event_keys: tuple[int, ...],
        *,
        rerun: Rerun | None = None,
        rerun_of: str | None = None,
        ticket: Ticket | None = None,
    ) -> NewRun:
        return NewRun(
            id=self._entry.new_id(),
            function_id=function.id,
            app_id=function.app_id,
            event_keys=event_keys,
            max_attempts=function.max_attempts,
            created_at=self._entry.now,
            rerun_of=rerun_of if rerun is None else rerun.run_id,
            ticket=ticket,
            step_input=None if rerun is None else rerun.step_input,
        )
