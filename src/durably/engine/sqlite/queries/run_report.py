"""The report of one run, its links to other runs, and lines of ``ctx.logger``."""

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from durably.engine.core.run_state import RunStatus, decode_origin
from durably.engine.model.rows import AttemptRow, MemoRow, MemoTimes, UnfinishedStep
from durably.engine.model.runs import (
    LogEntry,
    LogPage,
    Relation,
    Run,
    RunLink,
    RunReport,
    StoredEvent,
    from_microseconds,
    relation_by,
    to_datetime,
)
from durably.engine.model.step_reports import RunFacts, StepReporter, report_run
from durably.engine.sqlite.tables.runs import open_waits
from durably.protocol.call import LogLine
from durably.protocol.events import InternalEvent
from durably.protocol.opcodes import Opcode
from durably.protocol.sync import decode_function

from .views import Conditions, FirstCallAt, find_event, find_run, read_run_state_of

MAX_CHILDREN = 200
"""The maximum number of children in a report."""

_LINK = "SELECT runs.key, runs.id, runs.function_id, runs.status, runs.created_at, runs.started_at FROM runs"
_SENDER = "CAST(substr(events.origin, 2) AS INTEGER)"
"""The run of an origin, in the form of the index ``events_by_sender_run``."""
_SENT = f"{_SENDER} = ? AND events.origin IS NOT NULL AND events.name <> 'inngest/function.finished'"


class _Metadata(msgspec.Struct):
    correlation_id: str = ""
    name: str = ""


class _InvocationData(msgspec.Struct, rename={"metadata": "_inngest"}):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)


class Invocation(msgspec.Struct):
    """The event of an invocation, with the fields that the engine added to its data."""

    data: _InvocationData = msgspec.field(default_factory=_InvocationData)

    @property
    def step(self) -> str | None:
        """The invoking step's id, as the user wrote it."""
        return self.data.metadata.name or None


_decoder = msgspec.json.Decoder(Invocation)


def parent_link(
    connection: sqlite3.Connection, event_key: int, rerun_of: str | None, first_call_at: FirstCallAt
) -> RunLink | None:
    """The run that started a run by ``event_key``, or that a rerun repeats.

    ``None`` if it does not exist, or no longer exists.
    """
    if rerun_of is not None:
        row = connection.execute(f"{_LINK} WHERE id = ?", (rerun_of,)).fetchone()
        return _link(row, Relation.RERUN, None, first_call_at) if row else None
    name, stored = connection.execute("SELECT name, origin FROM events WHERE key = ?", (event_key,)).fetchone()
    origin = decode_origin(stored)
    row = None if origin is None else connection.execute(f"{_LINK} WHERE key = ?", (origin.run_key,)).fetchone()
    if row is None:
        return None
    relation = relation_by(name)
    step = None
    if relation is Relation.INVOKED:
        (body,) = connection.execute("SELECT body FROM events WHERE key = ?", (event_key,)).fetchone()
        step = _invoking_step(body)
    return _link(row, relation, step, first_call_at)


def child_links(
    connection: sqlite3.Connection, run_key: int, run_id: str, first_call_at: FirstCallAt
) -> tuple[list[RunLink], bool]:
    """The runs that a run started, the earliest first, and whether there are more.

    Functions that the event of the run's end triggers are included only if the run failed or was cancelled.
    """
    links: list[tuple[int, RunLink]] = []
    for table, column in (("runs", "event_key"), ("run_events", "event_key")):
        key = "key" if table == "runs" else "run_key"
        rows = connection.execute(
            f"SELECT {table}.{key}, events.name, CASE WHEN events.name = ? THEN events.body END FROM events "
            f"JOIN {table} ON {table}.{column} = events.key WHERE {_SENT} ORDER BY 1 LIMIT ?",
            (InternalEvent.FUNCTION_INVOKED, run_key, MAX_CHILDREN + 1),
        )
        for child_key, name, body in rows.fetchall():
            row = connection.execute(f"{_LINK} WHERE key = ? AND rerun_of IS NULL", (child_key,)).fetchone()
            if row:
                step = None if body is None else _invoking_step(body)
                relation = relation_by(name)
                links.append((child_key, _link(row, relation, step, first_call_at)))
    reruns = connection.execute(f"{_LINK} WHERE rerun_of = ? ORDER BY key LIMIT ?", (run_id, MAX_CHILDREN + 1))
    links += [(row[0], _link(row, Relation.RERUN, None, first_call_at)) for row in reruns.fetchall()]
    by_key = dict(sorted(links, key=lambda link: link[0]))
    return list(by_key.values())[:MAX_CHILDREN], len(by_key) > MAX_CHILDREN


