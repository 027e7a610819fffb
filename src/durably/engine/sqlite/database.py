"""Opening the database: whose file it is, connections, migrations, ownership, and SQLite's errors."""

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
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
from .schema import MIGRATIONS

_logger = get_logger("durably.engine")

APPLICATION_ID = 0x44524259
"""The ``application_id`` of the file: "DRBY". It distinguishes the file from other programs' databases."""
_MAGIC = b"SQLite format 3\0"
_BUSY_TIMEOUT_MS = 5000
"""The longest wait for another process's lock."""
_MOST_LOG_BYTES = 64 * 1024 * 1024
"""The maximum size of the write-ahead log after a checkpoint. It grows during a long read, such as a backup."""


def refuse_foreign(path: Path) -> None:
    """Raise ``DatabaseCorruptError`` for a file that another program wrote.

    Reads the file's header, because SQLite would change the file and apply its log. A missing or empty file passes. So
    does one that cannot be read: the error of its opening says more.
    """
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except OSError:
        return
    if header and not header.startswith(_MAGIC):
        raise DatabaseCorruptError(
            f"the database {path} cannot be opened: file is not a database; give the engine a file of its own"
        )
    if header and int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        raise DatabaseCorruptError(f"{path} is a SQLite database of another program; give the engine a file of its own")


def connect(
    path: Path, durability: Durability, factory: type[sqlite3.Connection] = sqlite3.Connection
) -> sqlite3.Connection:
    """A connection for the writer. Transactions are begun explicitly."""
    connection: sqlite3.Connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, cached_statements=256, factory=factory
    )
    if not path.stat().st_size:
        # Before the log exists: the header of the file itself then identifies it from the start.
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
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


def open_database(path: Path, durability: Durability, migrations: Sequence[str] = MIGRATIONS) -> sqlite3.Connection:
    """Open the database. Create or migrate it if necessary.

    Raises ``DatabaseNotOwnedError``, ``DatabaseTooNewError``, ``DatabaseUnavailableError`` and
    ``DatabaseCorruptError``.
    """
    connection = open_file(path, durability)
    try:
        with explained(path):
            if _check_version(connection, path, migrations) < len(migrations):
                connection.execute("BEGIN IMMEDIATE")
                migrate(connection, path, migrations)
                connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def open_file(
    path: Path, durability: Durability, factory: type[sqlite3.Connection] = sqlite3.Connection
) -> sqlite3.Connection:
    """Open the database as it is, or create an empty one. Raises the errors of ``open_database``."""
    try:
        create_private(path)
        make_private(path)
    except OSError as error:
        raise DatabaseUnavailableError(f"the database {path} cannot be created: {error.strerror}") from error
    refuse_foreign(path)
    with explained(path):
        return connect(path, durability, factory)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise the engine's errors for those of SQLite while a database is opened."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        # A read-only file, a full disk or a missing directory does not mean that the content is damaged.
        kind = DatabaseUnavailableError if isinstance(error, sqlite3.OperationalError) else DatabaseCorruptError
        if is_busy(error):
            kind = DatabaseBusyError
        raise kind(f"the database {path} cannot be opened: {error}") from error


def open_existing(path: Path) -> sqlite3.Connection:
    """A read-only connection to a database that an engine may be using.

    Raises ``DatabaseMissingError``, ``DatabaseTooNewError`` and ``DatabaseCorruptError``.
    """
    if not path.exists():
        raise DatabaseMissingError(f"there is no database {path}")
    refuse_foreign(path)
    connection = connect_reader(path)
    try:
        if _check_version(connection, path, MIGRATIONS) == 0:
            raise DatabaseCorruptError(f"{path} is not a database of an engine: it is empty")
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.DatabaseError):
            raise DatabaseCorruptError(f"the database {path} cannot be read: {error}") from error
        raise
    return connection


def _check_version(connection: sqlite3.Connection, path: Path, migrations: Sequence[str]) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(migrations):
        raise DatabaseTooNewError(
            f"the database {path} has schema version {version}, and this version of Durably knows those up to "
            f"{len(migrations)}: update Durably, or go back to a backup that was made before the update"
        )
    return version


def migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[str] = MIGRATIONS) -> None:
    """Bring the database to the newest schema, in the transaction under way. Raises ``DatabaseTooNewError``."""
    version = _check_version(connection, path, migrations)
    for script in migrations[version:]:
        statement = ""
        for part in script.rstrip("; \n").split(";"):
            statement += f"{part};"
            if sqlite3.complete_statement(statement):
                connection.execute(statement)
                statement = ""
    if version < len(migrations):
        connection.execute(f"PRAGMA user_version = {len(migrations)}")
    if 0 < version < len(migrations):
        _logger.info(
            "database migrated from schema version %d to %d: earlier versions of Durably can no longer open %s",
            version,
            len(migrations),
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
    connection.execute("UPDATE owner SET epoch = epoch + 1")
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
