"""Finds the process that has SQLite's write lock. Linux only.

Errors name this process.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_WRITE_LOCK_BYTE = 120
"""In the ``-shm`` file: WAL_WRITE_LOCK (https://sqlite.org/walformat.html, "WAL Locks")."""


class LockHolder(NamedTuple):
    """A process that holds SQLite's write lock.

    ``program`` is the process's name; empty if it is unknown. ``is_stopped``: by SIGSTOP or SIGTSTP.
    """

    process_id: int
    program: str
    is_stopped: bool

    def describe(self, database: Path) -> str:
        """The text of an error, with the remedy."""
        process = f"process {self.process_id}" + (f" ({self.program})" if self.program else "")
        if self.is_stopped:
            return (
                f"the database {database} is locked: {process} holds SQLite's write lock, and is stopped. Continue it "
                f"(kill -CONT {self.process_id}), or end it (kill -KILL {self.process_id}); no committed data is lost"
            )
        return (
            f"the database {database} is locked: {process} holds SQLite's write lock, and has not ended its "
            "transaction. Wait for that process, or end it"
        )


def find_write_lock_holder(database: Path) -> LockHolder | None:
    """Find the process that holds SQLite's write lock.

    Returns ``None`` if no process holds the lock, or if the platform, the container or permissions hide it.
    """
    if sys.platform != "linux":
        return None
    shared_memory = database.with_name(database.name + "-shm")
    try:
        status = os.stat(shared_memory)
        # Do not use fcntl: closing the file again would release all locks of a process that has the database open.
        locks = list(_write_locks())
    except OSError:
        return None
    for process_id, inode, first, last in locks:
        is_write_lock = inode == status.st_ino and first <= _WRITE_LOCK_BYTE <= last
        if is_write_lock and _has_open(process_id, (status.st_dev, status.st_ino)):
            return _describe_process(process_id)
    return None


def _write_locks() -> Iterator[tuple[int, int, int, float]]:
    """Process ids, inodes, and first and last byte of locks. Raises ``OSError``."""
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if len(fields) == 8 and fields[1] == "POSIX" and fields[3] == "WRITE":
            last = float("inf") if fields[7] == "EOF" else int(fields[7])
            yield int(fields[4]), int(fields[5].rpartition(":")[2]), int(fields[6]), last


def _has_open(process_id: int, file: tuple[int, int]) -> bool:
    """Whether the process has the file open.

    The device is compared too, because inodes are unique only within a file system.
    """
    try:
        descriptors = list(Path(f"/proc/{process_id}/fd").iterdir())
    except OSError:
        return False
    return any(_identity(descriptor) == file for descriptor in descriptors)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None  # The descriptor was closed.
    return status.st_dev, status.st_ino


def _describe_process(process_id: int) -> LockHolder:
    try:
        # "<pid> (<name>) <state> …"; the name may contain any character.
        name, _, rest = Path(f"/proc/{process_id}/stat").read_text().partition("(")[2].rpartition(")")
    except OSError:
        return LockHolder(process_id, "", is_stopped=False)
    return LockHolder(process_id, name, is_stopped=rest.split()[0] == "T")
