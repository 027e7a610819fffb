"""The leader's Unix socket: its directory, path and permissions."""

import contextlib
import errno
import hashlib
import os
import secrets
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from durably.protocol.engine_errors import DatabasePathError, EngineError
from durably.protocol.text import describe_os_error

_MAX_PATH_BYTES = 100
"""Slightly less than the limits of platforms: 104 bytes on macOS, 108 on Linux."""


def directory_of(database: Path) -> Path:
    """The directory of a database's sockets, which is next to the database.

    If its path is too long for a socket, and the platform is not Linux, it is in the directory for temporary files. On
    macOS that directory belongs to the user.
    """
    sibling = database.with_name(database.name + ".sockets")
    longest_name = "/9999999999"
    if sys.platform == "linux" or len(os.fsencode(sibling)) + len(longest_name) <= _MAX_PATH_BYTES:
        return sibling
    digest = hashlib.sha256(os.fsencode(database)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"durably-{os.getuid()}-{digest}"


def make_directory(directory: Path) -> None:
    """Make the directory of sockets.

    Raises ``EngineError`` if the directory is not private to this user, and ``DatabasePathError`` if it cannot be made.
    """
    try:
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise DatabasePathError(
            f"the directory {directory} for the sockets of this database cannot be made ({describe_os_error(error)}): "
            f"give the user of this process the right to write to {directory.parent}, or choose another path for the "
            "database"
        ) from None
    check_directory(directory, os.getuid())


def check_directory(directory: Path, user: int) -> None:
    """Check that a directory is private to a user.

    Raises ``EngineError`` unless it is a directory (not a link) that belongs to the user and is closed to others.
    """
    state = directory.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != user or stat.S_IMODE(state.st_mode) & 0o077:
        raise EngineError(
            f"{directory}, which has the sockets of this database, must be a directory that belongs to user "
            f"{user} and that no other user can enter (mode 700): remove it, or move the database to a directory that "
            "only that user can write"
        )


_SECRET = "secret"


def read_secret(directory: Path) -> bytes:
    """A random secret of the processes that use the directory, the first of which makes it.

    Raises the errors of ``make_directory``.
    """
    make_directory(directory)
    path = directory / _SECRET
    if not path.exists():
        descriptor, name = tempfile.mkstemp(dir=directory)
        try:
            with open(descriptor, "wb") as file:
                file.write(secrets.token_bytes(32))
                file.flush()
                os.fsync(descriptor)
            with contextlib.suppress(FileExistsError):
                os.link(name, path)
        finally:
            os.unlink(name)
    return path.read_bytes()


@contextlib.contextmanager
def address_of(path: Path) -> Iterator[str]:
    """The address at which to bind or connect a socket at ``path``.

    It is valid in the context. Raises ``OSError`` if the directory does not exist.
    """
    if len(os.fsencode(path)) <= _MAX_PATH_BYTES or sys.platform != "linux":
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def listen(path: Path) -> socket.socket:
    """A listening socket for this user only.

    It replaces the socket of an earlier process.
    """
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        with address_of(path) as address:
            listener.bind(address)
        path.chmod(0o600)
        listener.setblocking(False)
        listener.listen(1024)
    except BaseException:
        listener.close()
        raise
    return listener


def path_of(directory: Path, epoch: int) -> Path:
    return directory / str(epoch)


def epoch_of(path: Path) -> int:
    return int(path.name)


def newest(directory: Path) -> Path | None:
    """The socket of the last leader, which may have ended."""
    try:
        epochs = [int(name) for name in os.listdir(directory) if name.isdecimal()]
    except FileNotFoundError:
        return None
    return path_of(directory, max(epochs)) if epochs else None


def remove_others(directory: Path, epoch: int) -> None:
    """Remove the sockets of other leaders than that of ``epoch``.

    A socket of a higher epoch is left from a database that was replaced, unless a process listens there: then that
    process is the successor of a leader that was stopped before it could listen.
    """
    for name in os.listdir(directory):
        path = directory / name
        if name.isdecimal() and (int(name) < epoch or (int(name) > epoch and not _has_listener(path))):
            path.unlink(missing_ok=True)


def _has_listener(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection, address_of(path) as address:
        connection.setblocking(False)
        return connection.connect_ex(address) in (0, errno.EAGAIN)  # EAGAIN: many connections wait there.
