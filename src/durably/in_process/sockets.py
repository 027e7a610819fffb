"""The leader's Unix sockets: their paths and permissions, and the HTTP API on one of them."""

import contextlib
import hashlib
import os
import socket
import stat
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from aiohttp import web

from durably.engine.core.errors import EngineError
from durably.engine.http.access import ApiKeys
from durably.engine.http.application import create_api
from durably.engine.http.connections import ConnectionLimits, Connections
from durably.engine.http.server import serve_api
from durably.engine.sqlite_engine import SqliteEngine
from durably.protocol.headers import ServerKind

_MAX_PATH_BYTES = 100
"""A little less than the limits of platforms: 104 bytes on macOS, 108 on Linux."""


def directory_of(database: Path) -> Path:
    """The directory next to the database. If its path is too long for a socket, and not on Linux: in the directory for
    temporary files, which on macOS belongs to the user."""
    beside = database.with_name(database.name + ".sockets")
    longest_name = "/9999999999.http"
    if sys.platform == "linux" or len(os.fsencode(beside)) + len(longest_name) <= _MAX_PATH_BYTES:
        return beside
    digest = hashlib.sha256(os.fsencode(database)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"durably-{os.getuid()}-{digest}"


def make_directory(directory: Path) -> None:
    """Raises ``EngineError`` if the directory is not private to this user."""
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700, parents=True)
    check_directory(directory, os.getuid())


def check_directory(directory: Path, user: int) -> None:
    """Raises ``EngineError`` unless it is a directory (not a link) that belongs to the user and is closed to others."""
    state = directory.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != user or stat.S_IMODE(state.st_mode) & 0o077:
        raise EngineError(
            f"{directory}, which has the sockets of this database, must be a directory that belongs to user "
            f"{user} and that no other user can enter (mode 700): remove it, or move the database to a directory that "
            "only that user can write"
        )


@contextlib.contextmanager
def address_of(path: Path) -> Iterator[str]:
    """The address at which to bind or connect a socket at ``path``, for as long as the context lasts.

    Raises ``OSError`` if the directory does not exist.
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
    """A listening socket for this user only. It replaces a socket that an earlier process left behind."""
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


def api_path_of(socket: Path) -> Path:
    """The socket on which the same leader serves the engine's HTTP API."""
    return socket.with_name(f"{socket.name}.http")


def epoch_of(path: Path) -> int:
    return int(path.name)


def newest(directory: Path) -> Path | None:
    """The socket of the last leader, which may have ended."""
    try:
        epochs = [int(name) for name in os.listdir(directory) if name.isdecimal()]
    except FileNotFoundError:
        return None
    return path_of(directory, max(epochs)) if epochs else None


def remove_older(directory: Path, epoch: int) -> None:
    for name in os.listdir(directory):
        number, _, kind = name.partition(".")
        if number.isdecimal() and kind in ("", "http", "calls") and int(number) < epoch:
            (directory / name).unlink(missing_ok=True)


def is_same_user(descriptor: int) -> bool:
    """Whether the process on the other side of a connection belongs to this process's user. The directory's mode keeps
    others out already. On Linux this check also holds if the mode was changed."""
    if sys.platform != "linux":
        return True
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return bool(user == os.getuid())


_SHUTDOWN_SECONDS = 0.5


class ApiSocket:
    """Open with ``await ApiSocket.open(engine, path)``."""

    def __init__(self, runner: web.AppRunner, connections: Connections, path: Path) -> None:
        self._runner = runner
        self._connections = connections
        self._path = path

    @classmethod
    async def open(cls, engine: SqliteEngine, path: Path) -> "ApiSocket":
        api = create_api(engine, ApiKeys(server_kind=ServerKind.DEV))
        runner, connections = await serve_api(api, listen(path), ConnectionLimits(), shutdown_timeout=_SHUTDOWN_SECONDS)
        return cls(runner, connections, path)

    async def close(self) -> None:
        await self._connections.close()
        await self._runner.cleanup()
        self._path.unlink(missing_ok=True)
