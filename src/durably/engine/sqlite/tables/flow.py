"""Statements of flow control: buckets, held events, cancellations, deadlines, schedules."""

import sqlite3
from collections.abc import Iterator
from enum import StrEnum

import msgspec

from durably.engine.core.flow.buckets import Bucket, BucketKind, StateChange
from durably.engine.core.flow.cron import Tick

_SWEPT_TOGETHER = 2
"""How many buckets that mean nothing any more are removed when one is written: more than can come to be."""


class DeadlineKind(StrEnum):
    START = "start"
    FINISH = "finish"


class CancelRow(msgspec.Struct, frozen=True):
    """``path`` and ``value`` narrow down which events cancel the run; see the schema."""

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
        """A bucket about which something is to be done, its state, and when."""
        row = self._connection.execute(
            "SELECT kind, function_id, key, state, due FROM buckets WHERE id = ? AND due IS NOT NULL", (bucket_id,)
        ).fetchone()
        return (Bucket(BucketKind(row[0]), row[1], row[2]), row[3], row[4]) if row else None

    def put(self, change: StateChange, now: int) -> None:
        """Store a change, and remove some buckets that have expired meanwhile."""
        bucket = change.bucket
        if change.state is None:
            self._connection.execute("DELETE FROM buckets WHERE id = ?", (bucket.id,))
            return
        self._connection.execute(
            "INSERT OR REPLACE INTO buckets (id, kind, function_id, key, state, due, expires) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (bucket.id, bucket.kind, bucket.function_id, bucket.key, change.state, change.due, change.expires),
        )
        if change.expires is not None:
            self._connection.execute(
                "DELETE FROM buckets WHERE id IN (SELECT id FROM buckets WHERE expires <= ? ORDER BY expires LIMIT ?)",
                (now, _SWEPT_TOGETHER),
            )

    # events that are held back

    def hold_event(self, bucket_id: str, event_key: int) -> None:
        self._connection.execute("INSERT INTO held_events (bucket_id, event_key) VALUES (?, ?)", (bucket_id, event_key))

    def drop_held_event(self, bucket_id: str, event_key: int) -> None:
        self._connection.execute(
            "DELETE FROM held_events WHERE bucket_id = ? AND event_key = ?", (bucket_id, event_key)
        )

    def take_held_events(self, bucket_id: str) -> tuple[int, ...]:
        """Remove the events of a bucket; in the order in which they came."""
        rows = self._connection.execute(
            "DELETE FROM held_events WHERE bucket_id = ? RETURNING event_key", (bucket_id,)
        ).fetchall()
        return tuple(sorted(event_key for (event_key,) in rows))

    # cancellation by event

    def add_cancel(self, run_key: int, position: int, cancel: CancelRow) -> None:
        self._connection.execute(
            "INSERT INTO cancels (run_key, position, event, path, value, expression, until) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (run_key, position, cancel.event, cancel.path, cancel.value, cancel.expression, cancel.until),
        )

    def cancels(self, event: str, path: str | None, value: str | None, now: int) -> list[tuple[int, str | None]]:
        """Runs, oldest first, that an event may cancel, and the expressions that tell."""
        return self._connection.execute(
            "SELECT run_key, expression FROM cancels WHERE event = ? AND path IS ? AND value IS ? "
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
        """Of a run that has ended: nothing cancels it any more."""
        for table in ("cancels", "deadlines"):
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
        """Those of an app's functions that it does not sync any more."""
        self._connection.execute(
            "DELETE FROM schedules WHERE function_id IN (SELECT id FROM functions WHERE app_id = ? AND NOT is_active)",
            (app_id,),
        )
