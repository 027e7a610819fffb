"""Invariants after a storm, read from the engine's database and the app's diary alone."""

import contextlib
import datetime as dt
import itertools
import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from durably.engine.sqlite.maintenance import check_database

from .app_process import NAP, SLEEP

FUNCTIONS = {
    f"crash/{name}": f"crash-{name}" for name in ("journey", "voyage", "walk", "doze", "batch", "settle", "doomed")
}
"""The functions that each event starts."""
MINUTE = 60_000
"""Milliseconds."""
ENDS = {"crash-doomed": {"Failed"}, "crash-doomed-failure": {"Completed", "Failed"}}
"""All others are to complete. Failure handlers have one attempt, which an app that is killed has lost."""
_OF_LIVE_RUNS = (
    "run_states",
    "waits",
    "delayed_calls",
    "queued_calls",
    "slots",
    "slots_used",
    "pending_events",
    "deadlines",
)


@dataclass(frozen=True)
class Execution:
    """Of a step, by the call of a generation; ``at`` is milliseconds since the epoch."""

    run: str
    step: str
    generation: int
    token: str
    at: int


def ticks(rows: Callable[[str], Iterable[Any]]) -> dict[str, list[int]]:
    """By function, in the order in which they were fired, the times of the ticks that started runs."""
    fired: dict[str, list[int]] = defaultdict(list)
    for function_id, scheduled_at in rows(
        "SELECT function_id, json_extract(CAST(body AS TEXT), '$.data.scheduledAt') FROM runs "
        "JOIN events ON events.key = event_key WHERE name = 'inngest/scheduled.timer' ORDER BY runs.key"
    ):
        fired[function_id].append(round(dt.datetime.fromisoformat(scheduled_at).timestamp() * 1000))
    return fired


