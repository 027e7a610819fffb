"""Statements for events, runs, memos, waits, deferred functions and delayed calls."""

import sqlite3
from collections.abc import Collection, Iterator, Sequence

import msgspec

from durably.engine.core.flow.queue import QueueEntry, decode_queue_entry, encode_queue_entry
from durably.engine.core.inputs import Defer, WriteMemo
from durably.engine.core.run_state import (
    Origin,
    RunState,
    RunStatus,
    decode_origin,
    decode_run_state,
    encode_origin,
    encode_run_state,
)
from durably.engine.model.records import AttemptRow, MemoTimes, RunRow, UnfinishedStep, WaitRow, WaitTimes
from durably.engine.model.runs import InvokeReceipt
from durably.protocol.engine_errors import DatabaseCorruptError
from durably.protocol.events import InternalEvent
from durably.protocol.opcodes import Opcode
from durably.protocol.usage import ModelUsage

_RUN_COLUMNS = "key, id, function_id, app_id, event_key, is_batch, status, created_at, started_at, rerun_of"
"""Columns in the order of ``RunRow``."""
_QUARTER = 900_000
"""Milliseconds of a quarter of an hour."""
_TOKENS = "model, input_tokens, output_tokens"
_ADD_TOKENS = (
    "ON CONFLICT DO UPDATE SET input_tokens = input_tokens + excluded.input_tokens, "
    "output_tokens = output_tokens + excluded.output_tokens"
)


