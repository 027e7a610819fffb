"""Queries for events and runs: one of them, the report of a run, and lines of ``ctx.logger``.

They run in the reader's threads.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from durably.engine.core.calls import join_memos
from durably.engine.core.run_state import RunState, RunStatus, decode_origin
from durably.engine.core.transition import encode_error
from durably.engine.model.records import UNREACHED_ERRORS, AttemptRow, MemoTimes, StepRow, UnfinishedStep
from durably.engine.model.run_report import RunRows, is_idle, report_calls, run_wait
from durably.engine.model.runs import (
    ExportedSpans,
    LogEntry,
    LogPage,
    ModelUsage,
    Progress,
    Relation,
    Run,
    RunCall,
    RunMetadata,
    StoredEvent,
    from_microseconds,
    relation_by,
    to_datetime,
    to_optional_datetime,
)
from durably.engine.sqlite.tables.runs import find_run_key, invoked_function, is_held, open_waits, read_run_state
from durably.protocol.call import LogLine
from durably.protocol.engine_errors import DatabaseCorruptError
from durably.protocol.errors import ErrorData
from durably.protocol.events import Event, InternalEvent
from durably.protocol.opcodes import Opcode
from durably.protocol.sync import decode_function

FirstCallAt = Callable[[int], int | None]
"""Returns the time of a run's first call by the run's key, if that is not stored yet."""
CalledAt = Callable[[int, int], int | None]
"""Returns the time of the call with a run's key and a generation, in milliseconds; ``None`` if it is not under way."""

MAX_CHILDREN = 200
"""The maximum number of children in a report."""
_MOST_NAMES = 1000
_NAMES = ", ".join(f"'{name}'" for name in sorted(UNREACHED_ERRORS))
_FAILED_ATTEMPTS = (
    "(SELECT count(*) FROM failed_attempts WHERE run_key = runs.key "
    f"AND (ran_from IS NOT NULL OR substr(error, 1, instr(error, ':') - 1) NOT IN ({_NAMES})))"
)
"""The number of a run's failed attempts, without calls that did not reach the app."""
RUN_COLUMNS = (
    "runs.key, runs.id, function_id, app_id, status, max_attempts, created_at, started_at, ended_at, rerun_of, "
    f"events.id, events.name, is_batch, {_FAILED_ATTEMPTS}, run_states.state, "
    "(SELECT progress FROM run_progress WHERE run_key = runs.key)"
)
"""The columns of ``to_run``, without the output, which follows them."""
_TABLES = "FROM runs JOIN events ON events.key = runs.event_key LEFT JOIN run_states ON run_states.run_key = runs.key"
_RUN, _RELATED = f"SELECT {RUN_COLUMNS}, output {_TABLES}", f"SELECT {RUN_COLUMNS}, NULL {_TABLES}"
_SENDER = "CAST(substr(events.origin, 2) AS INTEGER)"
"""The run of an origin, in the form of the index ``events_by_sender_run``."""
_SENT = f"{_SENDER} = ? AND events.origin IS NOT NULL AND events.name <> 'inngest/function.finished'"
_LINE = "at, level, message, step, attempt"


class _Metadata(msgspec.Struct):
    correlation_id: str = ""
    name: str = ""


class _InvocationData(msgspec.Struct, rename={"metadata": "_inngest"}):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)


class _Invocation(msgspec.Struct):
    """The event of an invocation, with the fields that the engine added to its data."""

    data: _InvocationData = msgspec.field(default_factory=_InvocationData)


_event_decoder = msgspec.json.Decoder(Event)
_invocation_decoder = msgspec.json.Decoder(_Invocation)
_step_input_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_progress_decoder = msgspec.json.Decoder(Progress)
_unfinished_decoder = msgspec.json.Decoder(list[UnfinishedStep])


# events


def find_event(connection: sqlite3.Connection, event_id: str) -> StoredEvent | None:
    row = connection.execute("SELECT id, received_at, body FROM events WHERE id = ?", (event_id,)).fetchone()
    return to_event(*row) if row else None


def to_event(event_id: str, received_at: int, body: bytes) -> StoredEvent:
    """The event of a row with these columns."""
    return StoredEvent.of(event_id, _event_decoder.decode(body), to_datetime(received_at))


