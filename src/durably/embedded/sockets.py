"""Where an owner's socket is, known to every process that knows the database's path.

Each epoch has a socket of its own, so that a new owner never takes the place of one that may come back, and the
newest is the one to connect to. Their directory is for the user alone: whoever can connect can run functions.
"""

import hashlib
import os
import socket
import stat
import struct
import sys
import tempfile
from pathlib import Path

from durably.engine.errors import EngineError

_MAX_PATH_BYTES = 100
"""A little less than platforms take: 104 bytes on macOS, 108 on Linux."""


def directory_of(database: Path) -> Path:
    """Beside the database or, where its path is too long for a socket's, below the directory for temporary files."""
    beside = database.with_name(database.name + ".sockets")
    longest_name = "/9999999999.http"
    if len(os.fsencode(beside)) + len(longest_name) <= _MAX_PATH_BYTES:
        return beside
    digest = hashlib.sha256(os.fsencode(database)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"durably-{os.getuid()}-{digest}"


def make_directory(directory: Path) -> None:
    """Raises ``EngineError`` where the directory is somebody else's."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = directory.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or stat.S_IMODE(state.st_mode) & 0o077:
        raise EngineError(
            f"{directory}, in which this database's processes meet, must be a directory that belongs to user "
            f"{os.getuid()} and that nobody else can enter (mode 700)"
        )


def path_of(directory: Path, epoch: int) -> Path:
    return directory / str(epoch)


def api_path_of(socket: Path) -> Path:
    """Where the same owner serves the engine's HTTP API."""
    return socket.with_name(f"{socket.name}.http")


def epoch_of(path: Path) -> int:
    return int(path.name)


def newest(directory: Path) -> Path | None:
    """The socket of the last owner, who may be gone."""
    try:
        epochs = [int(name) for name in os.listdir(directory) if name.isdecimal()]
    except FileNotFoundError:
        return None
    return path_of(directory, max(epochs)) if epochs else None


def remove_older(directory: Path, epoch: int) -> None:
    for name in os.listdir(directory):
        number, _, kind = name.partition(".")
        if number.isdecimal() and kind in ("", "http") and int(number) < epoch:
            (directory / name).unlink(missing_ok=True)


def is_same_user(descriptor: int) -> bool:
    """Whether the process on the other side of a connection belongs to this process's user. The directory's mode keeps
    others out already; this holds, where the platform tells (Linux does), even if somebody has changed it."""
    if sys.platform != "linux":
        return True
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return bool(user == os.getuid())
