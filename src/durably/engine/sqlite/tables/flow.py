"""Statements of flow control.

Buckets, held events, cancel events, deadlines, schedules, the queue of calls.
"""

import sqlite3
from collections.abc import Iterator
from enum import StrEnum

import msgspec

from durably.engine.core.flow.buckets import Bucket, BucketKind, Level, StateChange
from durably.engine.core.flow.config import Tick
from durably.engine.core.flow.queue import ConcurrencyKey, Limit, QueuedCall, decode_key, encode_key

_EXPIRED_TOGETHER = 2
"""Number of expired buckets that a write removes. More than one, so that expired buckets do not accumulate."""


class DeadlineKind(StrEnum):
    START = "start"
    FINISH = "finish"


class CancelRow(msgspec.Struct, frozen=True):
    """An event that cancels the run.

    ``path`` and ``value`` are its key in the wait index.
    """

    event: str
    path: str | None
    value: str | None
    expression: str | None
    until: int | None


class FlowStore:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    # buckets

    def read(self, bucket_id: str) -> bytes | None:
        """The state of a bucket."""
        row = self._connection.execute("SELECT state FROM buckets WHERE id = ?", (bucket_id,)).fetchone()
        return row[0] if row else None

    def due_bucket(self, bucket_id: str) -> tuple[Bucket, bytes, int] | None:
        """A bucket with a timer, its state, and the timer's time."""
        row = self._connection.execute(
            "SELECT kind, function_id, key, state, due FROM buckets WHERE id = ? AND due IS NOT NULL", (bucket_id,)
        ).fetchone()
        return (Bucket(BucketKind(row[0]), row[1], row[2]), row[3], row[4]) if row else None

    def put(self, change: StateChange, now: int) -> None:
        """Store a change, and remove some expired buckets."""
        bucket = change.bucket
        if change.state is None:
            self._connection.execute("DELETE FROM buckets WHERE id = ?", (bucket.id,))
            return
        self._connection.execute(
            "INSERT OR REPLACE INTO buckets (id, kind, function_id, key, state, due, expires) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (bucket.id, bucket.kind, bucket.function_id, bucket.key, change.state, change.fires_at, change.expires),
        )
        if change.expires is not None:
            self._connection.execute(
                "DELETE FROM buckets WHERE id IN "
                "(SELECT id FROM buckets WHERE expires <= ? ORDER BY expires, id LIMIT ?)",
                (now, _EXPIRED_TOGETHER),
            )

    # held events

    def hold_event(self, bucket_id: str, event_key: int) -> None:
        self._connection.execute(
            "INSERT INTO pending_events (bucket_id, event_key) VALUES (?, ?)", (bucket_id, event_key)
        )

    def drop_held_event(self, bucket_id: str, event_key: int) -> None:
        self._connection.execute(
            "DELETE FROM pending_events WHERE bucket_id = ? AND event_key = ?", (bucket_id, event_key)
        )

    def take_held_events(self, bucket_id: str) -> tuple[int, ...]:
        """Remove and return the events of a bucket, in the order of receipt."""
        rows = self._connection.execute(
            "DELETE FROM pending_events WHERE bucket_id = ? RETURNING event_key", (bucket_id,)
        ).fetchall()
        return tuple(sorted(event_key for (event_key,) in rows))

    # cancellation by event

    def add_cancel(self, run_key: int, position: int, cancel: CancelRow) -> None:
        self._connection.execute(
            "INSERT INTO cancel_events (run_key, position, event, path, value, expression, until) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (run_key, position, cancel.event, cancel.path, cancel.value, cancel.expression, cancel.until),
        )

    def cancels(self, event: str, path: str | None, value: str | None, now: int) -> list[tuple[int, str | None]]:
        """Runs, oldest first, that an event may cancel, and their expressions."""
        return self._connection.execute(
            "SELECT run_key, expression FROM cancel_events WHERE event = ? AND path IS ? AND value IS ? "
            "AND (until IS NULL OR until >= ?) ORDER BY run_key",
            (event, path, value, now),
        ).fetchall()

    # deadlines

    def put_deadline(self, run_key: int, kind: DeadlineKind, due: int) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO deadlines (run_key, kind, due) VALUES (?, ?, ?)", (run_key, kind, due)
        )

    def deadline(self, run_key: int) -> tuple[DeadlineKind, int] | None:
        row = self._connection.execute("SELECT kind, due FROM deadlines WHERE run_key = ?", (run_key,)).fetchone()
        return (DeadlineKind(row[0]), row[1]) if row else None

    def drop_deadline(self, run_key: int) -> None:
        self._connection.execute("DELETE FROM deadlines WHERE run_key = ?", (run_key,))

    def forget_run(self, run_key: int) -> None:
        """Delete the cancel events and the deadline of a run that has ended."""
        for table in ("cancel_events", "deadlines"):
            self._connection.execute(f"DELETE FROM {table} WHERE run_key = ?", (run_key,))

    # schedules

    def schedules(self, function_id: str) -> dict[str, Tick]:
        """The next tick of each of a function's schedules."""
        rows: Iterator[tuple[str, int, int]] = self._connection.execute(
            "SELECT schedule, at, due FROM schedules WHERE function_id = ?", (function_id,)
        )
        return {schedule: Tick(at, due) for schedule, at, due in rows}

    def put_tick(self, function_id: str, schedule: str, tick: Tick) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO schedules (function_id, schedule, at, due) VALUES (?, ?, ?, ?)",
            (function_id, schedule, tick.at, tick.due),
        )

    def drop_schedule(self, function_id: str, schedule: str) -> None:
        self._connection.execute(
            "DELETE FROM schedules WHERE function_id = ? AND schedule = ?", (function_id, schedule)
        )

    def drop_schedules_of_others(self, app_id: str) -> None:
        """Delete the schedules of the app's inactive functions."""
        self._connection.execute(
            "DELETE FROM schedules WHERE function_id IN (SELECT id FROM functions WHERE app_id = ? AND NOT is_active)",
            (app_id,),
        )


