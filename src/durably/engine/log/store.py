"""The interface of places that keep a commit log, with what both kinds share."""

import abc
import hashlib
from collections.abc import Iterable, Iterator

import msgspec

from durably.protocol.engine_errors import EngineError, LogDamagedError

ANSWER_SECONDS = 10.0


class LogUnavailableError(EngineError):
    """The store cannot be reached now. ``is_unclear``: the request may have been carried out."""

    def __init__(self, message: str, *, is_unclear: bool) -> None:
        super().__init__(message)
        self.is_unclear = is_unclear


class LogConflictError(EngineError):
    """The log has another entry with this number, or another process leads."""


class LogRecord(msgspec.Struct, frozen=True):
    """What never changes about a log.

    - ``database_id``: The database whose commits it has.
    - ``key``: The key with which processes on several machines authenticate to each other.
    - ``from_snapshot``: The log began with a database that existed, so its first snapshot has number 0.
    """

    database_id: str
    key: str
    from_snapshot: bool


class LeaderRecord(msgspec.Struct, frozen=True):
    """The process that leads, and the rest of its lease by the store's clock.

    - ``node``: A random id of the process.
    - ``address``: The address of its HTTP API for processes on other machines, empty if it has none.
    - ``remaining``: Seconds until its lease ends; negative afterwards.
    """

    node: str
    address: str
    remaining: float


class _Manifest(msgspec.Struct, frozen=True):
    parts: int
    sha256: str


class LogStore(abc.ABC):
    """A commit log in a store. All methods block, and may be called in any thread, by one thread at a time.

    They raise ``LogUnavailableError`` if the store cannot be reached, or has not answered for ``ANSWER_SECONDS``.
    """

    name: str
    """The store for messages, without secrets."""
    poll_seconds: float
    """Seconds between two looks of a standby."""
    local_host: str = "127.0.0.1"
    """The address of this machine towards the store, once it was reached."""

    @abc.abstractmethod
    def open(self) -> LogRecord | None:
        """The log's record, or ``None`` if there is no log. Prepares the store if necessary."""

    @abc.abstractmethod
    def create(self, record: LogRecord) -> LogRecord:
        """Create the log. Returns the record of the process that was first."""

    @abc.abstractmethod
    def append(self, sequence: int, payload: bytes, node: str) -> None:
        """Append an entry as the leader ``node``.

        Raises ``LogConflictError`` if the number is taken or another process leads.
        """

    @abc.abstractmethod
    def claim(self, sequence: int, payload: bytes, leader: LeaderRecord) -> None:
        """Append an entry and become the leader. ``leader.remaining`` is the lease.

        Raises ``LogConflictError`` if the log does not end before this number, or the lease of another process has not
        ended, and ``LogRefusedError`` if the store cannot keep two processes from appending one number.
        """

    @abc.abstractmethod
    def renew(self, leader: LeaderRecord) -> bool:
        """Renew the leader's lease. Returns whether the process still leads."""

    @abc.abstractmethod
    def release(self, node: str) -> None:
        """End the lease of ``node``, if it leads."""

    @abc.abstractmethod
    def leader(self) -> LeaderRecord | None:
        """The process that leads, or led last."""

    @abc.abstractmethod
    def read(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        """The next entries after a number, in order, at most ``limit``."""

    @abc.abstractmethod
    def last(self) -> int:
        """The number of the last entry; 0 if there is none."""

    @abc.abstractmethod
    def entry_bytes(self, after: int = 0) -> int:
        """Bytes of the entries after a number."""

    @abc.abstractmethod
    def put_part(self, sequence: int, part: int, payload: bytes) -> None:
        """Store a part of a snapshot. Part 0 makes the snapshot complete."""

    @abc.abstractmethod
    def get_part(self, sequence: int, part: int) -> bytes:
        """Read a part of a snapshot. Raises ``LogDamagedError`` if it is missing."""

    @abc.abstractmethod
    def snapshots(self) -> list[tuple[int, float]]:
        """Numbers of the complete snapshots, newest first, and their ages in seconds by the store's clock."""

    def put_snapshot(self, sequence: int, parts: Iterable[bytes]) -> None:
        """Store a snapshot of the database with the entries up to ``sequence``. It exists when all parts do."""
        digest, number = hashlib.sha256(), 0
        for number, payload in enumerate(parts, start=1):
            digest.update(payload)
            self.put_part(sequence, number, payload)
        self.put_part(sequence, 0, msgspec.json.encode(_Manifest(number, digest.hexdigest())))

    def read_snapshot(self, sequence: int) -> Iterator[bytes]:
        """The parts of a snapshot. Raises ``LogDamagedError`` if one is missing or differs."""
        manifest = msgspec.json.decode(self.get_part(sequence, 0), type=_Manifest)
        digest = hashlib.sha256()
        for part in range(1, manifest.parts + 1):
            payload = self.get_part(sequence, part)
            digest.update(payload)
            yield payload
        if digest.hexdigest() != manifest.sha256:
            raise LogDamagedError(f"snapshot {sequence} of {self.name} is damaged: its checksum differs")

    @abc.abstractmethod
    def trim(self, before: int) -> None:
        """Delete entries and snapshots with lower numbers."""

    def descriptors(self) -> list[int]:
        """Descriptors that a forked child must close: the store would think that this process lives."""
        return []

    @abc.abstractmethod
    def interrupt(self) -> None:
        """Break a request that has not been answered, if possible, in any thread.

        It then raises ``LogUnavailableError``.
        """

    @abc.abstractmethod
    def close(self) -> None: ...
