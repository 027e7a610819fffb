"""Queries for the current load of an engine, and concerns: conditions that need attention, with remedies.

They run in the reader's threads. Times are milliseconds since the epoch.
"""

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import msgspec

from durably.engine.core.run_state import RunStatus
from durably.engine.model.functions import Registry, explain_unmatched
from durably.engine.model.overview import Concern, ConcernKind, OutboxReport, UnreachedApp
from durably.engine.model.runs import to_optional_datetime
from durably.engine.sqlite.statistics import COMPLETED, FAILED, HOUR, MINUTE
from durably.protocol.events import INTERNAL_PREFIX

from .runs import FirstCallAt, read_run_state_of
from .search import key_at

STUCK_MILLISECONDS = 600_000
"""Milliseconds after which a call that holds a slot needs attention, if others wait for the slot."""
MOST_COUNTED = 1_000
"""Maximum counted events of a name, and skipped runs of a function."""
MOST_EVENT_NAMES = 1_000
LEAST_FAILED_SHARE = 0.05
"""The share of failed runs of the last hour above which a function needs attention."""
_MOST_STUCK, _MOST_UNMATCHED = 200, 100
_MOST_FIRST_CALLS = 20
_LONGEST_ERROR = 200
_LEAST_AGE = 2 * MINUTE

_bucket_ids = msgspec.msgpack.Decoder(tuple[str, ...])


class QueuedLoad(msgspec.Struct, frozen=True):
    """A function's calls that wait for a slot or a throttle.

    ``oldest`` is the time since which the first of them has waited.
    """

    calls: int
    oldest: int | None


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


# concerns


def failing_functions(
    counts: Mapping[str, Mapping[int, Sequence[int]]],
    replayed: Mapping[str, Mapping[int, int]] | None = None,
    now: int | None = None,
) -> list[Concern]:
    """Functions with failed runs, by counts of the last hour by function and minute.

    ``replayed`` are the numbers of failed runs with a completed rerun. They do not count. ``now`` is milliseconds since
    the epoch. Counts have minutes, so that a failure of the last two has no time.
    """
    found = []
    for function_id, minutes in counts.items():
        of_function = (replayed or {}).get(function_id, {})
        failures = {
            minute: left
            for minute, numbers in minutes.items()
            if (left := numbers[FAILED] - of_function.get(minute, 0)) > 0
        }
        failed = sum(failures.values())
        ended = failed + sum(numbers[COMPLETED] for numbers in minutes.values())
        if failed and failed >= LEAST_FAILED_SHARE * ended:
            since = min(failures) * MINUTE
            message = (
                f"{failed:,} of {_runs(ended)} of {function_id!r} failed in the last hour: see the error of the last "
                "one, fix the function, and replay the failed runs"
            )
            is_recent = now is not None and now - since < _LEAST_AGE
            found.append(
                _concern(ConcernKind.FAILING_FUNCTION, function_id, message, failed, None if is_recent else since)
            )
    return _most_first(found)


def unreached_apps(apps: Mapping[str, UnreachedApp]) -> list[Concern]:
    found = []
    for app_id, app in apps.items():
        calls = "1 call" if app.count == 1 else f"{app.count:,} calls"
        message = (
            f"the app {app_id!r} does not answer, and {calls} did not reach it ({app.error[:_LONGEST_ERROR]}): start "
            "it, or correct its URL; the calls are repeated until then"
        )
        found.append(_concern(ConcernKind.UNREACHED_APP, app_id, message, app.count, app.since))
    return _most_first(found)


def stuck_keys(connection: sqlite3.Connection, now: int) -> list[Concern]:
    """Concurrency keys for which calls wait because one call has held them for long."""
    held = connection.execute(
        "SELECT bucket_ids, taken_at, runs.id, runs.function_id FROM slots CROSS JOIN runs ON runs.key = slots.run_key "
        "WHERE taken_at < ? ORDER BY taken_at LIMIT ?",
        (now - STUCK_MILLISECONDS, _MOST_STUCK),
    ).fetchall()
    found: dict[str, Concern | None] = {}
    for encoded, since, run_id, function_id in held:
        for bucket_id in _bucket_ids.decode(encoded):
            if bucket_id in found:
                continue
            (waiting,) = connection.execute(
                "SELECT coalesce(sum((SELECT count(*) FROM queued_calls WHERE key_id = concurrency_keys.id)), 0) "
                "FROM concurrency_keys WHERE limit_id = ?",
                (bucket_id,),
            ).fetchone()
            calls = "1 call waits" if waiting == 1 else f"{waiting:,} calls wait"
            message = (
                f"{calls} for the concurrency key {bucket_id!r}, which the run {run_id} of {function_id!r} has held "
                f"for {(now - since) // MINUTE} minutes: cancel that run if it hangs, or raise the limit"
            )
            stuck = _concern(ConcernKind.STUCK_KEY, function_id, message, waiting, since)
            found[bucket_id] = stuck if waiting else None
    return _most_first(each for each in found.values() if each is not None)