_bucket_ids = msgspec.msgpack.Decoder(tuple[str, ...])


class SqliteQueueRows:
    """The rows of one transaction, at the time ``now``.

    ``throttle_times`` are the times that it stored.
    """

    def __init__(self, connection: sqlite3.Connection, now: int) -> None:
        self._connection = connection
        self._now = now
        self.throttle_times: list[int] = []

    # concurrency keys and the calls that wait in them

    def key(self, key_id: str) -> ConcurrencyKey | None:
        return self._one_key("SELECT state FROM concurrency_keys WHERE id = ?", key_id)

    def put_key(self, key: ConcurrencyKey) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO concurrency_keys (id, function_id, limit_id, limit_maximum, position, run_key, "
            "generation, state) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (key.id, key.function_id, *key.waits_at, *key.first, encode_key(key)),
        )

    def drop_key(self, key_id: str) -> None:
        self._connection.execute("DELETE FROM concurrency_keys WHERE id = ?", (key_id,))

    def keys_of(self, function_id: str) -> list[ConcurrencyKey]:
        rows = self._connection.execute("SELECT state FROM concurrency_keys WHERE function_id = ?", (function_id,))
        return [decode_key(key) for (key,) in rows.fetchall()]

    def first_key(self, limit: Limit) -> ConcurrencyKey | None:
        return self._one_key(
            "SELECT state FROM concurrency_keys WHERE limit_id = ? AND limit_maximum = ? ORDER BY position, run_key, "
            "generation LIMIT 1",
            limit.bucket_id,
            limit.maximum,
        )

    def next_limit(self, bucket_id: str, above: int) -> int | None:
        row: tuple[int | None] = self._connection.execute(
            "SELECT min(limit_maximum) FROM concurrency_keys WHERE limit_id = ? AND limit_maximum > ?",
            (bucket_id, above),
        ).fetchone()
        return row[0]

    def add_call(self, key_id: str, call: QueuedCall) -> None:
        self._connection.execute(
            "INSERT INTO queued_calls (key_id, position, run_key, generation) VALUES (?, ?, ?, ?)", (key_id, *call)
        )

    def first_call(self, key_id: str) -> QueuedCall | None:
        row = self._connection.execute(
            "SELECT position, run_key, generation FROM queued_calls WHERE key_id = ? "
            "ORDER BY position, run_key, generation LIMIT 1",
            (key_id,),
        ).fetchone()
        return QueuedCall(*row) if row else None

    def drop_call(self, run_key: int, generation: int) -> str | None:
        row = self._connection.execute(
            "DELETE FROM queued_calls WHERE run_key = ? AND generation = ? RETURNING key_id", (run_key, generation)
        ).fetchone()
        return row[0] if row else None

    def waiting(self, run_key: int) -> set[int]:
        """The generations of a run's waiting calls."""
        rows = self._connection.execute("SELECT generation FROM queued_calls WHERE run_key = ?", (run_key,))
        return {generation for (generation,) in rows}

    # concurrency slots

    def used(self, bucket_id: str) -> int:
        row = self._connection.execute("SELECT used FROM slots_used WHERE id = ?", (bucket_id,)).fetchone()
        return row[0] if row else 0

    def put_used(self, bucket_id: str, used: int) -> None:
        if used:
            self._connection.execute("INSERT OR REPLACE INTO slots_used (id, used) VALUES (?, ?)", (bucket_id, used))
        else:
            self._connection.execute("DELETE FROM slots_used WHERE id = ?", (bucket_id,))

    def put_slots(self, run_key: int, generation: int, bucket_ids: tuple[str, ...]) -> None:
        self._connection.execute(
            "INSERT INTO slots (run_key, generation, bucket_ids, taken_at) VALUES (?, ?, ?, ?)",
            (run_key, generation, msgspec.msgpack.encode(bucket_ids), self._now),
        )

    def free_slots(self, run_key: int, generation: int) -> tuple[str, ...] | None:
        row = self._connection.execute(
            "DELETE FROM slots WHERE run_key = ? AND generation = ? RETURNING bucket_ids", (run_key, generation)
        ).fetchone()
        return _bucket_ids.decode(row[0]) if row else None

    def holding_slots(self, run_key: int) -> set[int]:
        """The generations of a run's calls that hold slots."""
        rows = self._connection.execute("SELECT generation FROM slots WHERE run_key = ?", (run_key,))
        return {generation for (generation,) in rows}

    def slots_taken_at(self, run_key: int, generation: int) -> int | None:
        """The time at which a call left the queue; ``None`` if it holds no slot."""
        row = self._connection.execute(
            "SELECT taken_at FROM slots WHERE run_key = ? AND generation = ?", (run_key, generation)
        ).fetchone()
        return row[0] if row else None

    # throttles

    def level(self, bucket_id: str) -> Level | None:
        row = self._connection.execute("SELECT level FROM throttle_levels WHERE id = ?", (bucket_id,)).fetchone()
        return Level.decode(row[0]) if row else None

    def put_level(self, bucket_id: str, level: Level) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO throttle_levels (id, level, expires) VALUES (?, ?, ?)",
            (bucket_id, level.encode(), level.expires),
        )
        self._connection.execute(
            "DELETE FROM throttle_levels WHERE id IN (SELECT id FROM throttle_levels WHERE expires <= ? ORDER BY "
            "expires, id LIMIT ?)",
            (self._now, _EXPIRED_TOGETHER),
        )

    def put_throttle_time(self, bucket_id: str, ready_at: int) -> None:
        written = self._connection.execute(
            "INSERT INTO throttle_times (id, ready_at) VALUES (?, ?) "
            "ON CONFLICT DO UPDATE SET ready_at = excluded.ready_at WHERE ready_at <> excluded.ready_at",
            (bucket_id, ready_at),
        )
        if written.rowcount:
            self.throttle_times.append(ready_at)

    def advance_throttle_times(self, until: int) -> None:
        """Store ``until`` as the time of each later throttle."""
        self._connection.execute("UPDATE throttle_times SET ready_at = ? WHERE ready_at > ?", (until, until))

    def take_due_throttles(self, until: int, at_most: int) -> list[str]:
        rows = self._connection.execute(
            "DELETE FROM throttle_times WHERE id IN "
            "(SELECT id FROM throttle_times WHERE ready_at <= ? ORDER BY ready_at, id LIMIT ?) RETURNING id",
            (until, at_most),
        )
        return [bucket_id for (bucket_id,) in rows.fetchall()]

    def _one_key(self, statement: str, *parameters: object) -> ConcurrencyKey | None:
        row = self._connection.execute(statement, parameters).fetchone()
        return decode_key(row[0]) if row else None
