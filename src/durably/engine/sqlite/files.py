"""The files of a database, and its lock file.

They are created for their owner alone.
"""

import contextlib
import errno
import os
import stat
import sys
import tempfile
from pathlib import Path

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
_MAX_LINKS = 40
"""The maximum number of symbolic links that Linux follows."""
_PARTS = {"": "database", "-wal": "write-ahead log", "-shm": "shared memory file"}
"""The suffixes of SQLite's open files, and their names."""

_logger = get_logger("durably.engine")


def create_private(path: Path) -> None:
    """Create a file with mode 0600, unless it exists.

    SQLite gives its ``-wal``, ``-shm`` and ``-journal`` the mode of the database, so call this before SQLite opens it.
    Raises ``OSError``.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, _PRIVATE))
    except FileExistsError:
        return


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
        mode = 0
        try:
            status = file.lstat()
            check_owner(file, status)
            mode = stat.S_IMODE(status.st_mode)
            if mode & _FOR_OTHERS:
                file.chmod(mode & ~_FOR_OTHERS)
                if file.lstat().st_mode & _FOR_OTHERS:  # FAT, some network and shared file systems
                    _logger.warning("the file system of %s has no modes: access to it is controlled elsewhere", file)
                else:
                    _logger.warning("%s could be opened by other users (mode %03o): it is 0600 now", file, mode)
        except FileNotFoundError:
            continue
        except PermissionError:
            raise DatabaseNotOwnedError(
                f"{file} can be opened by other users (mode {mode:03o}), and this process may not change that: "
                "have its owner set the mode 0600, or use another database"
            ) from None


def check_owner(file: Path, status: os.stat_result) -> None:
    """Check that a file is regular and belongs to this process's user.

    Root may use the files of the user who owns their directory. Raises ``DatabaseNotOwnedError``,
    ``DatabasePathError``.
    """
    if stat.S_ISLNK(status.st_mode):
        raise DatabaseNotOwnedError(f"{file} is a symbolic link, which another user may have made: remove it")
    _check_is_file(file, status)
    if sys.platform == "win32":
        return
    user = os.geteuid()
    if status.st_uid == user or (user == 0 and status.st_uid == file.parent.stat().st_uid):
        return
    raise DatabaseNotOwnedError(
        f"{file} belongs to the user {_name_of(status.st_uid)}, who can read and change all of it, and this "
        f"process runs as {_name_of(user)}: run it as that user, give the file to this one (chown), or use a database "
        "in a directory that only this user can write to"
    )


def _name_of(user: int) -> str:
    import pwd

    try:
        return f"{pwd.getpwuid(user).pw_name} ({user})"
    except KeyError:
        return str(user)


def _check_is_file(path: Path, status: os.stat_result) -> None:
    """Check that the path is a regular file. Raises ``DatabasePathError``."""
    if not stat.S_ISREG(status.st_mode):
        what = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise DatabasePathError(f"{path} is {what}: remove it, or give the database another path")


def resolve_path(path: str | os.PathLike[str]) -> Path:
    """The path with symbolic links resolved.

    Raises ``DatabaseNotOwnedError`` for a link to the file that another user has made. In a directory that any user can
    write to, such as /tmp, it would choose where the database is created. Raises ``DatabasePathError`` for a loop.
    """
    link = Path(os.path.abspath(path))
    for _ in range(_MAX_LINKS):
        if not link.is_symlink():
            return Path(os.path.realpath(link))
        _check_owner_of_link(link)
        link = link.parent / link.readlink()
    raise DatabasePathError(f"the symbolic link {os.fspath(path)} leads to itself")


def _check_owner_of_link(link: Path) -> None:
    if sys.platform == "win32":
        return
    owner = link.lstat().st_uid
    if owner not in (0, os.geteuid(), link.parent.stat().st_uid):
        raise DatabaseNotOwnedError(
            f"{link} is a symbolic link that the user {_name_of(owner)} has made, who would choose the database's "
            "place: remove it, or use a database in a directory that only this user can write to"
        )


_IMPOSSIBLE = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)
"""Errors of a path where no file can be created, unlike those of a full disk."""


def check_place(path: Path) -> None:
    """Check that the files of a database can be created at a path.

    Nothing remains of the check. It creates a nameless file in the directory, or in the nearest one that exists. Raises
    ``DatabasePathError``.
    """
    directory = path.parent
    while not os.path.exists(directory) and directory != directory.parent:
        directory = directory.parent
    try:
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        if error.errno in _IMPOSSIBLE:
            raise DatabasePathError(
                f"cannot use the database {path}: no file can be created in {directory} "
                f"({os.strerror(error.errno)}); give the database a path in a directory that this process can write to"
            ) from None


def make_directory(directory: Path) -> None:
    """Create the directory of a database, and log it. Raises ``OSError``."""
    if not directory.exists():
        directory.mkdir(parents=True, exist_ok=True)
        _logger.warning("the directory %s did not exist: it was created for the database", directory)


def find_file(path: Path) -> Path:
    """The file that an engine at this path uses, with symbolic links resolved.

    Links are resolved so that all engines use one lock file. Creates the file's directory. Raises
    ``DatabaseLinkedError`` for a file with several names, because each name would have its own log and lock; the errors
    of ``resolve_path``; ``DatabasePathError`` if it is not a file, and ``OSError``.
    """
    path = resolve_path(path)
    check_place(path)
    make_directory(path.parent)
    _warn_of_open_directory(path.parent)
    try:
        status = path.stat()
    except FileNotFoundError:
        return path
    _check_is_file(path, status)
    if status.st_nlink > 1:
        raise DatabaseLinkedError(
            f"the database {path} has {status.st_nlink} hard links: an engine that uses it by another name would "
            "destroy it. Remove the others, and copy databases with `durably backup`"
        )
    return path


def _warn_of_open_directory(directory: Path) -> None:
    """Warn of a directory in which other users can replace the database."""
    if sys.platform == "win32":
        return
    mode = directory.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        _logger.warning(
            "every user can write to the directory %s (mode %03o), and so replace the database: use a directory that "
            "only this user can write to (chmod o-w)",
            directory,
            stat.S_IMODE(mode),
        )


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


_NOT_A_FILE = (errno.ELOOP, errno.EISDIR, errno.ENXIO)
"""Errors of ``open`` for a symbolic link, a directory and a socket."""


class DatabaseLock:
    """Holds the lock from its construction to ``release``.

    Raises ``DatabaseLockedError``, and ``DatabaseNotOwnedError``, ``DatabaseLinkedError`` or ``DatabasePathError`` for
    a lock file of another user. ``note`` is written into the file, for processes that find it locked.
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
        """Release the lock. In a forked child the lock stays with the parent."""
        os.close(self._descriptor)


def _open_private(path: Path) -> int:
    """Open a file with mode 0600, because a user who can open it can lock it."""
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
    """Check that another user has not created the file.

    Another user could create it to hold its lock, or to have another file truncated. Raises ``DatabaseNotOwnedError``,
    ``DatabaseLinkedError``, ``DatabasePathError``.
    """
    check_owner(path, status)
    if status.st_nlink > 1:
        raise DatabaseLinkedError(f"the lock file {path} has {status.st_nlink} hard links: remove it")


def read_note(database: Path) -> str:
    """The note of the process that holds the lock, or held it last.

    Empty if there was none.
    """
    path = _path_of(database)
    return path.read_text() if path.is_file() else ""  # reading a pipe would block


def _path_of(database: Path) -> Path:
    return database.with_name(database.name + ".lock")