def run_links(connection: sqlite3.Connection, run_keys: Iterable[int], first_call_at: FirstCallAt) -> list[RunLink]:
    """Links to runs by their keys, without relations."""
    rows = (connection.execute(f"{_LINK} WHERE key = ?", (run_key,)).fetchone() for run_key in run_keys)
    return [_link(row, None, None, first_call_at) for row in rows if row]


def _invoking_step(body: bytes) -> str | None:
    try:
        return _decoder.decode(body).step
    except msgspec.MsgspecError:
        return None


def _link(row: Any, relation: Relation | None, step: str | None, first_call_at: FirstCallAt) -> RunLink:
    key, run_id, function_id, stored, created_at, started_at = row
    status = RunStatus(stored)
    if status is RunStatus.SCHEDULED and (started_at is not None or first_call_at(key) is not None):
        status = RunStatus.RUNNING
    return RunLink(
        run_id=run_id,
        function_id=function_id,
        status=status,
        created_at=to_datetime(created_at),
        relation=relation,
        step=step,
    )


CalledAt = Callable[[int, int], int | None]
"""Returns the time of the call with a run's key and a generation, in milliseconds; ``None`` if it is not under way."""

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


def _events(connection: sqlite3.Connection, run: Run) -> list[StoredEvent]:
    found = (find_event(connection, event_id) for event_id in run.event_ids)
    return [event for event in found if event is not None]


def _function_name(connection: sqlite3.Connection, function_id: str) -> str:
    row = connection.execute("SELECT config FROM functions WHERE id = ?", (function_id,)).fetchone()
    return (decode_function(row[0]).name if row else None) or function_id


_LINE = "at, level, message, step, attempt"


def run_lines(connection: sqlite3.Connection, run_key: int) -> list[LogLine]:
    """The lines of a run, in the order of their times."""
    rows = connection.execute(f"SELECT {_LINE} FROM run_logs WHERE run_key = ? ORDER BY at, key", (run_key,))
    return [_line(*row) for row in rows]


def list_logs(
    connection: sqlite3.Connection, run_id: str | None, function_id: str | None, position: int | None, limit: int
) -> LogPage:
    """Lines from a position on, or the latest."""
    conditions = Conditions()
    conditions.add("run_key = (SELECT key FROM runs WHERE id = ?)", run_id)
    conditions.add("function_id = ?", function_id)
    conditions.add("run_logs.key >= ?", position)
    order = "DESC" if position is None else "ASC"
    (last,) = connection.execute("SELECT coalesce(max(key), 0) FROM run_logs").fetchone()
    rows = connection.execute(
        f"SELECT run_logs.key, id, function_id, {_LINE} FROM run_logs JOIN runs ON runs.key = run_key"
        f"{conditions.text} ORDER BY run_logs.key {order} LIMIT ?",
        (*conditions.values, limit),
    ).fetchall()
    entries = [LogEntry(run_id=row[1], function_id=row[2], line=_line(*row[3:])) for row in sorted(rows)]
    is_cut = position is not None and len(rows) == limit
    return LogPage(entries=entries, position=(rows[-1][0] if is_cut else last) + 1)


def _line(at: int, level: str, message: str, step: str | None, attempt: int | None) -> LogLine:
    return LogLine(at=from_microseconds(at), level=level, message=message, step=step, attempt=attempt)
