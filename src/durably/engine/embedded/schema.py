"""The database's schema, its migrations, and how connections to it are opened.

Times are milliseconds since the epoch. ``key`` columns are rowids, for joins; ``id`` columns are what the
outside knows. ``PRAGMA user_version`` counts the migrations that were applied.
"""

import sqlite3
from pathlib import Path

import msgspec

from durably.engine.errors import DatabaseCorruptError, DatabaseTooNewError

from .settings import Durability

APPLICATION_ID = 0x44524259
"""Marks the file as Durably's ("DRBY"), so that no other program's database is taken for one."""

_FIRST = """
CREATE TABLE owner (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    epoch INTEGER NOT NULL,
    -- Whether all JSON in here is in canonical form (RFC 8785), as signed calls have to be.
    is_canonical INTEGER NOT NULL
);
INSERT INTO owner (id, epoch, is_canonical) VALUES (1, 0, 1);

CREATE TABLE apps (
    id TEXT PRIMARY KEY,
    url TEXT NOT NULL,
    sdk TEXT,
    framework TEXT,
    version TEXT,
    synced_at INTEGER NOT NULL
) WITHOUT ROWID;

-- A function that its app does not sync any more is kept, inactive: runs of it may be under way.
CREATE TABLE functions (
    id TEXT PRIMARY KEY,
    app_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    is_active INTEGER NOT NULL,
    config BLOB NOT NULL
) WITHOUT ROWID;

-- sender_id is the id that an event came with, if any; body the event as functions get it, JSON.
CREATE TABLE events (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    sender_id TEXT,
    name TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX events_by_name ON events (name, key);
CREATE INDEX events_by_sender_id ON events (sender_id, received_at) WHERE sender_id IS NOT NULL;

CREATE TABLE runs (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    function_id TEXT NOT NULL,
    app_id TEXT NOT NULL,
    event_key INTEGER NOT NULL,
    status TEXT NOT NULL,
    max_attempts INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    ended_at INTEGER,
    output BLOB,
    rerun_of TEXT
);
CREATE INDEX runs_by_event ON runs (event_key);
CREATE INDEX runs_by_function ON runs (function_id, key);

-- The heads of runs that have not ended. is_moving tells those that have a call or a request outstanding.
CREATE TABLE heads (
    run_key INTEGER PRIMARY KEY,
    is_moving INTEGER NOT NULL,
    head BLOB NOT NULL
);
CREATE INDEX heads_moving ON heads (run_key) WHERE is_moving;

-- What finished steps came to; never changed. seq is their order within the run.
CREATE TABLE memos (
    run_key INTEGER NOT NULL,
    step_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    name TEXT NOT NULL,
    op TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    ended_at INTEGER NOT NULL,
    memo BLOB NOT NULL,
    PRIMARY KEY (run_key, step_id)
) WITHOUT ROWID;

-- Outstanding steps that wait for something other than a call, which comes by `topic`: an event's name, a
-- signal, an invoked run's id. `path` and `value` narrow event waits down: where the wait's expression wants a
-- place of the newcomer to equal something, they say which place, and what.
CREATE TABLE waits (
    run_key INTEGER NOT NULL,
    step_id TEXT NOT NULL,
    op TEXT NOT NULL,
    topic TEXT,
    path TEXT,
    value TEXT,
    expression TEXT,
    due INTEGER,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (run_key, step_id)
) WITHOUT ROWID;
CREATE INDEX waits_by_topic ON waits (op, topic, path, value) WHERE topic IS NOT NULL;
CREATE INDEX waits_by_due ON waits (due) WHERE due IS NOT NULL;

-- Every place by which waits for an event were ever narrowed down.
CREATE TABLE wait_paths (
    event TEXT NOT NULL,
    path TEXT NOT NULL,
    PRIMARY KEY (event, path)
) WITHOUT ROWID;

-- Calls that are to be made later: retries.
CREATE TABLE delayed_calls (
    run_key INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    due INTEGER NOT NULL,
    PRIMARY KEY (run_key, generation)
) WITHOUT ROWID;
CREATE INDEX delayed_calls_by_due ON delayed_calls (due);
"""

MIGRATIONS = (_FIRST,)
"""In order, each a script that takes the schema one version further. Those that were released never change."""


def connect(path: Path, durability: Durability) -> sqlite3.Connection:
    """A connection for the writer. Transactions are begun explicitly."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {durability.value}")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA busy_timeout = 5000")
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
    connection.execute("PRAGMA query_only = ON")
    connection.execute("PRAGMA busy_timeout = 5000")
    return connection


def open_database(path: Path, durability: Durability) -> sqlite3.Connection:
    """Open the database, made or migrated where need be.

    Raises ``DatabaseTooNewError`` and ``DatabaseCorruptError``.
    """
    connection: sqlite3.Connection | None = None
    try:
        connection = connect(path, durability)
        _check_owner(connection, path)
        _migrate(connection, path)
    except sqlite3.DatabaseError as error:
        if connection is not None:
            connection.close()
        raise DatabaseCorruptError(f"the database {path} cannot be opened: {error}") from error
    except BaseException:
        if connection is not None:
            connection.close()
        raise
    return connection


def _check_owner(connection: sqlite3.Connection, path: Path) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != APPLICATION_ID and (application or tables):
        raise DatabaseCorruptError(f"{path} is a SQLite database of another program; give the engine a file of its own")


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise DatabaseTooNewError(
            f"the database {path} has schema version {version}, and this version of Durably knows those up to "
            f"{len(MIGRATIONS)}: update Durably, or use another database"
        )
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        # user_version and application_id are part of the transaction: a migration is applied wholly or not at all.
        marks = f"PRAGMA user_version = {number}; PRAGMA application_id = {APPLICATION_ID};"
        connection.executescript(f"BEGIN IMMEDIATE; {script}; {marks} COMMIT;")


class Ownership(msgspec.Struct, frozen=True):
    """``epoch`` is checked in each transaction. ``is_canonical``: see the table ``owner``."""

    epoch: int
    is_canonical: bool


def take_ownership(connection: sqlite3.Connection, *, writes_canonical: bool) -> Ownership:
    """Begin a new epoch. Whoever owned the database before finds its own gone, and stops."""
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE owner SET epoch = epoch + 1, is_canonical = is_canonical AND ?", (writes_canonical,))
    epoch, is_canonical = connection.execute("SELECT epoch, is_canonical FROM owner").fetchone()
    connection.execute("COMMIT")
    return Ownership(epoch, bool(is_canonical))
