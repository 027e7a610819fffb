"""Queries for views: the API, the command line and tests.

They run in the reader's threads.
"""

import datetime as dt
import itertools
import sqlite3
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from durably.engine.core.calls import join_memos
from durably.engine.core.run_state import RunState, RunStatus
from durably.engine.model.overview import App, FunctionInfo
from durably.engine.model.rows import UNREACHED_ERRORS
from durably.engine.model.runs import (
    AttemptView,
    CancellationView,
    ReplayView,
    Run,
    RunCall,
    RunWait,
    StepView,
    StoredEvent,
    to_datetime,
    to_milliseconds,
    to_optional_datetime,
)
from durably.engine.model.step_views import (
    AwaitedStep,
    call_views,
    called_step,
    finished_step,
    has_call,
    run_wait,
    waiting_step,
)
from durably.engine.sqlite.tables.runs import open_waits, read_run_state
from durably.engine.sqlite.transactions.bulk_operations import BulkOperation, BulkOperationKind, read_bulk_operations
from durably.protocol.engine_errors import DatabaseCorruptError
from durably.protocol.events import Event
from durably.protocol.sync import decode_function
from durably.protocol.text import redact_url

Bulk = TypeVar("Bulk", CancellationView, ReplayView)
IsUnderWay = Callable[[int, int], bool]
"""Returns whether the call with a run's key and a generation is under way."""
FirstCallAt = Callable[[int], int | None]
"""Returns the time of a run's first call by the run's key, if that is not stored yet."""

_MOST_NAMES = 1000
_EVENT = "SELECT id, received_at, body FROM events"
_NAMES = ", ".join(f"'{name}'" for name in sorted(UNREACHED_ERRORS))
_FAILED_ATTEMPTS = (
    "(SELECT count(*) FROM failed_attempts WHERE run_key = runs.key "
    f"AND (ran_from IS NOT NULL OR substr(error, 1, instr(error, ':') - 1) NOT IN ({_NAMES})))"
)
"""The number of a run's failed attempts, without calls that did not reach the app."""
RUN_COLUMNS = (
    "runs.key, runs.id, function_id, app_id, status, max_attempts, created_at, started_at, ended_at, rerun_of, "
    f"events.id, events.name, is_batch, {_FAILED_ATTEMPTS}, run_states.state"
)
"""The columns of ``run_view``, without the output, which follows them."""
_RUN = (
    f"SELECT {RUN_COLUMNS}, output FROM runs JOIN events ON events.key = runs.event_key "
    "LEFT JOIN run_states ON run_states.run_key = runs.key"
)
_event_decoder = msgspec.json.Decoder(Event)
_step_input_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Conditions:
    """A WHERE clause of the conditions that have a value."""

    def __init__(self) -> None:
        self._clauses: list[str] = []
        self.values: list[object] = []

    def add(self, clause: str, value: object) -> None:
        if value is not None:
            self._clauses.append(clause)
            self.values.append(value)

    @property
    def text(self) -> str:
        return f" WHERE {' AND '.join(self._clauses)}" if self._clauses else ""


# events


def find_event(connection: sqlite3.Connection, event_id: str) -> StoredEvent | None:
    row = connection.execute(f"{_EVENT} WHERE id = ?", (event_id,)).fetchone()
    return event_view(*row) if row else None


def list_events(
    connection: sqlite3.Connection,
    name: str | None,
    received_after: dt.datetime | None,
    received_before: dt.datetime | None,
    limit: int,
    cursor: str | None,
    id_suffix: str | None = None,
) -> list[StoredEvent]:
    conditions = Conditions()
    conditions.add("id LIKE '%' || ?", id_suffix)
    conditions.add("name = ?", name)
    conditions.add("received_at > ?", received_after and to_milliseconds(received_after))
    conditions.add("received_at < ?", received_before and to_milliseconds(received_before))
    conditions.add("key < (SELECT key FROM events WHERE id = ?)", cursor)
    query = f"{_EVENT}{conditions.text} ORDER BY key DESC LIMIT ?"
    return [event_view(*row) for row in connection.execute(query, (*conditions.values, limit))]


def awaited_names(connection: sqlite3.Connection) -> list[str]:
    """Names of events that runs have waited for, or have been cancelled by."""
    rows = connection.execute("SELECT DISTINCT event FROM wait_paths LIMIT ?", (_MOST_NAMES,))
    return [name for (name,) in rows]


def event_view(event_id: str, received_at: int, body: bytes) -> StoredEvent:
    """The event of a row with these columns."""
    return StoredEvent.of(event_id, _event_decoder.decode(body), to_datetime(received_at))


# apps


def list_apps(connection: sqlite3.Connection) -> list[App]:
    query = (
        "SELECT id, url, sdk, framework, version, synced_at, "
        "(SELECT count(*) FROM functions WHERE app_id = apps.id AND is_active) FROM apps ORDER BY id"
    )
    return [
        App(
            id=app_id,
            url=url,
            sdk=sdk,
            framework=framework,
            version=version,
            synced_at=to_datetime(synced_at),
            function_count=count,
        )
        for app_id, url, sdk, framework, version, synced_at, count in connection.execute(query)
    ]


