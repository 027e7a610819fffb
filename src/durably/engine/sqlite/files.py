"""The files of a database, and its lock file. They belong to one user, and no other user may open them."""

import contextlib
import errno
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Self

from durably.protocol.engine_errors import (
    DatabaseLinkedError,
    DatabaseLockedError,
    DatabaseNotOwnedError,
    DatabasePathError,
    DatabaseReplacedError,
)
from durably.protocol.text import get_logger

_PRIVATE = 0o600
_FOR_OTHERS = 0o077
_PARTS = {"": "database", "-wal": "write-ahead log", "-shm": "shared memory file"}
"""The suffixes of SQLite's open files, and their names."""

_logger = get_logger("durably.engine")


def resolve_path(path: str | os.PathLike[str]) -> Path:
    """The path with symbolic links resolved, so that all engines use one lock file."""
    return Path(os.path.realpath(path))


def check_place(path: Path) -> None:
    """Check that the files of a database can be created at a path.

    Creates a nameless file in the directory, or in the nearest one that exists. Raises ``DatabasePathError``.
    """
    directory = path.parent
    while not os.path.exists(directory) and directory != directory.parent:
        directory = directory.parent
    try:
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise DatabasePathError(
                f"cannot use the database {path}: no file can be created in {directory} ({error.strerror}); give the "
                "database a path in a directory that this process can write to"
            ) from None


def make_directory(directory: Path) -> None:
    """Create the directory of a database, and log it. Raises ``OSError``."""
    if not directory.exists():
        directory.mkdir(parents=True, exist_ok=True)
        _logger.warning("the directory %s did not exist: it was created for the database", directory)


def find_file(path: Path) -> Path:
    """The file that an engine at this path uses. Creates its directory.

    Raises ``DatabaseLinkedError`` for a file with several names, because each name would have its own log and lock, and
    ``DatabasePathError``.
    """
    path = resolve_path(path)
    check_place(path)
    make_directory(path.parent)
    try:
        status = path.lstat()
    except FileNotFoundError:
        return path
    _check_is_file(path, status)
    if status.st_nlink > 1:
        raise DatabaseLinkedError(
            f"the database {path} has {status.st_nlink} hard links: an engine that uses it by another name would "
            "destroy it. Remove the others, and copy databases with `durably backup`"
        )
    return path


