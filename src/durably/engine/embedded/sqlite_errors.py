"""What SQLite says went wrong, as errors of the engine."""

import sqlite3

from durably.engine.errors import DatabaseCorruptError, DatabaseUnavailableError

_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another process had the lock for longer than was waited."""
    return bool(error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY)


def explain(error: Exception) -> Exception:
    """Errors of the disk, and of what is on it, told apart from mistakes in statements."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
        return DatabaseCorruptError(
            f"the database is damaged ({error}): see what `durably check` finds, and go back to a backup if need be"
        )
    if isinstance(error, sqlite3.OperationalError):
        return DatabaseUnavailableError(f"the database cannot be used at the moment: {error}")
    return error