def unmatched_events(
    connection: sqlite3.Connection, awaited: Collection[str], registry: Registry, now: int
) -> list[Concern]:
    """Names of events of the last hour that match nothing. Runs have waited for ``awaited``."""
    first_key = key_at(connection, "events", "received_at", now - HOUR * MINUTE)
    known, found = registry.known_names(awaited), list[Concern]()
    for name in event_names(connection):
        if name in awaited or registry.knows_event(name):
            continue
        count, first = connection.execute(
            "SELECT count(*), min(key) FROM (SELECT key FROM events WHERE name = ? AND key >= ? "
            "ORDER BY key DESC LIMIT ?)",
            (name, first_key, MOST_COUNTED),
        ).fetchone()
        if not count:
            continue
        (received_at,) = connection.execute("SELECT received_at FROM events WHERE key = ?", (first,)).fetchone()
        events = "1 event" if count == 1 else f"{count:,} events{' or more' if count == MOST_COUNTED else ''}"
        message = (
            f"{events} of the last hour with the name {name!r} matched nothing: {explain_unmatched(name, known)}; "
            "correct the name, or serve a function that it triggers"
        )
        found.append(_concern(ConcernKind.UNMATCHED_EVENTS, name, message, count, received_at))
        if len(found) == _MOST_UNMATCHED:
            break
    return _most_first(found)


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


def paused_functions(connection: sqlite3.Connection) -> list[Concern]:
    """Paused functions that have skipped runs."""
    found = []
    for function_id, paused_at in connection.execute("SELECT function_id, paused_at FROM pauses").fetchall():
        (count,) = connection.execute(
            "SELECT count(*) FROM (SELECT 1 FROM runs INDEXED BY runs_by_function WHERE function_id = ? AND key >= ? "
            "AND status = ? LIMIT ?)",
            (function_id, key_at(connection, "runs", "created_at", paused_at), RunStatus.SKIPPED, MOST_COUNTED),
        ).fetchone()
        message = (
            f"{function_id!r} is paused, and has skipped {_runs(count)}: resume it, and replay the skipped runs if "
            "they are still wanted"
        )
        if count:
            found.append(_concern(ConcernKind.PAUSED_FUNCTION, function_id, message, count, paused_at))
    return _most_first(found)


_OUTBOX_SECONDS = 60.0


def outbox_concerns(outboxes: Mapping[str, OutboxReport], now: int) -> list[Concern]:
    """Outboxes with refused events, with events that wait for long, or without a relay."""
    found = []
    for name, each in outboxes.items():
        silent = (now - each.at) / 1000
        if silent > _OUTBOX_SECONDS:
            message = (
                f"the relay of the outbox {name!r} has not reported for {silent:.0f} s: its events are not sent unless "
                "it runs, in the process with the engine or by `durably relay`"
            )
            found.append(_concern(ConcernKind.OUTBOX, name, message, each.waiting, each.at))
        elif each.oldest > _OUTBOX_SECONDS:
            message = (
                f"{each.waiting:,} events wait in the outbox {name!r}, the oldest for {each.oldest:.0f} s: the log of "
                "its relay has the reason"
            )
            found.append(_concern(ConcernKind.OUTBOX, name, message, each.waiting, now - round(each.oldest * 1000)))
        if each.refused:
            message = (
                f"the engine has refused {each.refused:,} events of the outbox {name!r}: the column error of "
                "durably_outbox has the reasons. Correct the rows and set it to NULL, or delete them"
            )
            found.append(_concern(ConcernKind.OUTBOX, name, message, each.refused, None))
    return found


def _concern(kind: ConcernKind, subject: str, message: str, count: int, since: int | None) -> Concern:
    return Concern(kind=kind, subject=subject, message=message, count=count, since=to_optional_datetime(since))


def _most_first(found: Iterable[Concern]) -> list[Concern]:
    return sorted(found, key=lambda concern: (-concern.count, concern.subject))


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count:,} runs"
