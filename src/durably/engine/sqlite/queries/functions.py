"""Queries for apps and functions: what apps serve, bulk operations, durations, schedules.

They run in the reader's threads. Times are milliseconds since the epoch.
"""

import sqlite3
from collections.abc import Iterator, Sequence

import msgspec

from durably.engine.core.run_state import RunStatus
from durably.engine.model.overview import App, FunctionInfo, StepTimes, SyncReport
from durably.engine.model.runs import BulkOperation, ModelUsage, Run, to_datetime, to_optional_datetime
from durably.engine.sqlite.statistics import QUARTER
from durably.engine.sqlite.transactions.bulk_operations import BulkOperationKind, BulkOperationRow, read_bulk_operations
from durably.protocol.events import InternalEvent
from durably.protocol.opcodes import Opcode
from durably.protocol.sync import decode_function

from .runs import FirstCallAt, runs_of_keys

MOST_SAMPLED = 100
"""Number of ended runs whose durations a report has."""
_MOST_LOOKED_AT = 2_000
"""The number of a function's newest runs among which those are searched."""
_MOST_STEPS = 5_000
"""Number of finished steps whose durations a report has."""
_MOST_CRON_RUNS, _CRON_RUNS_LOOKED_AT = 5, 200


# apps


def list_apps(connection: sqlite3.Connection) -> list[App]:
    query = (
        "SELECT id, url, sdk, framework, version, synced_at, "
        "(SELECT count(*) FROM functions WHERE app_id = apps.id AND is_active), sync "
        "FROM apps LEFT JOIN app_syncs ON app_syncs.app_id = apps.id ORDER BY id"
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
            last_sync=None if sync is None else msgspec.json.decode(sync, type=SyncReport),
        )
        for app_id, url, sdk, framework, version, synced_at, count, sync in connection.execute(query)
    ]


def list_functions(connection: sqlite3.Connection, app_id: str | None = None) -> list[FunctionInfo]:
    """The functions of an app, or of all."""
    rows = connection.execute(
        "SELECT id, app_id, config, pauses.paused_at IS NOT NULL FROM functions "
        "LEFT JOIN pauses ON pauses.function_id = functions.id WHERE is_active AND (?1 IS NULL OR app_id = ?1) "
        "ORDER BY app_id, position",
        (app_id,),
    )
    return [
        FunctionInfo.of(function_id, app_id, decode_function(config), bool(is_paused))
        for function_id, app_id, config, is_paused in rows
    ]


def list_app_functions(connection: sqlite3.Connection, app_id: str) -> list[FunctionInfo] | None:
    """The functions of an app; ``None`` if no such app has synced."""
    if connection.execute("SELECT 1 FROM apps WHERE id = ?", (app_id,)).fetchone() is None:
        return None
    return list_functions(connection, app_id)


# bulk operations


def list_bulk_operations(connection: sqlite3.Connection, kind: BulkOperationKind) -> list[BulkOperation]:
    """Newest first."""
    return [to_bulk_operation(row) for row in reversed(read_bulk_operations(connection, kind))]


def to_bulk_operation(row: BulkOperationRow) -> BulkOperation:
    return BulkOperation(
        id=row.id,
        function_id=row.function_id,
        started_after=to_optional_datetime(row.started_after),
        started_before=to_datetime(row.started_before),
        expression=row.expression,
        statuses=row.statuses or (),
        created_at=to_datetime(row.created_at),
        ended_at=to_optional_datetime(row.ended_at),
        affected=row.affected,
    )


# durations and schedules


class Durations(msgspec.Struct, frozen=True):
    """Durations of a function's last runs, sorted, and of their steps, in seconds."""

    runs: list[float]
    steps: list[StepTimes]


