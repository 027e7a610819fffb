"""Flow control's rows in a real SQLite file: the least that the modules need, each method one statement."""

import sqlite3
from pathlib import Path

import msgspec

from durably.engine.flow.buckets import StateChange
from durably.engine.flow.gcra import Level
from durably.engine.flow.lanes import Gate, Lane, QueuedCall, decode_lane, encode_lane

_SCHEMA = """
CREATE TABLE IF NOT EXISTS bucket_states (
    id TEXT PRIMARY KEY, state BLOB NOT NULL, due INTEGER, expires INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lanes (
    id TEXT PRIMARY KEY, function_id TEXT NOT NULL, gate TEXT NOT NULL, gate_limit INTEGER NOT NULL,
    place INTEGER NOT NULL, run_key INTEGER NOT NULL, generation INTEGER NOT NULL, lane BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS lanes_by_gate ON lanes (gate, gate_limit, place, run_key, generation);
CREATE INDEX IF NOT EXISTS lanes_by_function ON lanes (function_id);
CREATE TABLE IF NOT EXISTS queued_calls (
    lane_id TEXT NOT NULL, place INTEGER NOT NULL, run_key INTEGER NOT NULL, generation INTEGER NOT NULL,
    PRIMARY KEY (lane_id, place, run_key, generation)
) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS queued_calls_by_run ON queued_calls (run_key, generation);
CREATE TABLE IF NOT EXISTS slots_used (id TEXT PRIMARY KEY, used INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS holds (
    run_key INTEGER NOT NULL, generation INTEGER NOT NULL, bucket_ids BLOB NOT NULL,
    PRIMARY KEY (run_key, generation)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS levels (id TEXT PRIMARY KEY, level BLOB NOT NULL, expires INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS openings (id TEXT PRIMARY KEY, opens_at INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS openings_by_time ON openings (opens_at);
"""