def awaited_names(connection: sqlite3.Connection) -> list[str]:
    """Names of events that runs have waited for, or have been cancelled by."""
    rows = connection.execute("SELECT DISTINCT event FROM wait_paths LIMIT ?", (_MOST_NAMES,))
    return [name for (name,) in rows]


def read_batch(connection: sqlite3.Connection, run_key: int) -> list[tuple[str, bytes]]:
    """Ids and bodies of the events of a batch, in the order of receipt."""
    return connection.execute(
        "SELECT id, body FROM run_events JOIN events ON events.key = run_events.event_key WHERE run_key = ? "
        "ORDER BY event_key",
        (run_key,),
    ).fetchall()


# runs


def find_run(connection: sqlite3.Connection, run_id: str, first_call_at: FirstCallAt) -> Run | None:
    """A run by its id, or by that of the event of an invocation. See ``Engine.get_run``."""
    row = connection.execute(f"{_RUN} WHERE runs.id = ?", (run_id,)).fetchone()
    return to_run(connection, row, first_call_at) if row else _find_start(connection, run_id, first_call_at)


def _find_start(connection: sqlite3.Connection, event_id: str, first_call_at: FirstCallAt) -> Run | None:
    """The run that an invocation has started or will start. A skipped one may not be stored."""
    event = connection.execute(
        "SELECT key, received_at, body, notes FROM events WHERE id = ? AND name = ?",
        (event_id, InternalEvent.FUNCTION_INVOKED),
    ).fetchone()
    if event is None:
        return None
    runs = event_runs(connection, event_id, first_call_at)
    if runs:
        return runs[0]
    key, received_at, body, notes = event
    function_id, at = invoked_function(body), to_datetime(received_at)
    app = connection.execute("SELECT app_id FROM functions WHERE id = ?", (function_id,)).fetchone()
    start = Run(
        id=event_id,
        function_id=function_id,
        app_id=app[0] if app else "",
        status=RunStatus.SCHEDULED,
        event_ids=[event_id],
        event_id=event_id,
        event_name=InternalEvent.FUNCTION_INVOKED,
        created_at=at,
    )
    if is_held(connection, key):
        return start
    if not notes:  # Its run was deleted.
        return None
    error = ErrorData(name="FunctionSkippedError", message=msgspec.json.decode(notes)[-1])
    return msgspec.structs.replace(
        start, status=RunStatus.SKIPPED, ended_at=at, output=msgspec.Raw(encode_error(error))
    )


def list_runs(
    connection: sqlite3.Connection, function_id: str | None, first_call_at: FirstCallAt, limit: int = -1
) -> list[Run]:
    """The newest runs of a function, or of all, newest first."""
    rows = connection.execute(
        f"{_RUN} WHERE ?1 IS NULL OR function_id = ?1 ORDER BY runs.key DESC LIMIT ?2", (function_id, limit)
    )
    return [to_run(connection, row, first_call_at) for row in rows]


def event_runs(connection: sqlite3.Connection, event_id: str, first_call_at: FirstCallAt) -> list[Run]:
    """The runs that an event started, in their order."""
    key = "(SELECT key FROM events WHERE id = ?1)"
    of_event = f"SELECT key FROM runs WHERE event_key = {key}"
    with_batch = f"SELECT run_key FROM run_events WHERE event_key = {key}"
    rows = connection.execute(
        f"{_RUN} WHERE runs.key IN ({of_event} UNION {with_batch}) ORDER BY runs.key", (event_id,)
    )
    return [to_run(connection, row, first_call_at) for row in rows]


def runs_of_keys(connection: sqlite3.Connection, run_keys: Iterable[int], first_call_at: FirstCallAt) -> list[Run]:
    """Runs by their keys, without outputs."""
    rows = (connection.execute(f"{_RELATED} WHERE runs.key = ?", (run_key,)).fetchone() for run_key in run_keys)
    return [to_run(connection, row, first_call_at) for row in rows if row]


