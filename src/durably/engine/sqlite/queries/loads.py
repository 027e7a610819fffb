"""Queries for the current load of an engine, and for what needs attention.

They run in the reader's threads. Times are milliseconds since the epoch.
"""

import sqlite3
from collections.abc import Collection, Iterator

import msgspec

from durably.engine.core.run_state import RunStatus
from durably.protocol.events import INTERNAL_PREFIX

from .runs import FirstCallAt, read_run_state_of
from .search import key_at

STUCK_MILLISECONDS = 600_000
"""Milliseconds after which a call that holds a slot needs attention, if others wait for the slot."""
MOST_COUNTED = 1_000
"""Maximum counted events of a name, and skipped runs of a function."""
MOST_EVENT_NAMES = 1_000
_MOST_STUCK = 200
_MOST_FIRST_CALLS = 20

_bucket_ids = msgspec.msgpack.Decoder(tuple[str, ...])


class QueuedLoad(msgspec.Struct, frozen=True):
    """A function's calls that wait for a slot or a throttle.

    ``oldest`` is the time since which the first of them has waited.
    """

    calls: int
    oldest: int | None


class StuckSlot(msgspec.Struct, frozen=True):
    """A concurrency bucket with a slot that a call has held since ``since``.

    ``waiting`` calls wait for it.
    """

    bucket_id: str
    run_id: str
    function_id: str
    since: int
    waiting: int


class UnmatchedName(msgspec.Struct, frozen=True):
    """Events of a name that starts and wakes no run.

    ``count`` is at most ``MOST_COUNTED``.
    """

    name: str
    count: int
    first: int


class SkippedRuns(msgspec.Struct, frozen=True):
    """The runs that a paused function has skipped.

    ``count`` is at most ``MOST_COUNTED``.
    """

    function_id: str
    paused_at: int
    count: int


def queued_loads(connection: sqlite3.Connection) -> dict[str, QueuedLoad]:
    """Calls that wait, by function."""
    rows = connection.execute(
        "SELECT function_id, sum((SELECT count(*) FROM queued_calls WHERE key_id = concurrency_keys.id)) FROM "
        "concurrency_keys "
        "GROUP BY function_id"
    ).fetchall()
    return {
        function_id: QueuedLoad(count, min(_due_times(connection, function_id), default=None))
        for function_id, count in rows
    }


def _due_times(connection: sqlite3.Connection, function_id: str) -> Iterator[int]:
    """The due times of the first calls of a function's first concurrency keys."""
    rows = connection.execute(
        "SELECT run_key, generation FROM concurrency_keys WHERE function_id = ? ORDER BY position LIMIT ?",
        (function_id, _MOST_FIRST_CALLS),
    ).fetchall()
    for run_key, generation in rows:
        state = read_run_state_of(connection, run_key)
        call = None if state is None else state.call(generation)
        if call is not None:
            yield call.due


def count_scheduled(connection: sqlite3.Connection, first_call_at: FirstCallAt) -> int:
    """The number of runs whose first call has not been made.

    Their calls are queued, or about to be made. Runs that sleep or wait are not read.
    """
    rows = connection.execute(
        "SELECT runs.key FROM run_states INDEXED BY run_states_runnable CROSS JOIN runs ON runs.key = "
        "run_states.run_key "
        "WHERE is_runnable AND started_at IS NULL UNION "
        "SELECT runs.key FROM queued_calls CROSS JOIN runs ON runs.key = queued_calls.run_key WHERE started_at IS NULL"
    )
    return sum(first_call_at(key) is None for (key,) in rows)


