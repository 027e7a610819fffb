"""The report of one run: all that the engine knows of it, in one read."""

import sqlite3
from collections.abc import Callable, Iterator

import msgspec

from durably.engine.reports import RunReport
from durably.engine.sqlite.tables.runs import open_waits
from durably.engine.steps.reports import RunFacts, StepReporter, report_run
from durably.engine.steps.rows import AttemptRow, MemoRow, MemoTimes, UnfinishedStep
from durably.engine.views import EventView, RunView
from durably.protocol.opcodes import Opcode
from durably.protocol.sync import decode_function

from .run_links import child_links, parent_link
from .run_logs import run_lines
from .views import FirstCallAt, find_event, find_run, read_run_state_of

CalledAt = Callable[[int, int], int | None]
"""Maps a run's key and a generation to when that call was made, in milliseconds; ``None`` if it is not under way."""

_unfinished_decoder = msgspec.json.Decoder(list[UnfinishedStep])


def read_run_report(
    connection: sqlite3.Connection, run_id: str, first_call_at: FirstCallAt, called_at: CalledAt
) -> RunReport | None:
    """The report; ``None`` if there is no such run."""
    run = find_run(connection, run_id, first_call_at)
    if run is None:
        return None
    key, event_key, app_version, last_called_at, unfinished = connection.execute(
        "SELECT key, event_key, app_version, last_called_at, unfinished FROM runs WHERE id = ?", (run_id,)
    ).fetchone()
    children, has_more_children = child_links(connection, key, run_id, first_call_at)
    reporter = StepReporter(
        run, lambda generation: called_at(key, generation), children, _failed_attempts(connection, key)
    )
    steps = reporter.report(
        _finished_steps(connection, key),
        [] if unfinished is None else _unfinished_decoder.decode(unfinished),
        read_run_state_of(connection, key),
        open_waits(connection, key),
    )
    facts = RunFacts(
        function_name=_function_name(connection, run.function_id),
        app_version=app_version,
        last_called_at=last_called_at,
        events=_events(connection, run),
        parent=parent_link(connection, event_key, run.rerun_of, first_call_at),
        children=children,
        has_more_children=has_more_children,
        logs=run_lines(connection, key),
    )
    return report_run(run, facts, reporter, steps)


def _failed_attempts(connection: sqlite3.Connection, run_key: int) -> Iterator[AttemptRow]:
    rows = connection.execute(
        "SELECT step_id, attempt, name, ended_at, error, data, queued_at, called_at, ran_from, ran_for, retry_at "
        "FROM failed_attempts WHERE run_key = ? ORDER BY ended_at, attempt",
        (run_key,),
    )
    return (AttemptRow(*values) for values in rows)


def _finished_steps(connection: sqlite3.Connection, run_key: int) -> list[tuple[MemoRow, bytes]]:
    rows = connection.execute(
        "SELECT step_id, name, op, attempts, failed, is_copied, arguments, memo, created_at, ended_at, called_at, "
        "ran_from, ran_for, topic FROM memos WHERE run_key = ? ORDER BY seq",
        (run_key,),
    )
    found = []
    for step_id, name, op, attempts, failed, is_copied, arguments, memo, *times in rows:
        row = MemoRow(step_id, name, Opcode(op), attempts, bool(failed), MemoTimes(*times), bool(is_copied), arguments)
        found.append((row, memo))
    return found


def _events(connection: sqlite3.Connection, run: RunView) -> list[EventView]:
    found = (find_event(connection, event_id) for event_id in run.event_ids)
    return [event for event in found if event is not None]


def _function_name(connection: sqlite3.Connection, function_id: str) -> str:
    row = connection.execute("SELECT config FROM functions WHERE id = ?", (function_id,)).fetchone()
    return (decode_function(row[0]).name if row else None) or function_id