def to_run(connection: sqlite3.Connection, row: Sequence[Any], first_call_at: FirstCallAt) -> Run:
    """The run of a row of ``RUN_COLUMNS`` and the output."""
    key, run_id, function_id, app_id, status, max_attempts, created_at, started_at, ended_at = row[:9]
    rerun_of, event_id, event_name, is_batch, failed_attempts, encoded, progress, output = row[9:]
    state = _readable(encoded) if encoded else None
    if state is not None and started_at is None:
        started_at = first_call_at(key)
        status = RunStatus.SCHEDULED if started_at is None else RunStatus.RUNNING
    wait = None
    if state is not None and state.waits and is_idle(state):
        query = "SELECT step_id, due, topic FROM waits WHERE run_key = ? ORDER BY due IS NULL, due LIMIT 1"
        wait = connection.execute(query, (key,)).fetchone()
    event_ids = [each for each, _ in read_batch(connection, key)] if is_batch else [event_id]
    usage = connection.execute(
        "SELECT model, sum(input_tokens), sum(output_tokens) FROM step_usage WHERE run_key = ? GROUP BY model", (key,)
    )
    return Run(
        id=run_id,
        function_id=function_id,
        app_id=app_id,
        status=RunStatus(status),
        event_ids=event_ids,
        event_id=event_ids[0] if event_ids else None,
        event_name=event_name,
        created_at=to_datetime(created_at),
        started_at=to_optional_datetime(started_at),
        ended_at=to_optional_datetime(ended_at),
        output=None if output is None else msgspec.Raw(output),
        attempt=max((call.attempt for call in state.calls), default=0) if state else 0,
        max_attempts=max_attempts,
        failed_attempts=failed_attempts,
        usage=[ModelUsage(*values) for values in usage],
        rerun_of=rerun_of,
        waiting=None if state is None else run_wait(state, *(wait or ())),
        progress=None if progress is None else _progress_decoder.decode(progress),
    )


def read_run_state_of(connection: sqlite3.Connection, run_key: int) -> RunState | None:
    row = connection.execute("SELECT state FROM run_states WHERE run_key = ?", (run_key,)).fetchone()
    return _readable(row[0]) if row else None


def _readable(stored: bytes) -> RunState | None:
    """The run state; ``None`` if it is damaged.

    A run with a damaged state fails at its next input.
    """
    try:
        return read_run_state(stored)
    except DatabaseCorruptError:
        return None


# for SDKs


def run_batch(connection: sqlite3.Connection, run_id: str) -> bytes | None:
    row = connection.execute(
        "SELECT runs.key, is_batch, body FROM events JOIN runs ON events.key = runs.event_key WHERE runs.id = ?",
        (run_id,),
    ).fetchone()
    if row is None:
        return None
    key, is_batch, body = row
    bodies = [each for _, each in read_batch(connection, key)] if is_batch else [body]
    return b"[" + b",".join(bodies) + b"]"


def run_actions(connection: sqlite3.Connection, run_id: str) -> bytes | None:
    row = connection.execute(
        "SELECT runs.key, step_input FROM runs LEFT JOIN run_states ON run_states.run_key = runs.key WHERE runs.id = ?",
        (run_id,),
    ).fetchone()
    if row is None:
        return None
    key, step_input = row
    memos = connection.execute("SELECT step_id, memo FROM memos WHERE run_key = ?", (key,)).fetchall()
    pending = None if step_input is None else pending_input(step_input, {step_id for step_id, _ in memos})
    return join_memos(memos if pending is None else [*memos, pending])


def pending_input(step_input: bytes, memoised: Collection[str]) -> tuple[str, bytes] | None:
    """The step that a rerun gives another input, and the input.

    ``None`` if the step has run.
    """
    ((step_id, given),) = _step_input_decoder.decode(step_input).items()
    return None if step_id in memoised else (step_id, bytes(given))


def run_calls(connection: sqlite3.Connection, run_id: str, called_at: CalledAt) -> list[RunCall]:
    row = connection.execute("SELECT key FROM runs WHERE id = ?", (run_id,)).fetchone()
    state = read_run_state_of(connection, row[0]) if row else None
    return [] if state is None else report_calls(run_id, state, _under_way(state, row[0], called_at))


def _under_way(state: RunState, run_key: int, called_at: CalledAt) -> dict[int, int]:
    times = ((call.generation, called_at(run_key, call.generation)) for call in state.calls)
    return {generation: time for generation, time in times if time is not None}


# the report of a run


