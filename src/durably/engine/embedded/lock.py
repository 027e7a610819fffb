"""The lock file beside a database: one engine at a time owns it.

The operating system drops the lock when its process dies, however it dies, so there is nothing to clean up.
"""

import contextlib
import errno
import os
import sys
from pathlib import Path

from durably.engine.errors import (
    DatabaseLinkedError,
    DatabaseLockedError,
    DatabaseNotOwnedError,
    DatabasePathError,
)

from .files import check_owner

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _try_lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


_NOT_A_FILE = (errno.ELOOP, errno.EISDIR, errno.ENXIO)
"""Errors of ``open`` for a symbolic link, a directory and a socket."""


class DatabaseLock:
    """Holds the lock from its construction to ``release``.

    Raises ``DatabaseLockedError``, and ``DatabaseNotOwnedError``, ``DatabaseLinkedError`` or ``DatabasePathError`` for
    a lock file that somebody else has put there. ``note`` is written into the file, for others to read who find it
    locked.
    """

    def __init__(self, database: Path, note: str = "") -> None:
        self._descriptor = _open_private(_path_of(database))
        try:
            _try_lock(self._descriptor)
        except OSError:
            os.close(self._descriptor)
            raise DatabaseLockedError(
                f"the database {database} belongs to another engine that is running; stop that one, or give this "
                "one a database of its own"
            ) from None
        os.ftruncate(self._descriptor, 0)
        if note:
            os.write(self._descriptor, note.encode())

    def release(self) -> None:
        """Also for a forked child, in which it leaves the lock to the parent."""
        os.close(self._descriptor)


def _open_private(path: Path) -> int:
    """Mode 0600, because a user who can open the file can lock it."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags, 0o600)
    except PermissionError:
        raise DatabaseNotOwnedError(
            f"the lock file {path} cannot be opened: it or its directory belongs to another user. Run this as that "
            "user, or use a database in a directory of your own"
        ) from None
    except OSError as error:
        if error.errno in _NOT_A_FILE:
            raise DatabasePathError(f"the lock file {path} is a link or not a file: remove it") from None
        raise
    try:
        _check_file(path, os.fstat(descriptor))
        if hasattr(os, "fchmod") and os.fstat(descriptor).st_mode & 0o077:
            with contextlib.suppress(PermissionError):
                os.fchmod(descriptor, 0o600)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_file(path: Path, status: os.stat_result) -> None:
    """Somebody else may have put the file there, to hold its lock, or to have another file emptied.

    Raises ``DatabaseNotOwnedError``, ``DatabaseLinkedError``, ``DatabasePathError``.
    """
    check_owner(path, status)
    if status.st_nlink > 1:
        raise DatabaseLinkedError(f"the lock file {path} has {status.st_nlink} hard links: remove it")


def read_note(database: Path) -> str:
    """The note of whoever holds the lock, or held it last; empty where nobody ever did."""
    path = _path_of(database)
    return path.read_text() if path.is_file() else ""  # a pipe would block


def _path_of(database: Path) -> Path:
    return database.with_name(database.name + ".lock")
