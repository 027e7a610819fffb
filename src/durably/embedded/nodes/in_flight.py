"""The running calls, in a file that the next leader reads.

A call in a process that has died, or in a leader that was silent, uses up an attempt. So a step that kills its process
runs a limited number of times. The file is never flushed to disk: a power failure is not caused by a step.
"""

import contextlib
import mmap
import os
import sys
from pathlib import Path
from typing import NamedTuple

from durably.engine.core.calls import CallData

_RECORD_BYTES = 160
_FREE = b" " * _RECORD_BYTES
_GROWTH = 1024
"""The number of records by which the file grows."""
_LOST = "lost"
"""Marker instead of a process: the call is lost; its run has not been updated."""


class CallKey(NamedTuple):
    """A call as its run identifies it, in any generation."""

    run_id: str
    step_id: str
    attempt: int

    @classmethod
    def of(cls, data: CallData) -> "CallKey":
        return cls(data.run_id, data.call.step_id, data.call.attempt)


class InFlightCalls:
    """The running calls, with their file.

    Used by one thread. If the file cannot be written, lost calls do not count as attempts.
    """

    def __init__(self, directory: Path, epoch: int) -> None:
        """Raises ``OSError``."""
        lost = _read_lost(directory, epoch)
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._file = os.open(path_of(directory, epoch), flags, 0o600)
        self._records: mmap.mmap | None = None
        self._free: list[int] = []
        self._size = 0
        self.begin(identity_of(os.getpid()))
        self._lost_at = {key: self.begin(_LOST, key) for key in lost}

    def take_lost(self, key: CallKey) -> bool:
        """Whether the call was lost with its process. Returns true once per call."""
        index = self._lost_at.pop(key, None)
        if index is None:
            return False
        self.end(index)
        return True

    def begin(self, process: str, key: CallKey | None = None) -> int:
        """Record a call before ``process`` gets it. Returns the record's index.

        The first record is the leader's own.
        """
        if self._free:
            index = self._free.pop()
        else:
            index, self._size = self._size, self._size + 1
        text = process if key is None else f"{process} {key.attempt} {key.run_id} {key.step_id}"
        self._write(index, text.encode().ljust(_RECORD_BYTES)[:_RECORD_BYTES])
        return index

    def end(self, index: int) -> None:
        """Remove the record of a call that has ended or was returned."""
        self._write(index, _FREE)
        self._free.append(index)

    def close(self) -> None:
        """Stop recording calls."""
        records, self._records = self._records, None
        if records is not None:
            records.close()
        os.close(self._file)
        self._file = -1

    def _write(self, index: int, record: bytes) -> None:
        """Write to mapped memory.

        A system call would release Python's global lock to other threads.
        """
        at = index * _RECORD_BYTES
        if self._file >= 0 and (self._records is None or at >= len(self._records)):
            self._grow()
        if self._records is not None and at < len(self._records):
            self._records[at : at + _RECORD_BYTES] = record

    def _grow(self) -> None:
        size = 0 if self._records is None else len(self._records)
        with contextlib.suppress(OSError):
            # Write first: a mapped page that a full disk cannot store ends the process (SIGBUS).
            os.pwrite(self._file, _FREE * _GROWTH, size)
            self._records = mmap.mmap(self._file, size + _RECORD_BYTES * _GROWTH)


def path_of(directory: Path, epoch: int) -> Path:
    return directory / f"{epoch}.calls"


def identity_of(process_id: int) -> str:
    """A string that distinguishes a process from a later one with the same id.

    It is empty if the platform cannot distinguish them.
    """
    if sys.platform != "linux":
        with contextlib.suppress(OSError):
            os.kill(process_id, 0)
            return str(process_id)
        return ""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
        if fields[0] != "Z":
            return f"{process_id}:{fields[19]}"
    return ""


def _read_lost(directory: Path, epoch: int) -> set[CallKey]:
    """Calls that ran under earlier leaders and are lost."""
    lost: set[CallKey] = set()
    for path in directory.glob("*.calls"):
        if path.stem.isdecimal() and int(path.stem) < epoch:
            content = path.read_bytes()
            records = [content[at : at + _RECORD_BYTES].split() for at in range(0, len(content), _RECORD_BYTES)]
            leader = records[0][0].decode() if records and records[0] else ""
            lost.update(_key_of(record) for record in records[1:] if len(record) == 4 and _is_lost(record[0], leader))
    return lost


def _is_lost(process: bytes, leader: str) -> bool:
    identity = process.decode()
    return identity in (_LOST, leader) or identity != identity_of(int(identity.partition(":")[0] or 0))


def _key_of(record: list[bytes]) -> CallKey:
    _, attempt, run_id, step_id = (field.decode() for field in record)
    return CallKey(run_id, step_id, int(attempt))
