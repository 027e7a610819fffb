"""Ending a process that was stopped (SIGSTOP, SIGTSTP) while it held SQLite's write lock.

Nobody can take that lock from it, and it keeps the lock until it goes on, which may be never. Only Linux tells who
holds a lock; elsewhere nothing is found here. Whether and when such a process is to be ended is for ``member`` to say.
"""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

_WRITE_LOCK_BYTE = 120
"""Of the ``-shm`` file: WAL_WRITE_LOCK (https://sqlite.org/walformat.html, "WAL Locks")."""
_STOPPED = "T"
"""In ``/proc/<pid>/stat``. One that a debugger holds is in another state ("t"), one in a frozen container too."""


class StoppedWriter:
    """A stopped process of this user that holds the write lock of ``database`` and has the directory ``meeting`` open,
    as only the processes of an app have. Made by ``find``, to be closed.

    It is held by a descriptor, so that another process can never be taken for it, not even one of the same id.
    """

    def __init__(self, process_id: int, database: Path, meeting: Path) -> None:
        """Raises ``OSError`` where the process is gone, or somebody else's."""
        self.process_id = process_id
        self._database = database
        self._meeting = meeting
        self._descriptor = os.pidfd_open(process_id)

    @classmethod
    def find(cls, database: Path, meeting: Path) -> "StoppedWriter | None":
        if sys.platform != "linux":
            return None
        for process_id in _holders_of_write_lock(database):
            try:
                writer = cls(process_id, database, meeting)
            except OSError:
                continue
            if writer.is_so_still():
                return writer
            writer.close()
        return None

    def is_so_still(self) -> bool:
        try:
            is_holder = self.process_id in _holders_of_write_lock(self._database)
            return (
                is_holder and _is_ours(self.process_id, self._wanted_files()) and _state_of(self.process_id) == _STOPPED
            )
        except OSError:
            return False

    def kill(self) -> bool:
        """False where it has just gone on, or is gone."""
        if not self.is_so_still():
            return False
        signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
        return True

    def close(self) -> None:
        os.close(self._descriptor)

    def _wanted_files(self) -> set[tuple[int, int]]:
        return {_identity(path) for path in (_memory_of(self._database), self._meeting)}


def _holders_of_write_lock(database: Path) -> set[int]:
    """By ``/proc/locks``: opening the file, to ask the kernel for the lock on it, would lose a process that has the
    database open all its own locks as soon as the file is closed again. Raises ``OSError``."""
    try:
        inode = os.stat(_memory_of(database)).st_ino
    except FileNotFoundError:
        return set()
    return {
        process_id
        for process_id, locked, first, last in _posix_locks()
        if locked == inode and first <= _WRITE_LOCK_BYTE <= last
    }


def _posix_locks() -> Iterator[tuple[int, int, int, float]]:
    """Those for writing, of processes in sight: process ids, inodes, and first and last byte."""
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if len(fields) == 8 and fields[1] == "POSIX" and fields[3] == "WRITE":
            last = float("inf") if fields[7] == "EOF" else int(fields[7])
            yield int(fields[4]), int(fields[5].rpartition(":")[2]), int(fields[6]), last


def _is_ours(process_id: int, wanted: set[tuple[int, int]]) -> bool:
    """Whether it is this user's, and has all of these files open: inodes are unique only within a file system."""
    directory = f"/proc/{process_id}/fd"
    if os.stat(directory).st_uid != os.getuid():
        return False
    found = set()
    for name in os.listdir(directory):
        try:
            found.add(_identity(Path(directory, name)))
        except FileNotFoundError:
            continue  # closed since
    return wanted <= found


def _identity(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _state_of(process_id: int) -> str:
    """The letter after the name, which is in parentheses and may contain any."""
    return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]


def _memory_of(database: Path) -> Path:
    """SQLite's shared memory, where the locks are."""
    return database.with_name(database.name + "-shm")