def list_functions(connection: sqlite3.Connection, app_id: str | None = None) -> list[FunctionInfo]:
    """The functions of an app, or of all."""
    conditions = Conditions()
    conditions.add("app_id = ?", app_id)
    query = (
        "SELECT id, app_id, config, pauses.paused_at IS NOT NULL FROM functions "
        f"LEFT JOIN pauses ON pauses.function_id = functions.id{conditions.text or ' WHERE 1'} AND is_active "
        "ORDER BY app_id, position"
    )
    return [_function_view(*row) for row in connection.execute(query, conditions.values)]


def list_app_functions(connection: sqlite3.Connection, app_id: str) -> list[FunctionInfo] | None:
    """The functions of an app; ``None`` if no such app has synced."""
    if connection.execute("SELECT 1 FROM apps WHERE id = ?", (app_id,)).fetchone() is None:
        return None
    return list_functions(connection, app_id)


def _function_view(function_id: str, app_id: str, encoded: bytes, is_paused: int) -> FunctionInfo:
    config = decode_function(encoded)
    # URLs may contain an app's password.
    steps = {
        name: replace(step, runtime=replace(step.runtime, url=redact_url(step.runtime.url)))
        for name, step in config.steps.items()
    }
    return FunctionInfo(
        id=function_id,
        name=config.name or function_id,
        app_id=app_id,
        config=replace(config, steps=steps),
        is_paused=bool(is_paused),
    )


# bulk operations


def list_cancellations(connection: sqlite3.Connection) -> list[CancellationView]:
    """Bulk cancellations, newest first."""
    found = read_bulk_operations(connection, BulkOperationKind.CANCEL)
    return [bulk_operation_view(operation, CancellationView) for operation in reversed(found)]


def list_replays(connection: sqlite3.Connection) -> list[ReplayView]:
    """Bulk replays, newest first."""
    found = read_bulk_operations(connection, BulkOperationKind.REPLAY)
    return [bulk_operation_view(operation, ReplayView) for operation in reversed(found)]


def bulk_operation_view(operation: BulkOperation, view: type[Bulk]) -> Bulk:
    return view(
        id=operation.id,
        function_id=operation.function_id,
        started_after=to_optional_datetime(operation.started_after),
        started_before=to_datetime(operation.started_before),
        expression=operation.expression,
        statuses=operation.statuses or (),
        created_at=to_datetime(operation.created_at),
        ended_at=to_optional_datetime(operation.ended_at),
        affected=operation.affected,
    )


# runs


def find_run(connection: sqlite3.Connection, run_id: str, first_call_at: FirstCallAt) -> Run | None:
    row = connection.execute(f"{_RUN} WHERE runs.id = ?", (run_id,)).fetchone()
    return run_view(connection, row, first_call_at) if row else None


def event_runs(connection: sqlite3.Connection, event_id: str, first_call_at: FirstCallAt) -> list[Run]:
    key = "(SELECT key FROM events WHERE id = ?)"
    of_event = f"SELECT key FROM runs WHERE event_key = {key}"
    with_batch = f"SELECT run_key FROM run_events WHERE event_key = {key}"
    rows = connection.execute(
        f"{_RUN} WHERE runs.key IN ({of_event} UNION {with_batch}) ORDER BY runs.key", (event_id, event_id)
    )
    return [run_view(connection, row, first_call_at) for row in rows]


def list_runs(
    connection: sqlite3.Connection,
    status: RunStatus | None,
    function_id: str | None,
    limit: int,
    cursor: str | None,
    first_call_at: FirstCallAt,
    started_after: dt.datetime | None = None,
    id_suffix: str | None = None,
) -> list[Run]:
    conditions = Conditions()
    # Keys grow with time: the newest run that is too old limits the search.
    older = "SELECT key FROM runs WHERE created_at <= ? ORDER BY key DESC LIMIT 1"
    conditions.add(f"runs.key > coalesce(({older}), 0)", started_after and to_milliseconds(started_after))
    conditions.add("runs.id LIKE '%' || ?", id_suffix)
    conditions.add("function_id = ?", function_id)
    conditions.add("runs.key < (SELECT key FROM runs WHERE id = ?)", cursor)
    if status is not None and status.has_ended:
        # SQLite uses the partial index only if the statement repeats its condition.
        rare = "" if status is RunStatus.COMPLETED else " AND ended_at IS NOT NULL AND status <> 'Completed'"
        conditions.add(f"status = ?{rare}", status)
    elif status is not None:
        # The database stores late whether a run is scheduled or running, so each live run is read.
        conditions.add("runs.key IN (SELECT run_key FROM run_states WHERE run_key > ?)", 0)
    rows = connection.execute(f"{_RUN}{conditions.text} ORDER BY runs.key DESC", conditions.values)
    views = (run_view(connection, row, first_call_at) for row in rows)
    return list(itertools.islice((view for view in views if status in (None, view.status)), limit))