def read_run_rows(
    connection: sqlite3.Connection,
    run_id: str,
    first_call_at: FirstCallAt,
    called_at: CalledAt,
    has_context: bool,
) -> RunRows | None:
    """What the database has of a run; ``None`` if there is no such run.

    ``has_context``: also its events, parent, children and logs, and what its function is called.
    """
    run = find_run(connection, run_id, first_call_at)
    if run is None:
        return None
    row = connection.execute(
        "SELECT key, event_key, app_version, last_called_at, unfinished FROM runs WHERE id = ?", (run.id,)
    ).fetchone()
    if row is None:  # Flow control holds the run back, or has skipped it.
        return None
    key, event_key, app_version, last_called_at, unfinished = row
    state = read_run_state_of(connection, key)
    usage = _usage_of_attempts(connection, key)
    rows = RunRows(
        run=run,
        app_version=app_version,
        last_called_at=last_called_at,
        finished=_finished_steps(connection, key, usage),
        failed=[
            replace(AttemptRow(step_id, attempt, *values), usage=tuple(usage.get((step_id, attempt), ())))
            for step_id, attempt, *values in connection.execute(
                "SELECT step_id, attempt, name, ended_at, error, data, queued_at, called_at, ran_from, ran_for, "
                "retry_at FROM failed_attempts WHERE run_key = ? ORDER BY ended_at, attempt",
                (key,),
            )
        ],
        unfinished=[] if unfinished is None else _unfinished_decoder.decode(unfinished),
        state=state,
        waits=open_waits(connection, key),
        calls={} if state is None else _under_way(state, key, called_at),
    )
    if not has_context:
        return rows
    events = (find_event(connection, event_id) for event_id in run.event_ids)
    children = _children(connection, key, run.id, first_call_at)
    config = connection.execute("SELECT config FROM functions WHERE id = ?", (run.function_id,)).fetchone()
    lines = connection.execute(f"SELECT {_LINE} FROM run_logs WHERE run_key = ? ORDER BY at, key", (key,))
    return replace(
        rows,
        function_name=(decode_function(config[0]).name if config else None) or run.function_id,
        events=[event for event in events if event is not None],
        parent=_parent(connection, event_key, run.rerun_of, first_call_at),
        children=children[:MAX_CHILDREN],
        has_more_children=len(children) > MAX_CHILDREN,
        logs=[_to_line(*row) for row in lines],
    )


_UsageOfAttempts = Mapping[tuple[str, int], Sequence[ModelUsage]]
"""By hashed step id and attempt."""


def _usage_of_attempts(connection: sqlite3.Connection, run_key: int) -> _UsageOfAttempts:
    found: dict[tuple[str, int], list[ModelUsage]] = {}
    for step_id, attempt, *values in connection.execute(
        "SELECT step_id, attempt, model, input_tokens, output_tokens FROM step_usage WHERE run_key = ?", (run_key,)
    ):
        found.setdefault((step_id, attempt), []).append(ModelUsage(*values))
    return found


def _finished_steps(
    connection: sqlite3.Connection, run_key: int, usage: _UsageOfAttempts
) -> list[tuple[StepRow, bytes]]:
    rows = connection.execute(
        "SELECT step_id, name, op, attempts, failed, is_copied, arguments, memo, created_at, ended_at, called_at, "
        "ran_from, ran_for, topic FROM memos WHERE run_key = ? ORDER BY seq",
        (run_key,),
    )
    found = []
    for step_id, name, op, attempts, failed, is_copied, arguments, memo, *times in rows:
        row = StepRow(
            step_id,
            name,
            Opcode(op),
            attempts,
            bool(failed),
            MemoTimes(*times),
            bool(is_copied),
            arguments,
            tuple(usage.get((step_id, attempts - 1), ())),
        )
        found.append((row, memo))
    return found


def _parent(
    connection: sqlite3.Connection, event_key: int, rerun_of: str | None, first_call_at: FirstCallAt
) -> Run | None:
    """The run that started a run by ``event_key``, or that a rerun repeats.

    ``None`` if it does not exist, or no longer exists.
    """
    if rerun_of is not None:
        row = connection.execute(f"{_RELATED} WHERE runs.id = ?", (rerun_of,)).fetchone()
        return replace(to_run(connection, row, first_call_at), relation=Relation.RERUN) if row else None
    name, stored, body = connection.execute(
        "SELECT name, origin, body FROM events WHERE key = ?", (event_key,)
    ).fetchone()
    origin = decode_origin(stored)
    found = [] if origin is None else runs_of_keys(connection, [origin.run_key], first_call_at)
    if not found:
        return None
    relation = relation_by(name)
    step = _invoking_step(body) if relation is Relation.INVOKED else None
    return replace(found[0], relation=relation, step=step)