def create_private(path: Path) -> None:
    """Create a file with mode 0600, unless it exists.

    SQLite gives its ``-wal``, ``-shm`` and ``-journal`` the mode of the database, so call this before SQLite opens it.
    Raises ``OSError``.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, _PRIVATE))


def make_private(path: Path) -> None:
    """Remove the rights of other users from the files of an existing database.

    The change is logged. Raises ``DatabaseNotOwnedError`` if a file belongs to another user, or its mode cannot be
    changed. A user who can open the ``-shm`` file can lock it, and so block every write. Modes have no effect on
    Windows.
    """
    if sys.platform == "win32":
        return
    for suffix in (*_PARTS, "-journal"):
        file = path.with_name(path.name + suffix)
        try:
            status = file.lstat()
        except FileNotFoundError:
            continue
        _check_owner(file, status)
        mode = stat.S_IMODE(status.st_mode)
        if mode & _FOR_OTHERS:
            try:
                file.chmod(mode & ~_FOR_OTHERS)
            except PermissionError:
                raise DatabaseNotOwnedError(
                    f"{file} can be opened by other users (mode {mode:03o}), and this process may not change that: "
                    "have its owner set the mode 0600, or use another database"
                ) from None
            _logger.warning("%s could be opened by other users (mode %03o): it is 0600 now", file, mode)


def _check_owner(file: Path, status: os.stat_result) -> None:
    """Check that a file is regular and belongs to this process's user: in /tmp, another user may have put it there.

    Root may use the files of the user who owns their directory. Raises ``DatabaseNotOwnedError``,
    ``DatabasePathError``.
    """
    _check_is_file(file, status)
    if sys.platform == "win32":
        return
    user = os.geteuid()
    if status.st_uid != user and (user != 0 or status.st_uid != file.parent.stat().st_uid):
        raise DatabaseNotOwnedError(
            f"{file} belongs to the user {status.st_uid}, who can read and change all of it, and this process runs as "
            f"{user}: run it as that user, give the file to this one (chown), or use a database in a directory that "
            "only this user can write to"
        )


def _check_is_file(path: Path, status: os.stat_result) -> None:
    """Check that the path is a regular file. Raises ``DatabasePathError``."""
    if not stat.S_ISREG(status.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a regular file"
        raise DatabasePathError(f"{path} is {what}: remove it, or give the database another path")


class DatabaseFiles:
    """The files at a database's path when it was opened.

    ``check`` raises if they have changed. ``parts`` are the suffixes of the compared files, if they exist.
    """

    def __init__(self, path: Path, parts: tuple[str, ...] = tuple(_PARTS)) -> None:
        self._known: list[tuple[str, str, tuple[int, int]]] = []
        for suffix in parts:
            file = f"{path}{suffix}"
            try:
                status = os.stat(file)
            except FileNotFoundError:
                continue
            self._known.append((file, _PARTS[suffix], (status.st_dev, status.st_ino)))

    def check(self) -> None:
        """Check that the files are still the same.

        Raises ``DatabaseReplacedError``. Costs a few microseconds.
        """
        for file, what, identity in self._known:
            try:
                status = os.stat(file)
            except FileNotFoundError:
                raise DatabaseReplacedError(f"the {what} was deleted while the engine used it") from None
            if (status.st_dev, status.st_ino) != identity:
                raise DatabaseReplacedError(f"the {what} was replaced by another file while the engine used it")
            if status.st_nlink > 1:
                raise DatabaseReplacedError(f"the {what} was given another name, a hard link, while the engine used it")


if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _try_lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


class DatabaseLock:
    """Holds the lock of a database from its construction to ``release``.

    Raises ``DatabaseLockedError``, and ``DatabaseNotOwnedError``, ``DatabaseLinkedError`` or ``DatabasePathError`` for
    a lock file of another user, who could hold it. ``note`` is written into the file, for processes that find it
    locked.
    """

    def __init__(self, database: Path, note: str = "") -> None:
        path = _lock_file(database)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            self._descriptor = os.open(path, flags, _PRIVATE)
        except OSError as error:
            kind = DatabaseNotOwnedError if isinstance(error, PermissionError) else DatabasePathError
            raise kind(f"the lock file {path} is not usable ({error.strerror}): remove it") from None
        try:
            status = os.fstat(self._descriptor)
            _check_owner(path, status)
            if status.st_nlink > 1:  # truncating it would empty another file
                raise DatabaseLinkedError(f"the lock file {path} has {status.st_nlink} hard links: remove it")
            if sys.platform != "win32" and status.st_mode & _FOR_OTHERS:
                with contextlib.suppress(PermissionError):
                    os.fchmod(self._descriptor, _PRIVATE)
            try:
                _try_lock(self._descriptor)
            except OSError:
                raise DatabaseLockedError(
                    f"the database {database} belongs to another engine that is running; stop that one, or give this "
                    "one a database of its own"
                ) from None
        except BaseException:
            os.close(self._descriptor)
            raise
        os.ftruncate(self._descriptor, 0)
        if note:
            os.write(self._descriptor, note.encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the lock. In a forked child the lock stays with the parent."""
        os.close(self._descriptor)


def read_note(database: Path) -> str:
    """The note of the process that holds the lock, or held it last.

    Empty if there was none.
    """
    path = _lock_file(database)
    return path.read_text() if path.is_file() else ""  # reading a pipe would block


def _lock_file(database: Path) -> Path:
    return database.with_name(database.name + ".lock")
