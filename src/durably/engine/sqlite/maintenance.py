"""Check and backup of a database, which an engine may be using.

The check reads one snapshot. It covers the file, and the consistency of its rows.
"""

import contextlib
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec

from durably.engine.core.run_state import MACHINE_VERSION, RunState, decode_run_state
from durably.protocol.engine_errors import BackupFailedError
from durably.protocol.opcodes import Opcode
from durably.protocol.sync import decode_function

from .database import open_existing

_OF_LIVE_RUNS = ("waits", "delayed_calls", "queued_calls", "slots", "cancel_events", "deadlines", "deferred_functions")
_OF_RUNS = ("memos", "failed_attempts", "run_events", "run_states", *_OF_LIVE_RUNS)
_MOST_OF_A_KIND = 20
_PAGES_OF_A_PART = 1024
"""Pages of a copy between reports of its progress: 4 MiB with SQLite's usual pages."""
_LIVE = "('Scheduled', 'Running')"
_Check = Callable[[sqlite3.Connection], Iterator[str]]


def check_database(path: Path, *, on_progress: Callable[[str, int, int], object] | None = None) -> list[str]:
    """Check a database. Returns its problems as sentences.

    ``on_progress`` is called before each part of the check, with its name, its number from 1, and the number of parts.
    Raises ``DatabaseMissingError``, and ``DatabaseCorruptError`` if the file is not a database of Durably.
    """
    checks = _checks()
    with contextlib.closing(open_existing(path)) as connection:
        connection.execute("BEGIN")
        problems: list[str] = []
        for number, (name, check) in enumerate(checks.items(), start=1):
            if on_progress is not None:
                on_progress(name, number, len(checks))
            found = list(check(connection))
            problems += found[:_MOST_OF_A_KIND]
            if len(found) > _MOST_OF_A_KIND:
                problems.append(f"… and {len(found) - _MOST_OF_A_KIND} more like that")
            if problems and check is _check_file:  # queries of a damaged file may fail, or not end
                return problems
        return problems


def _checks() -> dict[str, _Check]:
    """The parts of the check, by name: the whole file, then about one table each."""
    return {
        "the file": _check_file,
        **{name: partial(_find_rows, name) for name in _WRONG_ROWS},
        "run states": _check_run_states,
        "slots": _check_slots,
        "waits": _check_waits,
        **{f"the contents of {table}": partial(_check_contents, table) for table in _CONTENTS},
    }


def _check_file(connection: sqlite3.Connection) -> Iterator[str]:
    try:
        results = [text for (text,) in connection.execute(f"PRAGMA integrity_check({_MOST_OF_A_KIND})")]
    except sqlite3.DatabaseError as error:
        results = [str(error)]
    yield from (f"the file is damaged: {result}" for result in results if result != "ok")


_WRONG_ROWS = {
    **{
        f"the runs of {table}": (
            f"{table} hold rows of a run that does not exist (key {{}})",
            f"SELECT DISTINCT run_key FROM {table} WHERE run_key NOT IN (SELECT key FROM runs)",
        )
        for table in _OF_RUNS
    },
    **{
        f"the run states of {table}": (
            f"{table} hold rows of a run that has no run state (key {{}})",
            f"SELECT DISTINCT run_key FROM {table} WHERE run_key NOT IN (SELECT run_key FROM run_states)",
        )
        for table in _OF_LIVE_RUNS
    },
    "live runs": (
        "run {} is live but has no run state, so nothing continues it",
        f"SELECT id FROM runs WHERE status IN {_LIVE} AND key NOT IN (SELECT run_key FROM run_states)",
    ),
    "ended runs": (
        "run {} is {} but has a run state",
        f"SELECT id, status FROM runs JOIN run_states ON run_key = key WHERE status NOT IN {_LIVE}",
    ),
    "the events of runs": (
        "run {} has lost an event that triggered it",
        "SELECT id FROM runs WHERE event_key NOT IN (SELECT key FROM events) OR key IN "
        "(SELECT run_key FROM run_events WHERE event_key NOT IN (SELECT key FROM events))",
    ),
    "the order of memos": (
        "the memos of run {} have no clear order",
        "SELECT runs.id FROM memos JOIN runs ON runs.key = run_key "
        "GROUP BY run_key HAVING count(DISTINCT seq) != count(*) OR max(seq) != count(*) OR min(seq) != 1",
    ),
}
"""Queries that find no rows in a consistent database, each with the sentence about a row."""