class NewRun(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A run to be stored.

    ``state`` is ``None`` if the run has already ended, with ``output``: it was skipped, or failed before it began.
    ``queue_entry``, ``is_runnable`` and ``step_input`` belong to the state; for the last see ``schema``.
    """

    id: str
    function_id: str
    app_id: str
    event_keys: tuple[int, ...]
    status: RunStatus
    max_attempts: int
    created_at: int
    rerun_of: str | None = None
    output: bytes | None = None
    state: RunState | None = None
    queue_entry: QueueEntry | None = None
    is_runnable: bool = False
    step_input: bytes | None = None
    app_version: str | None = None


def open_waits(connection: sqlite3.Connection, run_key: int) -> dict[str, WaitTimes]:
    """The waits of a run, by step."""
    rows = connection.execute(
        "SELECT step_id, created_at, due, topic, called_at, question FROM waits WHERE run_key = ?", (run_key,)
    )
    return {step_id: WaitTimes(*values) for step_id, *values in rows}


class RunStore:
    """Statements of the tables of events and runs."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = self._connection = connection
        self._event_keys = RowKeys(connection, "events")
        self._run_keys = RowKeys(connection, "runs")

    # events

    def add_event(
        self,
        event_id: str,
        sender_id: str | None,
        name: str,
        received_at: int,
        body: bytes,
        origin: Origin | None = None,
        traceparent: str | None = None,
    ) -> int | None:
        """The key of the event; ``None`` if an event of this id already exists."""
        key = self._event_keys.next()
        cursor = self._connection.execute(
            "INSERT INTO events (key, id, sender_id, name, received_at, body, origin, traceparent) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
            (
                key,
                event_id,
                sender_id,
                name,
                received_at,
                body,
                None if origin is None else encode_origin(origin),
                traceparent,
            ),
        )
        return key if cursor.rowcount else None

    def add_event_notes(self, event_id: str, ended: int, sentences: Sequence[str]) -> None:
        """Store how many waits and runs an event has ended, and sentences on its effects."""
        (stored,) = self._connection.execute("SELECT notes FROM events WHERE id = ?", (event_id,)).fetchone()
        notes = [*msgspec.json.decode(stored or b"[]"), *sentences]
        self._connection.execute(
            "UPDATE events SET ended = nullif(coalesce(ended, 0) + ?, 0), notes = ? WHERE id = ?",
            (ended, msgspec.json.encode(notes), event_id),
        )

    def find_sent_event(self, sender_id: str, received_after: int) -> str | None:
        """The id of an event that was sent with this id after a time."""
        row = self._connection.execute(
            "SELECT id FROM events WHERE sender_id = ? AND received_at > ? AND name <> ? "
            "ORDER BY received_at DESC LIMIT 1",
            (sender_id, received_after, InternalEvent.FUNCTION_INVOKED),
        ).fetchone()
        return row[0] if row else None

    def find_invocation(self, function_id: str, sender_id: str, event_id: str) -> InvokeReceipt | None:
        """The receipt of an earlier invocation with this id of its sender, or this id of the event.

        ``None`` if its run was skipped or deleted.
        """
        rows = self._connection.execute(
            "SELECT key, id, body FROM events WHERE id = ?1 "
            "UNION SELECT key, id, body FROM events WHERE ?2 <> '' AND sender_id = ?2 AND name = ?3 ORDER BY key DESC",
            (event_id, sender_id, InternalEvent.FUNCTION_INVOKED),
        )
        for key, known_id, body in rows:
            if invoked_function(body) != function_id:
                continue
            run = self._connection.execute(
                "SELECT id FROM runs WHERE key IN (SELECT key FROM runs WHERE event_key = ?1 "
                "UNION SELECT run_key FROM run_events WHERE event_key = ?1) AND status <> ?2 ORDER BY key LIMIT 1",
                (key, RunStatus.SKIPPED),
            ).fetchone()
            if run is not None:
                return InvokeReceipt(event_id=known_id, run_id=run[0])
            if known_id == event_id or is_held(self._connection, key):
                return InvokeReceipt(event_id=known_id, run_id=None)
        return None

    def event(self, event_key: int) -> tuple[str, str, bytes, Origin | None, str | None]:
        """Id, name, body, origin and ``traceparent``."""
        event_id, name, body, origin, traceparent = self._connection.execute(
            "SELECT id, name, body, origin, traceparent FROM events WHERE key = ?", (event_key,)
        ).fetchone()
        return event_id, name, body, decode_origin(origin), traceparent

    # runs

    def add_run(self, run: NewRun) -> RunRow:
        is_batch = len(run.event_keys) > 1
        row = RunRow(
            self._run_keys.next(),
            run.id,
            run.function_id,
            run.app_id,
            run.event_keys[0],
            is_batch,
            run.status,
            run.created_at,
            None,
            run.rerun_of,
        )
        ended_at = run.created_at if run.state is None else None
        self._connection.execute(
            f"INSERT INTO runs ({_RUN_COLUMNS}, max_attempts, ended_at, output, app_version) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*msgspec.structs.astuple(row), run.max_attempts, ended_at, run.output, run.app_version),
        )
        if is_batch:
            self._connection.executemany(
                "INSERT INTO run_events (run_key, event_key) VALUES (?, ?)",
                [(row.key, event_key) for event_key in run.event_keys],
            )
        if run.state is not None:
            queue_entry = None if run.queue_entry is None else encode_queue_entry(run.queue_entry)
            self._connection.execute(
                "INSERT INTO run_states (run_key, is_runnable, state, queue_entry, step_input) VALUES (?, ?, ?, ?, ?)",
                (row.key, run.is_runnable, encode_run_state(run.state), queue_entry, run.step_input),
            )
        return row

    def find_run_key(self, run_id: str) -> int | None:
        return find_run_key(self._connection, run_id)

    def run(self, run_key: int) -> RunRow:
        run = self.find_run(run_key)
        assert run is not None, "the key is that of a stored run"
        return run

    def find_run(self, run_key: int) -> RunRow | None:
        """The run with this key; ``None`` if it was purged."""
        row = self._connection.execute(f"SELECT {_RUN_COLUMNS} FROM runs WHERE key = ?", (run_key,)).fetchone()
        if row is None:
            return None
        key, run_id, function_id, app_id, event_key, is_batch, status, *others = row
        return RunRow(key, run_id, function_id, app_id, event_key, bool(is_batch), RunStatus(status), *others)

    def ended_at(self, run_key: int) -> int:
        """The time at which an ended run ended."""
        row: tuple[int] = self._connection.execute("SELECT ended_at FROM runs WHERE key = ?", (run_key,)).fetchone()
        return row[0]

    def event_keys(self, run: RunRow) -> tuple[int, ...]:
        """The events that started a run."""
        if not run.is_batch:
            return (run.event_key,)
        rows = self._connection.execute(
            "SELECT event_key FROM run_events WHERE run_key = ? ORDER BY event_key", (run.key,)
        )
        return tuple(event_key for (event_key,) in rows)

    def state(self, run_key: int) -> tuple[RunState, QueueEntry | None, bool] | None:
        """The run state, the queue entry if the run has one, and whether it is moving.

        ``None`` if the run has ended. Raises ``DatabaseCorruptError``.
        """
        row = self._connection.execute(
            "SELECT state, queue_entry, is_runnable FROM run_states WHERE run_key = ?", (run_key,)
        ).fetchone()
        if row is None:
            return None
        return read_run_state(row[0]), None if row[1] is None else decode_queue_entry(row[1]), bool(row[2])

    def queue_entry(self, run_key: int) -> QueueEntry | None:
        """The queue entry of a run whose run state is damaged, if it can be read."""
        row = self._connection.execute("SELECT queue_entry FROM run_states WHERE run_key = ?", (run_key,)).fetchone()
        try:
            return decode_queue_entry(row[0]) if row and row[0] is not None else None
        except msgspec.MsgspecError:
            return None

    def runnable_runs(self) -> list[int]:
        return [key for (key,) in self._connection.execute("SELECT run_key FROM run_states WHERE is_runnable")]

    def put_run_state(self, run_key: int, state: RunState) -> None:
        self._connection.execute(
            "UPDATE run_states SET state = ? WHERE run_key = ?", (encode_run_state(state), run_key)
        )

    def put_runnable(self, run_key: int, is_runnable: bool) -> None:
        self._connection.execute("UPDATE run_states SET is_runnable = ? WHERE run_key = ?", (is_runnable, run_key))

    def begin_run(self, run: RunRow, started_at: int) -> RunRow:
        """Store the time of the run's first call."""
        started_at = started_at if run.started_at is None else run.started_at
        self._connection.execute(
            "UPDATE runs SET status = ?, started_at = ? WHERE key = ?", (RunStatus.RUNNING, started_at, run.key)
        )
        return msgspec.structs.replace(run, status=RunStatus.RUNNING, started_at=started_at)

    def end_run(
        self,
        run_key: int,
        status: RunStatus,
        started_at: int | None,
        ended_at: int,
        output: bytes,
        *,
        last_called_at: int | None = None,
        unfinished: Sequence[UnfinishedStep] | None = None,
    ) -> None:
        """Store a run's end.

        Waits are dropped separately, because most runs have none at their end.
        """
        self._connection.execute(
            "UPDATE runs SET status = ?, started_at = coalesce(started_at, ?), ended_at = ?, output = ?, "
            "last_called_at = ?, unfinished = ? WHERE key = ?",
            (
                status,
                started_at,
                ended_at,
                output,
                last_called_at,
                msgspec.json.encode(unfinished) if unfinished else None,
                run_key,
            ),
        )
        self._connection.execute("DELETE FROM run_states WHERE run_key = ?", (run_key,))

    # memos

    def add_memo(
        self, run_key: int, seq: int, written: WriteMemo, times: MemoTimes, arguments: bytes | None = None
    ) -> None:
        self._connection.execute(
            "INSERT INTO memos (run_key, step_id, seq, name, op, attempts, failed, memo, arguments, created_at, "
            "ended_at, called_at, ran_from, ran_for, topic) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                run_key,
                written.step_id,
                seq,
                written.name,
                written.op,
                written.attempts,
                written.failed,
                written.memo,
                arguments,
                *msgspec.structs.astuple(times),
            ),
        )

    def add_usage(self, run: RunRow, step_id: str, attempt: int, usage: Sequence[ModelUsage], at: int) -> None:
        """Store the tokens of models in an attempt at a step, which are paid for even if the attempt has failed."""
        quarter = at // _QUARTER * 15
        for each in usage:
            tokens = each.model, each.input_tokens, each.output_tokens
            self._connection.execute(
                f"INSERT INTO step_usage (run_key, step_id, attempt, {_TOKENS}) VALUES (?, ?, ?, ?, ?, ?) "
                f"{_ADD_TOKENS}",
                (run.key, step_id, attempt, *tokens),
            )
            self._connection.execute(
                f"INSERT INTO usage_counts (function_id, minute, {_TOKENS}) VALUES (?, ?, ?, ?, ?) {_ADD_TOKENS}",
                (run.function_id, quarter, *tokens),
            )

    def memoised(self, run_key: int, step_ids: Collection[str]) -> frozenset[str]:
        """The ids of the steps that have a memo."""
        query = "SELECT 1 FROM memos WHERE run_key = ? AND step_id = ?"
        return frozenset(
            step_id for step_id in step_ids if self._connection.execute(query, (run_key, step_id)).fetchone()
        )

    def memo_order(self, run_key: int) -> list[tuple[int, str, str]]:
        """Positions, hashed ids and names of the steps that have a memo.

        They are in the order of the memos.
        """
        return self._connection.execute(
            "SELECT seq, step_id, name FROM memos WHERE run_key = ? ORDER BY seq", (run_key,)
        ).fetchall()

    def size_of_memos(self, run_key: int, before: int) -> tuple[int, int]:
        """The number and the bytes of a run's memos before a position."""
        row: tuple[int, int] = self._connection.execute(
            "SELECT count(*), coalesce(sum(length(memo)), 0) FROM memos WHERE run_key = ? AND seq < ?",
            (run_key, before),
        ).fetchone()
        return row

    def copy_memos(self, from_key: int, to_key: int, before: int) -> None:
        """Copy a run's memos before a position to another run."""
        self._connection.execute(
            "INSERT INTO memos (run_key, step_id, seq, name, op, attempts, failed, created_at, ended_at, memo, "
            "topic, arguments, is_copied) "
            "SELECT ?, step_id, seq, name, op, attempts, failed, created_at, ended_at, memo, topic, arguments, 1 "
            "FROM memos WHERE run_key = ? AND seq < ?",
            (to_key, from_key, before),
        )

    # waits

    def put_wait(self, wait: WaitRow, created_at: int) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO waits (run_key, step_id, op, topic, path, value, expression, due, called_at, "
            "question, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*msgspec.structs.astuple(wait), created_at),
        )

    def take_wait(self, run_key: int, step_id: str) -> WaitTimes | None:
        """Remove a wait."""
        row = self._connection.execute(
            "DELETE FROM waits WHERE run_key = ? AND step_id = ? RETURNING created_at, due, topic, called_at",
            (run_key, step_id),
        ).fetchone()
        return WaitTimes(*row) if row else None

    def waits_of(self, run_key: int) -> dict[str, WaitTimes]:
        """The waits of a run, by step."""
        return open_waits(self._connection, run_key)

    def drop_waits(self, run_key: int) -> None:
        self._connection.execute("DELETE FROM waits WHERE run_key = ?", (run_key,))

    def mute_wait(self, run_key: int, step_id: str) -> None:
        """Make the timeout the only end of a wait."""
        self._connection.execute("UPDATE waits SET topic = NULL WHERE run_key = ? AND step_id = ?", (run_key, step_id))

    def waits_for(self, op: Opcode, topic: str) -> list[tuple[int, str]]:
        """Runs and steps that wait for a signal, or for the run that an event starts."""
        return self._connection.execute(
            "SELECT run_key, step_id FROM waits WHERE op = ? AND topic = ?", (op, topic)
        ).fetchall()

    def event_waits(self, event: str, path: str | None, value: str | None) -> Iterator[tuple[int, str, str | None]]:
        """Runs, steps and expressions of waits for an event.

        The event has ``value`` at ``path``.
        """
        rows: Iterator[tuple[int, str, str | None]] = self._connection.execute(
            "SELECT run_key, step_id, expression FROM waits WHERE op = ? AND topic = ? AND path IS ? AND value IS ?",
            (Opcode.WAIT_FOR_EVENT, event, path, value),
        )
        return rows

    def add_wait_path(self, event: str, path: str | None) -> None:
        """Add a path of the wait index for events of a name.

        ``None`` is the path of waits without a key.
        """
        self._connection.execute("INSERT OR IGNORE INTO wait_paths (event, path) VALUES (?, ?)", (event, path or ""))

    def wait_paths(self, event: str) -> list[str | None]:
        rows = self._connection.execute("SELECT path FROM wait_paths WHERE event = ?", (event,))
        return [path or None for (path,) in rows]

    # deferred functions

    def add_deferred(self, run_key: int, deferred: Defer) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO deferred_functions (run_key, step_id, function_id, data, sessions) "
            "VALUES (?, ?, ?, ?, ?)",
            (run_key, deferred.step_id, deferred.function_id, deferred.data, msgspec.json.encode(deferred.sessions)),
        )

    def drop_deferred(self, run_key: int, step_id: str) -> None:
        self._connection.execute("DELETE FROM deferred_functions WHERE run_key = ? AND step_id = ?", (run_key, step_id))

    def take_deferred(self, run_key: int) -> list[Defer]:
        """Remove and return a run's deferred functions, in the order of the defers."""
        rows = self._connection.execute(
            "SELECT step_id, function_id, data, sessions FROM deferred_functions WHERE run_key = ? ORDER BY rowid",
            (run_key,),
        ).fetchall()
        self._connection.execute("DELETE FROM deferred_functions WHERE run_key = ?", (run_key,))
        return [
            Defer(step_id, function_id, data, msgspec.json.decode(sessions))
            for step_id, function_id, data, sessions in rows
        ]

    # delayed calls

    def add_delayed_call(self, run_key: int, generation: int, due: int) -> None:
        self._connection.execute(
            "INSERT INTO delayed_calls (run_key, generation, due) VALUES (?, ?, ?)", (run_key, generation, due)
        )

    def delayed_runs(self, function_ids: Collection[str], limit: int) -> list[int]:
        """The runs of functions that have any of the next delayed calls, of which ``limit`` are looked at."""
        rows = self._connection.execute(
            "SELECT DISTINCT run_key, function_id FROM (SELECT run_key FROM delayed_calls ORDER BY due LIMIT ?) "
            "JOIN runs ON runs.key = run_key",
            (limit,),
        )
        return [run_key for run_key, function_id in rows if function_id in function_ids]

    def put_failed_attempt(self, run_key: int, failed: AttemptRow) -> None:
        """Store a failed attempt without its usage; see ``add_usage``."""
        self._connection.execute(
            "INSERT OR REPLACE INTO failed_attempts (run_key, step_id, attempt, name, ended_at, error, data, "
            "queued_at, called_at, ran_from, ran_for, retry_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (run_key, *msgspec.structs.astuple(failed)[:-1]),
        )

    def drop_delayed_calls(self, run_key: int) -> None:
        self._connection.execute("DELETE FROM delayed_calls WHERE run_key = ?", (run_key,))

    def drop_delayed_call(self, run_key: int, generation: int) -> None:
        self._connection.execute(
            "DELETE FROM delayed_calls WHERE run_key = ? AND generation = ?", (run_key, generation)
        )


