"""The commit log in object storage with S3's API: an object for each entry, made by conditional writes.

    PREFIX/log.json                        the log's record
    PREFIX/leader.json                     the leader, its lease, and by the object's time the last renewal
    PREFIX/entries/NUMBER                  an entry
    PREFIX/snapshots/NUMBER/PART           a part of a snapshot

The store must support ``If-None-Match: *`` and ``If-Match`` in ``PutObject``, as Amazon S3, MinIO and Cloudflare R2 do.
Credentials, region and endpoint are those of boto3 (``AWS_ENDPOINT_URL``, ...).
"""

import datetime as dt
import functools
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from durably.protocol.engine_errors import LogDamagedError, LogRefusedError

from .store import ANSWER_SECONDS, LeaderRecord, LogConflictError, LogRecord, LogStore, LogUnavailableError

T = TypeVar("T")

_ENTRIES, _SNAPSHOTS, _RECORD, _LEADER = "entries/", "snapshots/", "log.json", "leader.json"
_KEPT = dt.timedelta(hours=1)
"""Age before which no entry is deleted. It is longer than ``_CONFIRMED``; see ``append``."""
_CONFIRMED = dt.timedelta(minutes=1)
_ENDED = -10.0
"""A lease that has ended."""
_RESOLUTION = 1.0
"""Seconds: the resolution of the store's times."""
_READ_TOGETHER = 16
_SIZES_SECONDS = 60.0
_MISSING, _REFUSED, _BUSY = 404, 412, 409


class _Leader(msgspec.Struct, frozen=True):
    node: str
    address: str
    lease: float


class _Object(msgspec.Struct, frozen=True):
    """An object, and the store's time at which it answered."""

    body: bytes
    tag: str
    written_at: dt.datetime
    read_at: dt.datetime

    @property
    def leader(self) -> _Leader:
        return msgspec.json.decode(self.body, type=_Leader)