def _find_rows(name: str, connection: sqlite3.Connection) -> Iterator[str]:
    problem, query = _WRONG_ROWS[name]
    yield from (problem.format(*row) for row in connection.execute(query))


def _check_run_states(connection: sqlite3.Connection) -> Iterator[str]:
    """Find run states that cannot be read, or that contradict other rows."""
    rows = connection.execute(
        "SELECT run_key, runs.id, state, (SELECT count(*) FROM memos WHERE memos.run_key = run_states.run_key) "
        "FROM run_states JOIN runs ON runs.key = run_key"
    )
    for run_key, run_id, stored, memos in rows:
        try:
            state = decode_run_state(stored)
        except msgspec.MsgspecError as error:
            yield f"the run state of run {run_id} is damaged: {error}"
            continue
        if state.version > MACHINE_VERSION:
            yield (
                f"the run state of run {run_id} has version {state.version}; this engine reads versions up to "
                f"{MACHINE_VERSION}"
            )
        elif state.memos != memos:
            yield f"the run state of run {run_id} counts {state.memos} memos, and {memos} are stored"
        else:
            yield from _check_outstanding(connection, run_key, run_id, state)


def _check_outstanding(connection: sqlite3.Connection, run_key: int, run_id: str, state: RunState) -> Iterator[str]:
    if not state.calls and not state.waits:
        yield f"run {run_id} has nothing outstanding, so nothing continues it"
    stored = connection.execute("SELECT step_id FROM waits WHERE run_key = ?", (run_key,))
    steps = {step_id for (step_id,) in stored}
    for wait in state.waits:
        if wait.step_id not in steps:
            yield f"run {run_id}: step {wait.name!r} waits, but its wait is missing"
    for step_id in steps - {wait.step_id for wait in state.waits}:
        yield f"run {run_id}: a wait of step {step_id} is stored, but the step does not wait"
    put_off = _generations(connection, "delayed_calls", run_key)
    for call in state.calls:
        if call.error and call.generation not in put_off:
            yield f"run {run_id}: a delayed call has no time"
    outstanding = {call.generation for call in state.calls}
    for generation in _generations(connection, "queued_calls", run_key) - outstanding:
        yield f"run {run_id}: call {generation} waits in the queue, but is no longer outstanding"
    for generation in _generations(connection, "slots", run_key) - outstanding:
        yield f"run {run_id}: call {generation} uses a slot, but is no longer outstanding"


def _generations(connection: sqlite3.Connection, table: str, run_key: int) -> set[int]:
    rows = connection.execute(f"SELECT generation FROM {table} WHERE run_key = ?", (run_key,))
    return {generation for (generation,) in rows}


def _check_slots(connection: sqlite3.Connection) -> Iterator[str]:
    """Compare used concurrency slots with the calls that use them."""
    taken: Counter[str] = Counter()
    for (slots,) in connection.execute("SELECT bucket_ids FROM slots"):
        taken.update(msgspec.msgpack.decode(slots, type=list[str]))
    counted = dict(connection.execute("SELECT id, used FROM slots_used").fetchall())
    for slot in sorted(taken.keys() | counted.keys()):
        if taken[slot] != counted.get(slot, 0):
            yield f"of the slots {slot}, {counted.get(slot, 0)} count as taken, and calls take {taken[slot]}"


def _check_waits(connection: sqlite3.Connection) -> Iterator[str]:
    query = (
        "SELECT runs.id, invoked.id FROM waits JOIN runs ON runs.key = run_key LEFT JOIN events ON events.id = topic "
        "LEFT JOIN runs AS invoked ON invoked.event_key = events.key AND invoked.rerun_of IS NULL "
        f"WHERE op = ? AND topic IS NOT NULL AND (events.id IS NULL OR invoked.status NOT IN {_LIVE})"
    )
    for run_id, invoked in connection.execute(query, (Opcode.INVOKE_FUNCTION,)):
        what = f"run {invoked}, which has ended" if invoked else "one that does not exist"
        yield f"run {run_id} waits for the end of a run that it invoked: {what}"