def run_view(connection: sqlite3.Connection, row: Sequence[Any], first_call_at: FirstCallAt) -> Run:
    """The run of a row of ``RUN_COLUMNS`` and the output."""
    key, run_id, function_id, app_id, status, max_attempts, created_at, started_at, ended_at = row[:9]
    rerun_of, event_id, event_name, is_batch, failed_attempts, encoded, output = row[9:]
    state = _readable(encoded) if encoded else None
    if state is not None and started_at is None:
        started_at = first_call_at(key)
        status = RunStatus.SCHEDULED if started_at is None else RunStatus.RUNNING
    event_ids = _batch_ids(connection, key) if is_batch else [event_id]
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
        rerun_of=rerun_of,
        waiting=None if state is None else _wait_of(connection, key, state),
    )


def _wait_of(connection: sqlite3.Connection, key: int, state: RunState) -> RunWait | None:
    """The wait of a run; see ``run_wait``."""
    if not state.waits or has_call(state):
        return run_wait(state, None)
    query = "SELECT step_id, due, topic FROM waits WHERE run_key = ? ORDER BY due IS NULL, due LIMIT 1"
    row = connection.execute(query, (key,)).fetchone()
    return run_wait(state, AwaitedStep(*row) if row else None)


def _batch_ids(connection: sqlite3.Connection, run_key: int) -> list[str]:
    rows = connection.execute(
        "SELECT id FROM run_events JOIN events ON events.key = run_events.event_key WHERE run_key = ? "
        "ORDER BY event_key",
        (run_key,),
    )
    return [event_id for (event_id,) in rows]


def run_batch(connection: sqlite3.Connection, run_id: str) -> bytes | None:
    row = connection.execute(
        "SELECT runs.key, is_batch, body FROM events JOIN runs ON events.key = runs.event_key WHERE runs.id = ?",
        (run_id,),
    ).fetchone()
    if row is None:
        return None
    key, is_batch, body = row
    return b"[" + b",".join(read_batch(connection, key) if is_batch else [body]) + b"]"


def read_batch(connection: sqlite3.Connection, run_key: int) -> list[bytes]:
    """The events of a batch, in the order of receipt."""
    rows = connection.execute(
        "SELECT body FROM run_events JOIN events ON events.key = run_events.event_key WHERE run_key = ? "
        "ORDER BY event_key",
        (run_key,),
    )
    return [body for (body,) in rows]


def run_actions(connection: sqlite3.Connection, run_id: str) -> bytes | None:
    row = connection.execute(
        "SELECT runs.key, run_states.step_input FROM runs LEFT JOIN run_states ON run_states.run_key = runs.key "
        "WHERE runs.id = ?",
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


def _run_key(connection: sqlite3.Connection, run_id: str) -> int | None:
    row = connection.execute("SELECT key FROM runs WHERE id = ?", (run_id,)).fetchone()
    return row[0] if row else None


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


# steps and calls


def run_calls(connection: sqlite3.Connection, run_id: str, is_under_way: IsUnderWay) -> list[RunCall]:
    key = _run_key(connection, run_id)
    state = None if key is None else read_run_state_of(connection, key)
    if key is None or state is None:
        return []
    return call_views(run_id, state, lambda generation: is_under_way(key, generation))


def run_attempts(connection: sqlite3.Connection, run_id: str) -> list[AttemptView]:
    """Attempts that failed and were repeated, the earliest first."""
    rows = connection.execute(
        "SELECT name, attempt, failed_attempts.ended_at, error FROM failed_attempts "
        "JOIN runs ON runs.key = run_key WHERE runs.id = ? ORDER BY failed_attempts.ended_at, name, attempt",
        (run_id,),
    )
    return [
        AttemptView(step=name or None, attempt=attempt, ended_at=to_datetime(ended_at), error=error)
        for name, attempt, ended_at, error in rows
    ]


def run_steps(connection: sqlite3.Connection, run_id: str, is_under_way: IsUnderWay) -> list[StepView]:
    key = _run_key(connection, run_id)
    if key is None:
        return []
    rows = connection.execute(
        "SELECT seq, step_id, name, op, attempts, failed, created_at, ended_at, memo FROM memos WHERE run_key = ?",
        (key,),
    ).fetchall()
    steps = [finished_step(*row[1:]) for row in sorted(rows)]
    state = read_run_state_of(connection, key)
    if state is not None:
        steps += [called_step(call, is_under_way(key, call.generation)) for call in state.calls if call.name]
        waits = open_waits(connection, key) if state.waits else {}
        steps += [waiting_step(wait, waits[wait.step_id]) for wait in state.waits]
    return steps