def stuck_slots(connection: sqlite3.Connection, now: int) -> list[StuckSlot]:
    """Stuck slots, one for each bucket, longest held first."""
    held = connection.execute(
        "SELECT bucket_ids, taken_at, runs.id, runs.function_id FROM slots CROSS JOIN runs ON runs.key = slots.run_key "
        "WHERE taken_at < ? ORDER BY taken_at LIMIT ?",
        (now - STUCK_MILLISECONDS, _MOST_STUCK),
    ).fetchall()
    found: dict[str, StuckSlot] = {}
    for encoded, since, run_id, function_id in held:
        for bucket_id in _bucket_ids.decode(encoded):
            if bucket_id not in found:
                (waiting,) = connection.execute(
                    "SELECT coalesce(sum((SELECT count(*) FROM queued_calls WHERE key_id = concurrency_keys.id)), 0) "
                    "FROM concurrency_keys "
                    "WHERE limit_id = ?",
                    (bucket_id,),
                ).fetchone()
                found[bucket_id] = StuckSlot(bucket_id, run_id, function_id, since, waiting)
    return [slot for slot in found.values() if slot.waiting]


def event_names(connection: sqlite3.Connection, limit: int = MOST_EVENT_NAMES) -> list[str]:
    """The names of stored events, without those of the engine's own.

    Seeks in the index of names find them.
    """
    names: list[str] = []
    last = ""
    while len(names) < limit:
        (name,) = connection.execute("SELECT min(name) FROM events WHERE name > ?", (last,)).fetchone()
        if name is None:
            break
        if name.startswith(INTERNAL_PREFIX):
            last = INTERNAL_PREFIX + "\U0010ffff"
            continue
        names.append(name)
        last = name
    return names


def count_events(connection: sqlite3.Connection, names: Collection[str], since: int) -> list[UnmatchedName]:
    """Numbers of the events of these names that were received since a time.

    Names without events are omitted.
    """
    first_key = key_at(connection, "events", "received_at", since)
    found = []
    for name in names:
        count, first = connection.execute(
            "SELECT count(*), min(key) FROM (SELECT key FROM events WHERE name = ? AND key >= ? "
            "ORDER BY key DESC LIMIT ?)",
            (name, first_key, MOST_COUNTED),
        ).fetchone()
        if count:
            (received_at,) = connection.execute("SELECT received_at FROM events WHERE key = ?", (first,)).fetchone()
            found.append(UnmatchedName(name, count, received_at))
    return found


def skipped_runs(connection: sqlite3.Connection) -> list[SkippedRuns]:
    """The skipped runs of each paused function."""
    pauses = connection.execute("SELECT function_id, paused_at FROM pauses").fetchall()
    found = []
    for function_id, paused_at in pauses:
        (count,) = connection.execute(
            "SELECT count(*) FROM (SELECT 1 FROM runs INDEXED BY runs_by_function WHERE function_id = ? AND key >= ? "
            "AND status = ? LIMIT ?)",
            (function_id, key_at(connection, "runs", "created_at", paused_at), RunStatus.SKIPPED, MOST_COUNTED),
        ).fetchone()
        found.append(SkippedRuns(function_id, paused_at, count))
    return found


def replayed_failures(connection: sqlite3.Connection, since: int) -> dict[str, dict[int, int]]:
    """The failed runs that ended at ``since`` or later and have a completed rerun.

    They are counted by function and by the minute of their end. A rerun of a rerun counts for both.
    """
    found: dict[str, dict[int, int]] = {}
    rows = connection.execute(
        "WITH RECURSIVE replayed (id) AS ("
        "SELECT rerun_of FROM runs INDEXED BY runs_by_rerun_of "
        "WHERE rerun_of IS NOT NULL AND key >= ? AND status = ? "
        "UNION SELECT runs.rerun_of FROM replayed JOIN runs ON runs.id = replayed.id WHERE runs.rerun_of IS NOT NULL) "
        "SELECT function_id, ended_at / 60000, count(*) FROM replayed JOIN runs ON runs.id = replayed.id "
        "WHERE status = ? AND ended_at >= ? GROUP BY 1, 2",
        (key_at(connection, "runs", "created_at", since), RunStatus.COMPLETED, RunStatus.FAILED, since),
    )
    for function_id, minute, count in rows:
        found.setdefault(function_id, {})[minute] = count
    return found