def _children(connection: sqlite3.Connection, run_key: int, run_id: str, first_call_at: FirstCallAt) -> list[Run]:
    """The runs that a run started, the earliest first, and one more than a report has if there are more.

    Functions that the event of the run's end triggers are included only if the run failed or was cancelled.
    """
    of_event = "JOIN runs ON runs.event_key = events.key"
    of_batch = "JOIN run_events ON run_events.event_key = events.key JOIN runs ON runs.key = run_events.run_key"
    found: dict[int, tuple[Relation, str | None]] = {}
    for join in (of_event, of_batch):
        rows = connection.execute(
            f"SELECT runs.key, events.name, CASE WHEN events.name = ? THEN events.body END FROM events {join} "
            f"WHERE {_SENT} AND rerun_of IS NULL ORDER BY 1 LIMIT ?",
            (InternalEvent.FUNCTION_INVOKED, run_key, MAX_CHILDREN + 1),
        )
        for key, name, body in rows:
            found[key] = relation_by(name), None if body is None else _invoking_step(body)
    reruns = connection.execute(
        "SELECT key FROM runs WHERE rerun_of = ? ORDER BY key LIMIT ?", (run_id, MAX_CHILDREN + 1)
    )
    found |= {key: (Relation.RERUN, None) for (key,) in reruns}
    keys = sorted(found)[: MAX_CHILDREN + 1]
    runs = runs_of_keys(connection, keys, first_call_at)
    return [replace(run, relation=found[key][0], step=found[key][1]) for key, run in zip(keys, runs, strict=True)]


def _invoking_step(body: bytes) -> str | None:
    """The invoking step's id, as the user wrote it."""
    try:
        return _invocation_decoder.decode(body).data.metadata.name or None
    except msgspec.MsgspecError:
        return None


# lines of ``ctx.logger``


def list_logs(
    connection: sqlite3.Connection, run_id: str | None, function_id: str | None, position: int | None, limit: int
) -> LogPage:
    """Lines from a position on, or the latest."""
    conditions = {
        "run_key = (SELECT key FROM runs WHERE id = ?)": run_id,
        "function_id = ?": function_id,
        "run_logs.key >= ?": position,
    }
    given = {clause: value for clause, value in conditions.items() if value is not None}
    (last,) = connection.execute("SELECT coalesce(max(key), 0) FROM run_logs").fetchone()
    rows = connection.execute(
        f"SELECT run_logs.key, id, function_id, {_LINE} FROM run_logs JOIN runs ON runs.key = run_key "
        f"WHERE {' AND '.join(given) or 1} ORDER BY run_logs.key {'DESC' if position is None else 'ASC'} LIMIT ?",
        (*given.values(), limit),
    ).fetchall()
    entries = [LogEntry(run_id=row[1], function_id=row[2], line=_to_line(*row[3:])) for row in sorted(rows)]
    is_cut = position is not None and len(rows) == limit
    return LogPage(entries=entries, position=(rows[-1][0] if is_cut else last) + 1)


def _to_line(at: int, level: str, message: str, step: str | None, attempt: int | None) -> LogLine:
    return LogLine(at=from_microseconds(at), level=level, message=message, step=step, attempt=attempt)


# annotations from SDKs


def list_metadata(connection: sqlite3.Connection, run_id: str) -> list[RunMetadata] | None:
    """Metadata in the order of receipt; ``None`` if the run does not exist."""
    run_key = find_run_key(connection, run_id)
    if run_key is None:
        return None
    rows = connection.execute(
        "SELECT received_at, body FROM run_metadata WHERE run_key = ? ORDER BY key", (run_key,)
    ).fetchall()
    return [RunMetadata(received_at=to_datetime(at), body=msgspec.Raw(body)) for at, body in rows]


def list_traces(connection: sqlite3.Connection, run_id: str) -> list[ExportedSpans]:
    """Exports that contain the run's id, in the order of receipt.

    They may contain spans of other runs.
    """
    rows = connection.execute(
        "SELECT received_at, content_type, body FROM traces WHERE instr(body, ?) > 0 ORDER BY key", (run_id.encode(),)
    ).fetchall()
    exports = []
    for received_at, content_type, body in rows:
        encoded = msgspec.Raw(msgspec.json.encode(body))  # base64
        if content_type == "application/json":
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                encoded = msgspec.json.decode(body, type=msgspec.Raw)
        exports.append(ExportedSpans(received_at=to_datetime(received_at), content_type=content_type, body=encoded))
    return exports
