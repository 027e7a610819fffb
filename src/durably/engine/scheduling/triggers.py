"""Triggers: runs that start for an event, at once or later, or are skipped."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from durably.engine.core.call_body import CallData
from durably.engine.core.flow.admission import (
    Admission,
    Batched,
    Debounced,
    Skip,
    SkipReason,
    Start,
    Trigger,
    admit,
    end_batch,
    end_debounce,
    hold,
    release,
    start,
)
from durably.engine.core.flow.buckets import BucketKind, StateChange
from durably.engine.core.flow.cancellation import CancelOn
from durably.engine.core.flow.held_events import OpenBatch
from durably.engine.core.flow.queue_entries import Ticket
from durably.engine.core.inputs import MakeCall
from durably.engine.core.machine import start as start_run
from durably.engine.core.run_state import Call, Head, RunStatus, origin_of_event
from durably.engine.core.transition import encode_error
from durably.engine.sqlite.tables.flow import CancelRow, DeadlineKind
from durably.engine.sqlite.tables.runs import NewRun, RunRow
from durably.protocol.errors import ErrorData

from . import subscriptions
from .bulk_operations import CANCELLED_IN_BULK
from .event_routing import narrow
from .events import ENDINGS, RunEnd, announce_end
from .outbox import BucketAt, DeadlineAt, call_of
from .registry import Function
from .reruns import Rerun, descends_from_cancelled, refuse_runaway

if TYPE_CHECKING:
    from .transaction import Entry

_PAUSED = "it is paused"
_TOOK_PLACE = "a later event took the place of this one (debounce)"
_REASONS = {
    SkipReason.IDEMPOTENCY: "an event with the same value of its idempotency expression came less than 24 hours before",
    SkipReason.RATE_LIMIT: "the event is over its rate limit",
    SkipReason.SINGLETON: "a run of it is under way (singleton)",
}
_SINGLETON_CANCELLED = "the run was cancelled: a newer one took its place (singleton)"


class Admissions:
    def __init__(self, entry: "Entry") -> None:
        self._entry = entry
        self._flow = entry.store.flow
        self._starts = RunStarts(entry)

    def trigger(self, function: Function, event_key: int) -> RunRow | None:
        """An event triggers a function. The run that starts for it, or is shown as skipped; ``None`` where there is
        none, or not yet."""
        restraint = self._entry.registry.restraint_of(function.id)
        arrival = self._entry.events.trigger_of(event_key)
        runaway = refuse_runaway(self._entry, function, arrival.origin, tells_end=arrival.name in ENDINGS)
        if runaway is not None:
            return self._starts.fail(function, (event_key,), runaway)
        if function.is_plain and restraint is None:
            return self._starts.start(function, (event_key,))
        if restraint is not None and restraint.is_paused:
            return self._skip_run(function, (event_key,), _PAUSED)
        trigger = Trigger(event_key, arrival.fields, len(arrival.body))
        admission = admit(function.flow, trigger, self._flow.read, self._entry.now)
        self._put(admission.changes)
        match admission.outcome:
            case Debounced() as debounced:
                self._hold_back(function, event_key, debounced)
                return None
            case Batched() as batched:
                return self._add_to_batch(function, event_key, batched)
            case Skip(reason, None):
                self._drop(function, event_key, _REASONS[reason])
                return None
            case _:
                return self._start_or_skip(function, (event_key,), admission)

    def rerun(self, function: Function, rerun: Rerun) -> RunRow:
        """Start a run again that was admitted before."""
        event = self._entry.events.trigger_of(rerun.event_keys[0]).fields
        admission = start(function.flow, event, self._flow.read, self._entry.now)
        return self._start_or_skip(function, rerun.event_keys, admission, rerun)

    def end_bucket(self, bucket_id: str) -> None:
        """A debounce or a batch is due; where it has been put off meanwhile, it is looked at again then."""
        found = self._flow.due_bucket(bucket_id)
        if found is None:
            return
        bucket, state, due = found
        now, read = self._entry.now, self._flow.read
        if due > now:
            self._entry.effects.append(BucketAt(bucket_id, due))
            return
        change: StateChange | None
        if bucket.kind is BucketKind.DEBOUNCE:
            ended = end_debounce(bucket, read, now)
            change = ended[1] if ended else None
        else:
            change = end_batch(bucket, OpenBatch.decode(state).id, read)
        function = self._entry.registry.find(bucket.function_id)
        if change is not None and function is not None:
            self._put((change,))
            self._start_held(function, bucket_id)

    def begun(self, run: RunRow) -> None:
        """The run's first call, which had to queue, is made now."""
        self._flow.drop_deadline(run.key)
        function = self._entry.registry.find(run.function_id)
        if function is not None:
            self._set_finish(function, run)

    def ended(self, run: RunRow, ticket: Ticket) -> None:
        self._put(release(ticket, run.key, self._flow.read))
        self._flow.forget_run(run.key)

    # what becomes of an event

    def _hold_back(self, function: Function, event_key: int, debounced: Debounced) -> None:
        bucket_id = debounced.bucket.id
        if debounced.was_due is None or debounced.due < debounced.was_due:
            # One that is put off is found again when it would have been due.
            self._entry.effects.append(BucketAt(bucket_id, debounced.due))
        if debounced.dropped != event_key:
            self._flow.hold_event(bucket_id, event_key)
        if debounced.dropped is not None:
            self._flow.drop_held_event(bucket_id, debounced.dropped)
            self._drop(function, debounced.dropped, _TOOK_PLACE)

    def _add_to_batch(self, function: Function, event_key: int, batched: Batched) -> RunRow | None:
        bucket_id = batched.bucket.id
        self._flow.hold_event(bucket_id, event_key)
        if batched.is_full:
            return self._start_held(function, bucket_id)
        if batched.batch.size == 1:
            self._entry.effects.append(BucketAt(bucket_id, batched.due))
        return None

    def _start_held(self, function: Function, bucket_id: str) -> RunRow | None:
        event_keys = self._flow.take_held_events(bucket_id)
        restraint = self._entry.registry.restraint_of(function.id)
        if restraint is not None and restraint.is_paused:
            return self._skip_run(function, event_keys, _PAUSED)
        event = self._entry.events.trigger_of(event_keys[0]).fields
        return self._start_or_skip(function, event_keys, start(function.flow, event, self._flow.read, self._entry.now))

    def _drop(self, function: Function, event_key: int, reason: str) -> None:
        """Start nothing, for good. Who invoked the function hears of it; others asked for just that."""
        self._entry.tell_invokers((event_key,), _skipped(function, reason))

    def _skip_run(
        self, function: Function, event_keys: Sequence[int], reason: str, rerun_of: str | None = None
    ) -> RunRow:
        """Show a run that is skipped, so that it can be found and run again."""
        error = _skipped(function, reason)
        run = self._starts.skip(function, tuple(event_keys), error, rerun_of=rerun_of)
        if rerun_of is None:
            self._entry.tell_invokers(event_keys, error)
        return run

    # starting a run

    def _start_or_skip(
        self, function: Function, event_keys: tuple[int, ...], admission: Admission, rerun: Rerun | None = None
    ) -> RunRow:
        self._put(admission.changes)
        outcome = admission.outcome
        if isinstance(outcome, Skip):
            rerun_of = None if rerun is None else rerun.run_id
            return self._skip_run(function, event_keys, _REASONS[outcome.reason], rerun_of)
        assert isinstance(outcome, Start), f"a run that starts now cannot be {outcome}"
        return self._start(function, event_keys, outcome, rerun)

    def _start(self, function: Function, event_keys: tuple[int, ...], how: Start, rerun: Rerun | None) -> RunRow:
        ticket = how.ticket if self._is_needed(function, how) else None
        run = self._starts.start(function, event_keys, ticket=ticket, rerun=rerun)
        if ticket is not None:
            self._put(hold(ticket, run.key))
            self._listen(run, how.cancel_on)
            if not ticket.is_queued:
                self._set_finish(function, run)
            elif how.start_by is not None:
                self._set_deadline(run, DeadlineKind.START, how.start_by)
        if how.cancels is not None:
            # Only now: who hears of its end is to meet the new run.
            self._entry.cancel(how.cancels, _SINGLETON_CANCELLED)
        self._heed_cancellations(function, run)
        return run

    def _listen(self, run: RunRow, cancel_on: Sequence[CancelOn]) -> None:
        for position, cancel in enumerate(cancel_on):
            path, value = narrow(cancel.condition, self._entry.events.trigger_of(run.event_key).fields)
            expression = None if cancel.condition is None else cancel.condition.text
            self._flow.add_cancel(run.key, position, CancelRow(cancel.event, path, value, expression, cancel.until))
            self._entry.store.add_wait_path(cancel.event, path)

    def _heed_cancellations(self, function: Function, run: RunRow) -> None:
        restraint = self._entry.registry.restraint_of(function.id)
        if restraint is None:
            return
        trigger = self._entry.events.trigger_of(run.event_key)
        for standing in restraint.cancellations:
            is_meant = standing.is_in_time(run.created_at) or (
                standing.is_followed(run.created_at)
                and descends_from_cancelled(self._entry, function.id, trigger.origin, standing.created_at)
            )
            if is_meant and standing.holds_for(trigger.fields):
                self._entry.cancel(run.key, CANCELLED_IN_BULK)
                return

    def _set_finish(self, function: Function, run: RunRow) -> None:
        finish_by = function.flow.timeouts.finish_by(self._entry.now)
        if finish_by is not None:
            self._set_deadline(run, DeadlineKind.FINISH, finish_by)

    def _set_deadline(self, run: RunRow, kind: DeadlineKind, due: int) -> None:
        self._flow.put_deadline(run.key, kind, due)
        self._entry.effects.append(DeadlineAt(run.key, due))

    def _is_needed(self, function: Function, how: Start) -> bool:
        """Whether the run's state depends on its ticket, or must be cleaned up after it."""
        ticket = how.ticket
        has_deadline = how.start_by is not None or function.flow.timeouts.finish is not None
        has_priority = ticket.place != self._entry.now
        is_limited = ticket.is_queued or ticket.singleton is not None
        return is_limited or bool(how.cancel_on) or has_deadline or has_priority

    def _put(self, changes: Sequence[StateChange]) -> None:
        for change in changes:
            self._flow.put(change, self._entry.now)


def _skipped(function: Function, reason: str) -> ErrorData:
    message = f"no run of the function {function.id!r} was started: {reason}"
    return ErrorData(name="FunctionSkippedError", message=message)


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
        head, commands = start_run(function.max_attempts, entry.now, *taken_over)
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
        entry.effects.append(subscriptions.run_started(run, entry.now))
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
        self._entry.effects.append(subscriptions.run_not_started(run, output, self._entry.now))
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