class Verdict:
    """``faults`` are sentences; none is as it should be. ``clock_was_set``: sleeps may be shorter than asked for."""

    def __init__(self, database: Path, diary: Path, accepted: dict[str, str], *, clock_was_set: bool = False) -> None:
        self.database, self.accepted, self._clock_was_set = database, accepted, clock_was_set
        self.executions: dict[tuple[str, str], list[Execution]] = defaultdict(list)
        for line in diary.read_text().splitlines():
            execution = Execution(**json.loads(line))
            self.executions[execution.run, execution.step].append(execution)
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            self._rows = connection.execute
            self.faults = [fault for check in _CHECKS for fault in check(self)]

    def events_led_to_their_runs(self) -> Iterator[str]:
        started: dict[str, list[str]] = defaultdict(list)
        for sender_id, function_id in self._rows(
            "SELECT sender_id, function_id FROM runs JOIN events ON events.key = runs.event_key "
            "WHERE sender_id IS NOT NULL AND NOT is_batch UNION ALL "
            "SELECT sender_id, function_id FROM run_events JOIN runs ON runs.key = run_key "
            "JOIN events ON events.key = run_events.event_key"
        ):
            started[sender_id].append(function_id)
        for event_id, name in self.accepted.items():
            if started[event_id] != [FUNCTIONS[name]] and (name != "crash/settle" or len(started[event_id]) > 1):
                yield f"event {event_id} ({name}) led to {started[event_id]}"
        for key in range(3):
            number = "json_extract(CAST(body AS TEXT), '$.data.number')"
            query = f"SELECT sender_id FROM events WHERE name = 'crash/settle' AND {number} % 3 = ? ORDER BY key"
            *_, [last] = [*self._rows(query, (key,))] or [[None]]
            if last is not None and not started[last]:
                yield f"event {last}, the last of those that are debounced together, led to no run"
        for (event_id,) in self._rows("SELECT sender_id FROM events WHERE name = 'crash/asked'"):
            if started[event_id] != ["crash-answer"]:
                yield f"event {event_id} led to {started[event_id]}"

    def runs_have_ended(self) -> Iterator[str]:
        for run_id, function_id, status in self._rows("SELECT id, function_id, status FROM runs"):
            if status not in ENDS.get(function_id, {"Completed"}):
                yield f"run {run_id} of {function_id} is {status}"
        for table in _OF_LIVE_RUNS:
            [(count,)] = self._rows(f"SELECT count(*) FROM {table}")
            if count:
                yield f"{count} {table} are left of runs that have ended"

    def the_database_is_sound(self) -> Iterator[str]:
        yield from check_database(self.database)

    def committed_steps_did_not_run_again(self) -> Iterator[str]:
        """The call that executed what counts is the last that executed the step at all: no call that was made after
        the commit did, and nothing was taken from a call that had been given up on."""
        for run_id, step, memo in self._memos("op = 'StepRun' AND NOT failed"):
            if not isinstance(memo, str):  # the ids of events that the step sent
                continue
            executions = self.executions[run_id, step]
            counting = [execution for execution in executions if execution.token == memo]
            if len(counting) != 1:
                yield f"step {step} of run {run_id} has a memo that no execution returned: {memo}"
                continue
            [that] = counting
            for other in executions:
                if other is not that and other.generation >= that.generation:
                    yield (
                        f"step {step} of run {run_id} was executed by call {that.generation}, whose result was "
                        f"committed, and by call {other.generation}"
                    )

    def outputs_are_made_of_memos(self) -> Iterator[str]:
        memos: dict[str, set[Any]] = defaultdict(set)
        for run_id, _, memo in self._memos("op IN ('StepRun', 'InvokeFunction') AND NOT failed"):
            if isinstance(memo, str):
                memos[run_id].add(memo)
        for run_id, output in self._rows("SELECT id, output FROM runs WHERE status = 'Completed'"):
            tokens = json.loads(output)
            if isinstance(tokens, list) and not (len(tokens) >= 6 and set(tokens) <= memos[run_id]):
                yield f"run {run_id} returned what its steps did not: {tokens}"

    def invocations_started_one_run_each(self) -> Iterator[str]:
        invoked = Counter(
            json.loads(body)["data"]["_inngest"]["correlation_id"]
            for (body,) in self._rows(
                "SELECT body FROM runs JOIN events ON events.key = event_key WHERE function_id = 'crash-child'"
            )
        )
        wanted = {
            f"{run_id}.{step_id}"
            for run_id, step_id in self._rows(
                "SELECT runs.id, step_id FROM memos JOIN runs ON runs.key = run_key WHERE op = 'InvokeFunction'"
            )
        }
        if set(invoked) != wanted or set(invoked.values()) - {1}:
            yield f"steps invoked {len(wanted)} times, and {invoked.total()} runs of {len(invoked)} steps came of it"

    def failures_were_handled_once(self) -> Iterator[str]:
        [(failures,)] = self._rows("SELECT count(*) FROM runs WHERE function_id = 'crash-doomed'")
        handled = Counter(
            json.loads(body)["data"]["run_id"]
            for (body,) in self._rows(
                "SELECT body FROM runs JOIN events ON events.key = event_key WHERE function_id = 'crash-doomed-failure'"
            )
        )
        if len(handled) != failures or handled.total() != failures:
            yield f"{failures} runs failed; {len(handled)} of them were handled, by {handled.total()} runs"

    def ticks_fired_once_each(self) -> Iterator[str]:
        """No engine was down for as long as a tick would have to be late to be missed."""
        for function_id, fired in ticks(self._rows).items():
            for earlier, later in itertools.pairwise(fired):
                if later - earlier != MINUTE:
                    yield f"the tick of {function_id} at {later} was fired after that at {earlier}"

    def sleeps_were_not_cut_short(self) -> Iterator[str]:
        for before, after, duration in (("first", "a", NAP), ("lie down", "get up", SLEEP)):
            for (run_id, step), executions in self.executions.items():
                if step == after and (began := self.executions.get((run_id, before))):
                    slept = min(each.at for each in executions) - min(each.at for each in began)
                    if slept < duration.total_seconds() * 1000 and not self._clock_was_set:
                        yield f"run {run_id} slept for {slept} ms"

    def _memos(self, condition: str) -> Iterator[tuple[str, str, Any]]:
        query = f"SELECT runs.id, name, memo FROM memos JOIN runs ON runs.key = run_key WHERE {condition}"
        for run_id, step, memo in self._rows(query):
            yield run_id, step, json.loads(memo)["data"]


_CHECKS = (
    Verdict.events_led_to_their_runs,
    Verdict.runs_have_ended,
    Verdict.the_database_is_sound,
    Verdict.committed_steps_did_not_run_again,
    Verdict.outputs_are_made_of_memos,
    Verdict.invocations_started_one_run_each,
    Verdict.failures_were_handled_once,
    Verdict.ticks_fired_once_each,
    Verdict.sleeps_were_not_cut_short,
)
