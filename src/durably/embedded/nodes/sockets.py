"""The leader's Unix socket: its path, permissions, and connections' protocols."""

import asyncio
import contextlib
import hashlib
import os
import socket
import stat
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

from durably.protocol.engine_errors import DatabasePathError, EngineError
from durably.protocol.text import describe_os_error

SILENT_SECONDS = 10.0
"""Seconds after which a connection that has sent nothing is closed. Clients send immediately."""
_MAX_PATH_BYTES = 100
"""Slightly less than the limits of platforms: 104 bytes on macOS, 108 on Linux."""


def directory_of(database: Path) -> Path:
    """The directory of a database's sockets, which is next to the database.

    If its path is too long for a socket, and the platform is not Linux, it is in the directory for temporary files. On
    macOS that directory belongs to the user.
    """
    sibling = database.with_name(database.name + ".sockets")
    longest_name = "/9999999999.calls"
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


def remove_older(directory: Path, epoch: int) -> None:
    for name in os.listdir(directory):
        number, _, kind = name.partition(".")
        if number.isdecimal() and kind in ("", "http", "calls") and int(number) < epoch:
            (directory / name).unlink(missing_ok=True)


def is_same_user(descriptor: int) -> bool:
    """Whether the peer process of a connection belongs to this process's user.

    The directory's mode keeps other users out. On Linux this check works even if the mode was changed.
    """
    if sys.platform != "linux":
        return True
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return bool(user == os.getuid())


class ProtocolDetector(asyncio.Protocol):
    """A new connection at the leader's socket. Its first byte decides its protocol.

    A follower sends frames (``link``), which begin with a 0 byte. Everything else is HTTP to the engine's API, for
    example of ``durably runs --db …``. HTTP waits until the engine has recovered its runs.

    A connection that sends nothing is closed after ``SILENT_SECONDS``. ``pending`` has the connections without a
    protocol.
    """

    def __init__(
        self,
        make_link: Callable[[], asyncio.Protocol],
        make_http: "asyncio.Future[Callable[[], asyncio.Protocol]]",
        pending: "set[ProtocolDetector]",
    ) -> None:
        self._make_link = make_link
        self._make_http = make_http
        self._pending = pending
        self._silence: asyncio.TimerHandle | None = None
        self._received = bytearray()
        self._waiting: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop has its own class
        if not is_same_user(int(transport.get_extra_info("socket").fileno())):
            self._transport.abort()
            return
        self._pending.add(self)
        self._silence = asyncio.get_running_loop().call_later(SILENT_SECONDS, self.close)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._silence is not None:
            self._silence.cancel()
        if self._received[0] == 0:
            self._continue_with(self._make_link())
        elif self._waiting is None and self._transport is not None:
            self._transport.pause_reading()
            self._waiting = asyncio.get_running_loop().create_task(self._wait_for_http())

    def close(self) -> None:
        """Close the connection if it has no protocol yet."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._pending.discard(self)
        if self._silence is not None:
            self._silence.cancel()
        if self._waiting is not None:
            self._waiting.cancel()

    async def _wait_for_http(self) -> None:
        try:
            make_http = await asyncio.shield(self._make_http)
        except asyncio.CancelledError:  # The engine has not started.
            self.close()
            raise
        self._waiting = None
        if self._transport is not None:
            self._transport.resume_reading()
        self._continue_with(make_http())

    def _continue_with(self, protocol: asyncio.Protocol) -> None:
        self._pending.discard(self)
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.set_protocol(protocol)
            protocol.connection_made(transport)
            protocol.data_received(bytes(self._received))