class _InvocationMetadata(msgspec.Struct):
    fn_id: str = ""


class _InvocationData(msgspec.Struct, rename={"metadata": "_inngest"}):
    metadata: _InvocationMetadata = msgspec.field(default_factory=_InvocationMetadata)


class _InvocationEvent(msgspec.Struct):
    data: _InvocationData


_invocation_decoder = msgspec.json.Decoder(_InvocationEvent)


def invoked_function(body: bytes) -> str:
    """The id of the function for which the event of an invocation is."""
    return _invocation_decoder.decode(body).data.metadata.fn_id


def is_held(connection: sqlite3.Connection, event_key: int) -> bool:
    """Whether a debounce or a batch holds the event."""
    query = "SELECT 1 FROM pending_events WHERE event_key = ?"
    return connection.execute(query, (event_key,)).fetchone() is not None


def find_run_key(connection: sqlite3.Connection, run_id: str) -> int | None:
    row = connection.execute("SELECT key FROM runs WHERE id = ?", (run_id,)).fetchone()
    return row[0] if row else None


def read_run_state(stored: bytes) -> RunState:
    """Decode a stored run state. Raises ``DatabaseCorruptError``."""
    try:
        return decode_run_state(stored)
    except msgspec.MsgspecError as error:
        raise DatabaseCorruptError(f"the stored run state is damaged: {error}") from error


class RowKeys:
    """Ascending keys of one table.

    Each is used once, even if its row is not written or is rolled back.
    """

    def __init__(self, connection: sqlite3.Connection, table: str) -> None:
        self._connection = connection
        self._table = table
        self._last: int | None = None

    def next(self) -> int:
        last = self._read_last() if self._last is None else self._last
        self._last = last + 1
        return self._last

    def _read_last(self) -> int:
        (last,) = self._connection.execute(f"SELECT coalesce(max(key), 0) FROM {self._table}").fetchone()
        return int(last)