class S3Log(LogStore):
    """A log below ``s3://bucket/prefix``."""

    poll_seconds = 0.2

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._bucket, prefix = parts.netloc, parts.path.strip("/")
        if not self._bucket or not prefix or "@" in url or parts.query:
            raise LogRefusedError(
                "the URL of a commit log in object storage must be s3://bucket/prefix, and no more: credentials, "
                "region and endpoint are those of boto3 (AWS_ACCESS_KEY_ID, AWS_DEFAULT_REGION, AWS_ENDPOINT_URL, ...)"
            )
        self._prefix = f"{prefix}/"
        self.name = f"the log {url}"
        self._confirmed = dt.datetime.fromtimestamp(0, dt.UTC)
        """The store's time at which this process led for certain."""
        self._own_record: tuple[str, str] = "", ""
        """The node of the leader's record that this process wrote last, and the record's tag."""
        self._sizes: tuple[float, int] = (float("-inf"), 0)

    @functools.cached_property
    def _s3(self) -> Any:
        # The caller repeats requests, because it knows which may be repeated.
        config = Config(
            connect_timeout=5,
            read_timeout=ANSWER_SECONDS,
            retries={"total_max_attempts": 1},
            max_pool_connections=_READ_TOGETHER,
        )
        return Session().client("s3", config=config)  # boto3's own session is for one thread.

    def _call(self, request: Callable[..., T], *accepted: int, **arguments: Any) -> T | int:
        """The response, or its status if that is one of ``accepted``."""
        try:
            return request(Bucket=self._bucket, **arguments)
        except ClientError as error:
            status: int = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status in accepted:
                return status
            text = str(error)
            raise LogUnavailableError(
                f"{self.name} cannot be used now: {text}", is_unclear=status >= 500 or status == _BUSY
            ) from None
        except BotoCoreError as error:
            raise LogUnavailableError(f"{self.name} cannot be reached: {error}", is_unclear=True) from None

    def _get(self, key: str) -> _Object | None:
        response: Any = self._call(self._s3.get_object, _MISSING, Key=self._prefix + key)
        if response == _MISSING:
            return None
        try:
            body = response["Body"].read()
        except BotoCoreError as error:
            raise LogUnavailableError(f"{self.name} cannot be reached: {error}", is_unclear=False) from None
        return _Object(body, response["ETag"], response["LastModified"], _date(response))

    def _get_body(self, key: str) -> bytes | None:
        found = self._get(key)
        return None if found is None else found.body

    def _list(self, folder: str, after: str = "", most: int = 1_000_000_000) -> Iterator[Any]:
        token: dict[str, str] = {}
        found = 0
        while found < most:
            page: Any = self._call(
                self._s3.list_objects_v2,
                Prefix=self._prefix + folder,
                StartAfter=self._prefix + folder + after,
                MaxKeys=min(1000, most - found),
                **token,
            )
            for each in page.get("Contents", ()):
                found += 1
                yield each
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    # the record

    def open(self) -> LogRecord | None:
        host = urlsplit(self._s3.meta.endpoint_url)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # Sends nothing.
            try:
                probe.connect((host.hostname or "", host.port or 443))
                self.local_host = probe.getsockname()[0]
            except OSError:
                pass
        body = self._get_body(_RECORD)
        return None if body is None else msgspec.json.decode(body, type=LogRecord)

    def create(self, record: LogRecord) -> LogRecord:
        self._call(
            self._s3.put_object,
            _REFUSED,
            Key=self._prefix + _RECORD,
            Body=msgspec.json.encode(record),
            IfNoneMatch="*",
        )
        stored = self.open()
        assert stored is not None
        return stored

    # entries

    def append(self, sequence: int, payload: bytes, node: str) -> None:
        """Entries of the last hour are never deleted.

        So the number of a leader that was replaced is taken, unless it was replaced more than an hour ago. After a
        minute without it, this makes sure that ``node`` leads.
        """
        stored_at = self._put_entry(sequence, payload)
        if stored_at - self._confirmed > _CONFIRMED:
            leader = self.leader()
            if leader is None or leader.node != node:
                raise LogConflictError(f"another process leads {self.name}")
            self._confirmed = stored_at

    def _put_entry(self, sequence: int, payload: bytes) -> dt.datetime:
        """Returns the store's time."""
        key = f"{self._prefix}{_ENTRIES}{sequence:020}"
        response: Any = self._call(self._s3.put_object, _REFUSED, Key=key, Body=payload, IfNoneMatch="*")
        if response == _REFUSED:
            raise LogConflictError(f"{self.name} has an entry {sequence} already")
        return _date(response)

    def claim(self, sequence: int, payload: bytes, leader: LeaderRecord) -> None:
        found = self._get(_LEADER)
        former = "" if found is None else found.leader.node
        if found is not None and former != leader.node and _remaining(found) >= 0:
            raise LogConflictError(f"another process leads {self.name}")
        if any(self._list(_ENTRIES, f"{sequence:020}", 1)):
            raise LogConflictError(f"{self.name} has entries after {sequence}")
        self._put_entry(sequence, payload)
        try:
            self._put_entry(sequence, payload)
        except LogConflictError:
            pass
        else:
            raise LogRefusedError(
                f"{self.name} is in a store that does not support conditional writes (If-None-Match: *), so two "
                "processes could lead at a time: use one that does, such as Amazon S3, MinIO or Cloudflare R2"
            )
        record = _Leader(leader.node, leader.address, leader.remaining)
        while not self._put_leader(record, None if found is None else found.tag):
            found = self._get(_LEADER)
            if found is not None and found.leader.node != former:  # The former leader may have renewed its lease.
                raise LogConflictError(f"another process leads {self.name}")

    def read(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        first = self._get_body(f"{_ENTRIES}{after + 1:020}")
        if first is None and (after or not any(self._list(_ENTRIES, most=1))):
            return []
        if limit == 1 and first is not None:
            return [(after + 1, first)]
        keys = [each["Key"].removeprefix(self._prefix) for each in self._list(_ENTRIES, f"{after:020}", limit)]
        with ThreadPoolExecutor(_READ_TOGETHER) as threads:
            bodies = list(threads.map(self._get_body, keys))
        return [
            (int(key.removeprefix(_ENTRIES)), body) for key, body in zip(keys, bodies, strict=True) if body is not None
        ]

    def last(self) -> int:
        last = 0
        for each in self._list(_ENTRIES):
            last = int(each["Key"].rpartition("/")[2])
        return last

    def entry_bytes(self, after: int = 0) -> int:
        """All entries are counted at most once a minute."""
        if after:
            return sum(each["Size"] for each in self._list(_ENTRIES, f"{after:020}"))
        counted_at, size = self._sizes
        if time.monotonic() - counted_at > _SIZES_SECONDS:
            size = sum(each["Size"] for each in self._list(_ENTRIES))
            self._sizes = (time.monotonic(), size)
        return size

    # the leader

    def renew(self, leader: LeaderRecord) -> bool:
        record = _Leader(leader.node, leader.address, leader.remaining)
        node, tag = self._own_record
        if node == leader.node and self._put_leader(record, tag):
            return True
        found = self._get(_LEADER)
        return found is not None and found.leader.node == leader.node and self._put_leader(record, found.tag)

    def _put_leader(self, record: _Leader, tag: str | None) -> bool:
        """Replace the record, only if it is still the one of the tag, or still missing; returns whether it was."""
        response: Any = self._call(
            self._s3.put_object,
            _REFUSED,
            Key=self._prefix + _LEADER,
            Body=msgspec.json.encode(record),
            **({"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}),
        )
        if response == _REFUSED:
            return False
        self._own_record = record.node, response["ETag"]
        self._confirmed = max(self._confirmed, _date(response))
        return True

    def release(self, node: str) -> None:
        found = self._get(_LEADER)
        if found is not None and found.leader.node == node:
            self._put_leader(msgspec.structs.replace(found.leader, lease=_ENDED), found.tag)

    def leader(self) -> LeaderRecord | None:
        found = self._get(_LEADER)
        return None if found is None else LeaderRecord(found.leader.node, found.leader.address, _remaining(found))

    # snapshots

    def put_part(self, sequence: int, part: int, payload: bytes) -> None:
        key = f"{self._prefix}{_SNAPSHOTS}{sequence:020}/{part:06}"
        self._call(self._s3.put_object, Key=key, Body=payload)

    def get_part(self, sequence: int, part: int) -> bytes:
        body = self._get_body(f"{_SNAPSHOTS}{sequence:020}/{part:06}")
        if body is None:
            raise LogDamagedError(f"part {part} of snapshot {sequence} of {self.name} is missing")
        return body

    def snapshots(self) -> list[tuple[int, float]]:
        page = self._call(self._s3.list_objects_v2, Prefix=self._prefix + _SNAPSHOTS, Delimiter="/")
        assert not isinstance(page, int)
        numbers = [int(each["Prefix"].rstrip("/").rpartition("/")[2]) for each in page.get("CommonPrefixes", ())]
        found = []
        for number in sorted(numbers, reverse=True):
            manifest = self._get(f"{_SNAPSHOTS}{number:020}/{0:06}")
            if manifest is not None:
                found.append((number, (manifest.read_at - manifest.written_at).total_seconds()))
        return found

    def trim(self, before: int) -> None:
        for folder in (_ENTRIES, _SNAPSHOTS):
            old = []
            for each in self._list(folder):
                if int(each["Key"].removeprefix(self._prefix + folder).partition("/")[0]) >= before:
                    break
                old.append(each)
            record = self._get(_RECORD)
            if record is None:
                return
            keys = [{"Key": each["Key"]} for each in old if record.read_at - each["LastModified"] > _KEPT]
            for start in range(0, len(keys), 1000):
                self._call(self._s3.delete_objects, Delete={"Objects": keys[start : start + 1000], "Quiet": True})

    def interrupt(self) -> None:
        """Nothing: each request has a limit of time."""

    def close(self) -> None:
        if (client := vars(self).pop("_s3", None)) is not None:
            client.close()


def _remaining(found: _Object) -> float:
    """Seconds until the lease of the leader's record ends."""
    return found.leader.lease + _RESOLUTION - (found.read_at - found.written_at).total_seconds()


def _date(response: Any) -> dt.datetime:
    """The store's time at which it answered."""
    return parsedate_to_datetime(response["ResponseMetadata"]["HTTPHeaders"]["date"])
