"""Opening the database: connections, migrations, ownership, and SQLite's errors."""

import sqlite3
from pathlib import Path

from durably.engine.model.settings import Durability
from durably.protocol.engine_errors import (
    DatabaseBusyError,
    DatabaseCorruptError,
    DatabaseLostError,
    DatabaseMissingError,
    DatabaseTooNewError,
    DatabaseUnavailableError,
)
from durably.protocol.text import get_logger

from .files import create_private, make_private
from .identity import APPLICATION_ID
from .migrations import MIGRATIONS

_logger = get_logger("durably.engine")

_BUSY_TIMEOUT_MS = 5000
"""The longest wait for another process's lock."""
_MOST_LOG_BYTES = 64 * 1024 * 1024
"""The maximum size of the write-ahead log after a checkpoint. It grows during a long read, such as a backup."""


def connect(path: Path, durability: Durability) -> sqlite3.Connection:
    """A connection for the writer. Transactions are begun explicitly."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {durability.value}")
    connection.execute(f"PRAGMA journal_size_limit = {_MOST_LOG_BYTES}")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """A read-only connection. It does not create a missing database."""
    existing = f"{path.absolute().as_uri()}?mode=rw"
    connection = sqlite3.connect(
        existing, uri=True, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    connection.execute("PRAGMA query_only = ON")
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    return connection


def open_database(path: Path, durability: Durability) -> sqlite3.Connection:
    """Open the database. Create or migrate it if necessary.

    Raises ``DatabaseNotOwnedError``, ``DatabaseTooNewError``, ``DatabaseUnavailableError`` and
    ``DatabaseCorruptError``.
    """
    connection: sqlite3.Connection | None = None
    try:
        create_private(path)
        make_private(path)
        connection = connect(path, durability)
        _check_application(connection, path)
        _migrate(connection, path)
    except OSError as error:
        raise DatabaseUnavailableError(f"the database {path} cannot be created: {error.strerror}") from error
    except sqlite3.DatabaseError as error:
        if connection is not None:
            connection.close()
        # A read-only file, a full disk or a missing directory does not mean that the content is damaged.
        kind = DatabaseUnavailableError if isinstance(error, sqlite3.OperationalError) else DatabaseCorruptError
        if is_busy(error):
            kind = DatabaseBusyError
        raise kind(f"the database {path} cannot be opened: {error}") from error
    except BaseException:
        if connection is not None:
            connection.close()
        raise
    return connection


def open_existing(path: Path) -> sqlite3.Connection:
    """A read-only connection to a database that an engine may be using.

    Raises ``DatabaseMissingError``, ``DatabaseTooNewError`` and ``DatabaseCorruptError``.
    """
    if not path.exists():
        raise DatabaseMissingError(f"there is no database {path}")
    connection = connect_reader(path)
    try:
        _check_application(connection, path)
        if _check_version(connection, path) == 0:
            raise DatabaseCorruptError(f"{path} is not a database of an engine: it is empty")
    except sqlite3.DatabaseError as error:
        connection.close()
        raise DatabaseCorruptError(f"the database {path} cannot be read: {error}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _check_application(connection: sqlite3.Connection, path: Path) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != APPLICATION_ID and (application or tables):
        raise DatabaseCorruptError(f"{path} is a SQLite database of another program; give the engine a file of its own")


def _check_version(connection: sqlite3.Connection, path: Path) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise DatabaseTooNewError(
            f"the database {path} has schema version {version}, and this version of Durably knows those up to "
            f"{len(MIGRATIONS)}: update Durably, or go back to a backup that was made before the update"
        )
    return version


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    version = _check_version(connection, path)
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        # user_version and application_id belong to the transaction, so a migration is applied completely or not at all.
        marks = f"PRAGMA user_version = {number}; PRAGMA application_id = {APPLICATION_ID};"
        connection.executescript(f"BEGIN IMMEDIATE; {script}; {marks} COMMIT;")
    if 0 < version < len(MIGRATIONS):
        _logger.info(
            "database migrated from schema version %d to %d: earlier versions of Durably can no longer open %s",
            version,
            len(MIGRATIONS),
            path,
        )


def take_ownership(connection: sqlite3.Connection, after_epoch: int | None = None) -> int:
    """Begin a new epoch.

    Each transaction checks the epoch, so the previous owner of the database stops. ``after_epoch`` is the epoch to end.
    Raises ``DatabaseLostError`` if another epoch has begun since.
    """
    connection.execute("BEGIN IMMEDIATE")
    (current,) = connection.execute("SELECT epoch FROM owner").fetchone()
    if after_epoch not in (None, current):
        connection.execute("ROLLBACK")
        raise DatabaseLostError("another engine has taken over the database already")
    # Earlier versions canonicalise calls made of rows that are not canonical. They do so if they open this database.
    connection.execute("UPDATE owner SET epoch = epoch + 1, is_canonical = 0")
    epoch: int
    (epoch,) = connection.execute("SELECT epoch FROM owner").fetchone()
    connection.execute("COMMIT")
    return epoch


_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another process has held the lock for longer than ``busy_timeout``."""
    return bool(error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY)


def explain(error: Exception) -> Exception:
    """The engine's error for a failure of the disk or of the file.

    Other errors are returned unchanged.
    """
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
        return DatabaseCorruptError(
            f"the database is damaged ({error}): run `durably check`, and restore a backup if necessary"
        )
    if isinstance(error, sqlite3.OperationalError):
        return DatabaseUnavailableError(f"the database cannot be used now: {error}")
    return error
