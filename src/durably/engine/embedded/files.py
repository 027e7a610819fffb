"""The files of a database: created for their owner alone, and compared with what SQLite has open.

Nothing here opens a file that SQLite may have open: closing any descriptor of it would drop SQLite's POSIX locks
(https://sqlite.org/howtocorrupt.html, section 2.2).
"""

import os
import stat
import sys
from pathlib import Path

from durably.engine.errors import DatabaseLinkedError, DatabaseReplacedError
from durably.protocol.text import get_logger

_PRIVATE = 0o600
_FOR_OTHERS = 0o077
_PARTS = {"": "database", "-wal": "write-ahead log", "-shm": "shared memory file"}
"""The suffixes of the files that SQLite has open, and their names."""

_logger = get_logger("durably.engine")


def create_private(path: Path) -> None:
    """Create a file with mode 0600, unless it exists. SQLite gives its ``-wal``, ``-shm`` and ``-journal`` the mode of
    the database, so call this before SQLite opens it. Raises ``OSError``."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, _PRIVATE))
    except FileExistsError:
        return


def make_private(path: Path) -> None:
    """Take the rights of other users from the files of an existing database, and log it.

    A user who can open the ``-shm`` file can lock it, and so block every write. Modes mean nothing on Windows.
    """
    if sys.platform == "win32":
        return
    for suffix in (*_PARTS, "-journal"):
        file = path.with_name(path.name + suffix)
        try:
            mode = file.lstat().st_mode
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(mode) or not mode & _FOR_OTHERS:
            continue
        try:
            file.chmod(stat.S_IMODE(mode) & ~_FOR_OTHERS)
        except FileNotFoundError:
            continue
        except PermissionError:
            _logger.warning("%s can be opened by other users (mode %03o), and is not ours", file, stat.S_IMODE(mode))
        else:
            _logger.warning("%s could be opened by other users (mode %03o): it is 0600 now", file, stat.S_IMODE(mode))


def find_file(path: Path) -> Path:
    """The file that an engine at this path uses, with symbolic links resolved, so that all engines use one lock file.

    Creates its directory. Raises ``DatabaseLinkedError`` for a file with several names, because each name would have
    its own log and lock, and ``OSError``.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    links = path.stat().st_nlink if path.exists() else 1
    if links > 1:
        raise DatabaseLinkedError(
            f"the database {path} has {links} hard links: an engine that uses it by another name would destroy it. "
            "Remove the others, and copy databases with `durably backup`"
        )
    return path


class DatabaseFiles:
    """The files at a database's path when it was opened; ``check`` raises if they have changed.

    ``parts`` are the suffixes of the files that are compared, if they exist.
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
        """Raises ``DatabaseReplacedError``. Costs a few microseconds."""
        for file, what, identity in self._known:
            try:
                status = os.stat(file)
            except FileNotFoundError:
                raise DatabaseReplacedError(f"the {what} was deleted while the engine used it") from None
            if (status.st_dev, status.st_ino) != identity:
                raise DatabaseReplacedError(f"the {what} was replaced by another file while the engine used it")
            if status.st_nlink > 1:
                raise DatabaseReplacedError(f"the {what} was given another name, a hard link, while the engine used it")
