"""The calls under way, in a file that the next owner reads.

A call in a process that has died, or in an owner that was silent, uses up an attempt. So a step that kills its process
does not run forever. The file is never flushed to disk: if a machine loses power, the steps are not the cause.
"""

import contextlib
import mmap
import os
import sys
from pathlib import Path
from typing import NamedTuple

from durably.engine.core.call_body import CallData

_RECORD_BYTES = 160
_FREE = b" " * _RECORD_BYTES
_GROWTH = 1024
"""The number of records by which the file grows."""
_LOST = "lost"
"""Instead of a process: the call is lost, and its run does not know it yet."""


class CallKey(NamedTuple):
    """A call as its run identifies it, in any generation."""

    run_id: str
    step_id: str
    attempt: int

    @classmethod
    def of(cls, data: CallData) -> "CallKey":
        return cls(data.run_id, data.call.step_id, data.call.attempt)


class InFlightCalls:
    """Used by one thread. If the file cannot be written, lost calls are not counted as attempts."""

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
        """Whether the call was lost with its process. True only once for each call."""
        slot = self._lost_at.pop(key, None)
        if slot is None:
            return False
        self.end(slot)
        return True

    def begin(self, process: str, key: CallKey | None = None) -> int:
        """Note a call before ``process`` gets it; the first record is the owner's own."""
        if self._free:
            slot = self._free.pop()
        else:
            slot, self._size = self._size, self._size + 1
        text = process if key is None else f"{process} {key.attempt} {key.run_id} {key.step_id}"
        self._write(slot, text.encode().ljust(_RECORD_BYTES)[:_RECORD_BYTES])
        return slot

    def end(self, slot: int) -> None:
        """The call has ended, or was given back."""
        self._write(slot, _FREE)
        self._free.append(slot)

    def close(self) -> None:
        """Stop noting calls that end later."""
        records, self._records = self._records, None
        if records is not None:
            records.close()
        os.close(self._file)
        self._file = -1

    def _write(self, slot: int, record: bytes) -> None:
        """In memory that is mapped: a system call would let other threads have Python's global lock."""
        at = slot * _RECORD_BYTES
        if self._file >= 0 and (self._records is None or at >= len(self._records)):
            self._grow()
        if self._records is not None and at < len(self._records):
            self._records[at : at + _RECORD_BYTES] = record

    def _grow(self) -> None:
        size = 0 if self._records is None else len(self._records)
        with contextlib.suppress(OSError):
            # Written first: to map a page that a full disk cannot store would end the process.
            os.pwrite(self._file, _FREE * _GROWTH, size)
            self._records = mmap.mmap(self._file, size + _RECORD_BYTES * _GROWTH)


def path_of(directory: Path, epoch: int) -> Path:
    return directory / f"{epoch}.calls"


def identity_of(process_id: int) -> str:
    """Distinguishes a process from a later one with the same id; empty if the platform cannot."""
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
    """Calls that earlier owners have left behind."""
    lost: set[CallKey] = set()
    for path in directory.glob("*.calls"):
        if path.stem.isdecimal() and int(path.stem) < epoch:
            content = path.read_bytes()
            records = [content[at : at + _RECORD_BYTES].split() for at in range(0, len(content), _RECORD_BYTES)]
            owner = records[0][0].decode() if records and records[0] else ""
            lost.update(_key_of(record) for record in records[1:] if len(record) == 4 and _is_lost(record[0], owner))
    return lost


def _is_lost(process: bytes, owner: str) -> bool:
    identity = process.decode()
    return identity in (_LOST, owner) or identity != identity_of(int(identity.partition(":")[0] or 0))


def _key_of(record: list[bytes]) -> CallKey:
    _, attempt, run_id, step_id = (field.decode() for field in record)
    return CallKey(run_id, step_id, int(attempt))