def _check_json(stored: bytes) -> object:
    return msgspec.json.decode(stored, type=msgspec.Raw)


_CONTENTS: dict[str, tuple[str, str, Callable[[bytes], object]]] = {
    "memos": (
        "the memo of step {} of run {} is not JSON",
        "SELECT memo, name, runs.id FROM memos JOIN runs ON runs.key = run_key",
        _check_json,
    ),
    "events": ("the event {} ({}) is not JSON", "SELECT body, id, name FROM events", _check_json),
    "runs": (
        "the output of run {} of {} is not JSON",
        "SELECT output, id, function_id FROM runs WHERE output IS NOT NULL",
        _check_json,
    ),
    "functions": (
        "the configuration of function {} cannot be read",
        "SELECT config, id FROM functions",
        decode_function,
    ),
}


def _check_contents(table: str, connection: sqlite3.Connection) -> Iterator[str]:
    problem, query, decode = _CONTENTS[table]
    for stored, *names in connection.execute(query):
        try:
            decode(stored)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            yield f"{problem.format(*names)}: {error}"


def back_up(database: Path, destination: Path, *, on_progress: Callable[[int, int], object] | None = None) -> int:
    """Copy a database to a new file, and return its size in bytes.

    The copy is a snapshot: it has all acknowledged changes, and no part of a transaction. A running engine is not
    interrupted. ``destination`` appears when the copy is complete and on the disk. It belongs to no commit log.
    ``on_progress`` is called after each part, with the copied bytes and the total. Raises ``BackupFailedError``,
    ``DatabaseMissingError``, ``DatabaseCorruptError``.
    """
    if destination.exists():
        raise BackupFailedError(f"{destination} already exists; name a new file")
    unfinished = destination.with_name(destination.name + ".partial")
    try:
        copy_database(database, unfinished, on_progress)
        with contextlib.closing(sqlite3.connect(unfinished, isolation_level=None)) as copy:
            copy.execute("UPDATE owner SET log_sequence = 0, log_token = NULL, database_id = NULL")
        _flush(unfinished)
        unfinished.replace(destination)
        _flush(destination.parent)
    except BaseException as error:  # also Ctrl-C between two parts of the copy
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        if not isinstance(error, OSError | sqlite3.Error):
            raise
        raise BackupFailedError(f"{database} could not be copied to {destination}: {error}") from error
    return destination.stat().st_size


def copy_database(database: Path, destination: Path, on_progress: Callable[[int, int], object] | None = None) -> int:
    """Copy a snapshot of a database that an engine may be using.

    Returns the number of the last entry of the commit log that the copy contains.
    """

    def report(_: int, remaining: int, pages: int) -> None:
        if on_progress is not None:
            on_progress((pages - remaining) * page_size, pages * page_size)

    with contextlib.closing(open_existing(database)) as source:
        (page_size,) = source.execute("PRAGMA page_size").fetchone()
        destination.unlink(missing_ok=True)
        # Exclusively: a file that another user creates here first would stay readable for that user.
        os.close(os.open(destination, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        with contextlib.closing(sqlite3.connect(destination)) as target:
            target.execute("PRAGMA synchronous = OFF")  # Its flushes would delay those of the engine.
            # All parts read one snapshot. Without this transaction, each write of an engine would restart the copy.
            source.execute("BEGIN")
            source.execute("SELECT 1 FROM sqlite_schema").fetchone()
            source.backup(target, pages=_PAGES_OF_A_PART, progress=report)
            source.execute("COMMIT")
            # One complete file. An engine that opens it enables the write-ahead log again.
            target.execute("PRAGMA journal_mode = DELETE")
            sequence: int
            (sequence,) = target.execute("SELECT log_sequence FROM owner").fetchone()
    return sequence


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
