"""Statements for the queue of calls."""

import sqlite3

import msgspec

from durably.engine.core.flow.queue_entries import ConcurrencyKey, Limit, QueuedCall, decode_key, encode_key
from durably.engine.core.flow.rates import Level

_SWEPT_TOGETHER = 2
"""How many levels that mean nothing any more are removed when one is written: more than can come to be."""

_bucket_ids = msgspec.msgpack.Decoder(tuple[str, ...])


class SqliteQueueRows:
    """For one unit of work, at the time ``now``. ``throttle_times`` are those that were noted in it."""

    def __init__(self, connection: sqlite3.Connection, now: int) -> None:
        self._connection = connection
        self._now = now
        self.throttle_times: list[int] = []

    # concurrency keys and the calls that wait in them

    def key(self, key_id: str) -> ConcurrencyKey | None:
        return self._one_key("SELECT lane FROM lanes WHERE id = ?", key_id)

    def put_key(self, key: ConcurrencyKey) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO lanes (id, function_id, gate, gate_limit, place, run_key, generation, lane) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (key.id, key.function_id, *key.waits_at, *key.first, encode_key(key)),
        )

    def drop_key(self, key_id: str) -> None:
        self._connection.execute("DELETE FROM lanes WHERE id = ?", (key_id,))

    def keys_of(self, function_id: str) -> list[ConcurrencyKey]:
        rows = self._connection.execute("SELECT lane FROM lanes WHERE function_id = ?", (function_id,))
        return [decode_key(key) for (key,) in rows.fetchall()]

    def first_key(self, limit: Limit) -> ConcurrencyKey | None:
        return self._one_key(
            "SELECT lane FROM lanes WHERE gate = ? AND gate_limit = ? ORDER BY place, run_key, generation LIMIT 1",
            limit.bucket_id,
            limit.maximum,
        )

    def next_limit(self, bucket_id: str, above: int) -> int | None:
        row: tuple[int | None] = self._connection.execute(
            "SELECT min(gate_limit) FROM lanes WHERE gate = ? AND gate_limit > ?", (bucket_id, above)
        ).fetchone()
        return row[0]

    def add_call(self, key_id: str, call: QueuedCall) -> None:
        self._connection.execute(
            "INSERT INTO queued_calls (lane_id, place, run_key, generation) VALUES (?, ?, ?, ?)", (key_id, *call)
        )

    def first_call(self, key_id: str) -> QueuedCall | None:
        row = self._connection.execute(
            "SELECT place, run_key, generation FROM queued_calls WHERE lane_id = ? "
            "ORDER BY place, run_key, generation LIMIT 1",
            (key_id,),
        ).fetchone()
        return QueuedCall(*row) if row else None

    def drop_call(self, run_key: int, generation: int) -> str | None:
        row = self._connection.execute(
            "DELETE FROM queued_calls WHERE run_key = ? AND generation = ? RETURNING lane_id", (run_key, generation)
        ).fetchone()
        return row[0] if row else None

    def waiting(self, run_key: int) -> set[int]:
        """The generations of a run's calls that wait."""
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
            "INSERT INTO holds (run_key, generation, bucket_ids, made_at) VALUES (?, ?, ?, ?)",
            (run_key, generation, msgspec.msgpack.encode(bucket_ids), self._now),
        )

    def free_slots(self, run_key: int, generation: int) -> tuple[str, ...] | None:
        row = self._connection.execute(
            "DELETE FROM holds WHERE run_key = ? AND generation = ? RETURNING bucket_ids", (run_key, generation)
        ).fetchone()
        return _bucket_ids.decode(row[0]) if row else None

    def holding_slots(self, run_key: int) -> set[int]:
        """The generations of a run's calls that hold slots."""
        rows = self._connection.execute("SELECT generation FROM holds WHERE run_key = ?", (run_key,))
        return {generation for (generation,) in rows}

    def slots_taken_at(self, run_key: int, generation: int) -> int | None:
        """When a call was let through; ``None`` where it holds no slot."""
        row = self._connection.execute(
            "SELECT made_at FROM holds WHERE run_key = ? AND generation = ?", (run_key, generation)
        ).fetchone()
        return row[0] if row else None

    # throttles

    def level(self, bucket_id: str) -> Level | None:
        row = self._connection.execute("SELECT level FROM levels WHERE id = ?", (bucket_id,)).fetchone()
        return Level.decode(row[0]) if row else None

    def put_level(self, bucket_id: str, level: Level) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO levels (id, level, expires) VALUES (?, ?, ?)",
            (bucket_id, level.encode(), level.expires),
        )
        self._connection.execute(
            "DELETE FROM levels WHERE id IN (SELECT id FROM levels WHERE expires <= ? ORDER BY expires LIMIT ?)",
            (self._now, _SWEPT_TOGETHER),
        )

    def put_throttle_time(self, bucket_id: str, ready_at: int) -> None:
        written = self._connection.execute(
            "INSERT INTO openings (id, opens_at) VALUES (?, ?) "
            "ON CONFLICT DO UPDATE SET opens_at = excluded.opens_at WHERE opens_at <> excluded.opens_at",
            (bucket_id, ready_at),
        )
        if written.rowcount:
            self.throttle_times.append(ready_at)

    def take_due_throttles(self, until: int, at_most: int) -> list[str]:
        rows = self._connection.execute(
            "DELETE FROM openings WHERE id IN "
            "(SELECT id FROM openings WHERE opens_at <= ? ORDER BY opens_at LIMIT ?) RETURNING id",
            (until, at_most),
        )
        return [bucket_id for (bucket_id,) in rows.fetchall()]

    def _one_key(self, statement: str, *parameters: object) -> ConcurrencyKey | None:
        row = self._connection.execute(statement, parameters).fetchone()
        return decode_key(row[0]) if row else None