def sample_durations(connection: sqlite3.Connection, function_id: str) -> Durations:
    """The durations of a function's last runs that completed or failed."""
    rows = connection.execute(
        "SELECT key, coalesce(started_at, created_at), ended_at FROM runs WHERE key IN (SELECT key FROM runs "
        "INDEXED BY runs_by_function WHERE function_id = ? ORDER BY key DESC LIMIT ?) AND status IN (?, ?) "
        "ORDER BY key DESC LIMIT ?",
        (function_id, _MOST_LOOKED_AT, RunStatus.COMPLETED, RunStatus.FAILED, MOST_SAMPLED),
    ).fetchall()
    times: dict[str, list[float]] = {}
    failed: dict[str, int] = {}
    read = 0
    for run_key, _, _ in rows:
        if read >= _MOST_STEPS:
            break
        for name, has_failed, seconds in _step_durations(connection, run_key, _MOST_STEPS - read):
            times.setdefault(name, []).append(seconds)
            failed[name] = failed.get(name, 0) + has_failed
            read += 1
    steps = [
        StepTimes(
            step=name, count=len(each), failed=failed[name], p50=percentile(each, 0.5), p95=percentile(each, 0.95)
        )
        for name, each in ((name, sorted(each)) for name, each in times.items())
    ]
    durations = sorted(max(ended_at - started_at, 0) / 1000 for _, started_at, ended_at in rows)
    return Durations(durations, sorted(steps, key=lambda step: -step.count))


def _step_durations(connection: sqlite3.Connection, run_key: int, limit: int) -> Iterator[tuple[str, int, float]]:
    """Names of a run's finished steps, whether they failed, and their seconds.

    The time is that of the app's code if it was reported. Otherwise it is the time since the call, or since the wait's
    beginning.
    """
    rows = connection.execute(
        "SELECT name, failed, ran_for, "
        "ended_at - CASE WHEN op = ? THEN coalesce(called_at, created_at) ELSE created_at END FROM memos "
        "WHERE run_key = ? AND is_copied IS NOT TRUE LIMIT ?",
        (Opcode.STEP_RUN, run_key, limit),
    )
    for name, has_failed, ran_for, milliseconds in rows:
        yield name, has_failed, max(milliseconds, 0) / 1000 if ran_for is None else ran_for / 1_000_000


def percentile(ordered: Sequence[float], share: float) -> float:
    """The lowest value that this share of the values does not exceed.

    ``ordered`` has at least one value (nearest rank).
    """
    rank = -(-len(ordered) * round(share * 100) // 100)
    return ordered[max(rank, 1) - 1]


def sum_usage_since(connection: sqlite3.Connection, function_id: str, minute: int) -> list[ModelUsage]:
    """The tokens of models in a function's steps since a minute, or the quarter of an hour before it."""
    rows = connection.execute(
        "SELECT model, sum(input_tokens), sum(output_tokens) FROM usage_counts WHERE function_id = ? AND minute >= ? "
        "GROUP BY model",
        (function_id, minute - minute % QUARTER),
    )
    return [ModelUsage(*values) for values in rows]


class _Tick(msgspec.Struct):
    cron: str = ""


class _TickEvent(msgspec.Struct):
    data: _Tick


_tick_decoder = msgspec.json.Decoder(_TickEvent)


class PlannedSchedule(msgspec.Struct, frozen=True):
    """A schedule of a function, its next tick, and the last runs that it started."""

    function_id: str
    schedule: str
    at: int
    last_runs: list[Run]


def planned_schedules(connection: sqlite3.Connection, first_call_at: FirstCallAt) -> list[PlannedSchedule]:
    """All schedules, in the order of functions."""
    planned = connection.execute(
        "SELECT function_id, schedule, at FROM schedules ORDER BY function_id, schedule"
    ).fetchall()
    runs: dict[str, dict[str, list[int]]] = {}
    for function_id, _, _ in planned:
        if function_id not in runs:
            runs[function_id] = _cron_runs(connection, function_id)
    return [
        PlannedSchedule(
            function_id, schedule, at, runs_of_keys(connection, runs[function_id].get(schedule, []), first_call_at)
        )
        for function_id, schedule, at in planned
    ]


def _cron_runs(connection: sqlite3.Connection, function_id: str) -> dict[str, list[int]]:
    """Keys of the last runs that schedules of a function started, by schedule."""
    rows = connection.execute(
        "SELECT runs.key, body FROM (SELECT key, event_key FROM runs WHERE key IN (SELECT key FROM runs "
        "INDEXED BY runs_by_function WHERE function_id = ? ORDER BY key DESC LIMIT ?)) AS runs "
        "CROSS JOIN events ON events.key = runs.event_key WHERE events.name = ? ORDER BY runs.key DESC",
        (function_id, _CRON_RUNS_LOOKED_AT, InternalEvent.SCHEDULED_TIMER),
    )
    found: dict[str, list[int]] = {}
    for key, body in rows:
        keys = found.setdefault(_tick_decoder.decode(body).data.cron, [])
        if len(keys) < _MOST_CRON_RUNS:
            keys.append(key)
    return found