class SqliteRows:
    def __init__(self, path: Path | str) -> None:
        self._path = path
        self.statements: list[str] = []
        self._open()

    def _open(self) -> None:
        self._db = sqlite3.connect(self._path, isolation_level=None)
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.executescript(_SCHEMA)

    def reopen(self) -> None:
        """As after a restart."""
        self._db.close()
        self._open()

    def close(self) -> None:
        self._db.close()

    def record_statements(self) -> None:
        self._db.set_trace_callback(self.statements.append)

    def plan_of(self, statement: str) -> str:
        return " ".join(row[3] for row in self._db.execute(f"EXPLAIN QUERY PLAN {statement}"))

    def execute(self, statement: str, *parameters: object) -> sqlite3.Cursor:
        return self._db.execute(statement, parameters)

    # states of buckets

    def read(self, bucket_id: str) -> bytes | None:
        row = self._db.execute("SELECT state FROM bucket_states WHERE id = ?", (bucket_id,)).fetchone()
        return row[0] if row else None

    def apply(self, changes: tuple[StateChange, ...]) -> None:
        for change in changes:
            if change.state is None:
                self._db.execute("DELETE FROM bucket_states WHERE id = ?", (change.bucket.id,))
            else:
                row = (change.bucket.id, change.state, change.due, change.expires)
                self._db.execute("INSERT OR REPLACE INTO bucket_states VALUES (?, ?, ?, ?)", row)

    def purge(self, now: int) -> None:
        """Remove what has come to mean the same as nothing."""
        self._db.execute("DELETE FROM bucket_states WHERE expires <= ?", (now,))
        self._db.execute("DELETE FROM levels WHERE expires <= ?", (now,))

    # the queue

    def lane(self, lane_id: str) -> Lane | None:
        return self._one_lane("SELECT lane FROM lanes WHERE id = ?", lane_id)

    def put_lane(self, lane: Lane) -> None:
        row = (lane.id, lane.function_id, *lane.waits_at, *lane.first, encode_lane(lane))
        self._db.execute("INSERT OR REPLACE INTO lanes VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def drop_lane(self, lane_id: str) -> None:
        self._db.execute("DELETE FROM lanes WHERE id = ?", (lane_id,))

    def lanes_of(self, function_id: str) -> list[Lane]:
        rows = self._db.execute("SELECT lane FROM lanes WHERE function_id = ?", (function_id,)).fetchall()
        return [decode_lane(stored) for (stored,) in rows]

    def first_lane(self, gate: Gate) -> Lane | None:
        return self._one_lane(
            "SELECT lane FROM lanes WHERE gate = ? AND gate_limit = ? ORDER BY place, run_key, generation LIMIT 1",
            gate.bucket_id,
            gate.limit,
        )

    def next_limit(self, bucket_id: str, above: int) -> int | None:
        statement = "SELECT min(gate_limit) FROM lanes WHERE gate = ? AND gate_limit > ?"
        (limit,) = self._db.execute(statement, (bucket_id, above)).fetchone()
        return limit

    def add_call(self, lane_id: str, call: QueuedCall) -> None:
        self._db.execute("INSERT INTO queued_calls VALUES (?, ?, ?, ?)", (lane_id, *call))

    def first_call(self, lane_id: str) -> QueuedCall | None:
        statement = (
            "SELECT place, run_key, generation FROM queued_calls WHERE lane_id = ? "
            "ORDER BY place, run_key, generation LIMIT 1"
        )
        row = self._db.execute(statement, (lane_id,)).fetchone()
        return QueuedCall(*row) if row else None

    def drop_call(self, run_key: int, generation: int) -> str | None:
        statement = "DELETE FROM queued_calls WHERE run_key = ? AND generation = ? RETURNING lane_id"
        row = self._db.execute(statement, (run_key, generation)).fetchone()
        return row[0] if row else None

    def used(self, bucket_id: str) -> int:
        row = self._db.execute("SELECT used FROM slots_used WHERE id = ?", (bucket_id,)).fetchone()
        return row[0] if row else 0

    def put_used(self, bucket_id: str, used: int) -> None:
        if used:
            self._db.execute("INSERT OR REPLACE INTO slots_used VALUES (?, ?)", (bucket_id, used))
        else:
            self._db.execute("DELETE FROM slots_used WHERE id = ?", (bucket_id,))

    def put_hold(self, run_key: int, generation: int, bucket_ids: tuple[str, ...]) -> None:
        row = (run_key, generation, msgspec.msgpack.encode(bucket_ids))
        self._db.execute("INSERT INTO holds VALUES (?, ?, ?)", row)

    def take_hold(self, run_key: int, generation: int) -> tuple[str, ...] | None:
        statement = "DELETE FROM holds WHERE run_key = ? AND generation = ? RETURNING bucket_ids"
        row = self._db.execute(statement, (run_key, generation)).fetchone()
        return msgspec.msgpack.decode(row[0], type=tuple[str, ...]) if row else None

    def level(self, bucket_id: str) -> Level | None:
        row = self._db.execute("SELECT level FROM levels WHERE id = ?", (bucket_id,)).fetchone()
        return Level.decode(row[0]) if row else None

    def put_level(self, bucket_id: str, level: Level) -> None:
        row = (bucket_id, level.encode(), level.expires)
        self._db.execute("INSERT OR REPLACE INTO levels VALUES (?, ?, ?)", row)

    def put_opening(self, bucket_id: str, opens_at: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO openings VALUES (?, ?)", (bucket_id, opens_at))

    def take_openings(self, until: int, at_most: int) -> list[str]:
        statement = (
            "DELETE FROM openings WHERE id IN "
            "(SELECT id FROM openings WHERE opens_at <= ? ORDER BY opens_at LIMIT ?) RETURNING id"
        )
        return [bucket_id for (bucket_id,) in self._db.execute(statement, (until, at_most)).fetchall()]

    def next_opening(self) -> int | None:
        (opens_at,) = self._db.execute("SELECT min(opens_at) FROM openings").fetchone()
        return opens_at

    def _one_lane(self, statement: str, *parameters: object) -> Lane | None:
        row = self._db.execute(statement, parameters).fetchone()
        return decode_lane(row[0]) if row else None
